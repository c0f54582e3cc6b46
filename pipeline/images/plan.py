"""Plans a dataset of images: splits them by group, declares a shape, divides them into parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeAlias

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from pipeline.dicom.parse import MAX_FILE_BYTES
from pipeline.dicom.voi import Voi
from pipeline.errors import AbsentError, SettingsError, SourceError
from pipeline.grey_range import GreyRange
from pipeline.images.decode import Resampling, is_grey
from pipeline.images.reader import MEASURED_COLUMNS, ImageReader, decode_source, read_source
from pipeline.io.scratch import Scratch
from pipeline.records import MIN_SIDE_PX, SPLITS, Array, Scalar, SourceImage
from pipeline.splits import assign_splits
from pipeline.store.part import Part
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec, fill_value
from pipeline.store.stamp import make_stamp

Colour: TypeAlias = Literal["auto", "grey", "rgb"]
Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
CropPx: TypeAlias = Annotated[int, Field(ge=MIN_SIDE_PX)]
SizePx: TypeAlias = Annotated[int, Field(ge=8, le=4096)]
# One number will do: deployments and callers that want one size say it so.
SizesPx: TypeAlias = Annotated[
    tuple[SizePx, ...],
    Field(min_length=1),
    BeforeValidator(
        lambda given: (given,) if isinstance(given, int) else given,
        json_schema_input_type=SizePx | tuple[SizePx, ...],
    ),
]

_TEXT: Final = np.dtypes.StringDType()
_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"age_years": np.dtype("int16")}
_DTYPE_OF_TYPE: Final[Mapping[type, np.dtype[Any]]] = {
    str: _TEXT,
    bool: np.dtype("bool"),
    int: np.dtype("int32"),
    float: np.dtype("float32"),
}
_COLOUR_OF: Final[Mapping[int, Colour]] = {1: "grey", 3: "rgb"}
_COLOUR_SAMPLE: Final = 32
_SAMPLE_BYTES: Final = 32 * 2**20  # the sample is read where the plan is made, not on a worker
_CHUNK_BYTES: Final = 16 * 2**20
_PART_BYTES: Final = 256 * 2**20
_PART_IMAGES: Final = 512
IMAGE_COLUMNS: Final[Mapping[str, np.dtype[Any]]] = {
    **BASE_COLUMNS,
    **MEASURED_COLUMNS,
    "group_id": _TEXT,
    "split": _TEXT,
}


class ImageSettings(BaseModel):
    """How files of one image each become a dataset.

    Args:
        modality: Kind of the images; `radiograph` gives pseudonyms where there is a key.
        size_px: Height and width of the dataset's images.
        crop_px: Side of the square first cut from the centre, in the file's pixels, or None.
        colour: `grey` or `rgb` converts every image to that; `auto` looks at a sample of them
            and takes `rgb` if at least half has colour.
        equalize: Whether to equalise the histogram, grey only.
        resampling: `antialiased` (a triangle) or `area` (the mean).
        voi: VOI LUT or window of DICOM files, by its position or its explanation in the file.
        grey_range: Values from black to white in DICOM files without a VOI and in other grey files
            of more than 8 bits: `full`, all that their bits can hold; `percentiles`, from 0.5 to
            99.5 % of the file's pixels; or `LOW,HIGH`, two values.
        validation_fraction: Share of the groups kept for validation where no official split is.
        test_fraction: Share of the groups kept for testing where no official split is.
        seed: Seed of the random splits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Literal["image", "radiograph", "histology"] = "image"
    size_px: SizePx = 64
    crop_px: CropPx | None = None
    colour: Colour = "auto"
    equalize: bool = False
    resampling: Resampling = "antialiased"
    voi: Voi = 0
    grey_range: GreyRange = "full"
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.2
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} and test_fraction "
                f"{self.test_fraction} leave nothing to train on: lower one"
            )
        if self.equalize and self.colour == "rgb":
            raise ValueError("equalize with colour `rgb`: only grey images can be equalised")
        return self


