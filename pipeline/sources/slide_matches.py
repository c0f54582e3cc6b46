"""Which slide a row of a table, or an annotation, speaks of: where that is unclear, none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from pipeline.errors import SettingsError, SourceError
from pipeline.sources.slide_tables import Row
from pipeline.sources.slides import SLIDE_SUFFIXES, ListedFile

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Matches(Generic[T]):
    """What is said of slides.

    Args:
        of_slide: A slide's path -> what is said of it.
        unclear: A slide's path -> why nobody can tell what is said of it.
        astray: What speaks of no slide there is: names in tables, URLs of annotations.
    """

    of_slide: Mapping[PurePosixPath, T]
    unclear: Mapping[PurePosixPath, str]
    astray: tuple[str, ...]


def match_rows(rows: Iterable[Row[T]], slides: Sequence[ListedFile]) -> Matches[T]:
    """Find the slide of each row of a table.

    A row that gives folders speaks of the slide whose URL ends so; one that gives a mere name, of
    the only slide of that name, or of the one of them that lies in the source's own folder. The
    suffix may be left out or be another, unless it tells two slides apart.

    Args:
        rows: Of one or several tables.
        slides: All there are.

    Returns:
        Values; slides are unclear of which a row could mean either.

    Raises:
        SettingsError: Two rows say different things of one slide.
    """
    named = _group_by_stem(slides)
    said: dict[PurePosixPath, Row[T]] = {}
    unclear: dict[PurePosixPath, str] = {}
    astray = set()
    for row in rows:
        found = _find_named(PurePosixPath(row.slide), named)
        if len(found) > 1:
            remedy = "Give its path below the source"
            reason = _say_unclear(row.table, f"row {row.slide!r}", found, remedy)
            unclear |= {slide.path: reason for slide in found}
        elif found:
            _require_agreement(said.setdefault(found[0].path, row), row)
        else:
            astray.add(row.slide)
    values = {path: row.value for path, row in said.items()}
    return Matches(values, unclear, tuple(sorted(astray)))


def match_annotations(
    annotations: Iterable[ListedFile], slides: Sequence[ListedFile]
) -> Matches[str]:
    """Find the slide of each annotation: of those of its name the one fewest folders away.

    Args:
        annotations: Their files.
        slides: All there are.

    Returns:
        URLs of annotations; slides as near as each other to one, and a slide with two, are unclear.
    """
    named = _group_by_stem(slides)
    own: dict[PurePosixPath, list[str]] = defaultdict(list)
    unclear: dict[PurePosixPath, str] = {}
    astray = []
    for file in annotations:
        nearest = _find_nearest(file, named.get(file.stem, ()))
        if len(nearest) > 1:
            remedy = "Put each annotation into the folder of its slide"
            reason = _say_unclear(file.info.url, "it", nearest, remedy)
            unclear |= {slide.path: reason for slide in nearest}
        elif nearest:
            own[nearest[0].path].append(file.info.url)
        else:
            astray.append(file.info.url)
    for path, (first, *others) in own.items():
        if others:
            problem = f"another annotation of the same slide is {' and '.join(others)}"
            unclear[path] = str(SourceError(first, problem, "Leave the one that counts"))
    return Matches({path: urls[0] for path, urls in own.items()}, unclear, tuple(sorted(astray)))


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
    # What fits to the letter goes before what fits but for the suffix or the folders in front.
    found = [slide for slide in found if slide.place.name == named.name] or found
    return [slide for slide in found if slide.place.parent == named.parent] or found


def _lies_in(slide: ListedFile, folders: Sequence[str]) -> bool:
    around = slide.address.parent.parts
    return list(around[max(0, len(around) - len(folders)) :]) == folders


def _find_nearest(file: ListedFile, slides: Sequence[ListedFile]) -> list[ListedFile]:
    steps = [_count_steps(file.path.parent, slide.place.parent) for slide in slides]
    fewest = min(steps, default=0)
    return [slide for slide, count in zip(slides, steps, strict=True) if count == fewest]


def _count_steps(folder: PurePosixPath, other: PurePosixPath) -> int:
    """How many times up or down leads from one folder to the other."""
    pairs = zip(folder.parts, other.parts, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return len(folder.parts) + len(other.parts) - 2 * shared


def _require_agreement(row: Row[T], other: Row[T]) -> None:
    if row.value != other.value:
        raise SettingsError(
            row.table,
            f"{row.slide!r} is {row.cell!r} in one row, and {other.slide!r}, the same slide, "
            f"{other.cell!r} in another" + (f" of {other.table}" * (other.table != row.table)),
            "Leave the row that is right",
        )


def _say_unclear(url: str, name: str, slides: Sequence[ListedFile], remedy: str) -> str:
    first, second, *others = (slide.place.as_posix() for slide in slides)
    more = f" or {len(others)} more" if others else ""
    return str(SourceError(url, f"{name} may be of {first} or {second}{more}", remedy))
