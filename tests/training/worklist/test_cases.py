"""Cases of the worklist: names of heatmaps, and which usual images are near."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from pipeline.io import storage
from training.worklist.cases import find_nearest, heatmap_name, remove_stale_heatmaps


def test_file_names_of_heatmaps_are_safe_and_unique() -> None:
    hostile = '../../etc/"pass wd"<script>.png'
    name = heatmap_name(hostile)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert not name.startswith(".")
    assert name != heatmap_name(hostile.replace("/", "_"))
    assert len(heatmap_name("x" * 5000)) < 120
    assert heatmap_name("a", "digest 1") != heatmap_name("a", "digest 2")


def test_only_what_is_named_as_a_heatmap_is_stale() -> None:
    folder, mine = "memory://cases/heatmaps", heatmap_name("slide 1")
    for name in (mine, f".{mine}.a1b2c3d4", "by-somebody.png"):
        storage.write_bytes(f"{folder}/{name}", b"")
    none: Any = SimpleNamespace(rows=[])
    remove_stale_heatmaps("memory://cases", none, cast("Any", None), 3)
    assert [info.url for info in storage.list_objects(folder)] == [f"{folder}/by-somebody.png"]


def test_the_nearest_are_those_at_the_least_angle() -> None:
    angles, others = np.radians([10, 100]), np.radians([0, 95, 160, 30])
    latents, usual = (np.stack([np.cos(it), np.sin(it)], axis=1) for it in (angles, others))
    assert find_nearest(latents, usual, 3).tolist() == [[0, 3, 1], [1, 2, 3]]
    assert find_nearest(latents, usual[:2], 3).shape == (2, 2)
