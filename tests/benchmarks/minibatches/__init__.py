"""Programs whose plate draws a subsample."""
