"""Numbers about tensors."""
