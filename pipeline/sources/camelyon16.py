"""Camelyon16 as it is published, and plain folders of slides.

Bejnordi et al., JAMA 2017; https://camelyon17.grand-challenge.org/Data/. Two layouts are in use,
and both are read, on disk or on S3:

    training/normal/normal_001.tif                 images/normal_001.tif
    training/tumor/tumor_001.tif                   images/tumor_001.tif
    training/lesion_annotations/tumor_001.xml      annotations/tumor_001.xml
    testing/images/test_001.tif                    images/test_001.tif
    testing/lesion_annotations/test_001.xml        annotations/test_001.xml
    testing/reference.csv

Label and split follow from the official names; of test slides the label is in `reference.csv`.
Any other slide is taken too, its label unknown unless a table gives it. Published errata
(`slide_tables.read_errata`) speak of slides with official names only.
"""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import PurePosixPath
from typing import Final

from pipeline.errors import SourceError
from pipeline.records import Label, ManifestEntry, Slide, Split
from pipeline.sources.slide_files import SLIDE_SUFFIXES, ListedFile, list_files
from pipeline.sources.slide_tables import Erratum, read_errata, read_mpp
from pipeline.storage import name_of, read_bytes

logger = logging.getLogger(__name__)

_ANNOTATION_SUFFIXES: Final = frozenset({".xml", ".geojson"})
_OFFICIAL_NAME: Final = re.compile(r"(normal|tumor|test)_\d+", re.IGNORECASE)
_OFFICIAL: Final[Mapping[str, tuple[Label, Split]]] = {
    "normal": (Label.NORMAL, "train"),
    "tumor": (Label.ANOMALOUS, "train"),
    "test": (Label.UNKNOWN, "test"),
}
_LABEL_WORDS: Final[Mapping[str, Label]] = {
    "normal": Label.NORMAL,
    "tumor": Label.ANOMALOUS,
    "tumour": Label.ANOMALOUS,
}


@dataclass(frozen=True, slots=True)
class SlideListing:
    """What a folder of slides holds.

    Args:
        source: `camelyon16` where slides bear its names, else the folder's or file's name.
        slides: In order of their id.
        rejected: Slides that the errata exclude, annotations and table rows without a slide.
        mpp_um: slide id -> um per level-0 pixel, as the user says.
        partly_annotated: Ids of slides on which there may be lesions that nobody outlined.
    """

    source: str
    slides: tuple[Slide, ...]
    rejected: tuple[ManifestEntry, ...]
    mpp_um: Mapping[str, float] = field(default_factory=dict)
    partly_annotated: frozenset[str] = frozenset()


def list_slides(
    url: str, *, labels: str | None = None, errata: str | None = None, mpp_table: str | None = None
) -> SlideListing:
    """List the slides below a folder or prefix, or one slide.

    Args:
        url: A folder, an S3 prefix, or one slide file. Slides of several files are taken too: see
            `pipeline.companions`.
        labels: URL of a CSV table with the columns `slide` (file name without suffix) and `label`
            (`normal` or `tumor`); it outweighs the official names. None looks for the official
            `reference.csv`.
        errata: See `slide_tables.read_errata`.
        mpp_table: See `slide_tables.read_mpp`.

    Raises:
        SourceError: There is no slide, or a table cannot be used.
        StorageError: The URL cannot be read.
    """
    files, found = list_files(url)
    if not found:
        raise SourceError(
            url, f"no slide among {len(files)} files", f"Slides end in {_listed(SLIDE_SUFFIXES)}"
        )
    label_of = _read_labels(files, labels)
    erratum_of = read_errata(errata)
    mpp_of = {
        _name_slide(name): mpp for name, mpp in (read_mpp(mpp_table) if mpp_table else {}).items()
    }
    annotations = _group_annotations(files)
    named = list(zip(found, _name_uniquely(found), strict=True))
    excluded = [_exclude(file, erratum_of) for file in found]
    slides = [
        _describe(file, slide_id, label_of, annotations.get(file.stem, ()))
        for (file, slide_id), entry in zip(named, excluded, strict=True)
        if entry is None
    ]
    is_camelyon16 = any(_OFFICIAL_NAME.fullmatch(file.stem) for file in found)
    stems = {file.stem for file in found}
    orphans = _find_orphans(stems, annotations, {"label": label_of, "mpp": mpp_of})
    return SlideListing(
        source="camelyon16" if is_camelyon16 else PurePosixPath(name_of(url)).stem or "slides",
        slides=tuple(sorted(slides, key=lambda slide: slide.slide_id)),
        rejected=(*filter(None, excluded), *orphans),
        mpp_um={slide_id: mpp_of[file.stem] for file, slide_id in named if file.stem in mpp_of},
        partly_annotated=frozenset(
            slide_id
            for file, slide_id in named
            if (erratum := _find_erratum(file, erratum_of)) and erratum.state == "partly_annotated"
        ),
    )


