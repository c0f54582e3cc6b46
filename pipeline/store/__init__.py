"""What a dataset is on disk: its specification, its shards, its layout."""
