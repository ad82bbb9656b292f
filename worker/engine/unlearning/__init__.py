"""Unlearning: the losses that make a model forget, what of a model they may change, and the training between.

`unlearn.unlearn` runs a recipe (`app.catalog.methods`) on a checkpoint; the other parts work on models in memory.
"""
