"""Which slide each row of a table, each file that it names and each annotation belongs to."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Final

from pipeline.errors import SettingsError, SourceError
from pipeline.io.names import fold_name
from pipeline.io.storage import exists, join, plain_url
from pipeline.slides.formats import is_dicom_part
from pipeline.sources.listing import parent_of
from pipeline.sources.sheet import NONE, SheetRow
from pipeline.sources.slide_files import SLIDE_SUFFIXES, ListedFile, strip_suffix

_LOOK_UPS_AT_ONCE: Final = 16  # of files on a server, which answers each in some milliseconds


@dataclass(frozen=True, slots=True)
class RowMatches:
    """The rows of a table that belong to each slide.

    Args:
        rows: A slide's path -> its rows, in the order of the table.
        ambiguous: A slide's path -> why its row cannot be told.
        unmatched: Rows that belong to no slide.
    """

    rows: Mapping[PurePosixPath, tuple[SheetRow, ...]]
    ambiguous: Mapping[PurePosixPath, str]
    unmatched: tuple[SheetRow, ...]


@dataclass(frozen=True, slots=True)
class AnnotationMatches:
    """The annotation of each slide.

    Args:
        urls: A slide's path -> URL of its annotation.
        ambiguous: A slide's path -> why its annotation cannot be told.
        unmatched: URLs of annotations that belong to no slide.
    """

    urls: Mapping[PurePosixPath, str]
    ambiguous: Mapping[PurePosixPath, str]
    unmatched: tuple[str, ...]


def add_named(
    slides: Sequence[ListedFile], files: Iterable[ListedFile], rows: Iterable[SheetRow], root: str
) -> list[ListedFile]:
    """Add the files that rows name to the letter and that their own names do not tell are slides.

    Args:
        slides: Slides by their names.
        files: All files of the source.
        rows: Rows of the sheet.
        root: URL of the source's folder.
    """
    known = {slide.info.url for slide in slides}
    others = {
        str(file.absolute_place): file
        for file in files
        if file.info.url not in known and not is_dicom_part(file.path)
    }
    named: dict[str, ListedFile] = {}
    for row in rows:
        places = _spell(row.path, row.table_url, root)
        named |= [(at, others[at]) for at in places if at in others][:1]
    return [*slides, *named.values()]


def match_rows(rows: Iterable[SheetRow], slides: Sequence[ListedFile], root: str) -> RowMatches:
    """Find the slide of each row.

    A row gives an absolute path, a URL, or a path below the folder of its table or else below the
    source. Where no slide has that path to the letter, the row belongs to the only slide whose
    path ends in it or, of several, to the one directly in the source's folder; the suffix may then
    be missing or different, and upper and lower case and Unicode's forms may differ, unless that
    tells two slides apart. A backslash may stand for a slash.

    Args:
        rows: Rows of a table.
        slides: Every slide of the source.
        root: URL of the source's folder.

    Returns:
        The rows of each slide; a slide is ambiguous if a row fits it and another slide.
    """
    by_place = {str(slide.absolute_place): slide for slide in slides}
    by_name = _group_by_name(slides)
    matched: dict[PurePosixPath, list[SheetRow]] = defaultdict(list)
    ambiguous: dict[PurePosixPath, str] = {}
    unmatched = []
    for row in rows:
        places = _spell(row.path, row.table_url, root)
        found: Sequence[ListedFile] = [by_place[at] for at in places if at in by_place][:1]
        for path in _vary(row.path):
            found = found or _find_named(PurePosixPath(path), by_name)
        if len(found) > 1:
            remedy = "Give its path below the source"
            reason = _describe_ambiguity(row.table_url, f"row {row.path!r}", found, remedy)
            ambiguous |= {slide.path: reason for slide in found}
        elif found:
            matched[found[0].path].append(row)
        else:
            unmatched.append(row)
    whole = {path: tuple(its) for path, its in matched.items()}
    return RowMatches(whole, ambiguous, tuple(unmatched))


def require_agreement(rows: Sequence[SheetRow]) -> None:
    """Check that rows about one slide, of one table or several, do not contradict each other.

    Raises:
        SettingsError: Two of them do.
    """
    said: dict[str, SheetRow] = {}
    for row in rows:
        for name, value in row.facts.items():
            first = said.setdefault(name, row)
            if getattr(first, name) != value:
                whose = "of" if row.table_url == first.table_url else f"of {row.table_url},"
                problem = (
                    f"row {first.number} ({first.path!r}) gives {name} {_show(first, name)}, and "
                    f"row {row.number} {whose} the same slide ({row.path!r}) {_show(row, name)}"
                )
                raise SettingsError(first.table_url, problem, "Leave the row that is right")


def require_single(rows: Sequence[SheetRow]) -> None:
    """Check that a sheet has one row for a slide.

    Raises:
        SettingsError: It has two.
    """
    if len(rows) > 1:
        first, second = rows[:2]
        named = f"{first.path!r} and {second.path!r}" if first.path != second.path else first.path
        problem = f"rows {first.number} and {second.number} are of one slide ({named})"
        raise SettingsError(first.table_url, problem, "Leave the row that is right")


def find_named_files(
    rows: Iterable[SheetRow], files: Iterable[ListedFile], root: str
) -> dict[tuple[str, str], str | None]:
    """Find the masks and annotations that rows name.

    Args:
        rows: Rows of all tables.
        files: All files of the source.
        root: URL of the source's folder.

    Returns:
        (URL of the table, cell) -> URL of the file, which lies where `match_rows` looks for
        slides, or None where there is none.
    """
    listed = {_normalise(plain_url(file.info.url)): file.info.url for file in files}
    alike: dict[str, list[str]] = defaultdict(list)
    for place, url in listed.items():
        alike[fold_name(place)].append(url)
    cells = {(row.table_url, cell) for row in rows for cell in (row.mask, row.annotation)}
    wanted = sorted(pair for pair in cells if pair[1] not in {"", NONE})

    def find(pair: tuple[str, str]) -> str | None:
        spelt = _spell_urls(pair[1], pair[0], root)
        known = (listed[url] for url in spelt if url in listed)
        single = (alike[key][0] for key in map(fold_name, spelt) if len(alike.get(key, ())) == 1)
        return next(known, None) or next(filter(exists, spelt), None) or next(single, None)

    with ThreadPoolExecutor(_LOOK_UPS_AT_ONCE) as pool:
        return dict(zip(wanted, pool.map(find, wanted), strict=True))


def match_annotations(
    annotations: Iterable[ListedFile], slides: Sequence[ListedFile]
) -> AnnotationMatches:
    """Find the slide of each annotation: the one of its name that is the fewest folders away.

    An annotation is called as its slide with or without the slide's suffix; of several that are
    as near the one that it is called by to the letter.

    Args:
        annotations: Files of annotations.
        slides: Every slide of the source.

    Returns:
        URLs of annotations. Slides at the same distance from one annotation are ambiguous, and
        so is a slide with two annotations.
    """
    by_name = _group_by_name(slides)
    urls: dict[PurePosixPath, list[str]] = defaultdict(list)
    ambiguous: dict[PurePosixPath, str] = {}
    unmatched = []
    for file in annotations:
        nearest = _find_nearest(file, _find_called(file.stem, by_name))
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
    firsts = {path: found[0] for path, found in urls.items()}
    return AnnotationMatches(firsts, ambiguous, tuple(sorted(unmatched)))


def _group_by_name(slides: Iterable[ListedFile]) -> Mapping[str, list[ListedFile]]:
    groups: dict[str, list[ListedFile]] = defaultdict(list)
    for slide in slides:
        for name in dict.fromkeys(map(fold_name, slide.names)):
            groups[name].append(slide)
    return groups


def _find_called(name: str, by_name: Mapping[str, Sequence[ListedFile]]) -> Sequence[ListedFile]:
    """Find the slides of a name, or else those of that name with another suffix."""
    return by_name.get(fold_name(name)) or by_name.get(fold_name(strip_suffix(name)), ())


def _find_named(
    named: PurePosixPath, by_name: Mapping[str, Sequence[ListedFile]]
) -> Sequence[ListedFile]:
    folders = [part for part in named.parent.parts if part != "/"]
    called = by_name.get(fold_name(strip_suffix(named.name)), ())
    found = [slide for slide in called if _lies_in(slide, folders, str)]
    found = found or [slide for slide in called if _lies_in(slide, folders, fold_name)]
    # An exact match goes before one that differs in the suffix, in letters or leading folders.
    found = _prefer_called(named.name, found)
    return [slide for slide in found if slide.place.parent == named.parent] or found


def _lies_in(slide: ListedFile, folders: Sequence[str], fold: Callable[[str], str]) -> bool:
    around = slide.absolute_place.parent.parts
    nearest = around[max(0, len(around) - len(folders)) :]
    return [*map(fold, nearest)] == [*map(fold, folders)]


def _prefer_called(name: str, slides: Sequence[ListedFile]) -> list[ListedFile]:
    """Choose the slides whose own names are the likest to a name: to the letter, then folded."""
    found = list(slides)
    stem = (
        PurePosixPath(name).stem if PurePosixPath(name).suffix.lower() in SLIDE_SUFFIXES else name
    )
    for fold in (str, fold_name):
        found = [slide for slide in found if fold(slide.place.name) == fold(name)] or found
        found = [slide for slide in found if fold(slide.stem) == fold(stem)] or found
    return found


def _find_nearest(file: ListedFile, slides: Sequence[ListedFile]) -> list[ListedFile]:
    steps = [_count_steps(file.path.parent, slide.place.parent) for slide in slides]
    fewest = min(steps, default=0)
    nearest = [slide for slide, count in zip(slides, steps, strict=True) if count == fewest]
    return _prefer_called(file.stem, nearest)


def _count_steps(folder: PurePosixPath, other: PurePosixPath) -> int:
    """Count the steps up and down from one folder to the other."""
    pairs = zip(folder.parts, other.parts, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return len(folder.parts) + len(other.parts) - 2 * shared


def _spell_urls(cell: str, table_url: str, root: str) -> list[str]:
    """List the URLs that a path in a table may mean, the likeliest first."""
    homes = [home for home in (parent_of(plain_url(table_url)), root) if home is not None]
    urls = []
    for path in _vary(cell):
        is_whole = "://" in path or path.startswith("/")
        urls += [plain_url(path)] if is_whole else [join(home, path) for home in homes]
    return list(dict.fromkeys(map(_normalise, urls)))


def _spell(cell: str, table_url: str, root: str) -> list[str]:
    """List the same in the form of `ListedFile.absolute_place`."""
    return [str(PurePosixPath(url)) for url in _spell_urls(cell, table_url, root)]


def _vary(path: str) -> list[str]:
    """List the spellings of a path: as it is, and with slashes for backslashes."""
    return [path, path.replace("\\", "/")] if "\\" in path else [path]


def _normalise(url: str) -> str:
    scheme, mark, path = url.rpartition("://")
    return f"{scheme}{mark}{posixpath.normpath(path)}"


def _show(row: SheetRow, name: str) -> str:
    value = getattr(row, name)
    return repr(value.name.lower() if name == "label" else value)


def _describe_ambiguity(url: str, name: str, slides: Sequence[ListedFile], remedy: str) -> str:
    first, second, *others = (slide.place.as_posix() for slide in slides)
    more = f" or {len(others)} more" if others else ""
    return str(SourceError(url, f"{name} may be of {first} or {second}{more}", remedy))
