"""Tiles of a dataset in the formats of other tools."""
