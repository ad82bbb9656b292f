"""From the weights alone: where a pair's update lives and what rounding does to it."""
