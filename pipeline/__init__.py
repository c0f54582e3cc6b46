"""Raw scans to sealed Zarr datasets; knows nothing of models."""
