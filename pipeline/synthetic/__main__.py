"""`python -m pipeline.synthetic FOLDER`: synthetic scans to try everything on."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from pipeline.errors import NormscopeError
from pipeline.io.storage import join
from pipeline.synthetic.slides import write_slides
from pipeline.synthetic.tiles import write_tiles
from pipeline.synthetic.xrays import write_xrays


def main() -> None:
    """Write the scans that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.synthetic",
        description="Write synthetic scans with planted anomalies: `tiles/` with labels.csv, "
        "`slides/` in Camelyon16's layout and `xrays/` in ChestX-ray14's. What is there already "
        "is left alone.",
    )
    parser.add_argument("folder", help="where they go, a path or s3://")
    parser.add_argument("--only", choices=("tiles", "slides", "xrays"), help="one kind of scan")
    parser.add_argument("--seed", type=_read_seed, default=0, help="another seed gives other scans")
    asked = parser.parse_args()
    try:
        _write(asked)
    except NormscopeError as error:
        parser.error(str(error))  # one line, exit status 2


def _read_seed(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _write(asked: argparse.Namespace) -> None:
    writers: dict[str, Callable[..., None]] = {
        "tiles": write_tiles,
        "slides": write_slides,
        "xrays": write_xrays,
    }
    for name, write in writers.items():
        if asked.only in {None, name}:
            write(join(asked.folder, name), seed=asked.seed)
            print(f"{name}: {join(asked.folder, name)}")


if __name__ == "__main__":
    main()
