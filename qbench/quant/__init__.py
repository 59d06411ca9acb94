"""Fewer bits and back."""
