"""Tools of all of the library: checks at the door, settings, progress, numbers in print."""
