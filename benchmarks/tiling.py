"""How fast a slide becomes a sealed dataset, beside what merely reading the same tiles takes.

The slide is made for the purpose in Camelyon16's form: a pyramid of JPEG tiles of 512 px, quality
80, half of each chroma axis; painted tissue with grain, laid out several times side by side. Every
method gets the same tiles: 256 px of level 0, side by side, wherever there is tissue. Peers and
OpenSlide only read them, one after the other, with as many threads as they start by themselves;
Normscope finds the tissue, reads, measures quality, hashes, compresses, writes and seals. The
limit is the decode of every JPEG tile that the tiles touch, once, on one core; a limit of another
kind is the disk's, for as many bytes as the tiles have.

`vs_openslide` and `share_of_limit` are Normscope on one core; `vs_best_peer` is Normscope with a
worker on each of two cores, as it comes, and `vs_best_peer_one_core` on one. `disk_vs_best_peer` is
the most that the disk would allow: its rate of writing against that peer's of reading;
`two_workers_limit` is what a second core gains for the bare decode.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness import Comparison, Method, Outcome, compare, run_benchmark
from benchmarks.peers import make_environment, run_command, run_peer
from benchmarks.tiling_libraries import OPENSLIDE_REQUIREMENTS, PEERS
from benchmarks.tiling_run import MPP_UM, tile
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import open_dataset
from pipeline.synthetic.slides import paint_slide

TILE_PX: Final = 256
JPEG_TILE_PX: Final = 512
JPEG_QUALITY: Final = 80
PAINTING_YX: Final = (4096, 8192)
# So many paintings that two workers have as many shards each: 4, and 14 in the whole run.
REPEATS_YX: Final = {True: (7, 2), False: (13, 4)}
LEVELS: Final = 6  # down to about 8 um/px, which tissue is looked for at
SCRIPT: Final = Path(__file__).with_name("tiling_peer.py")
OPENSLIDE, LIMIT = "OpenSlide", "limit: each JPEG tile once"
TWO_LIMITS, DISK = "limit, half on each of 2 cores", "limit: the disk, writing"
ONE_CORE, TWO_CORES = "Normscope, sealed, 1 core", "Normscope, sealed, 2 workers"


@dataclass(slots=True)
class Bench:
    """The slide, its tiles, and what the methods left behind.

    Args:
        folder: Folder for the slide and all results.
        peaks_mib: Method -> its peak memory.
        core_s: Method -> processor seconds, of all its threads, of each run.
    """

    folder: Path
    peaks_mib: dict[str, float] = field(default_factory=dict)
    core_s: dict[str, list[float]] = field(default_factory=dict)

    def note(self, name: str, found: Mapping[str, Any]) -> float:
        """Keep what a run says beside its seconds, and return those."""
        self.peaks_mib[name] = max(self.peaks_mib.get(name, 0.0), found["peak_memory_mib"])
        self.core_s.setdefault(name, []).append(found["core_seconds"])
        return float(found["seconds"])

    @property
    def slide(self) -> Path:
        """The slide."""
        return self.folder / "slide.tif"

    @property
    def origins(self) -> Path:
        """Origins of the tiles, as `numpy.save` writes them."""
        return self.folder / "origins.npy"

    def probes(self, library: str) -> Path:
        """Some of a library's tiles."""
        return self.folder / f"{library}.npy"


def write_slide(path: Path, repeats_yx: tuple[int, int]) -> float:
    """Write the slide; return the bits per pixel of its level 0."""
    picture = paint_slide(np.random.default_rng(0), PAINTING_YX, 0)[0]
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level in range(LEVELS):
            height, width = (np.array(picture.shape[:2]) * repeats_yx).tolist()
            if picture.shape[0] % JPEG_TILE_PX:
                tiles = _repeat(_encode(np.tile(picture, (*repeats_yx, 1))), (1, 1))
            else:  # the painting's tiles are whole, and each is encoded once for all its copies
                tiles = _repeat(_encode(picture), repeats_yx)
            if level == 0:
                bits = 8 * sum(map(len, tiles)) / (height * width)
            tiff.write(
                iter(tiles),
                shape=(height, width, 3),
                dtype="uint8",
                photometric="ycbcr",
                subsampling=(2, 2),
                tile=(JPEG_TILE_PX, JPEG_TILE_PX),
                compression="jpeg",
                subfiletype=min(level, 1),
                metadata=None,
                resolutionunit="CENTIMETER",
                resolution=(10_000 / MPP_UM / 2**level,) * 2,
            )
            picture = np.asarray(Image.fromarray(picture).reduce(2))
    return float(bits)


