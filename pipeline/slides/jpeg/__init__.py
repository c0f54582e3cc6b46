"""Tiled JPEG slides, decoded tile by tile where that is proved equal to OpenSlide."""
