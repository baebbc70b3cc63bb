"""Command lines: reading, decisions on what they leave open, and checks for mistakes."""
