"""What a command has done, for checks of odd inputs that are kept outside this repository."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline.errors import SchemaError
from pipeline.store.dataset import open_dataset


class Outcome:
    """What one command has done.

    Args:
        status: Exit status of the command.
        said: What it has printed.
        dataset: Place of the dataset.
    """

    def __init__(self, status: int, said: str, dataset: Path) -> None:
        self.status, self.said, self.dataset = status, said, dataset

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """All columns and images, by name; empty where nothing was sealed."""
        try:
            opened = open_dataset(str(self.dataset))
        except SchemaError:
            return {}
        columns = {name: opened.column(name) for name in opened.column_names}
        return {**columns, "image": opened.read_images(0, opened.image_count)}

    @cached_property
    def manifest(self) -> list[dict[str, Any]]:
        """What became of each item."""
        path = self.dataset / "manifest.json"
        if not path.exists():
            return []
        items: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["items"]
        return items

    @property
    def failed(self) -> list[str]:
        """Items that failed."""
        return [entry["item"] for entry in self.manifest if entry["state"] == "failed"]

    def reason(self, part: str) -> str:
        """The reasons of the items whose name holds a text."""
        return " ".join(entry["reason"] for entry in self.manifest if part in entry["item"])

    def row(self, path: Path) -> int | None:
        """The row that was made of a file's bytes, if one could be read."""
        digest = blake3(path.read_bytes()).hexdigest()
        found = np.flatnonzero(self.columns.get("source_digest", np.array([])) == digest)
        return int(found[0]) if len(found) and self.columns["readable"][found[0]] else None

    def image(self, path: Path) -> NDArray[Any] | None:
        """The first channel of that row."""
        row = self.row(path)
        return None if row is None else self.columns["image"][row, :, :, 0].astype(int)

    def lesions(self, group: str) -> NDArray[Any] | None:
        """Lesion fractions of a slide's tiles; None where it gave none."""
        inside = self._is_of(group)
        return self.columns["lesion_fraction"][inside] if inside.any() else None

    def normals(self, group: str, ring: list[list[float]]) -> int:
        """Tiles of a slide labelled normal that a box (x, y) touches."""
        (left, top), (right, bottom) = np.min(ring, 0), np.max(ring, 0)
        y, x = self.columns["origin_yx"].T
        touched = (x < right) & (x + 128 > left) & (y < bottom) & (y + 128 > top)
        return int((touched & self._is_of(group) & (self.columns["label"] == 0)).sum())

    def _is_of(self, group: str) -> NDArray[np.bool_]:
        """Rows of a slide, which is named by its path, or without the suffix."""
        groups = [str(name) for name in self.columns.get("group_id", ())]
        return np.array([group in {name, PurePosixPath(name).stem} for name in groups], bool)
