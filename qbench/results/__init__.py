"""Records: read, written, matched, exported."""
