"""Slides below a folder or prefix, with what sheet, tables, annotations and names say of them.

Camelyon16's names give label and split (see `camelyon16`), as a row of a sample sheet would; the
user's own sheet and tables outweigh them. The label of any other slide is unknown unless a table
gives it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from pipeline.errors import SourceError
from pipeline.io.storage import name_of, plain_url
from pipeline.records import Label, ManifestEntry, Slide, SlideListing
from pipeline.sources.camelyon16 import (
    REFERENCE_NAME,
    Erratum,
    find_erratum,
    lies_as_published,
    make_row,
    parse_name,
    read_errata,
)
from pipeline.sources.listing import shorten
from pipeline.sources.sheet import NONE, SheetRow, merge_rows, read_labels, read_mpp, read_sheet
from pipeline.sources.slide_files import (
    SLIDE_SUFFIXES,
    ListedFile,
    drop_junk,
    list_files,
    list_unread,
)
from pipeline.sources.slide_tables import (
    AnnotationMatches,
    RowMatches,
    add_named,
    find_named_files,
    match_annotations,
    match_rows,
    require_agreement,
    require_single,
)
from pipeline.splits import prove_disjoint

logger = logging.getLogger(__name__)

_SEEN: Final = 3  # of what is there in place of slides, for the error
_ANNOTATION_SUFFIXES: Final = frozenset({".xml", ".geojson"})


@dataclass(frozen=True)
class _Tables:
    """What is known of the slides, apart from their files.

    Args:
        users: Rows of the user's sheet and tables by slide, by kind of table.
        official: Rows of the official `reference.csv` by slide.
        named: (URL of the table, cell) -> the file that the cell names, or None.
        annotations: Annotations that lie beside slides.
        errata: Errata of Camelyon16 by name.
    """

    users: Mapping[str, RowMatches]
    official: RowMatches
    named: Mapping[tuple[str, str], str | None]
    annotations: AnnotationMatches
    errata: Mapping[str, Erratum]


def list_slides(
    url: str,
    *,
    sheet: str | None = None,
    labels: str | None = None,
    errata: str | None = None,
    mpp_table: str | None = None,
) -> SlideListing:
    """List the slides below a folder or prefix, or one slide.

    Sheet and tables find their slides as `slide_tables.match_rows` says. They outweigh the
    official names and what lies beside a slide, and must not contradict each other.

    Args:
        url: A folder, an S3 prefix, or one slide file; `pipeline.slides.formats` lists the slides
            of several files.
        sheet: URL of a sample sheet (see `sheet.read_sheet`), or None for none. A slide without a
            row is listed too, and a file that a row names is a slide whatever its own name.
        labels: URL of a CSV table with the columns `slide` and `label`, gzipped or not (see
            `sheet.read_labels`). None looks for the official `reference.csv`.
        errata: URL of a table of errata, `none` for no errata, or None for the published ones
            (see `camelyon16.read_errata`).
        mpp_table: URL of a table of um per level-0 pixel (see `sheet.read_mpp`).

    Raises:
        SourceError: There is no slide, or a table cannot be used.
        SettingsError: Two rows are of one slide and the table is a sheet, or they contradict
            each other.
        SchemaError: The splits of the sheet divide a patient.
        StorageError: The URL cannot be read.
    """
    known = read_errata(errata)
    given = {
        "sheet": read_sheet(sheet) if sheet else (),
        "label table": read_labels(labels) if labels else (),
        "mpp table": read_mpp(mpp_table) if mpp_table else (),
    }
    files, listed, others = list_files(url)
    root = _find_root(files)
    named = find_named_files(given["sheet"], files, root)
    taken = {found for found in named.values() if found}
    candidates = add_named(listed, files, given["sheet"], root)
    found = [file for file in candidates if file.info.url not in taken]
    if not found:
        raise _refuse(url, files, others)
    own = drop_junk(files)
    beside = [file for file in own if _is_annotation(file) and file.info.url not in taken]
    reference = [file.info.url for file in own if file.path.name == REFERENCE_NAME]
    official = [row for table in reference if not labels for row in read_labels(table)]
    tables = _Tables(
        users={kind: match_rows(rows, found, root) for kind, rows in given.items()},
        official=match_rows(official, found, root),
        named=named,
        annotations=match_annotations(beside, found),
        errata=known,
    )
    read = {*taken, *reference, *(file.info.url for file in beside), *_list_urls(found)}
    read |= {table for table in (sheet, labels, errata, mpp_table) if table}
    _require_fit(tables.users["sheet"], url)
    outcomes = [_describe(file, tables) for file in found]
    slides = [outcome for outcome in outcomes if isinstance(outcome, Slide)]
    rejected = [outcome for outcome in outcomes if isinstance(outcome, ManifestEntry)]
    _require_undivided(slides, sheet or url)
    _warn_of_names(found, tables)
    return SlideListing(
        source=_name_source(url, found),
        slides=tuple(sorted(slides, key=lambda slide: slide.slide_id)),
        rejected=(*rejected, *others, *_list_unmatched(tables), *list_unread(files, read)),
        notes=_take_notes(slides, tables, sheet) if sheet else (),
    )


def _refuse(url: str, files: Sequence[ListedFile], others: Sequence[ManifestEntry]) -> SourceError:
    """Make the error for a source without a slide, which says what is there in place of one."""
    seen = [entry.reason for entry in (*others, *list_unread(files, ()))][:_SEEN]
    problem = "; ".join([f"no slide among {len(files)} files", *seen])
    return SourceError(url, problem, f"Slides end in {', '.join(sorted(SLIDE_SUFFIXES))}")


def _list_urls(slides: Iterable[ListedFile]) -> Iterator[str]:
    for slide in slides:
        yield slide.info.url
        yield from slide.companion_urls


def _find_root(files: Sequence[ListedFile]) -> str:
    """Find the folder that paths below the source begin at."""
    first = files[0]
    return plain_url(first.info.url).removesuffix(f"/{first.path.as_posix()}")


def _name_source(url: str, found: Sequence[ListedFile]) -> str:
    if any(parse_name(file.stem) for file in found):
        return "camelyon16"
    name = name_of(plain_url(url))
    is_file = [plain_url(file.info.url) for file in found] == [plain_url(url)]
    # What follows a dot in a folder's name is part of it.
    return (PurePosixPath(name).stem if is_file else name) or "slides"


def _is_annotation(file: ListedFile) -> bool:
    return file.path.suffix.lower() in _ANNOTATION_SUFFIXES


def _describe(file: ListedFile, tables: _Tables) -> Slide | ManifestEntry:
    """Merge all that is known of a slide, or say why it is not taken."""
    said = _merge(file, tables)
    erratum = find_erratum(file.stem, tables.errata)
    if erratum and erratum.state == "excluded":
        reason = f"excluded by the errata: {erratum.reason} ({erratum.source})"
        logger.info("%s: %s", file.info.url, reason)
        return ManifestEntry(file.info.url, "skipped", reason)
    if reason := _find_fault(file, said, tables):
        return ManifestEntry(file.info.url, "failed", reason)
    own = tables.named.get((said.table_url, said.annotation))
    beside = tables.annotations.urls.get(file.path)
    return Slide(
        slide_id=file.slide_id,
        url=file.info.url,
        version=file.version,
        label=Label.UNKNOWN if said.label is None else said.label,
        split=said.split,
        annotation_url=own if said.annotation else beside,
        companions=file.companion_urls,
        patient=said.patient,
        site=said.site,
        scanner=said.scanner,
        mpp_um=said.mpp_um,
        mask_url=tables.named.get((said.table_url, said.mask)),
        is_partly_annotated=erratum is not None,
    )


def _merge(file: ListedFile, tables: _Tables) -> SheetRow:
    """Merge what the user's tables, the official table and the name say, in this order."""
    require_single(tables.users["sheet"].rows.get(file.path, ()))
    users = [row for matches in tables.users.values() for row in matches.rows.get(file.path, ())]
    official = tables.official.rows.get(file.path, ())
    require_agreement(users)
    require_agreement(official)
    said = merge_rows([*users, *official, make_row(file.stem, file.slide_id)])
    if said.view:
        remedy = "A slide has no view position, so leave the cell empty"
        raise said.refuse(f"view {said.view!r} of {said.path!r}", remedy)
    return said


