"""A model's linear layers: which of them a precision quantizes, and the grids that quantized weights lie on."""
