"""Images and radiographs in files: decoding, resizing, duplicates, contact sheets."""
