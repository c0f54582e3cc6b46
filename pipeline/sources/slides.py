"""Slides below a folder or prefix, with what names, tables and annotations say of them.

Camelyon16's names give label and split (see `camelyon16`). The label of any other slide is
unknown unless a table gives it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

from pipeline.errors import SourceError
from pipeline.io.storage import name_of
from pipeline.records import Label, ManifestEntry, Slide, SlideListing
from pipeline.sources.camelyon16 import (
    REFERENCE_NAME,
    Erratum,
    find_erratum,
    parse_name,
    read_errata,
)
from pipeline.sources.slide_files import SLIDE_SUFFIXES, ListedFile, list_files
from pipeline.sources.slide_tables import (
    SlideRow,
    match_annotations,
    match_rows,
    read_labels,
    read_mpp,
)

logger = logging.getLogger(__name__)

_ANNOTATION_SUFFIXES: Final = frozenset({".xml", ".geojson"})


def list_slides(
    url: str, *, labels: str | None = None, errata: str | None = None, mpp_table: str | None = None
) -> SlideListing:
    """List the slides below a folder or prefix, or one slide.

    Args:
        url: A folder, an S3 prefix, or one slide file; `pipeline.slides.formats` lists the slides
            of several files.
        labels: URL of a CSV table with the columns `slide` and `label`, gzipped or not; it
            outweighs the official names (see `slide_tables.read_labels` and `match_rows`). None
            looks for the official `reference.csv`.
        errata: URL of a table of errata, `none` for no errata, or None for the published ones
            (see `camelyon16.read_errata`).
        mpp_table: URL of a table of um per level-0 pixel (see `slide_tables.read_mpp`).

    Raises:
        SourceError: There is no slide, or a table cannot be used.
        SettingsError: Two rows of a table contradict each other.
        StorageError: The URL cannot be read.
    """
    files, found, others = list_files(url)
    if not found:
        suffixes = ", ".join(sorted(SLIDE_SUFFIXES))
        seen = "; ".join(["", *(entry.reason for entry in others[:1])])
        problem = f"no slide among {len(files)} files{seen}"
        raise SourceError(url, problem, f"Slides end in {suffixes}")
    known = read_errata(errata)
    label = match_rows(_read_labels(files, labels), found)
    mpp = match_rows(read_mpp(mpp_table) if mpp_table else (), found)
    annotations = [file for file in files if file.path.suffix.lower() in _ANNOTATION_SUFFIXES]
    annotation = match_annotations(annotations, found)
    ambiguous = {**label.ambiguous, **mpp.ambiguous, **annotation.ambiguous}
    erratum = {file.path: find_erratum(file.stem, known) for file in found}
    entries = {file.path: _reject(file, erratum[file.path], ambiguous) for file in found}
    slides = [
        _describe(
            file,
            label.values.get(file.path),
            annotation.values.get(file.path),
            mpp.values.get(file.path),
            erratum[file.path],
        )
        for file in found
        if entries[file.path] is None
    ]
    is_camelyon16 = any(parse_name(file.stem) for file in found)
    unmatched = _list_unmatched(
        annotation.unmatched, {"label": label.unmatched, "mpp": mpp.unmatched}
    )
    return SlideListing(
        source="camelyon16" if is_camelyon16 else PurePosixPath(name_of(url)).stem or "slides",
        slides=tuple(sorted(slides, key=lambda slide: slide.slide_id)),
        rejected=(*filter(None, entries.values()), *others, *unmatched),
    )


def _reject(
    file: ListedFile, erratum: Erratum | None, ambiguous: Mapping[PurePosixPath, str]
) -> ManifestEntry | None:
    """Say why a slide is not taken; None where it is."""
    if erratum and erratum.state == "excluded":
        reason = f"excluded by the errata: {erratum.reason} ({erratum.source})"
        logger.info("%s: %s", file.info.url, reason)
        return ManifestEntry(file.info.url, "skipped", reason)
    reason = ambiguous.get(file.path, "")
    return ManifestEntry(file.info.url, "failed", reason) if reason else None


def _list_unmatched(
    annotations: Iterable[str], tables: Mapping[str, Iterable[str]]
) -> Iterator[ManifestEntry]:
    """List what belongs to no slide; `tables` are names by kind of table."""
    for url in annotations:
        yield ManifestEntry(url, "skipped", "annotation without a slide of that name")
    for kind, names in tables.items():
        for name in names:
            yield ManifestEntry(name, "skipped", f"in the {kind} table, but no such slide file")


def _describe(
    file: ListedFile,
    label: Label | None,
    annotation_url: str | None,
    mpp_um: float | None,
    erratum: Erratum | None,
) -> Slide:
    official_label, split = parse_name(file.stem) or (Label.UNKNOWN, None)
    return Slide(
        slide_id=file.slide_id,
        url=file.info.url,
        version=file.version,
        label=official_label if label is None else label,
        split=split,
        annotation_url=annotation_url,
        companions=file.companion_urls,
        mpp_um=mpp_um,
        is_partly_annotated=erratum is not None and erratum.state == "partly_annotated",
    )


def _read_labels(files: Iterable[ListedFile], table_url: str | None) -> Iterator[SlideRow[Label]]:
    official = [file.info.url for file in files if file.path.name == REFERENCE_NAME]
    for url in [table_url] if table_url else official:
        yield from read_labels(url)
