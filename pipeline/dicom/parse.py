"""Bytes -> pydicom datasets: bounded, silent, and refused in one line.

pydicom's own messages quote what stands in the file, a patient's name for instance. So none of
them leaves this module: not as an error's text, not as a warning, not through logging.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from threading import Lock
from typing import BinaryIO, Final

import pydicom
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage

from pipeline.errors import NormscopeError, SourceError

# Twice the pixels that are ever decoded, at 16 bits, and room for the header.
MAX_FILE_BYTES: Final = 512 * 2**20
_PREFIX_BYTES: Final = 132  # a preamble of 128 bytes, then `DICM` (PS3.10, 7.1)
_META_BYTES: Final = 4096
_SERIES: Final = Tag("SeriesInstanceUID")
_NO_DICOM: Final = "no DICOM file: `DICM` is not at byte 128"
_DAMAGED: Final = "the DICOM elements are cut off or damaged"
_EXPORT: Final = "Export it again as a DICOM file (PS3.10), or leave it out"

_LOG: Final = logging.getLogger("pydicom")
_quiet_lock = Lock()
_quiet_count = 0
_quiet_ends = ExitStack()


@dataclass(frozen=True, slots=True)
class DicomSeries:
    """Series of a DICOM file.

    Args:
        uid: Unique identifier of the series (SeriesInstanceUID); a slide always has one.
        is_slide: Whether the file is of a whole-slide image (VL Whole Slide Microscopy).
    """

    uid: str
    is_slide: bool


def is_dicom(data: bytes) -> bool:
    """Whether bytes begin as a DICOM file does: 128 bytes of preamble, then `DICM`."""
    return data[128:_PREFIX_BYTES] == b"DICM"


def parse_dicom(data: bytes, name: str) -> Dataset:
    """Parse a whole DICOM file.

    Args:
        data: The whole file's bytes.
        name: Public name of the file, for errors; a file's own name may hold a person's.

    Returns:
        The dataset with its `file_meta`. Values are converted when they are first used.

    Raises:
        SourceError: It is no DICOM file, is damaged, or inflates beyond `MAX_FILE_BYTES`.
    """
    return _parse(BytesIO(data), data[:_META_BYTES], name, tags=None)


def parse_header(file: BinaryIO, name: str, tags: Collection[int]) -> Dataset:
    """Parse some elements of a DICOM file and stop before its pixels.

    Args:
        file: At its beginning.
        name: Public name of the file, for errors.
        tags: The elements wanted; no others are kept.

    Raises:
        SourceError: As `parse_dicom`.
    """
    start = file.read(_META_BYTES)
    file.seek(0)
    return _parse(file, start, name, tags=list(tags))


def parse_series(start: bytes, name: str) -> DicomSeries:
    """Parse the series that a DICOM file belongs to from its first bytes.

    Nothing behind it is looked at: a slide's file may describe a hundred thousand frames there.

    Raises:
        SourceError: As `parse_dicom`, or it is a slide's and names no series.
    """
    if not is_dicom(start):
        raise SourceError(name, _NO_DICOM, _EXPORT)
    with refusing(name, _DAMAGED, _EXPORT):
        dataset = read_partial(BytesIO(start), lambda tag, *_: tag > _SERIES)
        kind = dataset.get("SOPClassUID") or dataset.file_meta.MediaStorageSOPClassUID
        if kind != VLWholeSlideMicroscopyImageStorage:
            return DicomSeries(str(dataset.get("SeriesInstanceUID", "")), is_slide=False)
        return DicomSeries(str(dataset.SeriesInstanceUID), is_slide=True)


def _parse(file: BinaryIO, start: bytes, name: str, *, tags: list[int] | None) -> Dataset:
    if not is_dicom(start):
        raise SourceError(name, _NO_DICOM, _EXPORT)
    if DeflatedExplicitVRLittleEndian.encode() in start:
        _check_inflated(file, start, name)
    with refusing(name, _DAMAGED, _EXPORT):
        dataset = pydicom.dcmread(file, stop_before_pixels=tags is not None, specific_tags=tags)
        if not dataset.file_meta.get("TransferSyntaxUID"):
            raise SourceError(name, "no transfer syntax in the meta header", _EXPORT)
        return dataset


@contextmanager
def refusing(name: str, problem: str, remedy: str) -> Iterator[None]:
    """Turn whatever pydicom raises on a damaged file into one line that quotes nothing.

    Raises:
        SourceError: The body raised.
    """
    try:
        with _quiet():
            yield
    except NormscopeError:
        raise
    except Exception as error:  # noqa: BLE001 - a parser of foreign bytes may raise anything
        kind = type(error).__name__
        raise SourceError(name, f"{problem} ({kind})", remedy) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from warning, logging and validating until the last thread leaves.

    These settings are the whole process's. So the first thread changes them, the last one puts
    them back, and importing this module leaves them alone.
    """
    global _quiet_count, _quiet_ends  # noqa: PLW0603 - as many threads as are inside
    with _quiet_lock:
        if _quiet_count == 0:
            _quiet_ends = ExitStack()
            _quiet_ends.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            _quiet_ends.callback(setattr, _LOG, "propagate", _LOG.propagate)
            _LOG.propagate = False
            mode = config.settings.reading_validation_mode
            _quiet_ends.callback(setattr, config.settings, "reading_validation_mode", mode)
            config.settings.reading_validation_mode = config.IGNORE
        _quiet_count += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_count -= 1
            if _quiet_count == 0:
                _quiet_ends.close()


def _check_inflated(file: BinaryIO, start: bytes, name: str) -> None:
    """Refuse a file that is small only because it is deflated; pydicom inflates without bound."""
    # (0002,0000), explicit VR UL of 4 bytes: the length of the rest of the meta header.
    if start[132:140] != b"\x02\x00\x00\x00UL\x04\x00":
        raise SourceError(name, "its meta header has no group length", _EXPORT)
    file.seek(144 + int.from_bytes(start[140:144], "little"))
    deflated = file.read(MAX_FILE_BYTES)
    file.seek(0)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    with refusing(name, "the deflated part is damaged", _EXPORT):
        size = 0
        while deflated and not inflater.eof:
            size += len(inflater.decompress(deflated, 2**20))
            deflated = inflater.unconsumed_tail
            if size > MAX_FILE_BYTES:
                raise SourceError(
                    name, f"inflates to more than {MAX_FILE_BYTES} bytes", "Leave it out"
                )
