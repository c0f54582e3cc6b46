"""Folders and buckets of DICOM radiographs, under pseudonyms from the first line on.

Taken: Computed Radiography, Digital X-Ray for presentation, and Secondary Capture of such images.
Everything else is skipped by name of its kind, everything damaged has failed.

A file's name, folder and header may all name a person. So neither the listing nor an error or
manifest made from it quotes any of them:

- an image is called by its SOP Instance UID, a patient by the patient id (where there is none, by
  the Study Instance UID), both mapped with the user's key (`privacy.key.PseudonymKey`);
- files that share a UID and differ are told apart by a keyed digest of their content; copies are
  skipped;
- a file that does not become an image is called `file-<n>-<digest>`: its place in the order of
  the URLs, counted from 1, and a keyed digest of its path below the folder;
- a text from the header gets into a column only if it is one of the standard's own words.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from io import BufferedReader
from pathlib import PurePosixPath
from typing import Final, Literal

from pydicom.dataset import Dataset

from pipeline.dicom.header import (
    HEADER_TAGS,
    burned_in_text,
    name_other_kind,
    read_age,
    read_view,
)
from pipeline.dicom.parse import MAX_FILE_BYTES, parse_header, refusing
from pipeline.dicom.pixels import describe_pixels
from pipeline.errors import SourceError
from pipeline.io.ranges import open_by_range
from pipeline.io.storage import ObjectInfo, name_of, read_bytes
from pipeline.privacy.key import PseudonymKey
from pipeline.privacy.redaction import named_as
from pipeline.records import ImageListing, ManifestEntry, Scalar, SourceImage
from pipeline.runtime.engines import MapWork, map_serially
from pipeline.sources.listing import list_folder, relative_path
from pipeline.sources.modified_range import ALWAYS, ModifiedRange
from pipeline.sources.tables import parse_sex

# What lies about in a folder of DICOM files without being meant as one.
_OTHER_SUFFIXES: Final = frozenset(
    {
        ".bmp",
        ".csv",
        ".gz",
        ".htm",
        ".html",
        ".jpeg",
        ".jpg",
        ".json",
        ".md",
        ".pdf",
        ".png",
        ".tif",
        ".tiff",
        ".txt",
        ".xls",
        ".xlsx",
        ".xml",
        ".zip",
    }
)


@dataclass(frozen=True, slots=True)
class _File:
    """A listed file; `name` is what it is called in public."""

    info: ObjectInfo
    name: str

    def __repr__(self) -> str:
        return f"_File({self.name})"  # engines log what they work on


def list_radiographs(
    url: str,
    key: PseudonymKey,
    *,
    period: ModifiedRange = ALWAYS,
    map_work: MapWork = map_serially,
) -> ImageListing:
    """List the DICOM radiographs below a folder or prefix; their headers are read, no pixels.

    Columns: `view_position`, `age_years` (90 stands for 90 and older), `sex`, `orientation`,
    `photometric` and `burned_in_text` (`stated`, `possible` or `denied`).

    Args:
        url: A folder, an S3 prefix, or one file.
        key: Key that the pseudonyms are made with.
        period: Only files last modified then are looked at.
        map_work: An engine of `pipeline.runtime.engines`; one file an item.

    Raises:
        SourceError: There is no radiograph.
        StorageError: The folder cannot be read.
    """
    folder = list_folder(url)
    everything = [
        _File(info, f"file-{place}-{_digest(info.url, folder.url, key)}")
        for place, info in enumerate(folder.files, 1)
        if not _is_hidden(info.url)
    ]
    files = [file for file in everything if period.covers(file.info.modified_at)]
    outcomes = dict(map_work(partial(_examine, key=key), files))
    images: dict[str, SourceImage] = {}
    rejected = [
        replace(entry, item=_name_refused(entry, folder.url, key)) for entry in folder.refused
    ]
    rejected += period.leave_out(len(everything) - len(files))
    counts = Counter(
        outcome.image_id for outcome in outcomes.values() if isinstance(outcome, SourceImage)
    )
    for file in files:
        outcome = outcomes[file.name]
        if isinstance(outcome, SourceImage) and counts[outcome.image_id] > 1:
            outcome = _tell_apart(file, outcome, key)
        if isinstance(outcome, ManifestEntry):
            rejected.append(outcome)
        elif outcome.image_id in images:
            reason = f"a copy of {outcome.image_id}"
            rejected.append(ManifestEntry(file.name, "skipped", reason))
        else:
            images[outcome.image_id] = outcome
    if not images:
        first = f"; {rejected[0].item}: {rejected[0].reason}" if rejected else ""
        raise SourceError(
            url,
            f"no DICOM radiograph among {len(files)} files{first}",
            "CR, DX for presentation and secondary captures of them are taken",
        )
    ordered = tuple(images[image_id] for image_id in sorted(images))
    return ImageListing(ordered, tuple(rejected), _notes(ordered))


def _examine(file: _File, key: PseudonymKey) -> tuple[str, SourceImage | ManifestEntry]:
    """A file's public name, and what became of it."""
    try:
        with named_as(file.name), _open_header(file.info) as opened:
            header = parse_header(opened, file.name, HEADER_TAGS)
        with refusing(file.name, "the header is damaged", "Export it again, or leave it out"):
            kind = name_other_kind(header)
            if kind:
                return file.name, ManifestEntry(file.name, "skipped", f"no radiograph: {kind}")
            return file.name, _make_image(file, header, key)
    except SourceError as error:
        is_other = PurePosixPath(name_of(file.info.url)).suffix.lower() in _OTHER_SUFFIXES
        state: Literal["skipped", "failed"] = "skipped" if is_other else "failed"
        return file.name, ManifestEntry(file.name, state, f"{error.problem}. {error.remedy}")


