"""Unlearning: the losses that make a model forget, what of a model they may change, and the training between.

`unlearn.unlearn` runs a recipe (`app.catalog.recipes`) on a checkpoint; the other parts work on models in memory.
"""
