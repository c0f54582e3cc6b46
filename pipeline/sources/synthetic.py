"""Synthetic scans in the official layouts, slides and radiographs, for the demo and the tests."""

from __future__ import annotations

from pipeline.sources.synthetic_slides import write_slides
from pipeline.sources.synthetic_xrays import write_xrays

__all__ = ["write_slides", "write_xrays"]
