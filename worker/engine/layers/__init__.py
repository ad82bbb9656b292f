"""A model's linear layers: which ones a precision quantizes, and the grids that quantized weights lie on."""
