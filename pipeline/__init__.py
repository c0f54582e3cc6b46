"""Raw scans to sealed Zarr datasets; knows nothing of models.

Examples:
    >>> import tempfile
    >>> from pipeline import ImageSettings, ingest_images, list_images, map_serially, open_dataset
    >>> from pipeline.synthetic import write_tiles
    >>> folder = tempfile.mkdtemp()
    >>> write_tiles(f"{folder}/scans", slides=3, tiles_per_slide=8)
    >>> listing = list_images(f"{folder}/scans")
    >>> settings = ImageSettings(modality="histology", size_px=32)
    >>> report = ingest_images(f"{folder}/a.zarr", listing, settings, map_serially, source="tiles")
    >>> dataset = open_dataset(f"{folder}/a.zarr")
    >>> dataset.image_shape
    (32, 32, 3)
    >>> dataset.images("label == 0")[:2].shape
    (2, 32, 32, 3)
    >>> sorted(dataset.to_frame()["label"].unique().tolist())
    [0, 1]
"""

import lazy_loader

# `__init__.pyi` lists the names once, for type checkers and for this: each module is imported
# when the first of its names is asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
