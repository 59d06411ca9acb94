"""Records in, static files out."""
