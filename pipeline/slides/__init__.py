"""Whole-slide images: reading, tissue, annotations, tiling, quality."""
