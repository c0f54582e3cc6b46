"""Records that the packages exchange: what sources list, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, Literal, TypeAlias

from numpy.typing import NDArray

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
Scalar: TypeAlias = str | int | float | bool
JSON: TypeAlias = "str | int | float | bool | list[JSON] | Mapping[str, JSON] | None"
Array: TypeAlias = NDArray[Any]
Progress: TypeAlias = Callable[[int, int], None]  # (done, in all)


# Limits of an image that is read. The largest flat detectors have about 20 megapixels; Pillow's own
# warning begins above 80.
MIN_SIDE_PX: Final = 16
MAX_PIXELS: Final = 80_000_000


def ignore_progress(done: int, total: int) -> None:
    """Report no progress."""


class Label(IntEnum):
    """What is known about an image, slide or tile."""

    NORMAL = 0
    ANOMALOUS = 1
    UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Slide:
    """One whole-slide image and what its source says about it.

    Args:
        slide_id: Path below the source, with its suffix; the file's name where one file is the
            source, and the folder's path of a DICOM slide.
        url: Plain path or `s3://` URL of the file that OpenSlide opens.
        version: Changes when one of its files does (size and time, or the object's ETag).
        label: Label of the slide as a whole.
        split: Split that the user's sheet or the official layout names, or None.
        annotation_url: URL of the lesions' outlines (ASAP XML or GeoJSON), or None.
        companions: URLs of the slide's other files, below the folder of `url`.
        patient: Id of the patient; empty where none is known.
        site: Name of the hospital or laboratory that made the slide; empty where unknown.
        scanner: Name of the scanner; empty where unknown.
        mpp_um: Micrometres per level-0 pixel from the user's table, which replace the file's own;
            None leaves it to the file.
        mask_url: URL of the user's own tissue mask, or None to find the tissue.
        is_partly_annotated: Whether lesions may lie outside the outlines, so that no tile beside
            them is known to be normal.
    """

    slide_id: str
    url: str
    version: str
    label: Label = Label.UNKNOWN
    split: Split | None = None
    annotation_url: str | None = None
    companions: tuple[str, ...] = ()
    patient: str = ""
    site: str = ""
    scanner: str = ""
    mpp_um: float | None = None
    mask_url: str | None = None
    is_partly_annotated: bool = False

    @property
    def group_id(self) -> str:
        """The patient or, where none is known, the slide: splits never divide a group."""
        return self.patient or self.slide_id


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One file that holds one image: a radiograph, or a tile cut by somebody else.

    Args:
        image_id: Unique in the dataset.
        group_id: The patient or slide it comes from; splits never divide a group.
        url: Plain path or `s3://` URL of the file. It may hold a person's name and is not
            shown: engines log what they work on.
        version: Changes when the file does (size and time, or the object's ETag).
        label: Label of the image.
        split: The official split, or None where there is none.
        columns: Further columns of the dataset, e.g. `view_position`, `age_years`.
        name: Public name for errors and manifests; empty where the URL may be shown.
        span_bytes: Start and stop of the image's bytes if `url` is a tar archive, unpacked.
    """

    image_id: str
    group_id: str
    url: str = field(repr=False)
    version: str
    label: Label = Label.UNKNOWN
    split: Split | None = None
    columns: Mapping[str, Scalar] = field(default_factory=dict)
    name: str = ""
    span_bytes: tuple[int, int] | None = None

    @property
    def public_name(self) -> str:
        """Name for errors and manifests."""
        return self.name or self.url


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """What became of one item of a batch: every item has an entry.

    Args:
        item: The file's public name or URL, or the table row's image name.
        state: `done`, `skipped` (left out on purpose, or absent) or `failed`.
        reason: Reason of `skipped` and `failed`; a remark on `done`.
        facts: Facts about reading it, e.g. the `decoder`.
    """

    item: str
    state: Literal["done", "skipped", "failed"]
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class SlideListing:
    """The slides of a source, and what became of the files and rows that gave none.

    Args:
        source: `camelyon16` where slides have its names, else the folder's or file's name.
        slides: Slides to try, in order of `slide_id`.
        rejected: Slides that the errata exclude, or whose row, annotation or mask is ambiguous or
            absent; annotations and table rows without a slide.
        notes: Remarks for the user on how the sheet was read, one line each.
    """

    source: str
    slides: tuple[Slide, ...]
    rejected: tuple[ManifestEntry, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImageListing:
    """The images of a source, and what became of the items that gave none.

    Args:
        images: Images to try, in order of `image_id`.
        rejected: Items that gave no image: absent, without a row, refused, filtered out.
        notes: Remarks for the user on how the source was read, one line each.
    """

    images: tuple[SourceImage, ...]
    rejected: tuple[ManifestEntry, ...] = ()
    notes: tuple[str, ...] = ()
