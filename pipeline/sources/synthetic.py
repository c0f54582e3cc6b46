"""Synthetic scans in the official layouts, slides and radiographs, for the demo and the tests."""

from __future__ import annotations

from pipeline.synthetic.slides import write_slides
from pipeline.synthetic.xrays import write_xrays

__all__ = ["write_slides", "write_xrays"]
