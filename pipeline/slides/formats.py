"""Finds the files of slides that consist of several, and checks that none is missing.

A MIRAX slide is `x.mrxs` and the files in the folder `x` next to it, which `Slidedat.ini` there
names. A Hamamatsu slide is `x.vms` or `x.vmu` and the files next to it that this names; their
names begin with `x` too, https://openslide.org/formats/hamamatsu/. A DICOM slide is the `.dcm`
files of one series in one folder; OpenSlide is given any of them and finds the others,
https://openslide.org/formats/dicom/. Every other slide is one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from configparser import Error as IniError
from pathlib import Path, PurePath, PurePosixPath
from typing import Final, TypeVar

from pipeline.dicom.parse import DicomSeries, parse_series
from pipeline.errors import NormscopeError, SourceError
from pipeline.io.junk import is_junk
from pipeline.io.storage import name_of, read_bytes, read_range
from pipeline.records import Slide

DICOM_SUFFIX: Final = ".dcm"
HAMAMATSU_SUFFIXES: Final = frozenset({".vms", ".vmu"})
_MIRAX_SUFFIX: Final = ".mrxs"
_INDEX: Final = "Slidedat.ini"
_HAMAMATSU_PARTS: Final = frozenset({".jpg", ".ngr", ".opt"})
_HAMAMATSU_KEYS: Final = ("imagefile", "mapfile", "macroimage")
_WHOLE_REMEDY: Final = "Copy the slide again with all its files, or leave it out"
# The series stands near the beginning; only where much stands before it more is read.
_DICOM_START_BYTES: Final = (1 << 14, 1 << 18)
_THREADS: Final = 16  # an answer of object storage takes long, and little of the processor

AnyPath = TypeVar("AnyPath", bound=PurePath)


def is_dicom_part(path: PurePath) -> bool:
    """Tell by its name whether a file may belong to a DICOM slide."""
    return path.suffix.lower() == DICOM_SUFFIX


def folder_of_companions(path: AnyPath) -> AnyPath | None:
    """Return the folder of a slide's other files; None for a slide that is one file."""
    if path.suffix.lower() == _MIRAX_SUFFIX:
        return path.with_suffix("")
    return path.parent if is_dicom_part(path) or _is_hamamatsu(path) else None


def belongs_to(path: PurePath, slide: PurePath) -> bool:
    """Tell whether a file in the folder of a slide's companions is one of them."""
    if _is_hamamatsu(slide):
        return path.suffix.lower() in _HAMAMATSU_PARTS and path.name.startswith(slide.stem)
    return path != slide and (is_dicom_part(path) or not is_dicom_part(slide))


def _is_hamamatsu(path: PurePath) -> bool:
    return path.suffix.lower() in HAMAMATSU_SUFFIXES


def find_companions(path: Path) -> tuple[Path, ...]:
    """List a local slide's other files by name; empty for a slide that is one file."""
    folder = folder_of_companions(path)
    if folder is None or not folder.is_dir():
        return ()
    beside = [file for file in sorted(folder.iterdir()) if file.is_file()]
    beside = [file for file in beside if not is_junk(PurePosixPath(file.name))]
    found = [file for file in beside if belongs_to(file, path)]
    if is_dicom_part(path) and found:
        own, *others = read_series([str(file) for file in (path, *found)]).values()
        found = [file for file, its in zip(found, others, strict=True) if _may_share(own, its)]
    return tuple(found)


def _may_share(own: DicomSeries | NormscopeError, its: DicomSeries | NormscopeError) -> bool:
    """Tell whether two DICOM files may be of one slide; a damaged one may be of any."""
    if isinstance(own, NormscopeError) or isinstance(its, NormscopeError):
        return True
    return own == its


def read_series(urls: Sequence[str]) -> dict[str, DicomSeries | NormscopeError]:
    """Read the series of DICOM files, or the error of one that does not tell.

    Args:
        urls: URLs of the files, each given once.
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="dicom-series") as threads:
        return dict(zip(urls, threads.map(_try_series, urls), strict=True))


def _try_series(url: str) -> DicomSeries | NormscopeError:
    short, long = _DICOM_START_BYTES
    try:
        return parse_series(read_range(url, 0, short), url)
    except SourceError:
        pass  # it may stand behind
    except NormscopeError as error:
        return error
    try:
        return parse_series(read_range(url, 0, long), url)
    except NormscopeError as error:
        return error


def require_whole(slide: Slide) -> None:
    """Check, before it is fetched, that a slide has all its files, and only its own.

    OpenSlide notices an absent MIRAX file only when it comes to it; of several series in a folder
    it takes one, and of one series the files that it can read.

    Raises:
        SourceError: A file of it is absent or unreadable, or the folder holds several series.
        StorageError: A file cannot be reached.
    """
    path = PurePosixPath(slide.url)
    if path.suffix.lower() == _MIRAX_SUFFIX:
        index = next((url for url in slide.companions if name_of(url) == _INDEX), None)
        names = _name_mirax_files(read_bytes(index)) if index else [_INDEX]
        _require_all(slide, names, f"{path.stem}/")
    elif _is_hamamatsu(path):
        _require_all(slide, _name_hamamatsu_files(read_bytes(slide.url)))
    elif is_dicom_part(path):
        _require_one_series(slide)


def _require_all(slide: Slide, names: Sequence[str], folder: str = "") -> None:
    found = {name_of(url) for url in slide.companions}
    if absent := [name for name in names if name not in found]:
        more = f" and {len(absent) - 1} more are" if len(absent) > 1 else " is"
        raise SourceError(slide.url, f"its file {folder}{absent[0]}{more} missing", _WHOLE_REMEDY)


def _name_mirax_files(index: bytes) -> list[str]:
    """List the files that a MIRAX slide says it has."""
    found = _parse_index(index)
    data = found.get("DATAFILE", {})
    names = [name for key, name in data.items() if key.startswith("file_") and key != "file_count"]
    return [name for name in (found.get("HIERARCHICAL", {}).get("indexfile", ""), *names) if name]


def _name_hamamatsu_files(index: bytes) -> list[str]:
    """List the files that a Hamamatsu slide names, but for the index that OpenSlide can miss."""
    pairs = [pair for section in _parse_index(index).values() for pair in section.items()]
    return [name for key, name in pairs if key.startswith(_HAMAMATSU_KEYS) and name]


def _parse_index(index: bytes) -> dict[str, dict[str, str]]:
    """Parse sections, keys in lower case; empty if malformed, which is left to OpenSlide."""
    found = ConfigParser(interpolation=None, strict=False, allow_no_value=True)
    try:
        found.read_string(index.decode("utf-8-sig", errors="replace"))
    except IniError:
        return {}
    return {name: dict(found.items(name)) for name in found.sections()}


def _require_one_series(slide: Slide) -> None:
    names: dict[DicomSeries, str] = {}  # and a file of each
    for url, found in read_series((slide.url, *slide.companions)).items():
        if isinstance(found, NormscopeError):
            raise found
        names.setdefault(found, name_of(url))
    if len(names) > 1:
        first, second, *_ = names.values()
        raise SourceError(
            slide.url,
            f"its files are of {len(names)} DICOM series ({first} and {second} are of different "
            "ones)",
            "List the folder again",
        )
