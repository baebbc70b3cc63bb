"""Small extensions of Sphinx that the pages need."""