def _encode(pixels: NDArray[np.uint8]) -> list[list[bytes]]:
    """JPEG tiles, row by row."""
    buffer = BytesIO()
    tifffile.imwrite(
        buffer,
        pixels,
        photometric="rgb",
        tile=(JPEG_TILE_PX, JPEG_TILE_PX),
        compression="jpeg",
        compressionargs={"level": JPEG_QUALITY},
        subsampling=(2, 2),
        metadata=None,
    )
    file = buffer.getvalue()
    with tifffile.TiffFile(BytesIO(file)) as tiff:
        page = tiff.pages.first
    places = zip(page.dataoffsets, page.databytecounts, strict=True)
    tiles = [file[offset : offset + size] for offset, size in places]
    across = -(-pixels.shape[1] // JPEG_TILE_PX)
    return [tiles[start : start + across] for start in range(0, len(tiles), across)]


def _repeat(rows: list[list[bytes]], repeats_yx: tuple[int, int]) -> list[bytes]:
    return [tile for row in rows * repeats_yx[0] for tile in row * repeats_yx[1]]


def _run_peer(bench: Bench, library: str, python: Path) -> float:
    found = run_peer(
        python,
        SCRIPT,
        library,
        str(bench.slide),
        str(bench.origins),
        str(TILE_PX),
        str(bench.probes(library)),
    )
    return bench.note(PEERS[library].name if library in PEERS else OPENSLIDE, found)


def _run_own(bench: Bench, name: str, method: str, workers: int, runs: int = 1) -> float:
    """Seconds of the last run, so that workers have started by then."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.tiling_run",
        method,
        str(workers),
        str(bench.slide),
        str(bench.origins),
        str(TILE_PX),
        str(bench.folder / "dataset"),
        str(runs),
    ]
    found: dict[str, Any] = json.loads(run_command(command, f"{method} failed"))
    expected = len(np.load(bench.origins))
    if found["tiles"] != expected:
        raise ValueError(f"{method} made {found['tiles']} tiles of {expected}")
    return bench.note(name, found)


def _install_peers(quick: bool) -> tuple[dict[str, Path], list[str]]:
    """Library -> its Python, and a note for each that is not installed."""
    pythons, notes = {}, []
    for library, peer in PEERS.items():
        if quick and peer.is_large:
            notes.append(
                f"{peer.name}, whose environment takes minutes to make, is left out of "
                "the quick run."
            )
            continue
        try:
            pythons[library] = make_environment(peer.requirements, unpinned=peer.unpinned)
        except RuntimeError as error:
            notes.append(f"{peer.name} is left out: {str(error)[-200:]}")
    return pythons, notes


def _try_peers(bench: Bench, pythons: dict[str, Path]) -> tuple[list[str], list[str]]:
    """Peers that can read the slide, and how their pixels compare with OpenSlide's."""
    judge, working, notes = np.load(bench.probes("openslide")), [], []
    for library, python in pythons.items():
        name = PEERS[library].name
        try:
            _run_peer(bench, library, python)
        except RuntimeError as error:
            notes.append(f"{name} is left out: {str(error)[-200:]}")
            continue
        working.append(library)
        difference = np.abs(np.load(bench.probes(library)).astype(int) - judge)
        if difference.any():
            notes.append(f"{name}: pixels differ from OpenSlide's by up to {difference.max()}")
    return working, notes


def _find_origins(bench: Bench) -> NDArray[np.int64]:
    """Origins of the tiles that Normscope reads, in its order: (n, 2)."""
    url = bench.folder / "dataset"
    tile(bench.slide, TILE_PX, url, map_serially)
    origins = open_dataset(str(url)).column("origin_yx")
    shutil.rmtree(url)
    return origins


def measure(quick: bool) -> Outcome:
    """Compare all methods on one slide."""
    with tempfile.TemporaryDirectory(prefix="normscope-tiling-") as folder:
        bench = Bench(Path(folder))
        bits = write_slide(bench.slide, REPEATS_YX[quick])
        np.save(bench.origins, _find_origins(bench))
        judge = make_environment(OPENSLIDE_REQUIREMENTS)
        _run_peer(bench, "openslide", judge)
        pythons, missing = _install_peers(quick)
        working, notes = _try_peers(bench, pythons)
        return _compare(bench, judge, {w: pythons[w] for w in working}, bits, [*missing, *notes])


def _compare(
    bench: Bench,
    judge: Path,
    pythons: dict[str, Path],
    bits: float,
    notes: list[str],
) -> Outcome:
    count = len(np.load(bench.origins))

    def peer(name: str, library: str, python: Path) -> Method:
        return Method(name, lambda: _run_peer(bench, library, python), count)

    comparison = compare(
        f"{count} tissue tiles of {TILE_PX} px, level 0, side by side",
        [
            peer(OPENSLIDE, "openslide", judge),
            *(peer(PEERS[library].name, library, python) for library, python in pythons.items()),
            Method(LIMIT, lambda: _run_own(bench, LIMIT, "limit", 1, runs=2), count),
            Method(TWO_LIMITS, lambda: _run_own(bench, TWO_LIMITS, "limit", 2, runs=2), count),
            Method(DISK, lambda: _run_own(bench, DISK, "write", 1), count),
            Method(ONE_CORE, lambda: _run_own(bench, ONE_CORE, "normscope", 1, runs=3), count),
            Method(TWO_CORES, lambda: _run_own(bench, TWO_CORES, "normscope", 2, runs=3), count),
        ],
        unit="tiles/s",
        rounds=3,
        warm_ups=0,
    )
    names = [name for name in comparison.rates if name not in (TWO_CORES, TWO_LIMITS, DISK)]
    per_core = Comparison(
        "The same runs by processor time, which other load on the machine hardly touches",
        "tiles/core s",
        {name: [count / seconds for seconds in bench.core_s[name]] for name in names},
        OPENSLIDE,
    )
    best = max((PEERS[library].name for library in pythons), key=comparison.rate)
    metrics = _measure_ratios(comparison, per_core, best)
    metrics["peak_memory_mib"] = bench.peaks_mib[ONE_CORE]
    told = [
        f"Level 0 takes {bits:.2f} bits a pixel. The fastest peer is {best}.",
        "peak_memory_mib is that of the one-core process: libraries, a shard and its encoding.",
        *notes,
    ]
    return Outcome([comparison, per_core], metrics, told)


def _measure_ratios(wall: Comparison, per_core: Comparison, best: str) -> dict[str, float]:
    return {
        "vs_openslide": wall.ratio(ONE_CORE),
        "vs_best_peer": wall.ratio(TWO_CORES, best),
        "vs_best_peer_one_core": wall.ratio(ONE_CORE, best),
        "disk_vs_best_peer": wall.ratio(DISK, best),
        "share_of_limit": wall.ratio(ONE_CORE, LIMIT),
        "two_workers": wall.ratio(TWO_CORES, ONE_CORE),
        "two_workers_limit": wall.ratio(TWO_LIMITS, LIMIT),
        "vs_openslide_core_time": per_core.ratio(ONE_CORE),
        "vs_best_peer_core_time": per_core.ratio(ONE_CORE, best),
        "share_of_limit_core_time": per_core.ratio(ONE_CORE, LIMIT),
    }


if __name__ == "__main__":
    run_benchmark("tiling", measure)
