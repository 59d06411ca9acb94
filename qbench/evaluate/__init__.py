"""How good a model is, quantized or not."""
