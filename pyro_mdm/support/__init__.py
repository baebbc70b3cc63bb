"""What all of the library leans on: checks at the door, settings, progress, numbers in print."""
