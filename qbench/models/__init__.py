"""Transformers with and without residual connections."""
