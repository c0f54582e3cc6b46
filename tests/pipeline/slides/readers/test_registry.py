"""The registry: a reader of another format is one class, installed beside Normscope."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.slides.readers import registry
from pipeline.slides.readers.registry import open_slide
from pipeline.slides.survey.thumbnail import read_thumbnail
from tests.support.made.slides import make_pixels

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "how-to" / "extend.md"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the example of the documentation as a package of its own."""
    code = PAGE.read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "numpy_slides.py").write_text(code)
    about = tmp_path / "numpy_slides-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy-slides\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[normscope.slide_readers]\nnumpy = numpy_slides:NumpyReader\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry.list_readers.cache_clear()
    yield
    registry.list_readers.cache_clear()


@pytest.mark.usefixtures("installed")
def test_the_documented_reader_is_found_and_reads(tmp_path: Path) -> None:
    pixels = make_pixels((300, 170))
    np.save(tmp_path / "a.npy", pixels)
    with open_slide(tmp_path / "a.npy", mpp_fallback_um=0.5) as slide:
        assert (slide.name, slide.vendor, slide.mpp_source) == ("numpy", "numpy", "fallback")
        region = slide.read_region_yx((200, 31), 0, (60, 90))
        assert read_thumbnail(slide, 30).pixels.shape == (30, 17, 3)
    np.testing.assert_array_equal(region, pixels[200:260, 31:121])


@pytest.mark.usefixtures("installed")
def test_whatever_a_reader_raises_names_the_slide(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", make_pixels((300, 170)))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:1000])
    with pytest.raises(SourceError, match=r"s3://in/a\.npy: numpy cannot open it .*truncated"):
        open_slide(tmp_path / "a.npy", item="s3://in/a.npy", mpp_fallback_um=0.5)


def test_what_no_reader_knows_is_refused_by_name(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"broken\.svs: no reader .*openslide.* or not a slide"):
        open_slide(shared_data / "slides" / "broken.svs")
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(200))
    with pytest.raises(SourceError, match=r"DICOM file, but not of a whole-slide.*ingest images"):
        open_slide(tmp_path / "a.dcm")
    with pytest.raises(SourceError, match="cannot be read"):
        open_slide(tmp_path / "absent.svs")


def test_a_slide_that_was_never_fetched_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 9\n")
    with pytest.raises(SourceError, match="LFS"):
        open_slide(path)
