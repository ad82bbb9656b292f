"""Remediations: unlearning the original again by a method that survives quantization, and the audit that proves it."""
