"""A question, expanded and answered."""
