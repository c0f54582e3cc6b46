"""Slides of several files, on this disk and on S3: all of their files, or a clear error."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import DigitalXRayImageStorageForPresentation

from pipeline.errors import SettingsError, SourceError
from pipeline.io import storage
from pipeline.io.digests import digest_files
from pipeline.io.scratch import Scratch
from pipeline.io.staging import stage
from pipeline.records import Slide
from pipeline.slides.formats import find_companions, require_whole
from pipeline.slides.readers.openslide_reader import OpenSlideReader
from pipeline.slides.readers.registry import open_slide
from pipeline.sources.slides import list_slides
from tests.conftest import S3Server
from tests.support.flaky_s3 import flaky_s3
from tests.support.made.companions import write_dicom_slide, write_mirax, write_vms, write_vmu
from tests.support.made.slides import (
    BOXES,
    SHAPE,
    ingest_made,
    make_pixels,
    paint_tissue,
    survey_made,
    visit_made,
)

Write = Callable[[Path], list[Path]]


@pytest.fixture
def memory_url() -> str:
    return f"memory://{uuid.uuid4().hex}"


def write_dicom(folder: Path) -> list[Path]:
    """`1.2.7`, whose name has no suffix."""
    return write_dicom_slide(folder / "1.2.7", paint_tissue(SHAPE, BOXES))


def write_mrxs(folder: Path) -> list[Path]:
    return write_mirax(folder / "1.2.7.mrxs", paint_tissue(SHAPE, BOXES))


def write_hamamatsu(folder: Path) -> list[Path]:
    return write_vmu(folder / "1.2.7.vmu", paint_tissue(SHAPE, BOXES))


def write_mixed(folder: Path) -> None:
    """Two slides in one folder, their files in turn."""
    pixels = paint_tissue(SHAPE, BOXES)
    write_dicom_slide(folder / "mixed", pixels)
    pixels[64:320, 64:448, 0] = 90
    for path in write_dicom_slide(folder / "other", pixels, series="1.2.3.2"):
        path.replace(folder / "mixed" / f"{path.stem}5.dcm")
    (folder / "other").rmdir()


every_form = pytest.mark.parametrize("write", [write_dicom, write_mrxs, write_hamamatsu])


def upload(folder: Path, url: str) -> str:
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            storage.write_bytes(storage.join(url, name), path.read_bytes())
    return url


def digest_slide(path: Path) -> str:
    return digest_files((path, *find_companions(path)))


def list_one(url: str) -> Slide:
    (slide,) = list_slides(url).slides
    return slide


def make_dataset(slide: Slide, folder: Path) -> str:
    """Its fingerprint. The tiles are read from level 1, which is in another file than level 0."""
    scratch = Scratch(folder / "scratch")
    report, dataset = ingest_made(folder / "out", [slide], scratch=scratch)
    assert [entry.state for entry in report.manifest] == ["done"]
    assert (dataset.read_images(0, 9).reshape(-1, 3) == (205, 120, 170)).all()
    return report.fingerprint


@every_form
def test_a_slide_on_s3_gives_what_it_gives_on_disk(
    write: Write, s3_url: str, tmp_path: Path
) -> None:
    files = write(tmp_path / "in")
    local = list_one(str(tmp_path / "in"))
    assert [local.url, *local.companions] == [str(path) for path in files]
    remote = list_one(upload(tmp_path / "in", f"{s3_url}/in"))
    assert remote.slide_id == local.slide_id
    assert make_dataset(remote, tmp_path / "a") == make_dataset(local, tmp_path / "b")
    assert not (tmp_path / "b" / "scratch").exists()


def test_a_real_dicom_slide_is_staged_whole(
    shared_data: Path, memory_url: str, tmp_path: Path
) -> None:
    for path in sorted((shared_data / "slides").glob("boxes_*.dcm")):
        shutil.copy(path, tmp_path / path.name)
    slide = list_one(upload(tmp_path, f"{memory_url}/boxes"))
    assert (slide.slide_id, len(slide.companions)) == ("boxes", 1)
    with (
        stage(
            slide.url, slide.version, slide.companions, scratch=Scratch(tmp_path / "scratch")
        ) as path,
        OpenSlideReader(path) as staged,
        OpenSlideReader(tmp_path / "boxes_0.dcm") as local,
    ):
        assert [file.name for file in (path, *find_companions(path))] == [
            "boxes_0.dcm",
            "boxes_1.dcm",
        ]
        assert staged.mpp_yx == local.mpp_yx == (0.499, 0.499)
        np.testing.assert_array_equal(
            staged.read_region_yx((0, 0), 0, (16, 16)), local.read_region_yx((0, 0), 0, (16, 16))
        )
        assert digest_slide(path) == digest_slide(tmp_path / "boxes_0.dcm")


@every_form
def test_the_version_and_the_digest_are_of_all_files(write: Write, tmp_path: Path) -> None:
    files = write(tmp_path)
    seen = {(list_one(str(tmp_path)).version, digest_slide(files[0]))}
    for path in files:
        path.write_bytes(path.read_bytes() + b" ")
        seen.add((list_one(str(tmp_path)).version, digest_slide(files[0])))
    assert {len(set(column)) for column in zip(*seen, strict=True)} == {len(files) + 1}


@every_form
def test_a_file_that_changes_or_goes_after_listing_is_noticed(
    write: Write, memory_url: str, tmp_path: Path
) -> None:
    write(tmp_path)
    slide = list_one(upload(tmp_path, f"{memory_url}/in"))
    last = slide.companions[-1]
    storage.write_bytes(last, storage.read_bytes(last) + b" ")
    with (
        pytest.raises(SourceError, match="changed since"),
        stage(slide.url, slide.version, slide.companions),
    ):
        pass
    storage.delete(last)
    with (
        pytest.raises(SourceError, match=f"1.2.7.*one of its files is missing.*{last}"),
        stage(slide.url, slide.version, slide.companions),
    ):
        pass


@pytest.mark.parametrize("name", ["Data0001.dat", "Index.dat", "Slidedat.ini"])
def test_an_absent_file_of_a_mirax_slide_is_named(name: str, tmp_path: Path) -> None:
    write_mrxs(tmp_path)
    (tmp_path / "1.2.7" / name).unlink()
    slide = list_one(str(tmp_path))
    (entry,) = visit_made(tmp_path / "out", slide).entries
    assert entry.state == "failed"
    assert f"1.2.7.mrxs: its file 1.2.7/{name} is missing. Copy" in entry.reason


def test_each_dicom_series_of_a_folder_is_a_slide(memory_url: str, tmp_path: Path) -> None:
    write_mixed(tmp_path)
    found = list_slides(str(tmp_path)).slides
    assert [slide.slide_id for slide in found] == ["mixed/1.2.3.1", "mixed/1.2.3.2"]
    remote = list_slides(upload(tmp_path, f"{memory_url}/in")).slides
    for slide, far, red in zip(found, remote, (205, 90), strict=True):
        assert len(slide.companions) == 1
        assert list_one(slide.companions[0]).slide_id.endswith(slide.slide_id.split("/")[1])
        require_whole(slide)
        files = [Path(slide.url), *find_companions(Path(slide.url))]
        assert [str(file) for file in files] == [slide.url, *slide.companions]
        scratch = Scratch(tmp_path / "scratch")
        with (
            stage(far.url, far.version, far.companions, scratch=scratch) as path,
            open_slide(path) as staged,
            open_slide(Path(slide.url)) as local,
        ):
            assert staged.level_shapes_yx == local.level_shapes_yx == (SHAPE, (320, 576))
            for opened in (staged, local):
                for level in (0, 1):
                    assert opened.read_region_yx((100, 100), level, (1, 1))[0, 0, 0] == red


def test_dicom_files_of_other_kinds_are_mentioned(tmp_path: Path) -> None:
    first, _ = write_dicom(tmp_path)
    radiograph = pydicom.dcmread(first)
    radiograph.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    radiograph.SOPClassUID = DigitalXRayImageStorageForPresentation
    radiograph.SeriesInstanceUID = "1.2.3.9"
    radiograph.save_as(first.with_name("x.dcm"))
    first.with_name("._0.dcm").write_bytes(b"of macOS")
    listing = list_slides(str(tmp_path))
    (slide,) = listing.slides
    assert (slide.slide_id, slide.companions) == ("1.2.7", (str(first.with_name("1.dcm")),))
    (entry,) = listing.rejected
    assert (entry.item, entry.state) == (str(first.parent), "skipped")
    assert "1 DICOM file, e.g. x.dcm, is not a whole-slide image; `normscope" in entry.reason
    first.unlink()
    first.with_name("1.dcm").unlink()
    with pytest.raises(SourceError, match=r"no slide among 2 files; 1 DICOM file, e\.g\. x\.dcm"):
        list_slides(str(tmp_path))


def test_a_series_behind_a_long_header_is_found(tmp_path: Path) -> None:
    for path in write_dicom(tmp_path):
        dataset = pydicom.dcmread(path)
        dataset.add_new(0x00091001, "OB", bytes(100_000))
        dataset.add_new(0x00090010, "LO", "made")
        dataset.save_as(path)
    slide = list_one(str(tmp_path))
    require_whole(slide)
    assert len(slide.companions) == 1


def test_a_damaged_dicom_level_is_not_passed_over(tmp_path: Path) -> None:
    _, second = write_dicom(tmp_path)
    second.write_bytes(second.read_bytes()[:300])
    (entry,) = visit_made(tmp_path / "out", list_one(str(tmp_path))).entries
    assert entry.state == "failed"
    assert "/1.dcm: the DICOM elements are cut off" in entry.reason


def test_what_is_not_one_slide_is_not_fetched(moto_url: str, tmp_path: Path) -> None:
    write_mixed(tmp_path)
    first, second = list_slides(upload(tmp_path, f"{moto_url}/in")).slides
    mixed = replace(first, companions=(*first.companions, second.url))
    scratch = Scratch(tmp_path / "scratch")
    with pytest.raises(SourceError, match=r"none of 1 items gives one.*2 DICOM series"):
        ingest_made(tmp_path / "out", [mixed], scratch=scratch)
    assert not scratch.folder.exists()


@every_form
def test_one_file_of_a_slide_stands_for_all(
    write: Write, memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path)[0].relative_to(tmp_path)
    url = upload(tmp_path, f"{memory_url}/in")
    assert list_one(f"{url}/{first.as_posix()}") == list_one(url)
    monkeypatch.chdir(tmp_path / first.parent)
    with_name_only, whole = list_one(first.name), list_one(str(tmp_path))
    assert with_name_only.companions == whole.companions
    assert with_name_only.version == whole.version
    assert with_name_only.slide_id == whole.slide_id


def test_all_files_are_fetched_once_bounded_and_evicted_together(
    moto_url: str, moto_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_mrxs(tmp_path / "in")
    slide = list_one(upload(tmp_path / "in", f"{moto_url}/in"))
    size_bytes = sum(path.stat().st_size for path in files)
    tight = Scratch(tmp_path / "tight", max_bytes=size_bytes - 1)
    with (
        pytest.raises(SettingsError, match=f"{size_bytes} bytes are more"),
        stage(slide.url, slide.version, slide.companions, scratch=tight),
    ):
        pass
    scratch = Scratch(tmp_path / "scratch", max_bytes=size_bytes)
    with flaky_s3(moto_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        storage.reset_connections()
        for _ in range(2):
            with stage(slide.url, slide.version, slide.companions, scratch=scratch) as path:
                (entry,) = (found for found in scratch.folder.iterdir() if found.is_dir())
                assert path == entry / "1.2.7.mrxs"
                for file in files:
                    staged = entry / file.relative_to(tmp_path / "in")
                    assert staged.read_bytes() == file.read_bytes()
        assert [method for method, _ in proxy.requests].count("GET") == len(files)
        storage.write_bytes(f"{moto_url}/other.tif", b"pixels")
        other = storage.describe(f"{moto_url}/other.tif")
        with stage(other.url, other.version, scratch=scratch):
            assert not entry.exists()


@pytest.mark.parametrize("name", ["1.2.7(1,0).jpg", "1.2.7_map2.jpg"])
def test_an_absent_file_of_a_hamamatsu_slide_is_named(name: str, tmp_path: Path) -> None:
    write_vms(tmp_path / "1.2.7.vms", paint_tissue(SHAPE, BOXES))
    slide = list_one(str(tmp_path))
    assert len(survey_made(slide).origins_yx) == 42
    (tmp_path / name).unlink()
    (entry,) = visit_made(tmp_path / "out", list_one(str(tmp_path))).entries
    assert entry.state == "failed"
    assert f"1.2.7.vms: its file {name} is missing" in entry.reason


def test_what_lies_beside_a_hamamatsu_slide_is_not_its_own(tmp_path: Path) -> None:
    files = write_vms(tmp_path / "1.2.7.vms", paint_tissue(SHAPE, BOXES))
    for name in ("1.2.7.xml", "1.2.7_mask.tif", "other.jpg"):
        (tmp_path / name).write_bytes(b"beside")
    slide = list_one(str(tmp_path))
    assert [slide.url, *slide.companions] == [str(path) for path in files]


@pytest.mark.parametrize(
    ("write", "name"), [(write_dicom_slide, "a"), (write_mirax, "a.mrxs"), (write_vmu, "a.vmu")]
)
def test_pixels_of_both_levels_are_as_written(
    write: Callable[[Path, NDArray[np.uint8]], list[Path]], name: str, tmp_path: Path
) -> None:
    pixels = make_pixels(SHAPE)
    with OpenSlideReader(write(tmp_path / name, pixels)[0]) as slide:
        assert (slide.mpp_yx, slide.mpp_source) == ((0.5, 0.5), "vendor property")
        level_0 = slide.read_region_yx((37, 211), 0, (120, 90))
        level_1 = slide.read_region_yx((38, 210), 1, (50, 90))
    np.testing.assert_array_equal(level_0, pixels[37:157, 211:301])
    np.testing.assert_array_equal(level_1, pixels[38:138:2, 210:390:2])


@pytest.mark.parametrize("junk", ["._Slidedat.ini", ".DS_Store", "Thumbs.db"])
def test_junk_beside_a_local_slide_is_no_companion(tmp_path: Path, junk: str) -> None:
    for name in ("m.mrxs", "m/Slidedat.ini", f"m/{junk}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert find_companions(tmp_path / "m.mrxs") == (tmp_path / "m" / "Slidedat.ini",)
