"""Run folders and other files of programs, written whole and read again."""
