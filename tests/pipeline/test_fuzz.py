"""Damaged bytes of tables, archives, annotations and pictures: read, or refused in one line.

`NORMSCOPE_TEST_FUZZ_S=300 pytest tests/pipeline/test_fuzz.py` looks for five minutes at each kind;
another `NORMSCOPE_TEST_FUZZ_SEED` tries other damage. `tests/pipeline/dicom` does so for DICOM.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any, Final

import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.errors import NormscopeError
from pipeline.images.decode import decode_image
from pipeline.io.archives import list_members
from pipeline.io.storage import describe, write_bytes
from pipeline.slides.annotations import parse_annotations
from pipeline.sources.images import list_images
from tests.support.damaged import damage, read_seconds
from tests.support.made.archives import pack
from tests.support.made.slides import make_pixels, write_asap

SECONDS: Final = read_seconds(1.0)
FEWEST: Final = 20
"""Of the damaged files so many are tried at least, however busy the machine."""
LONGEST_S: Final = 20
"""Longest time for one file; beyond it a parser hangs."""

PIXELS: Final = make_pixels((40, 56))
DEEP: Final = PIXELS[..., 0].astype(np.uint16) * 16
RING: Final = ((3.0, 4.0), (30.0, 4.0), (30.0, 20.5), (3.0, 20.5))


def make_pictures() -> list[bytes]:
    """PNG, JPEG and TIFF of several depths, layouts and compressions."""
    found = []
    for container in ("PNG", "JPEG", "TIFF"):
        stream = BytesIO()
        Image.fromarray(PIXELS).save(stream, container)
        found.append(stream.getvalue())
    layouts: tuple[dict[str, Any], ...] = (
        {"photometric": "miniswhite"},
        {"compression": "deflate", "predictor": True},
        {"tile": (16, 32)},
        {"byteorder": ">"},
    )
    for options in layouts:
        stream = BytesIO()
        tifffile.imwrite(stream, DEEP, **options)
        found.append(stream.getvalue())
    stream = BytesIO()
    tifffile.imwrite(stream, PIXELS.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    return [*found, stream.getvalue()]


def make_annotations(folder: Path) -> list[bytes]:
    """ASAP's XML, and GeoJSON as QuPath writes it."""
    classes = [{"name": "Tumor"}, {"names": ["Tumor", "Positive"]}]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*RING, RING[0]]]},
            "properties": {"classification": each, "measurements": {"Area": 3.5}},
        }
        for each in classes
    ]
    collection = {"type": "FeatureCollection", "features": features}
    asap = write_asap(folder / "a.xml", [("Tumor", RING), ("_2", RING)])
    return [asap.read_bytes(), json.dumps(collection).encode()]


def hang(signum: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"no end after {LONGEST_S} s")


def look(whole: list[bytes], parse: Callable[[bytes], object], kept: Path) -> None:
    """Parse damaged contents for some seconds; only our own errors may come out."""
    for data in whole:
        parse(data)
    count, end = 0, monotonic() + SECONDS
    before = signal.signal(signal.SIGALRM, hang)
    try:
        for data in damage(whole):
            kept.write_bytes(data)
            signal.alarm(LONGEST_S)
            with suppress(NormscopeError):
                parse(data)
            count += 1
            if monotonic() > end and count >= FEWEST:
                break
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.timeout(10 * SECONDS + 120)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::RuntimeWarning:PIL")
def test_pictures(tmp_path: Path) -> None:
    look(make_pictures(), lambda data: decode_image(data, "a.tif"), tmp_path / "damaged")


@pytest.mark.timeout(10 * SECONDS + 120)
def test_annotations(tmp_path: Path) -> None:
    parse = lambda data: parse_annotations(data, "a.xml")  # noqa: E731 -- short
    look(make_annotations(tmp_path), parse, tmp_path / "damaged")


@pytest.mark.timeout(10 * SECONDS + 120)
def test_archives(tmp_path: Path) -> None:
    url = str(tmp_path / "a.tar")
    whole = pack({"images/a.png": b"pixels" * 50, "images/" + "b" * 120 + ".png": b""}, mode="w:")

    def parse(data: bytes) -> object:
        write_bytes(url, data)
        return list_members(describe(url))

    look([whole], parse, tmp_path / "damaged")


@pytest.mark.timeout(10 * SECONDS + 120)
def test_tables(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b, c.png"):
        (folder / name).write_bytes(b"never read")
    table = 'path,label,patient,age\na.png,0,P1,45\n"b, c.png",1.0,"P ""2""",-1\n'
    semicolons = 'path;label;patient\n"a.png";normal;P1\n"b, c.png";1,0;P2\n'

    def parse(data: bytes) -> object:
        (folder / "labels.csv").write_bytes(data)
        return list_images(str(folder))

    look([table.encode(), semicolons.encode("utf-8-sig")], parse, tmp_path / "damaged")
