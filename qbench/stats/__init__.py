"""Closed forms and intervals; no tensors here."""
