"""From a specification and a seed to trained weights."""
