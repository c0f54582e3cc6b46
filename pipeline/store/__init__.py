"""What a dataset is on disk: its specification, its parts, its layout."""