def _find_fault(file: ListedFile, said: SheetRow, tables: _Tables) -> str:
    """Say what keeps a slide from being used; empty for nothing."""
    for matches in (*tables.users.values(), tables.official):
        if file.path in matches.ambiguous:
            return matches.ambiguous[file.path]
    for column, cell in (("mask", said.mask), ("annotation", said.annotation)):
        if cell not in {"", NONE} and tables.named[said.table_url, cell] is None:
            remedy = "Give its path below the sheet's folder or the source, or leave the cell empty"
            return str(said.refuse(f"no such file as the {column} {cell!r}", remedy))
    return "" if said.annotation else tables.annotations.ambiguous.get(file.path, "")


def _require_fit(sheet: RowMatches, source: str) -> None:
    """Refuse a sheet of which no row fits a slide, which is most likely another source's."""
    if sheet.unmatched and not sheet.rows and not sheet.ambiguous:
        first = sheet.unmatched[0]
        count = len(sheet.unmatched)
        problem = f"none of its {count} rows is a slide of {source!r}, as {first.path!r}"
        remedy = "Give paths below the sheet's folder or the source"
        raise SourceError(first.table_url, problem, remedy)


def _require_undivided(slides: Sequence[Slide], item: str) -> None:
    known = [(slide.group_id, slide.split) for slide in slides if slide.split]
    prove_disjoint([group for group, _ in known], [split for _, split in known], item=item)


