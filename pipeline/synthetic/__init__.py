"""Generators of synthetic scans with planted anomalies, for the demo and the tests."""

from pipeline.synthetic.slides import write_slides
from pipeline.synthetic.tiles import write_tiles
from pipeline.synthetic.xrays import write_xrays

__all__ = ["write_slides", "write_tiles", "write_xrays"]
