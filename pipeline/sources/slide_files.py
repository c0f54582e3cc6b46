"""Files below a folder or prefix, and which of them make each slide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from pipeline.errors import NormscopeError
from pipeline.io.junk import is_junk
from pipeline.io.storage import (
    ObjectInfo,
    decode_file_url,
    join,
    join_versions,
    list_objects,
    name_of,
    plain_url,
)
from pipeline.records import ManifestEntry
from pipeline.slides.formats import (
    DICOM_SUFFIX,
    HAMAMATSU_SUFFIXES,
    belongs_to,
    folder_of_companions,
    is_dicom_part,
    read_series,
)
from pipeline.sources.junk import count_unread
from pipeline.sources.listing import list_source

# What OpenSlide reads, https://openslide.org/formats/, and further suffixes of TIFF. Many pictures
# beside slides are JPEG or PNG, so these are slides only where they are named outright.
SLIDE_SUFFIXES: Final = frozenset(
    {".tif", ".tiff", ".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".svslide", ".czi", DICOM_SUFFIX}
    | {".btf", ".tf8", ".qptiff"}
    | HAMAMATSU_SUFFIXES
)
_OME: Final = ".ome"  # `.ome.tif` is one suffix of two parts
_MASK_REASON: Final = (
    "taken for masks by their names (`_mask`, or a folder `masks`) and not read; name those of "
    "tissue in the column `mask` of a sample sheet"
)


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A listed file; of a slide of several files the one that OpenSlide opens.

    Args:
        info: URL, size and version of the file.
        path: Path below the folder that was asked for.
        stem: Name that tables and annotations use: the file's name without suffix; of a DICOM
            slide, whose files have numbers for names, the folder's name.
        companions: The slide's other files.
        series: Series of a DICOM slide whose folder holds several; "" for every other slide.
    """

    info: ObjectInfo
    path: PurePosixPath
    stem: str
    companions: tuple[ObjectInfo, ...] = ()
    series: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names that tables and annotations may call the slide by: with, or without its suffix."""
        return tuple(dict.fromkeys((self.stem, self.place.name, strip_ome(self.stem))))

    @property
    def place(self) -> PurePosixPath:
        """Path of the slide below the folder that was asked for.

        A DICOM slide is a folder or, where that holds several, the series within it.
        """
        return self.path.parent / self.series if is_dicom_part(self.path) else self.path

    @property
    def slide_id(self) -> str:
        """Path of the slide below the folder that was asked for, with its suffix.

        It depends on no other file. A DICOM slide directly in that folder has the folder's name.
        """
        return self.place.as_posix() if self.place.parts else self.stem

    @property
    def absolute_place(self) -> PurePosixPath:
        """Path of the slide from the root of the disk, or from the bucket's name on."""
        whole = PurePosixPath(plain_url(self.info.url))
        return whole.parent / self.series if is_dicom_part(whole) else whole

    @property
    def version(self) -> str:
        """Version of all the slide's files together."""
        return join_versions((self.info, *self.companions))

    @property
    def companion_urls(self) -> tuple[str, ...]:
        """URLs of the slide's other files."""
        return tuple(info.url for info in self.companions)


def strip_suffix(name: str) -> str:
    """Strip the suffix of a slide from a name, all of `.ome.tif`; another suffix stays."""
    path = PurePosixPath(name)
    return strip_ome(path.stem) if path.suffix.lower() in SLIDE_SUFFIXES else name


def strip_ome(stem: str) -> str:
    """Strip what is left of `.ome.tif` once the last suffix is gone."""
    return stem[: -len(_OME)] if stem.lower().endswith(_OME) else stem


class SlideFiles(NamedTuple):
    """Files below a folder or prefix.

    Args:
        files: All files, in order of their URLs.
        slides: Files that are slides, each with its companions.
        rejected: Entries of the manifest on DICOM files that belong to no slide.
    """

    files: list[ListedFile]
    slides: list[ListedFile]
    rejected: tuple[ManifestEntry, ...] = ()


def list_files(url: str) -> SlideFiles:
    """List all files below a folder or prefix, and the slides among them.

    Args:
        url: A folder, a prefix, or one file, which is then the slide whatever its name.

    Raises:
        AbsentError: There is no file.
        StorageError: The URL cannot be read.
    """
    url = decode_file_url(url)
    infos, refused = list_source(url)
    if [info.url for info in infos] != [url]:
        found = _find_slides([_name(info, url.rstrip("/")) for info in infos])
        return found._replace(rejected=(*refused, *found.rejected))
    plain = plain_url(url)
    root = plain.rpartition("/")[0]
    slide = _name(replace(infos[0], url=plain), root)
    folder = folder_of_companions(slide.path)
    beside = list_objects(join(root, *folder.parts)) if folder is not None else []
    named = drop_junk([_name(info, root) for info in beside])
    if is_dicom_part(slide.path):
        parts = [file for file in named if file.path.parent == slide.path.parent]
        slide = _find_own_series(slide, [file for file in parts if _is_slide(file)])
    else:
        slide = _complete(slide, _group_by_folder(named))
    return SlideFiles([slide], [replace(slide, info=infos[0])])


