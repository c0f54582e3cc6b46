"""Files below a folder or prefix, and which of them make each slide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final

from pipeline.io.storage import (
    ObjectInfo,
    decode_file_url,
    join,
    join_versions,
    list_objects,
    name_of,
    plain_url,
)
from pipeline.slides.formats import (
    DICOM_SUFFIX,
    HAMAMATSU_SUFFIXES,
    belongs_to,
    folder_of_companions,
    is_dicom_part,
)
from pipeline.sources.listing import list_source

# What OpenSlide reads, https://openslide.org/formats/.
SLIDE_SUFFIXES: Final = frozenset(
    {".tif", ".tiff", ".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".svslide", ".czi", DICOM_SUFFIX}
    | HAMAMATSU_SUFFIXES
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
    """

    info: ObjectInfo
    path: PurePosixPath
    stem: str
    companions: tuple[ObjectInfo, ...] = ()

    @property
    def place(self) -> PurePosixPath:
        """Path of the slide below the folder that was asked for; a DICOM slide is a folder."""
        return self.path.parent if is_dicom_part(self.path) else self.path

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
        return whole.parent if is_dicom_part(whole) else whole

    @property
    def version(self) -> str:
        """Version of all the slide's files together."""
        return join_versions((self.info, *self.companions))

    @property
    def companion_urls(self) -> tuple[str, ...]:
        """URLs of the slide's other files."""
        return tuple(info.url for info in self.companions)


def list_files(url: str) -> tuple[list[ListedFile], list[ListedFile]]:
    """List all files below a folder or prefix, and the slides among them.

    Args:
        url: A folder, a prefix, or one file, which is then the slide whatever its name.

    Raises:
        AbsentError: There is no file.
        StorageError: The URL cannot be read.
    """
    url = decode_file_url(url)
    infos = list_source(url)
    if [info.url for info in infos] != [url]:
        files = [_name(info, url.rstrip("/")) for info in infos]
        return files, _find_slides(files)
    plain = plain_url(url)
    root = plain.rpartition("/")[0]
    slide = _name(replace(infos[0], url=plain), root)
    folder = folder_of_companions(slide.path)
    beside = list_objects(join(root, *folder.parts)) if folder is not None else []
    slide = _complete(slide, _group_by_folder([_name(info, root) for info in beside]))
    return [slide], [replace(slide, info=infos[0])]


def _name(info: ObjectInfo, root: str) -> ListedFile:
    path = PurePosixPath(info.url[len(root) + 1 :])
    folder = path.parent.name or name_of(root)
    return ListedFile(info, path, folder if is_dicom_part(path) else path.stem)


def _find_slides(files: Sequence[ListedFile]) -> list[ListedFile]:
    by_folder = _group_by_folder(files)
    slides: dict[PurePosixPath, ListedFile] = {}
    for file in filter(_is_slide, files):
        # The first DICOM file stands for all of its folder.
        slides.setdefault(file.path.parent if is_dicom_part(file.path) else file.path, file)
    return [_complete(slide, by_folder) for slide in slides.values()]


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
    # The official masks are slide files too: `tumor_001_mask.tif`.
    is_mask = file.stem.lower().endswith("_mask") or "masks" in file.path.parts[:-1]
    return file.path.suffix.lower() in SLIDE_SUFFIXES and not is_mask