def _find_erratum(file: ListedFile, erratum_of: Mapping[str, Erratum]) -> Erratum | None:
    is_official = _OFFICIAL_NAME.fullmatch(file.stem)
    return erratum_of.get(file.stem.lower()) if is_official else None


def _exclude(file: ListedFile, erratum_of: Mapping[str, Erratum]) -> ManifestEntry | None:
    erratum = _find_erratum(file, erratum_of)
    if erratum is None or erratum.state != "excluded":
        return None
    reason = f"excluded by the errata: {erratum.reason} ({erratum.source})"
    logger.info("%s: %s", file.info.url, reason)
    return ManifestEntry(file.info.url, "skipped", reason)


def _find_orphans(
    stems: Collection[str],
    annotations: Mapping[str, Sequence[ListedFile]],
    tables: Mapping[str, Collection[str]],
) -> Iterator[ManifestEntry]:
    """What speaks of slides that are not there; `tables` are names by kind of table."""
    for stem, group in sorted(annotations.items()):
        if stem not in stems:
            for file in group:
                yield ManifestEntry(
                    file.info.url, "skipped", "annotation without a slide of that name"
                )
    for kind, names in tables.items():
        for name in sorted(set(names) - set(stems)):
            yield ManifestEntry(name, "skipped", f"in the {kind} table, but no such slide file")


def _describe(
    file: ListedFile,
    slide_id: str,
    label_of: Mapping[str, Label],
    annotations: Sequence[ListedFile],
) -> Slide:
    official = _OFFICIAL_NAME.fullmatch(file.stem)
    label, split = _OFFICIAL[official[1].lower()] if official else (Label.UNKNOWN, None)
    return Slide(
        slide_id=slide_id,
        url=file.info.url,
        version=file.version,
        label=label_of.get(file.stem, label),
        split=split,
        annotation_url=_nearest(file, annotations),
        companions=file.companion_urls,
    )


def _nearest(file: ListedFile, annotations: Sequence[ListedFile]) -> str | None:
    """Of annotations of the slide's name the one that shares most of its folders."""

    def count_shared(other: ListedFile) -> int:
        pairs = zip(file.path.parts, other.path.parts, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), 0)

    return max(annotations, key=count_shared).info.url if annotations else None


def _group_annotations(files: Iterable[ListedFile]) -> dict[str, list[ListedFile]]:
    groups: dict[str, list[ListedFile]] = defaultdict(list)
    for file in files:
        if file.path.suffix.lower() in _ANNOTATION_SUFFIXES:
            groups[file.stem].append(file)
    return groups


def _name_uniquely(files: Sequence[ListedFile]) -> list[str]:
    """Stems; where two files share one, their whole relative paths."""
    counts = Counter(file.stem for file in files)
    return [file.stem if counts[file.stem] == 1 else "_".join(file.path.parts) for file in files]


def _read_labels(files: Iterable[ListedFile], table_url: str | None) -> dict[str, Label]:
    official = [file.info.url for file in files if file.path.name == "reference.csv"]
    urls = [table_url] if table_url else official
    return {name: label for url in urls for name, label in _parse_labels(url).items()}


def _parse_labels(url: str) -> dict[str, Label]:
    """A label table, with a header that names `slide` and `label`, or without as officially."""
    try:
        rows = [row for row in csv.reader(StringIO(read_bytes(url).decode("utf-8-sig"))) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(url, f"not a CSV table ({error})", "Give a table in UTF-8") from error
    columns = [name.strip().lower() for name in rows[0]] if rows else []
    name_column, label_column, first = 0, 1, 0
    if len(columns) < 2 or columns[1] not in _LABEL_WORDS:
        missing = {"slide", "label"} - set(columns)
        if missing:
            raise SourceError(
                url,
                f"no column {_listed(missing)} among {_listed(columns) or 'none'}",
                "Give a CSV table with the columns slide and label",
            )
        name_column, label_column, first = columns.index("slide"), columns.index("label"), 1
    labels = {}
    for number, row in enumerate(rows[first:], first + 1):
        word = row[label_column].strip().lower() if len(row) > label_column else ""
        if word not in _LABEL_WORDS:
            raise SourceError(
                url, f"label {word!r} in row {number}", f"Use one of {_listed(_LABEL_WORDS)}"
            )
        labels[_name_slide(row[name_column])] = _LABEL_WORDS[word]
    return labels


def _name_slide(text: str) -> str:
    """A slide's name from a table's cell: a name, or a path with or without the suffix."""
    path = PurePosixPath(text.strip())
    return path.stem if path.suffix.lower() in SLIDE_SUFFIXES else path.name


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
