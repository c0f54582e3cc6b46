"""Slides of several files: which files they are, and whether all of them are there.

A MIRAX slide is `x.mrxs` and the files in the folder `x` beside it, which `Slidedat.ini` there
names. A DICOM slide is the `.dcm` files of one folder, of one series; OpenSlide is given any of
them and finds the others, https://openslide.org/formats/dicom/. Every other slide is one file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from configparser import ConfigParser
from configparser import Error as IniError
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Final, TypeVar

from pipeline.dicom_files import parse_series_uid
from pipeline.errors import SourceError
from pipeline.storage import ObjectInfo

DICOM_SUFFIX: Final = ".dcm"
_MIRAX_SUFFIX: Final = ".mrxs"
_WHOLE_REMEDY: Final = "Copy the slide again with all its files, or leave it out"
_DICOM_START_BYTES: Final = 1 << 18  # the series stands near the beginning

AnyPath = TypeVar("AnyPath", bound=PurePath)


def is_dicom_part(path: PurePath) -> bool:
    """Whether a file may be one of a DICOM slide, by its name."""
    return path.suffix.lower() == DICOM_SUFFIX


def folder_of_companions(path: AnyPath) -> AnyPath | None:
    """The folder in which the other files of a slide lie; None for a slide that is one file."""
    if path.suffix.lower() == _MIRAX_SUFFIX:
        return path.with_suffix("")
    return path.parent if is_dicom_part(path) else None


def belongs_to(path: PurePath, slide: PurePath) -> bool:
    """Whether a file in the folder of a slide's companions is one of them."""
    return path != slide and (is_dicom_part(path) or not is_dicom_part(slide))


def join_versions(files: Sequence[ObjectInfo]) -> str:
    """The version of a slide: that of its file, or one that changes when any of several does."""
    if len(files) == 1:
        return files[0].version
    facts = [(info.url.rpartition("/")[2], info.version) for info in files]
    return sha256(json.dumps(facts).encode()).hexdigest()


def find_companions(path: Path) -> tuple[Path, ...]:
    """The other files of a slide on this disk, by name; empty for a slide that is one file."""
    folder = folder_of_companions(path)
    if folder is None or not folder.is_dir():
        return ()
    return tuple(
        file for file in sorted(folder.iterdir()) if file.is_file() and belongs_to(file, path)
    )


def require_whole(path: Path, item: str) -> None:
    """Check that a slide on this disk has all its files, and only its own.

    OpenSlide notices an absent MIRAX file only when it comes to it; of several series in a folder
    it takes one, and of one series the files that it can read.

    Args:
        path: The file that OpenSlide is given.
        item: The slide's name, for errors.

    Raises:
        SourceError: A file of it is absent or unreadable, or the folder holds several series.
    """
    try:
        if path.suffix == _MIRAX_SUFFIX:
            _require_mirax(path, item)
        elif is_dicom_part(path):
            _require_one_series(path, item)
    except OSError as error:
        raise SourceError(item, f"cannot be read ({error})", _WHOLE_REMEDY) from error


def _require_mirax(path: Path, item: str) -> None:
    folder = path.with_suffix("")
    absent = [name for name in _name_mirax_files(folder) if not (folder / name).is_file()]
    if absent:
        more = f" and {len(absent) - 1} more are" if len(absent) > 1 else " is"
        raise SourceError(item, f"its file {folder.name}/{absent[0]}{more} missing", _WHOLE_REMEDY)


def _name_mirax_files(folder: Path) -> list[str]:
    """The files that a MIRAX slide says it has; OpenSlide judges an index that makes no sense."""
    index = folder / "Slidedat.ini"
    if not index.is_file():
        return [index.name]
    found = ConfigParser(interpolation=None, strict=False, allow_no_value=True)
    try:
        found.read_string(index.read_text("utf-8-sig", errors="replace"))
    except IniError:
        return []
    data = dict(found.items("DATAFILE")) if found.has_section("DATAFILE") else {}
    names = [name for key, name in data.items() if key.startswith("file_") and key != "file_count"]
    return [name for name in (found.get("HIERARCHICAL", "INDEXFILE", fallback=""), *names) if name]


def _require_one_series(path: Path, item: str) -> None:
    series: dict[str, str] = {}  # and a file of each
    for file in (path, *find_companions(path)):
        with file.open("rb") as opened:
            start = opened.read(_DICOM_START_BYTES)
        series.setdefault(parse_series_uid(start, f"{item}, {file.name}"), file.name)
    if len(series) > 1:
        raise SourceError(
            item,
            f"its folder holds {len(series)} DICOM series ({' and '.join(series.values())} are of "
            "different ones)",
            "Give every series a folder of its own",
        )
