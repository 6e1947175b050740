"""What the method needs and a reader of the method does not: one subject a file, each naming the root file it serves."""
