"""What pathologists draw on slides: a module for each form of file, and the groups of outlines."""
