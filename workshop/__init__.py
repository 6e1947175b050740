"""What the method needs and its reader does not: one subject a file, each for a root file."""
