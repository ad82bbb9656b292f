"""Remediations: unlearning the original anew by a method that survives quantization, and the audit that proves it."""
