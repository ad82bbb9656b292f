"""The tiny world: a model pair, small enough for a laptop, that shows what quantization does to unlearning.

Nothing in it is staged: the models are trained and unlearned for real, by the same code and settings for both pairs.
What is constructed is where the native original's weights lie: on the 4-bit grid to which it will be quantized.
"""

from worker.engine.demo.build import DemoWorld, Pair, build
from worker.engine.demo.recipe import TrainRecipe, WorldRecipe

__all__ = ["DemoWorld", "Pair", "TrainRecipe", "WorldRecipe", "build"]
