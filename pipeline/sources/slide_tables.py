"""Tables of labels and of um/px, and which slide each row or annotation belongs to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Final, Generic, TypeVar

from pipeline.errors import SettingsError, SourceError
from pipeline.records import Label
from pipeline.slides.resolution import require_possible_mpp
from pipeline.sources.slide_files import SLIDE_SUFFIXES, ListedFile
from pipeline.sources.tables import LABEL_WORDS, read_table

# An empty cell says nothing of a slide, and a table need not name the slides of unknown label.
_WORDS: Final = {word: label for word, label in LABEL_WORDS.items() if word}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SlideRow(Generic[T]):
    """One row of a table of slides.

    Args:
        table_url: URL of the table.
        slide: The slide's name or path as the table gives it.
        cell: The value as the table gives it.
        value: The parsed value.
    """

    table_url: str
    slide: str
    cell: str
    value: T


@dataclass(frozen=True, slots=True)
class SlideMatches(Generic[T]):
    """The rows or annotations that belong to each slide.

    Args:
        values: A slide's path -> the value of its row, or the URL of its annotation.
        ambiguous: A slide's path -> why its row or annotation cannot be told.
        unmatched: Names in tables and URLs of annotations that belong to no slide.
    """

    values: Mapping[PurePosixPath, T]
    ambiguous: Mapping[PurePosixPath, str]
    unmatched: tuple[str, ...]


def read_labels(url: str) -> tuple[SlideRow[Label], ...]:
    """Read a table of labels, with or without a header.

    Args:
        url: URL of a CSV table with the columns `slide` and `label` (a word of
            `tables.LABEL_WORDS`). Without a header these are its first two columns, as in
            Camelyon16's `reference.csv`.

    Raises:
        SourceError: The table cannot be used, or a label is empty or not a known word.
        StorageError: The table cannot be read.
    """
    table = read_table(
        url,
        {"slide": ("slide",), "label": ("label",)},
        needed=("slide", "label"),
        remedy="Give a CSV table with the columns slide and label",
        is_row=lambda cells: len(cells) > 1 and cells[1].strip().lower() in _WORDS,
    )
    labels = []
    for number, row in table.number_rows():
        word = row["label"].lower()
        if word not in _WORDS:
            remedy = f"Use one of {', '.join(sorted(_WORDS))}"
            raise SourceError(url, f"label {word!r} in row {number}", remedy)
        labels.append(SlideRow(url, row["slide"], word, _WORDS[word]))
    return tuple(labels)


def read_mpp(url: str) -> tuple[SlideRow[float], ...]:
    """Read a table of um per level-0 pixel.

    Args:
        url: URL of a CSV table with the columns `slide` and `mpp_um`.

    Raises:
        SourceError: The table cannot be used, or a value is impossible.
        StorageError: The table cannot be read.
    """
    table = read_table(
        url,
        {"slide": ("slide",), "mpp_um": ("mpp_um",)},
        needed=("slide", "mpp_um"),
        remedy="Give a CSV table with the columns slide and mpp_um",
    )
    values = []
    for row in table.rows:
        item = f"{url}, {row['slide']}"
        try:
            mpp_um = float(row["mpp_um"])
        except ValueError as error:
            raise SourceError(item, f"mpp_um {row['mpp_um']!r}", "Give um/px") from error
        require_possible_mpp((mpp_um, mpp_um), "user table", item)
        values.append(SlideRow(url, row["slide"], row["mpp_um"], mpp_um))
    return tuple(values)


def match_rows(rows: Iterable[SlideRow[T]], slides: Sequence[ListedFile]) -> SlideMatches[T]:
    """Find the slide of each row.

    A row that gives folders belongs to the slide whose URL ends in that path. A row that gives
    only a name belongs to the only slide of that name or, of several, to the one directly in the
    source's folder. The suffix may be missing or different, unless it tells two slides apart.

    Args:
        rows: Rows of one or several tables.
        slides: Every slide of the source.

    Returns:
        The rows' values; a slide is ambiguous if a row fits it and another slide.

    Raises:
        SettingsError: Two rows of one slide differ.
    """
    by_stem = _group_by_stem(slides)
    matched: dict[PurePosixPath, SlideRow[T]] = {}
    ambiguous: dict[PurePosixPath, str] = {}
    unmatched = set()
    for row in rows:
        found = _find_named(PurePosixPath(row.slide), by_stem)
        if len(found) > 1:
            remedy = "Give its path below the source"
            reason = _describe_ambiguity(row.table_url, f"row {row.slide!r}", found, remedy)
            ambiguous |= {slide.path: reason for slide in found}
        elif found:
            _require_agreement(matched.setdefault(found[0].path, row), row)
        else:
            unmatched.add(row.slide)
    values = {path: row.value for path, row in matched.items()}
    return SlideMatches(values, ambiguous, tuple(sorted(unmatched)))


def match_annotations(
    annotations: Iterable[ListedFile], slides: Sequence[ListedFile]
) -> SlideMatches[str]:
    """Find the slide of each annotation: the one of its name that is the fewest folders away.

    Args:
        annotations: Files of annotations.
        slides: Every slide of the source.

    Returns:
        URLs of annotations. Slides at the same distance from one annotation are ambiguous, and
        so is a slide with two annotations.
    """
    by_stem = _group_by_stem(slides)
    urls: dict[PurePosixPath, list[str]] = defaultdict(list)
    ambiguous: dict[PurePosixPath, str] = {}
    unmatched = []
    for file in annotations:
        nearest = _find_nearest(file, by_stem.get(file.stem, ()))
        if len(nearest) > 1:
            remedy = "Put each annotation into the folder of its slide"
            reason = _describe_ambiguity(file.info.url, "it", nearest, remedy)
            ambiguous |= {slide.path: reason for slide in nearest}
        elif nearest:
            urls[nearest[0].path].append(file.info.url)
        else:
            unmatched.append(file.info.url)
    for path, (first, *others) in urls.items():
        if others:
            problem = f"another annotation of the same slide is {' and '.join(others)}"
            ambiguous[path] = str(SourceError(first, problem, "Leave the one that counts"))
    values = {path: found[0] for path, found in urls.items()}
    return SlideMatches(values, ambiguous, tuple(sorted(unmatched)))


def _group_by_stem(slides: Iterable[ListedFile]) -> Mapping[str, list[ListedFile]]:
    groups: dict[str, list[ListedFile]] = defaultdict(list)
    for slide in slides:
        groups[slide.stem].append(slide)
    return groups


def _find_named(
    named: PurePosixPath, by_stem: Mapping[str, Sequence[ListedFile]]
) -> Sequence[ListedFile]:
    stem = named.stem if named.suffix.lower() in SLIDE_SUFFIXES else named.name
    folders = [part for part in named.parent.parts if part != "/"]
    found = [slide for slide in by_stem.get(stem, ()) if _lies_in(slide, folders)]
    # An exact match goes before one that differs in the suffix or in leading folders.
    found = [slide for slide in found if slide.place.name == named.name] or found
    return [slide for slide in found if slide.place.parent == named.parent] or found


def _lies_in(slide: ListedFile, folders: Sequence[str]) -> bool:
    around = slide.absolute_place.parent.parts
    return list(around[max(0, len(around) - len(folders)) :]) == folders


def _find_nearest(file: ListedFile, slides: Sequence[ListedFile]) -> list[ListedFile]:
    steps = [_count_steps(file.path.parent, slide.place.parent) for slide in slides]
    fewest = min(steps, default=0)
    return [slide for slide, count in zip(slides, steps, strict=True) if count == fewest]


def _count_steps(folder: PurePosixPath, other: PurePosixPath) -> int:
    """Count the steps up and down from one folder to the other."""
    pairs = zip(folder.parts, other.parts, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return len(folder.parts) + len(other.parts) - 2 * shared


def _require_agreement(row: SlideRow[T], other: SlideRow[T]) -> None:
    if row.value != other.value:
        elsewhere = f" of {other.table_url}" if other.table_url != row.table_url else ""
        problem = (
            f"{row.slide!r} is {row.cell!r} in one row, and {other.slide!r}, the same slide, "
            f"{other.cell!r} in another{elsewhere}"
        )
        raise SettingsError(row.table_url, problem, "Leave the row that is right")


def _describe_ambiguity(url: str, name: str, slides: Sequence[ListedFile], remedy: str) -> str:
    first, second, *others = (slide.place.as_posix() for slide in slides)
    more = f" or {len(others)} more" if others else ""
    return str(SourceError(url, f"{name} may be of {first} or {second}{more}", remedy))
