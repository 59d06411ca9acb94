"""Many submitted runs as a static site: what may enter it, what may be ranked against what, and the pages."""