def make_image_settings(**choices: Any) -> ImageSettings:
    """Make settings, or say in one line what is wrong with them.

    Args:
        **choices: Settings that differ from the defaults.

    Raises:
        SettingsError: There is no such setting or value, or they contradict each other.

    Examples:
        >>> make_image_settings(size_px=32, crop_px=None).size_px
        32
    """
    try:
        return ImageSettings.model_validate(choices)
    except ValidationError as error:
        raise SettingsError.of(error, "settings") from error


class ImagePart(NamedTuple):
    """A part of images to visit.

    Args:
        name: Name of the part.
        images: The images, in the order of its rows.
        splits: Split of each image.
        known: The part as it is in the dataset; None where there is none yet.
    """

    name: str
    images: tuple[SourceImage, ...]
    splits: tuple[str, ...]
    known: Part | None = None


def plan_images(
    images: Sequence[SourceImage],
    settings: ImageSettings,
    *,
    source: str,
    known: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> tuple[DatasetSpec, list[ImagePart]]:
    """Plan a dataset of images: split them by group, declare one shape, divide them into parts.

    Images that a dataset has already keep their part and their place there. New ones make new
    parts, ordered by split, then by `image_id`, so that a split is read in whole chunks.

    Args:
        images: Images to ingest; every `image_id` once.
        settings: Size, colour, resampling and splits of the dataset.
        source: Name of the dataset's source, e.g. `chestxray14`.
        known: Name of a part of the dataset as it is -> the `image_id`s of its rows.

    Raises:
        SchemaError: The official splits divide a group.
        SettingsError: Equalising images that have colour.
        ValueError: Two images share an id.
    """
    in_order, splits = _split_and_order(images, settings)
    channels = _decide_channels(in_order, settings)
    shape = (settings.size_px, settings.size_px, channels)
    part_images, chunk_images = choose_part(prod(shape))
    spec = DatasetSpec(
        modality=settings.modality,
        source=source,
        image_shape=shape,
        shard_images=part_images,
        chunk_images=chunk_images,
        columns={**_find_dtypes(in_order), **IMAGE_COLUMNS},
        mpp_um=None,
        # What was decided, not `auto`: equal images give equal datasets.
        parameters={**settings.model_dump(mode="json"), "colour": _COLOUR_OF[channels]},
        stamp=dict(make_stamp("images")),
    )
    return spec, _divide(in_order, splits, known, part_images)


def _divide(
    images: Sequence[SourceImage],
    splits: Sequence[str],
    known: Mapping[str, Sequence[str]],
    part_images: int,
) -> list[ImagePart]:
    """Divide images into the parts that know them, and new parts for the others."""
    place_of = {image.image_id: place for place, image in enumerate(images)}
    divided: dict[str, list[int]] = {}
    for name, image_ids in known.items():
        places = [place_of.pop(each) for each in image_ids if each in place_of]
        if places:
            divided[name] = places
    number = max((int(name) for name in known), default=-1) + 1
    fresh = list(place_of.values())
    for start in range(0, len(fresh), part_images):
        divided[f"{number:06d}"] = fresh[start : start + part_images]
        number += 1
    return [
        ImagePart(name, tuple(images[at] for at in places), tuple(splits[at] for at in places))
        for name, places in sorted(divided.items())
    ]


def make_reader(spec: DatasetSpec, scratch: Scratch | None = None) -> ImageReader:
    """The reader of the images of a dataset that `plan_images` planned.

    Args:
        spec: Specification of the dataset.
        scratch: Folder where archives are unpacked; None for the usual one.
    """
    settings = ImageSettings.model_validate(spec.parameters)
    return ImageReader(
        size_px=spec.image_shape[0],
        channels=spec.image_shape[2],
        crop_px=settings.crop_px,
        equalize=settings.equalize,
        resampling=settings.resampling,
        voi=settings.voi,
        grey_range=settings.grey_range,
        scratch=scratch,
    )


def choose_part(image_bytes: int) -> tuple[int, int]:
    """Choose how many images a part and a chunk hold.

    From the size of an image alone: however many images there are, and will be, a part keeps its
    size. A part is one task and one shard, so it also bounds a worker's memory.

    Args:
        image_bytes: Size of one, uncompressed.

    Returns:
        Images a part, a multiple of the second: images a chunk.

    Examples:
        >>> choose_part(64 * 64 * 3)
        (512, 64)
    """
    chunk = 64 if 64 * image_bytes <= _CHUNK_BYTES else 32
    fitting = max(_PART_BYTES // image_bytes // chunk, 1) * chunk
    return min(_PART_IMAGES, fitting), chunk


def _split_and_order(
    images: Sequence[SourceImage], settings: ImageSettings
) -> tuple[list[SourceImage], list[str]]:
    ids = [image.image_id for image in images]
    twice, times = Counter(ids).most_common(1)[0] if ids else ("", 0)
    if times > 1:
        raise ValueError(f"image_id {twice!r} names {times} images: make ids unique")
    splits = assign_splits(
        [image.group_id for image in images],
        [int(image.label) for image in images],
        [image.split or "" for image in images],
        seed=settings.seed,
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
    ).tolist()
    rank = {name: number for number, name in enumerate(SPLITS)}
    order = sorted(range(len(ids)), key=lambda at: (rank[splits[at]], ids[at]))
    return [images[at] for at in order], [splits[at] for at in order]


def _decide_channels(images: Sequence[SourceImage], settings: ImageSettings) -> int:
    if settings.colour != "auto":
        return 1 if settings.colour == "grey" else 3
    count = min(len(images), _COLOUR_SAMPLE)
    sample = [images[at] for at in np.linspace(0, len(images) - 1, count).astype(int)]
    for max_bytes in (_SAMPLE_BYTES, MAX_FILE_BYTES):  # large files only where all are large
        seen = [grey for image in sample if (grey := _looks_grey(image, max_bytes)) is not None]
        if seen:
            break
    channels = 3 if seen and seen.count(False) * 2 >= len(seen) else 1
    if channels == 3 and settings.equalize:
        raise SettingsError(
            "equalize",
            f"{seen.count(False)} of {len(seen)} sampled images have colour",
            "Say colour `grey`, or do not equalise",
        )
    return channels


def _looks_grey(image: SourceImage, max_bytes: int) -> bool | None:
    """Whether an image has no colour; None where it cannot be read, which the ingest reports."""
    try:
        data = read_source(image, max_bytes=max_bytes)
        return is_grey(decode_source(data, image.public_name).pixels)
    except (SourceError, AbsentError):
        return None


def collect_columns(spec: DatasetSpec, part: ImagePart) -> dict[str, Array]:
    """Collect the columns of a part that are known before its images are read.

    Args:
        spec: Specification of the dataset.
        part: Part whose images are to be read.
    """
    columns: dict[str, Array] = {
        "image_id": np.array([image.image_id for image in part.images], object),
        "group_id": np.array([image.group_id for image in part.images], object),
        "split": np.array(part.splits, object),
        "label": np.array([image.label for image in part.images], np.int8),
    }
    for name in spec.columns.keys() - IMAGE_COLUMNS.keys():
        dtype = spec.columns[name]
        unknown = fill_value(name, dtype)
        values = [image.columns.get(name, unknown) for image in part.images]
        columns[name] = np.array(values, object if dtype.kind == "T" else dtype)
    return columns


def _find_dtypes(images: Sequence[SourceImage]) -> dict[str, np.dtype[Any]]:
    """Find the dtype of each further column that the images have."""
    examples: dict[str, Scalar] = {
        name: value for image in images for name, value in image.columns.items()
    }
    return {
        name: _DTYPES.get(name, _DTYPE_OF_TYPE[type(example)])
        for name, example in sorted(examples.items())
    }
