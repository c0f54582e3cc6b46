"""Run one peer's stain normalisation, in its own environment: see `benchmarks.stain`.

`python stain_peer.py LIBRARY METHOD TILES.npy OUTPUT.npy TARGET.json` normalises tile by tile, as
the library is meant to be used: stains are sought on every tile. TARGET holds the `matrix` (2, 3)
and `max_concentrations` (2) to normalise to. Prints `{"seconds": ...}` for all tiles,
after one call to warm up.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tile = NDArray[np.uint8]


def load(library: str, method: str, target: Any) -> Callable[[Tile], Tile]:
    """A function that normalises one tile."""
    matrix, maxima = np.array(target["matrix"]), np.array(target["max_concentrations"])
    if library.startswith("torchstain"):
        return _load_torchstain(library.removeprefix("torchstain-"), matrix, maxima)
    if library == "staintools":
        normaliser = importlib.import_module("staintools").StainNormalizer(method)
    else:
        normaliser = importlib.import_module("tiatoolbox.tools.stainnorm").get_normalizer(method)
    normaliser.stain_matrix_target, normaliser.maxC_target = matrix, maxima.reshape(1, 2)
    # Both write 1 where a tile holds 0.
    return lambda tile: np.asarray(normaliser.transform(tile.copy()))


def _load_torchstain(
    backend: str, matrix: NDArray[np.float64], maxima: NDArray[np.float64]
) -> Callable[[Tile], Tile]:
    normalisers = importlib.import_module("torchstain").normalizers
    normaliser = normalisers.MacenkoNormalizer(backend=backend)
    normaliser.HERef, normaliser.maxCRef = matrix.T, maxima
    # White is 255 here, as it is for all others.
    if backend == "numpy":
        return lambda tile: np.asarray(normaliser.normalize(tile, Io=255, stains=False)[0])
    torch = importlib.import_module("torch")
    normaliser.HERef = torch.from_numpy(matrix.T).float()
    normaliser.maxCRef = torch.from_numpy(maxima).float()

    def transform(tile: Tile) -> Tile:
        channels_first = torch.from_numpy(tile).permute(2, 0, 1)
        normalised = normaliser.normalize(channels_first, Io=255, stains=False)[0]
        return np.asarray(normalised.to(torch.uint8))

    return transform


def main(library: str, method: str, tiles_file: str, output_file: str, target_file: str) -> None:
    """Normalise every tile, and say how long that took."""
    transform = load(library, method, json.loads(Path(target_file).read_text()))
    tiles = np.load(tiles_file)
    transform(tiles[0])
    began = time.perf_counter()
    normalised = [transform(tile) for tile in tiles]
    seconds = time.perf_counter() - began
    np.save(output_file, np.stack(normalised))
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
