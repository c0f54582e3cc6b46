"""Folders and buckets of DICOM radiographs, under pseudonyms from the first line on.

Taken: Computed Radiography, Digital X-Ray for presentation, and Secondary Capture of such images.
Everything else is skipped by name of its kind, everything damaged has failed.

A file's name, folder and header may all name a person. So neither the listing nor an error or
manifest made from it quotes any of them:

- an image is called by its SOP Instance UID, a patient by the patient id (where there is none, by
  the Study Instance UID), both mapped with the user's key (`privacy.key.PseudonymKey`);
- patients that share a study, or the bytes of a patient id under several character sets, are one:
  a study has one patient, and an image too many in a group is better than a leak;
- files that share a UID and differ are told apart by a keyed digest of their content; copies are
  skipped;
- a file that does not become an image is called `file-<n>-<digest>`: its place in the order of
  the URLs, counted from 1, and a keyed digest of its path below the folder;
- a text from the header gets into a column only if it is one of the standard's own words.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from io import BufferedReader
from pathlib import PurePosixPath
from typing import Final

from pydicom.dataset import Dataset

from pipeline.dicom.header import (
    HEADER_TAGS,
    burned_in_text,
    name_other_kind,
    read_age,
    read_patient_id,
    read_view,
)
from pipeline.dicom.parse import MAX_FILE_BYTES, is_dicom, parse_header, refusing
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
from pipeline.splits import join_groups

# A file of another suffix that does not begin as DICOM does is of another kind: a viewer's on a
# patient's CD, a table, a picture. A suffix of digits is the end of a UID.
_DICOM_SUFFIX: Final = re.compile(r"\.(dcm|dicom|dic|dc3|ima|img|acr|cr|dx)|\.?[\d.]*", re.I)
_OTHER_STARTS: Final = (
    *(b"MZ", b"\x7fELF", b"\xca\xfe\xba\xbe", b"PK\x03\x04", b"%PDF"),  # programs, documents
    *(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"\xd0\xcf\x11\xe0", b"\x1f\x8b"),  # pictures, archives
)
_START_BYTES: Final = 512
# An id that stands on more than half of the images, of this many studies, may stand for nobody.
_MANY_STUDIES: Final = 3


@dataclass(frozen=True, slots=True)
class _File:
    """A listed file; `name` is what it is called in public."""

    info: ObjectInfo
    name: str

    def __repr__(self) -> str:
        return f"_File({self.name})"  # engines log what they work on


@dataclass(frozen=True, slots=True)
class _Film:
    """A radiograph, and pseudonyms of what tells whom it shows; empty where the file is silent.

    Args:
        image: The radiograph, its group that of the patient id alone.
        study: Pseudonym of its study.
        spelling: Pseudonym of the bytes of the patient id.
        issuer: Pseudonym of who has given the patient id.
    """

    image: SourceImage
    study: str
    spelling: str
    issuer: str


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
    films: dict[str, _Film] = {}
    rejected = [
        replace(entry, item=_name_refused(entry, folder.url, key)) for entry in folder.refused
    ]
    rejected += period.leave_out(len(everything) - len(files))
    counts = Counter(film.image.image_id for film in outcomes.values() if isinstance(film, _Film))
    for file in files:
        outcome = outcomes[file.name]
        if isinstance(outcome, _Film) and counts[outcome.image.image_id] > 1:
            outcome = _tell_apart(file, outcome, key)
        if isinstance(outcome, ManifestEntry):
            rejected.append(outcome)
        elif outcome.image.image_id in films:
            reason = f"a copy of {outcome.image.image_id}"
            rejected.append(ManifestEntry(file.name, "skipped", reason))
        else:
            films[outcome.image.image_id] = outcome
    if not films:
        first = f"; {rejected[0].item}: {rejected[0].reason}" if rejected else ""
        raise SourceError(
            url,
            f"no DICOM radiograph among {len(files)} files{first}",
            "CR, DX for presentation and secondary captures of them are taken",
        )
    return _arrange([films[image_id] for image_id in sorted(films)], tuple(rejected))


def _arrange(films: Sequence[_Film], rejected: tuple[ManifestEntry, ...]) -> ImageListing:
    """Put the images of one patient into one group, and say what is odd about patients."""
    ties = [(film.image.group_id, tie) for film in films for tie in (film.study, film.spelling)]
    joined = join_groups(ties)
    # A patient id names the group before a study's UID does: it is that of other images too.
    name_of_group = {
        joined[group]: group for group in sorted(joined, key=_rank_group, reverse=True)
    }
    images = tuple(
        replace(film.image, group_id=name_of_group[joined[film.image.group_id]]) for film in films
    )
    return ImageListing(images, rejected, (*_note_patients(films), *_note_text(images)))


def _rank_group(group: str) -> tuple[bool, str]:
    return group.startswith("2.25."), group


def _examine(file: _File, key: PseudonymKey) -> tuple[str, _Film | ManifestEntry]:
    """A file's public name, and what became of it."""
    is_other = False
    try:
        with named_as(file.name), _open_header(file.info) as opened:
            is_other = _is_of_another_kind(file.info.url, opened.read(_START_BYTES))
            opened.seek(0)
            header = parse_header(opened, file.name, HEADER_TAGS)
        with refusing(file.name, "the header is damaged", "Export it again, or leave it out"):
            kind = name_other_kind(header)
            if kind:
                return file.name, ManifestEntry(file.name, "skipped", f"no radiograph: {kind}")
            return file.name, _make_film(file, header, key)
    except SourceError as error:
        if is_other:
            return file.name, ManifestEntry(file.name, "skipped", error.problem)
        return file.name, ManifestEntry(file.name, "failed", f"{error.problem}. {error.remedy}")


