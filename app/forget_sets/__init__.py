"""Forget sets: MUSE bundles, uploaded or registered."""
