"""The NIH ChestX-ray14 dataset in its official layout."""