def _list_unmatched(tables: _Tables) -> Iterator[ManifestEntry]:
    """List annotations and rows that belong to no slide."""
    for url in tables.annotations.unmatched:
        yield ManifestEntry(url, "skipped", "annotation without a slide of that name")
    for kind, matches in {**tables.users, "official label table": tables.official}.items():
        if matches.unmatched:
            reason = f"in the {kind}, but no such slide file"
            paths = sorted(row.path for row in matches.unmatched)
            entries = [ManifestEntry(path, "skipped", reason) for path in paths]
            yield from shorten(entries, matches.unmatched[0].table_url, reason)


def _warn_of_names(found: Sequence[ListedFile], tables: _Tables) -> None:
    """Warn of slides outside the official layout that are taken for Camelyon16's by name alone."""
    named = [
        file.slide_id
        for file in found
        if parse_name(file.stem)
        and not lies_as_published(file.info.url)
        and not _is_told(file, tables)
    ]
    if named:
        logger.warning(
            "%d of %d slides have names of Camelyon16's, as %r, and take its labels, splits and "
            "errata. If they are others, give label (or `unknown`) and split of each in a sheet "
            "(`--sheet`), and no errata (`--errata none`)",
            len(named),
            len(found),
            named[0],
        )


def _is_told(file: ListedFile, tables: _Tables) -> bool:
    """Whether the user's own tables say both label and split of a slide."""
    rows = [row for matches in tables.users.values() for row in matches.rows.get(file.path, ())]
    return any(row.label is not None for row in rows) and any(row.split for row in rows)


def _take_notes(slides: Sequence[Slide], tables: _Tables, sheet: str) -> tuple[str, ...]:
    """Say what a user should know of how the sheet was read."""
    matched = len(tables.users["sheet"].rows)
    notes = [f"{matched} slides have a row in {sheet!r}, {len(slides)} can be used"]
    if not any(slide.patient for slide in slides):
        notes.append(
            "the sheet names no patient: every slide is a group of its own, so slides of one "
            "patient may be in different splits"
        )
    for note in notes:
        logger.info("%s", note)
    return tuple(notes)