def _make_image(file: _File, header: Dataset, key: PseudonymKey) -> SourceImage:
    facts = describe_pixels(header, file.name)
    uid = str(
        header.get("SOPInstanceUID") or header.file_meta.get("MediaStorageSOPInstanceUID") or ""
    )
    if not uid:
        raise SourceError(file.name, "no SOP Instance UID in the header", "Export it again")
    patient = str(header.get("PatientID") or "")
    study = str(header.get("StudyInstanceUID") or "")
    image_id = key.map_uid(uid)
    group_id = key.pseudonym("patient", patient) if patient else key.map_uid(study or uid)
    columns: dict[str, Scalar] = {
        "view_position": read_view(header),
        "age_years": read_age(header),
        "sex": parse_sex(str(header.get("PatientSex") or "")),
        "orientation": facts.orientation,
        "photometric": facts.photometric,
        "burned_in_text": burned_in_text(header),
    }
    return SourceImage(
        image_id, group_id, file.info.url, file.info.version, columns=columns, name=image_id
    )


def _tell_apart(file: _File, image: SourceImage, key: PseudonymKey) -> SourceImage | ManifestEntry:
    """Of files with one SOP Instance UID: the id is extended by a keyed digest of the content."""
    try:
        with named_as(file.name):
            digest = sha256(read_bytes(image.url)).hexdigest()
    except SourceError as error:
        return ManifestEntry(file.name, "failed", error.problem)
    image_id = f"{image.image_id}-{key.pseudonym('content', digest)[:12]}"
    return replace(image, image_id=image_id, name=image_id)


def _name_refused(entry: ManifestEntry, folder: str, key: PseudonymKey) -> str:
    """Public name of a folder or key that could not be listed."""
    return f"folder-{_digest(entry.item, folder, key)}"


def _digest(url: str, folder: str, key: PseudonymKey) -> str:
    return key.pseudonym("file", relative_path(url, folder) or name_of(url))[:12]


def _is_hidden(url: str) -> bool:
    name = name_of(url)
    return name.startswith(".") or name == "DICOMDIR"


def _open_header(info: ObjectInfo) -> BufferedReader:
    """A file, of which only the beginning is read or fetched."""
    if info.size_bytes > MAX_FILE_BYTES:
        raise SourceError(
            info.url, f"{info.size_bytes} bytes, at most {MAX_FILE_BYTES} are read", "Leave it out"
        )
    return open_by_range(info)


def _notes(images: tuple[SourceImage, ...]) -> tuple[str, ...]:
    notes = []
    counts = Counter(image.columns["burned_in_text"] for image in images)
    if flagged := counts["stated"] + counts["possible"]:
        notes.append(
            f"{flagged} of {len(images)} images may show burned-in text ({counts['stated']} say "
            "so): look at them before they leave the hospital"
        )
    return tuple(notes)