def _name(info: ObjectInfo, root: str) -> ListedFile:
    path = PurePosixPath(info.url[len(root) + 1 :])
    folder = path.parent.name or name_of(root)
    return ListedFile(info, path, folder if is_dicom_part(path) else path.stem)


def drop_junk(files: Iterable[ListedFile]) -> list[ListedFile]:
    """Drop the files that are systems' own; see `pipeline.io.junk`."""
    return [file for file in files if not is_junk(file.path)]


def _find_slides(files: list[ListedFile]) -> SlideFiles:
    kept = drop_junk(files)
    by_folder = _group_by_folder(kept)
    found = [file for file in kept if _is_slide(file)]
    slides = [_complete(file, by_folder) for file in found if not is_dicom_part(file.path)]
    rejected: list[ManifestEntry] = []
    parts = _group_by_folder([file for file in found if is_dicom_part(file.path)])
    for beside in parts.values():
        series, refused = _split_series(beside)
        slides += series
        rejected += refused
    return SlideFiles(files, sorted(slides, key=lambda slide: slide.path), tuple(rejected))


def _split_series(
    files: Sequence[ListedFile],
) -> tuple[list[ListedFile], list[ManifestEntry]]:
    """Make a slide of each whole-slide series among the DICOM files of one folder."""
    found = read_series([file.info.url for file in files])
    series: dict[str, list[ListedFile]] = defaultdict(list)
    others, damaged = [], []
    for file in files:
        its = found[file.info.url]
        if isinstance(its, NormscopeError):
            damaged.append((file, its))
        elif its.is_slide:
            series[its.uid].append(file)
        else:
            others.append(file)
    rejected = [_skip_others(others)] if others else []
    if damaged and (len(series) == 1 or not (series or others)):
        # It may be of the one slide there is, which then fails in place of losing a level.
        series[next(iter(series), "")] += [file for file, _ in damaged]
    else:
        rejected += [ManifestEntry(f.info.url, "failed", str(error)) for f, error in damaged]
    return [_join_series(uid, parts, len(series) > 1) for uid, parts in series.items()], rejected


def _join_series(uid: str, parts: Sequence[ListedFile], is_one_of_several: bool) -> ListedFile:
    first, *others = sorted(parts, key=lambda file: file.path)
    first = replace(first, companions=tuple(file.info for file in others))
    return replace(first, series=uid, stem=uid) if is_one_of_several else first


def _skip_others(files: Sequence[ListedFile]) -> ManifestEntry:
    folder, _, name = files[0].info.url.rpartition("/")
    what = "is not a whole-slide image" if len(files) == 1 else "are not whole-slide images"
    reason = (
        f"{len(files)} DICOM {'file' if len(files) == 1 else 'files'}, e.g. {name}, {what}; "
        "`normscope ingest images` reads radiographs"
    )
    return ManifestEntry(folder, "skipped", reason)


def _find_own_series(slide: ListedFile, beside: Sequence[ListedFile]) -> ListedFile:
    """Complete the DICOM slide that a named file is part of; alone where it is of none."""
    for found in _split_series(beside)[0]:
        infos = (found.info, *found.companions)
        if slide.info.url in {info.url for info in infos}:
            others = tuple(info for info in infos if info.url != slide.info.url)
            stem = found.stem if found.series else slide.stem
            return replace(slide, companions=others, series=found.series, stem=stem)
    return slide


def _group_by_folder(files: Sequence[ListedFile]) -> Mapping[PurePosixPath, list[ListedFile]]:
    groups: dict[PurePosixPath, list[ListedFile]] = defaultdict(list)
    for file in files:
        groups[file.path.parent].append(file)
    return groups


def _complete(
    slide: ListedFile, by_folder: Mapping[PurePosixPath, Sequence[ListedFile]]
) -> ListedFile:
    folder = folder_of_companions(slide.path)
    beside = by_folder.get(folder, ()) if folder is not None else ()
    companions = tuple(file.info for file in beside if belongs_to(file.path, slide.path))
    return replace(slide, companions=companions)


def _is_slide(file: ListedFile) -> bool:
    return file.path.suffix.lower() in SLIDE_SUFFIXES and not _is_mask(file)


def _is_mask(file: ListedFile) -> bool:
    # The official masks are slide files too: `tumor_001_mask.tif`.
    folders = map(str.lower, file.path.parts[:-1])
    return strip_ome(file.path.stem).lower().endswith("_mask") or "masks" in folders


def list_unread(files: Iterable[ListedFile], read: Collection[str]) -> tuple[ManifestEntry, ...]:
    """Count the files that nobody reads, in an entry of the manifest for each suffix.

    DICOM files that belong to no slide are not among them, as `list_files` speaks of them.

    Args:
        files: All files, of which junk does not count.
        read: URLs of those that are read: slides, annotations, masks and tables.
    """
    known = {plain_url(url) for url in read}
    no_slides = [file for file in drop_junk(files) if not _is_slide(file)]
    unread = [file for file in no_slides if plain_url(file.info.url) not in known]
    masks = [file.info.url for file in unread if _is_mask(file)]
    others = [file.info.url for file in unread if not _is_mask(file)]
    return (*count_unread(masks, _MASK_REASON), *count_unread(others))
