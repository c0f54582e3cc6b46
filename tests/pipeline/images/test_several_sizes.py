"""Several sizes: a dataset each, which is what it would be by itself."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import SettingsError
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.io.archives import list_members
from pipeline.io.storage import describe, list_objects
from pipeline.records import ImageListing, SourceImage
from pipeline.runtime.engines import map_serially
from pipeline.store.dataset import open_dataset
from tests.support.content import content_of
from tests.support.made.archives import pack
from tests.support.made.dicom import make_dicom, ramp, write_dicom

SETTINGS = ImageSettings(modality="radiograph", colour="grey", equalize=True)


def encode_png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 70), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[SourceImage]:
    """Twenty: `a` are PNGs, of which the fourth is torn, `b` in an archive, `c` DICOM."""
    folder = tmp_path_factory.mktemp("in")
    for number in range(11):
        (folder / f"a{number:02}.png").write_bytes(
            encode_png(number)[: 60 if number == 3 else None]
        )
    for number in range(3):
        film = make_dicom(ramp(9 * number, 4000), SOPInstanceUID=f"1.2.{number}")
        (folder / f"c{number}.dcm").write_bytes(write_dicom(film))
    archive = folder / "b.tar"
    archive.write_bytes(
        pack({f"b{number}": encode_png(20 + number) for number in range(6)}, mode="w")
    )
    info = describe(str(archive))
    files = [describe(str(path)) for path in folder.iterdir() if path != archive]
    return [
        *(SourceImage(Path(f.url).stem, "p", f.url, f.version, split="train") for f in files),
        *(
            SourceImage(
                each.name,
                "p",
                info.url,
                info.version,
                split="train",
                name=each.name,
                span_bytes=each.span_bytes,
            )
            for each in list_members(info)
        ),
    ]


def test_a_further_size_makes_no_other_again(tmp_path: Path, images: list[SourceImage]) -> None:
    listing, url = ImageListing(tuple(images)), str(tmp_path / "at-{size_px}")

    def run(*sizes_px: int, to: str = url) -> dict[str, bytes]:
        report = ingest_images(to, listing, SETTINGS, map_serially, source="x", sizes_px=sizes_px)
        assert len(report.further) == len(sizes_px) - 1
        made = [each.parts_made for each in (report, *report.further)]
        assert made == [int(size not in already) for size in sizes_px]
        already.update(sizes_px)
        for size, each in zip(sizes_px, (report, *report.further), strict=True):
            assert open_dataset(each.url).image_shape == (size, size, 1)
            assert [Path(entry.item).name for entry in each.failures] == ["a03.png"]
        return content_of(report.url)

    already: set[int] = set()
    small = run(24)
    assert run(24, 40, 64) == small
    already.clear()
    assert run(40, to=str(tmp_path / "alone")) == content_of(url.format(size_px=40))


def test_several_sizes_need_a_place_each(tmp_path: Path, images: list[SourceImage]) -> None:
    url = str(tmp_path / "out")
    with pytest.raises(SettingsError, match=r"out: one place for 2 sizes.*Put `\{size_px\}` into"):
        ingest_images(
            url, ImageListing(tuple(images)), SETTINGS, map_serially, source="x", sizes_px=(24, 40)
        )
    assert not list_objects(url)


def test_progress_counts_all_sizes(tmp_path: Path, images: list[SourceImage]) -> None:
    reported: list[tuple[int, int]] = []
    ingest_images(
        str(tmp_path / "{size_px}"),
        ImageListing(tuple(images)),
        SETTINGS,
        map_serially,
        source="x",
        sizes_px=(24, 40),
        on_progress=lambda done, total: reported.append((done, total)),
    )
    assert reported == [(0, 40), (20, 40), (20, 40), (40, 40)]