def _is_of_another_kind(url: str, start: bytes) -> bool:
    """Whether a file was never meant as DICOM, by its first bytes and the end of its name.

    Elements that begin without a preamble, zeros and other bytes of no meaning under a name that
    DICOM files have may be a damaged radiograph.
    """
    if is_dicom(start) or (start[:1] in {b"\x02", b"\x08"} and start[1:2] == start[3:4] == b"\0"):
        return False
    suffix = PurePosixPath(name_of(url)).suffix
    if not _DICOM_SUFFIX.fullmatch(suffix):
        return True
    return not suffix and (start.startswith(_OTHER_STARTS) or _is_text(start))


def _is_text(start: bytes) -> bool:
    return bool(start) and all(byte >= 32 or byte in b"\t\n\f\r" for byte in start)


def _make_film(file: _File, header: Dataset, key: PseudonymKey) -> _Film:
    facts = describe_pixels(header, file.name)
    uid = str(
        header.get("SOPInstanceUID") or header.file_meta.get("MediaStorageSOPInstanceUID") or ""
    )
    if not uid:
        raise SourceError(file.name, "no SOP Instance UID in the header", "Export it again")
    patient, spelling = read_patient_id(header)
    study = str(header.get("StudyInstanceUID") or "")
    issuer = str(header.get("IssuerOfPatientID") or "")
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
    image = SourceImage(
        image_id, group_id, file.info.url, file.info.version, columns=columns, name=image_id
    )
    return _Film(
        image,
        study=key.map_uid(study) if study else "",
        spelling=key.pseudonym("patient bytes", spelling.hex()) if spelling else "",
        issuer=key.pseudonym("issuer", issuer) if issuer else "",
    )


def _tell_apart(file: _File, film: _Film, key: PseudonymKey) -> _Film | ManifestEntry:
    """Of files with one SOP Instance UID: the id is extended by a keyed digest of the content."""
    try:
        with named_as(file.name):
            digest = sha256(read_bytes(film.image.url)).hexdigest()
    except SourceError as error:
        return ManifestEntry(file.name, "failed", error.problem)
    image_id = f"{film.image.image_id}-{key.pseudonym('content', digest)[:12]}"
    return replace(film, image=replace(film.image, image_id=image_id, name=image_id))


def _name_refused(entry: ManifestEntry, folder: str, key: PseudonymKey) -> str:
    """Public name of a folder or key that could not be listed."""
    return f"folder-{_digest(entry.item, folder, key)}"


def _digest(url: str, folder: str, key: PseudonymKey) -> str:
    return key.pseudonym("file", relative_path(url, folder) or name_of(url))[:12]


def _is_hidden(url: str) -> bool:
    name = name_of(url)
    # ISO 9660, the file system of CDs, appends a version.
    return name.startswith(".") or name.upper().partition(";")[0] == "DICOMDIR"


def _open_header(info: ObjectInfo) -> BufferedReader:
    """A file, of which only the beginning is read or fetched."""
    if info.size_bytes > MAX_FILE_BYTES:
        raise SourceError(
            info.url, f"{info.size_bytes} bytes, at most {MAX_FILE_BYTES} are read", "Leave it out"
        )
    return open_by_range(info)


def _note_patients(films: Sequence[_Film]) -> Iterator[str]:
    """Notes on what may hold another patient than it says."""
    groups_of_study, groups_of_spelling, issuers, sexes, studies = (
        defaultdict[str, set[str]](set) for _ in range(5)
    )
    for film in films:
        group = film.image.group_id
        groups_of_study[film.study].add(group if film.spelling else "")
        groups_of_spelling[film.spelling].add(group)
        issuers[group].add(film.issuer)
        sexes[group].add(str(film.image.columns["sex"]))
        studies[group].add(film.study)
    if count := _count_several(groups_of_study):
        yield f"{count} studies have more than one patient id: their patients are taken as one"
    if count := _count_several(groups_of_spelling):
        yield f"{count} patient ids stand under several character sets: each is one patient"
    if count := _count_several(issuers):
        yield f"{count} patient ids have several issuers: each is taken as one patient"
    if count := _count_several(sexes):
        yield f"{count} patient ids stand on images of both sexes: each is taken as one patient"
    group, count = Counter(film.image.group_id for film in films).most_common(1)[0]
    if 2 * count > len(films) and len(studies[group]) >= _MANY_STUDIES:
        yield (
            f"one patient id stands on {count} of {len(films)} images, of {len(studies[group])} "
            "studies: if it stands for several patients (such as ANON), give each an id of its "
            "own, as one patient lies in one split"
        )


def _count_several(found: Mapping[str, set[str]]) -> int:
    """How many names, none of them empty, go with more than one value that is not empty."""
    return sum(len(values - {""}) > 1 for name, values in found.items() if name)


def _note_text(images: Sequence[SourceImage]) -> Iterator[str]:
    counts = Counter(image.columns["burned_in_text"] for image in images)
    if flagged := counts["stated"] + counts["possible"]:
        yield (
            f"{flagged} of {len(images)} images may show burned-in text ({counts['stated']} say "
            "so): look at them before they leave the hospital"
        )
