"""Files that no reader takes: one rule for junk, one entry for each other kind."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from pipeline.records import ManifestEntry
from pipeline.sources.junk import count_unread, is_junk


@pytest.mark.parametrize(
    "path",
    [
        "._tumor_001.tif",
        "a/._tumor_001.xml",
        ".DS_Store",
        ".ipynb_checkpoints/a-checkpoint.png",
        "a/@eaDir/a.svs/SYNOFILE_THUMB_XL.jpg",
        "__MACOSX/a/a.png",
        "Thumbs.db",
        "b/THUMBS.DB",
        "desktop.ini",
        "$RECYCLE.BIN/a.svs",
        "lost+found/a.svs",
    ],
)
def test_what_systems_leave_is_junk(path: str) -> None:
    assert is_junk(PurePosixPath(path))


@pytest.mark.parametrize(
    "path", ["a.png", "a/b.c/d.tif", "thumbs/a.png", "_masks/a.tif", "macosx/a.png", "../b/a.png"]
)
def test_what_a_user_has_named_is_no_junk(path: str) -> None:
    assert not is_junk(PurePosixPath(path))


def test_kinds_that_are_not_read_are_counted_by_suffix() -> None:
    urls = ["/s/a.vsi", "/s/b.VSI", "s3://bucket/s/c.isyntax", "/s/d.nii.gz"]
    assert count_unread(urls) == (
        ManifestEntry("*.isyntax", "skipped", "1 file .isyntax: not read"),
        ManifestEntry("*.nii.gz", "skipped", "1 file .nii.gz: not read"),
        ManifestEntry("*.vsi", "skipped", "2 files .vsi: not read"),
    )


def test_no_name_of_a_file_is_quoted() -> None:
    """What follows a dot may be part of a person's name."""
    found = count_unread(["/s/LICENSE", "/s/scan.of Someone", "/s/.hidden"], "left out")
    assert found == (ManifestEntry("files without a suffix", "skipped", "3 files: left out"),)
