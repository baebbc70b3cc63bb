"""Tools for the whole library: input checks, settings, progress, numbers in print."""
