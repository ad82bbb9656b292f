"""Unlearning methods: the losses that make a model forget, each as its paper defines it."""
