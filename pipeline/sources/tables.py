"""CSV tables of labels: columns found by any of their usual names, cells made sense of."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Final

from pipeline.errors import SourceError
from pipeline.io.storage import read_bytes

_GZIP_MAGIC: Final = b"\x1f\x8b"


@dataclass(frozen=True)
class Table:
    """A table's rows under our names of its columns.

    Args:
        url: Of the file.
        columns: Our name -> the table's own, for the columns that it has.
        rows: Our name -> cell, stripped; only the columns asked for.
    """

    url: str
    columns: Mapping[str, str]
    rows: tuple[Mapping[str, str], ...]


def read_table(
    url: str,
    names: Mapping[str, Collection[str]],
    *,
    needed: Collection[str],
    remedy: str,
) -> Table:
    """Read a CSV table, gzipped or not.

    Args:
        url: Of the file.
        names: Our name of a column -> what tables may call it, in order of preference; case,
            blanks and hyphens do not matter.
        needed: Those of our names that the table must have.
        remedy: For the error about a missing column.

    Raises:
        SourceError: It is no UTF-8 CSV table, has no rows, or lacks a needed column.
        StorageError: It cannot be read.
    """
    try:
        lines = read_rows(url)
        header = next(lines, [])
        found = _find_columns(header, names)
        missing = [name for name in needed if name not in found]
        if missing:
            # Quoted, as every cell is: a table without a header begins with persons.
            listed = ", ".join(map(repr, filter(None, header[:20]))) or "none"
            raise SourceError(
                url, f"no column for {' and '.join(missing)}; the table has: {listed}", remedy
            )
        # A short row gives empty cells; what stands beyond the header belongs to no column.
        rows = tuple(
            {name: cells[at].strip() if at < len(cells) else "" for name, at in found.items()}
            for cells in lines
            if cells
        )
    except csv.Error as error:
        raise SourceError(url, f"not a CSV table ({error})", "Give a CSV table") from error
    if not rows:
        raise SourceError(url, "the table has no rows", "Give one row an image")
    return Table(url, {name: header[at] for name, at in found.items()}, rows)


def read_rows(url: str) -> Iterator[list[str]]:
    """The cells of each line of a CSV file, gzipped or not.

    Raises:
        SourceError: It is no text in UTF-8.
        StorageError: It cannot be read.
    """
    return csv.reader(StringIO(_read_text(url), newline=""))


def _read_text(url: str) -> str:
    data = read_bytes(url)
    try:
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(url, f"damaged gzip ({error})", "Fetch the table again") from error
    except UnicodeDecodeError as error:
        raise SourceError(url, "not text in UTF-8", "Save the table as CSV in UTF-8") from error


def _find_columns(header: Collection[str], names: Mapping[str, Collection[str]]) -> dict[str, int]:
    """Our name -> index of the first column that bears one of its names."""
    positions: dict[str, int] = {}
    for at, title in enumerate(header):
        positions.setdefault(_fold(title), at)
    found = {}
    for name, candidates in names.items():
        at_any = [positions[_fold(other)] for other in candidates if _fold(other) in positions]
        if at_any:
            found[name] = at_any[0]
    return found


def _fold(title: str) -> str:
    return re.sub(r"[\s_-]+", "_", title.strip().lower())


def parse_sex(text: str) -> str:
    """`M`, `F`, `O` (DICOM's words), or empty where unknown."""
    first = text.strip().upper()[:1]
    return first if first in {"M", "F", "O"} else ""
