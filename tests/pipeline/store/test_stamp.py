"""The bytes that each format number stands for, and the refusal of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Final
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import SettingsError
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.records import Label, SlideListing
from pipeline.runtime.engines import DaskMap, dask_engine, map_serially
from pipeline.slides.ingest import ingest_slides
from pipeline.sources.images import list_images
from pipeline.store import stamp
from pipeline.store.dataset import open_dataset
from pipeline.store.stamp import FORMATS, Kind, make_stamp, require_stamp
from tests.support.made.dicom import make_dicom, ramp, write_dicom
from tests.support.made.slides import SETTINGS, list_slide, paint_tissue, write_asap, write_pyramid

# Digest of the fixture's part, which holds a digest of each image, by kind and format number.
GOLDEN: Final[Mapping[tuple[Kind, int], str]] = {
    ("slides", 2): "4829532ab408cec0f7a2131bbd069f378c1c4dcc60fde145d6d203987c13819b",
    ("images", 2): "8f3fa0ed22cd74a9cbd1f22b44c3a7d2cdf371cb32639a9ff48d06eb751ddf2d",
}
# Versions that the digests were recorded with; of others they are not known.
RECORDED: Final[Mapping[str, str]] = {
    "highdicom": "0.28.2",
    "imagecodecs": "2026.3.6",
    "imagehash": "4.3.2",
    "numpy": "2.4.6",
    "opencv-python-headless": "5.0.0.93",
    "openslide-bin": "4.0.1.2",
    "openslide-python": "1.4.7",
    "pillow": "13.0.0",
    "pydicom": "3.0.2",
    "python-gdcm": "3.2.6",
    "scikit-image": "0.26.0",
    "scipy": "1.17.1",
    "shapely": "2.2.0",
    "simplejpeg": "1.9.0",
    "tifffile": "2026.3.3",
}


def digest_slides(folder: Path) -> str:
    """A slide whose tiles differ, with a lesion off the diagonal, at another scale than its own."""
    pixels = paint_tissue((384, 640), [(64, 192, 320, 576)])
    y, x = np.mgrid[:384, :640]
    pixels[..., 1] -= ((y * 3 + x * 5) % 40).astype(np.uint8)
    path = write_pyramid(folder / "a.tif", pixels, downsamples_yx=((1, 1), (4, 4)))
    outline = [(300.0, 100.0), (420.0, 100.0), (420.0, 180.0)]
    annotation = write_asap(folder / "a.xml", [("Tumor", outline)])
    slide = list_slide(path, label=Label.ANOMALOUS, annotation=annotation)
    listing = SlideListing("made", (slide,), ())
    return digest_part(ingest_slides(str(folder / "out"), listing, SETTINGS, map_serially).url)


def digest_images(folder: Path) -> str:
    """A radiograph and an image with colour, both of another size and shape than the dataset's."""
    (folder / "in").mkdir()
    film = write_dicom(make_dicom(ramp(0, 4000), bits_stored=12))
    (folder / "in" / "film.dcm").write_bytes(film)
    y, x = np.mgrid[:33, :50]
    pixels = np.stack([y * 7, x * 5, (y * x) % 256], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "in" / "colour.tif", compression=None)
    settings = ImageSettings(size_px=16, colour="grey", equalize=True)
    listing = list_images(str(folder / "in"))
    report = ingest_images(str(folder / "out"), listing, settings, map_serially, source="made")
    assert not report.failures
    return digest_part(report.url)


def digest_part(url: str) -> str:
    (part,) = open_dataset(url).parts
    assert part.image_count > part.unreadable_count
    return part.digest


@pytest.mark.parametrize("kind", ["slides", "images"])
def test_a_format_number_stands_for_the_same_bytes(tmp_path: Path, kind: Kind) -> None:
    libraries = {name: v for name, v in make_stamp(kind).items() if name in RECORDED}
    assert len(libraries) == len(make_stamp(kind)) - 1  # all but the format number
    if other := [f"{name} {v}" for name, v in libraries.items() if RECORDED[name] != v]:
        pytest.skip(f"the bytes were not recorded with {', '.join(other)}")
    found = digest_slides(tmp_path) if kind == "slides" else digest_images(tmp_path)
    assert found == GOLDEN.get((kind, FORMATS[kind])), (
        f"The same source and settings give other pixels or columns: raise FORMATS[{kind!r}] in "
        f"pipeline/store/stamp.py and record {found!r} for the new number"
    )


def test_the_same_stamp_is_accepted_and_what_differs_is_named() -> None:
    require_stamp("images", dict(make_stamp("images")))
    other = {**make_stamp("images"), "numpy": "9.9", "images format": "7"}
    del other["pillow"]
    with pytest.raises(SettingsError) as caught:
        require_stamp("images", other)
    text = str(caught.value)
    assert f"images format {FORMATS['images']}, the driver has 7" in text
    assert f"numpy {make_stamp('images')['numpy']}, the driver has 9.9" in text
    assert f"pillow {make_stamp('images')['pillow']}, the driver has none" in text
    assert "scipy" not in text


def pretend_another_numpy() -> None:
    """Run in a worker: as if it had been installed otherwise."""
    patch.object(stamp, "version", _tell_another_numpy).start()  # until the process ends
    make_stamp.cache_clear()


def _tell_another_numpy(name: str) -> str:
    return "0.0.1" if name == "numpy" else metadata.version(name)


def test_a_worker_with_another_library_refuses_and_nothing_is_sealed(tmp_path: Path) -> None:
    paths = [
        write_pyramid(tmp_path / f"{name}.tif", paint_tissue((256, 320), [(0, 64, 192, 320)]))
        for name in ("a", "b")
    ]
    listing = SlideListing("made", tuple(list_slide(path) for path in paths), ())
    url = str(tmp_path / "out")
    with dask_engine(workers=1) as engine:
        assert isinstance(engine, DaskMap)
        engine.client.wait_for_workers(1)
        engine.client.run(pretend_another_numpy)
        with pytest.raises(SettingsError) as caught:
            ingest_slides(url, listing, SETTINGS, engine)
    own = make_stamp("slides")["numpy"]
    assert f"numpy 0.0.1, the driver has {own}" in str(caught.value)
    assert str(caught.value).startswith("worker on ")
    assert not (tmp_path / "out" / "zarr.json").exists()
    assert not (tmp_path / "out" / "parts").exists()
    assert ingest_slides(url, listing, SETTINGS, map_serially).parts_made == 2
