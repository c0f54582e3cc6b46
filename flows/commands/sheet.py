"""`normscope sheet`: a sample sheet of a folder's slides or images, to be filled in."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath
from shlex import quote
from typing import Final, Literal, NamedTuple

from pipeline.errors import SettingsError, SourceError
from pipeline.io.storage import create_bytes, name_of, plain_url, write_bytes
from pipeline.records import ManifestEntry
from pipeline.sources.images import list_images
from pipeline.sources.listing import list_folder, parent_of
from pipeline.sources.sheet import encode_sheet, tabulate_images, tabulate_slides
from pipeline.sources.slide_files import list_files
from pipeline.sources.slides import list_slides

Kind = Literal["auto", "slides", "images"]
_PICTURES: Final = frozenset({".png", ".jpg", ".jpeg"})


class _Found(NamedTuple):
    kind: Literal["slides", "images"]
    rows: list[dict[str, str]]
    rejected: tuple[ManifestEntry, ...]


def sheet(
    source: str, table: str | None = None, *, kind: Kind = "auto", overwrite: bool = False
) -> None:
    """Write a sample sheet of a folder's slides or images, to be filled in.

    The sheet is a CSV table with a row for each slide or image. It holds what is known already:
    official labels and splits, annotations beside slides, a table of labels beside images. Fill
    in what you know, above all the patient: slides or images of one patient then share a split.
    An empty cell says nothing. A spreadsheet program may edit it; save it as CSV in UTF-8.

    Args:
        source: Folder or `s3://` prefix of slides or images, or a single one.
        table: Path or `s3://` URL of the sheet to write: path, patient, split, label, site,
            scanner; of slides also mpp_um, mask and annotation, of images view. By default
            the source's name and `.csv`, in the current folder.
        kind: Scans to list: `slides`, `images` (also radiographs in PNG, JPEG or TIFF), or `auto`
            for images where most files are PNG or JPEG, else slides.
        overwrite: Replace the sheet if it exists, with all that has been filled in.
    """
    found = _find(source, kind)
    table = table or f"{name_of(plain_url(source)) or 'sheet'}.csv"
    data = encode_sheet(found.rows)
    if overwrite:
        write_bytes(table, data)
    elif not create_bytes(table, data):
        remedy = "Name another file, or give --overwrite if nothing in it is to be kept"
        raise SettingsError(table, "the file exists", remedy)
    print(f"Wrote {table}: {_summarise(found)}.")
    for entry in found.rejected[:3]:
        print(f"Left out: {entry.item}: {entry.reason}")
    if len(found.rejected) > 3:
        print(f"Left out: {len(found.rejected) - 3} more; the ingest's manifest lists them.")
    option = "--sheet" if found.kind == "slides" else "--labels"
    print("Fill in what you know; an empty cell says nothing. Then:")
    print(f"  normscope ingest {found.kind} {quote(source)} DATASET {option} {quote(table)}")


def _find(source: str, kind: Kind) -> _Found:
    folder = list_folder(source)
    root = (parent_of(folder.url) or "") if folder.is_single_file else folder.url
    if kind == "auto":
        suffixes = Counter(PurePosixPath(info.url).suffix.lower() for info in folder.files)
        pictures = sum(suffixes[suffix] for suffix in _PICTURES)
        kind = "images" if pictures > len(list_files(source).slides) else "slides"
    if kind == "images":
        images = list_images(source, keeps_unlisted=True)
        return _Found("images", tabulate_images(images.images, root), images.rejected)
    slides = list_slides(source)
    if not slides.slides:
        first = slides.rejected[0]
        raise SourceError(source, f"no slide can be used; {first.item}: {first.reason}", "Mend it")
    return _Found("slides", tabulate_slides(slides.slides, root), slides.rejected)


def _summarise(found: _Found) -> str:
    """Say how many there are, and how many cells are filled in already."""
    columns = [name for name in found.rows[0] if name != "path"]
    filled = {name: sum(bool(row.get(name)) for row in found.rows) for name in columns}
    known = ", ".join(f"{count} with {name}" for name, count in filled.items() if count)
    return f"{len(found.rows)} {found.kind}, {known or 'of which nothing is known yet'}"
