"""Surveys slides: tissue, tiles, lesions and stains of each."""
