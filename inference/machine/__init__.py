"""The machine: its processes, accelerators, signals and threads."""
