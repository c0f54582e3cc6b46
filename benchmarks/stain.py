"""How much faster stains are normalised when they are sought once per slide.

The reference for Vahadane's method is the published practice: dictionary learning (SPAMS) on every
tile, as StainTools and the public code of the paper that Normscope follows do. Macenko's method is
compared with the fastest peer that installs. Every method normalises tiles of one slide to the
same target; peers run in an environment of their own, with all the cores that they take, ours on
one. The tiles are 768 px at 40x, the published size; a peer's rate is that of a few of them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Comparison, Method, Outcome, compare, run_benchmark
from benchmarks.peers import make_environment, run_peer
from pipeline.slides.quality import QUALITY_COLUMNS, measure_quality
from pipeline.slides.readers.openslide_reader import OpenSlideReader
from pipeline.slides.stain.fit import fit_stains
from pipeline.slides.stain.normalise import REFERENCE_STAINS, StainMethod, normalise_stains
from pipeline.synthetic.slides import paint_slide

TILE_PX = 768
ROWS, COLUMNS = 12, 8  # tiles of the slide; they overlap where it is small
MAX_BLANK_FRACTION = 0.5
SLIDE = Path(__file__).parents[2] / "shared" / "data" / "slides" / "cmu-1-small-region.svs"
SCRIPT = Path(__file__).with_name("stain_peer.py")
OPENCV = "opencv-python-headless==5.0.0.93"

PER_SLIDE, PER_TILE = "Normscope, fit per slide", "Normscope, fit per tile"
REFERENCE = "StainTools (SPAMS), per tile"


@dataclass(frozen=True)
class Peer:
    """Another project's way.

    Args:
        library: Name of the library in `stain_peer.py`.
        requirements: Packages of its environment, with versions.
    """

    library: str
    requirements: tuple[str, ...]


STAINTOOLS = Peer("staintools", ("staintools==2.1.2", "spams-bin==2.6.14", OPENCV))
TIATOOLBOX = Peer("tiatoolbox", ("tiatoolbox==2.1.3", OPENCV))
TORCHSTAIN = {
    f"torchstain, {backend}": Peer(f"torchstain-{backend}", ("torchstain==1.4.1", "torch==2.13.0"))
    for backend in ("numpy", "torch")
}


@dataclass(frozen=True)
class Workplace:
    """What all methods work on.

    Args:
        folder: Folder for tiles that peers read and write.
        tiles: uint8 (n, y, x, 3), all tiles of the slide.
        few: Tiles that are normalised one by one, uint8 (n, y, x, 3).
    """

    folder: Path
    tiles: NDArray[np.uint8]
    few: NDArray[np.uint8]

    def save(self) -> None:
        """Lay out what the peers read."""
        np.save(self.folder / "tiles.npy", self.few)
        target = {
            "matrix": REFERENCE_STAINS.matrix.tolist(),
            "max_concentrations": REFERENCE_STAINS.max_concentrations,
        }
        (self.folder / "target.json").write_text(json.dumps(target))

    def run_per_slide(self, method: StainMethod) -> None:
        """Fit once, normalise every tile."""
        normalise_stains(self.tiles, fit_stains(self.tiles, method))

    def normalise_each(self, method: StainMethod) -> NDArray[np.uint8]:
        """Fit every tile for itself, on all of its pixels as the peers do."""
        fit = partial(fit_stains, method=method, max_pixels=TILE_PX**2)
        return np.stack([normalise_stains(tile, fit(tile)) for tile in self.few])

    def run_per_tile(self, method: StainMethod) -> None:
        """As above, the pictures thrown away."""
        self.normalise_each(method)

    def run_peer(self, peer: Peer, method: StainMethod) -> float:
        """Seconds that a peer takes."""
        files = ("tiles.npy", f"{peer.library}-{method}.npy", "target.json")
        paths = [str(self.folder / name) for name in files]
        python = make_environment(peer.requirements)
        return float(run_peer(python, SCRIPT, peer.library, method, *paths)["seconds"])


def read_tiles() -> tuple[NDArray[np.uint8], str]:
    """Tissue tiles on a grid over the real slide, or over a painted one where that is absent."""
    if SLIDE.exists():
        with OpenSlideReader(SLIDE, item=SLIDE.name) as slide:
            shape_yx = slide.level_shapes_yx[0]
            pixels, name = slide.read_region_yx((0, 0), 0, shape_yx), SLIDE.name
    else:
        pixels, _ = paint_slide(np.random.default_rng(0), (3072, 2304), 1)
        name = "a painted slide"
    starts_y = np.linspace(0, pixels.shape[0] - TILE_PX, ROWS, dtype=int)
    starts_x = np.linspace(0, pixels.shape[1] - TILE_PX, COLUMNS, dtype=int)
    origins = [(y, x) for y in starts_y for x in starts_x]
    tiles = np.stack([pixels[y : y + TILE_PX, x : x + TILE_PX] for y, x in origins])
    blank_fraction = measure_quality(tiles)[:, QUALITY_COLUMNS.index("blank_fraction")]
    return tiles[blank_fraction < MAX_BLANK_FRACTION], name


def measure(quick: bool) -> Outcome:
    """Both methods, each against its peers."""
    tiles, name = read_tiles()
    few_count, rounds = (3, 3) if quick else (5, 5)
    with tempfile.TemporaryDirectory(prefix="normscope-benchmark-") as folder:
        few = tiles[np.linspace(0, len(tiles) - 1, few_count, dtype=int)]
        workplace = Workplace(Path(folder), tiles, few)
        workplace.save()
        return _measure_in(workplace, name, rounds, quick)


def _measure_in(workplace: Workplace, slide: str, rounds: int, quick: bool) -> Outcome:
    peers = {"StainTools": STAINTOOLS, **TORCHSTAIN}
    notes = [f"{len(workplace.tiles)} tiles of {slide}; {len(workplace.few)} of them tile by tile."]
    vahadane_peers = {REFERENCE: STAINTOOLS}
    if quick:
        notes.append(
            "TIAToolbox, whose environment takes minutes to make, is left out of the quick run."
        )
    else:
        peers["TIAToolbox"] = TIATOOLBOX
        vahadane_peers["TIAToolbox (scikit-learn)"] = TIATOOLBOX
    vahadane = _compare(workplace, "vahadane", vahadane_peers, rounds)
    macenko = _compare(workplace, "macenko", peers, rounds)
    best = max(peers, key=macenko.rate)
    notes.append(f"The fastest peer for Macenko is {best}.")
    metrics = {
        "vahadane_vs_reference": vahadane.ratio(PER_SLIDE, REFERENCE),
        "vahadane_fit_per_tile_vs_reference": vahadane.ratio(PER_TILE, REFERENCE),
        "macenko_vs_best_peer": macenko.ratio(PER_SLIDE, best),
        "macenko_fit_per_tile_vs_best_peer": macenko.ratio(PER_TILE, best),
        **_measure_difference(workplace, "vahadane", STAINTOOLS),
        **_measure_difference(workplace, "macenko", peers[best]),
    }
    notes.append(
        "Differences are in 8-bit levels from the reference (or best peer): of the same fit per "
        "tile, and of the fit per slide, whose purpose is not to follow each tile. SPAMS stops "
        "after one second, short of the minimum that ours reaches; peers scale by the 99th "
        "percentile of all pixels, glass included, ours by that of tissue."
    )
    return Outcome((vahadane, macenko), metrics, notes)


def _compare(
    workplace: Workplace,
    method: StainMethod,
    peers: Mapping[str, Peer],
    rounds: int,
) -> Comparison:
    ours = [
        Method(PER_SLIDE, partial(workplace.run_per_slide, method), len(workplace.tiles)),
        Method(PER_TILE, partial(workplace.run_per_tile, method), len(workplace.few)),
    ]
    theirs = [
        Method(name, partial(workplace.run_peer, peer, method), len(workplace.few))
        for name, peer in peers.items()
    ]
    title = f"{method.title()}, tiles of {TILE_PX} px normalised"
    return compare(title, [*theirs, *ours], unit="tiles/s", rounds=rounds)


def _measure_difference(workplace: Workplace, method: StainMethod, peer: Peer) -> dict[str, float]:
    theirs = np.load(workplace.folder / f"{peer.library}-{method}.npy")
    per_slide = normalise_stains(workplace.few, fit_stains(workplace.tiles, method))
    figures = {}
    for name, ours in (
        ("fit_per_tile", workplace.normalise_each(method)),
        ("fit_per_slide", per_slide),
    ):
        difference = np.abs(np.subtract(ours, theirs, dtype=np.int16))
        figures[f"{method}_{name}_mean_difference"] = float(difference.mean())
        figures[f"{method}_{name}_p99_difference"] = float(np.percentile(difference, 99))
    return figures


if __name__ == "__main__":
    run_benchmark("stain", measure)
