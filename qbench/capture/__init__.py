"""A model seen from outside."""
