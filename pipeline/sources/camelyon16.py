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

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import PurePosixPath
from typing import Final

from pipeline.errors import SourceError
from pipeline.io.storage import name_of
from pipeline.records import Label, ManifestEntry, Slide, Split
from pipeline.sources.slide_matches import match_annotations, match_rows
from pipeline.sources.slide_tables import Erratum, Row, read_errata, read_labels, read_mpp
from pipeline.sources.slides import SLIDE_SUFFIXES, ListedFile, list_files

logger = logging.getLogger(__name__)

_ANNOTATION_SUFFIXES: Final = frozenset({".xml", ".geojson"})
_OFFICIAL_NAME: Final = re.compile(r"(normal|tumor|test)_\d+", re.IGNORECASE)
_OFFICIAL: Final[Mapping[str, tuple[Label, Split]]] = {
    "normal": (Label.NORMAL, "train"),
    "tumor": (Label.ANOMALOUS, "train"),
    "test": (Label.UNKNOWN, "test"),
}


@dataclass(frozen=True, slots=True)
class SlideListing:
    """What a folder of slides holds.

    Args:
        source: `camelyon16` where slides bear its names, else the folder's or file's name.
        slides: In order of their id.
        rejected: Slides that the errata exclude or of which nobody can tell what is said,
            annotations and table rows without a slide.
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
            `pipeline.slides.formats`.
        labels: URL of a CSV table with the columns `slide` (see `slide_matches.match_rows`) and
            `label` (`normal` or `tumor`); it outweighs the official names. None looks for the
            official `reference.csv`.
        errata: See `slide_tables.read_errata`.
        mpp_table: See `slide_tables.read_mpp`.

    Raises:
        SourceError: There is no slide, or a table cannot be used.
        SettingsError: Two rows of a table contradict each other.
        StorageError: The URL cannot be read.
    """
    files, found = list_files(url)
    if not found:
        suffixes = ", ".join(sorted(SLIDE_SUFFIXES))
        raise SourceError(url, f"no slide among {len(files)} files", f"Slides end in {suffixes}")
    erratum_of = read_errata(errata)
    label = match_rows(_read_labels(files, labels), found)
    mpp = match_rows(read_mpp(mpp_table) if mpp_table else (), found)
    annotation = match_annotations(filter(_is_annotation, files), found)
    unclear = {**label.unclear, **mpp.unclear, **annotation.unclear}
    slide_ids = _name_uniquely(found)
    entries = [_exclude(file, erratum_of) or _refuse(file, unclear) for file in found]
    slides = [
        _describe(
            file,
            slide_ids[file.path],
            label.of_slide.get(file.path),
            annotation.of_slide.get(file.path),
        )
        for file, entry in zip(found, entries, strict=True)
        if entry is None
    ]
    is_camelyon16 = any(_OFFICIAL_NAME.fullmatch(file.stem) for file in found)
    astray = {"label": label.astray, "mpp": mpp.astray}
    return SlideListing(
        source="camelyon16" if is_camelyon16 else PurePosixPath(name_of(url)).stem or "slides",
        slides=tuple(sorted(slides, key=lambda slide: slide.slide_id)),
        rejected=(*filter(None, entries), *_list_astray(annotation.astray, astray)),
        mpp_um={slide_ids[path]: mpp_um for path, mpp_um in mpp.of_slide.items()},
        partly_annotated=frozenset(
            slide_ids[file.path]
            for file in found
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


def _refuse(file: ListedFile, unclear: Mapping[PurePosixPath, str]) -> ManifestEntry | None:
    reason = unclear.get(file.path)
    return ManifestEntry(file.info.url, "failed", reason) if reason else None


def _list_astray(
    annotations: Iterable[str], tables: Mapping[str, Iterable[str]]
) -> Iterator[ManifestEntry]:
    """What speaks of slides that are not there; `tables` are names by kind of table."""
    for url in annotations:
        yield ManifestEntry(url, "skipped", "annotation without a slide of that name")
    for kind, names in tables.items():
        for name in names:
            yield ManifestEntry(name, "skipped", f"in the {kind} table, but no such slide file")


def _describe(
    file: ListedFile, slide_id: str, label: Label | None, annotation_url: str | None
) -> Slide:
    official = _OFFICIAL_NAME.fullmatch(file.stem)
    official_label, split = _OFFICIAL[official[1].lower()] if official else (Label.UNKNOWN, None)
    return Slide(
        slide_id=slide_id,
        url=file.info.url,
        version=file.version,
        label=official_label if label is None else label,
        split=split,
        annotation_url=annotation_url,
        companions=file.companion_urls,
    )


def _is_annotation(file: ListedFile) -> bool:
    return file.path.suffix.lower() in _ANNOTATION_SUFFIXES


def _name_uniquely(files: Sequence[ListedFile]) -> dict[PurePosixPath, str]:
    """A slide's path -> its id: its stem or, where an earlier slide has that, its whole path.

    Earlier is by path, so that a slide that is added changes no id of those before it; of those
    behind it only that of one whose stem it takes.
    """
    ids: dict[str, PurePosixPath] = {}
    for file in sorted(files, key=lambda file: file.path.as_posix()):
        whole = "_".join(file.path.parts)
        # Two whole paths become one where folders bear underscores: a/b/x and a_b/x.
        names = chain((file.stem, whole), (f"{whole}_{number}" for number in count(2)))
        ids[next(name for name in names if name not in ids)] = file.path
    return {path: slide_id for slide_id, path in ids.items()}


def _read_labels(files: Iterable[ListedFile], table_url: str | None) -> Iterator[Row[Label]]:
    official = [file.info.url for file in files if file.path.name == "reference.csv"]
    for url in [table_url] if table_url else official:
        yield from read_labels(url)
