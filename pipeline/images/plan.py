"""Files of one image each to a plan: split them by group, declare a shape, order the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pipeline.dicom.grey import Voi
from pipeline.dicom.parse import MAX_FILE_BYTES
from pipeline.errors import AbsentError, SettingsError, SourceError
from pipeline.images.decode import Resampling, is_grey
from pipeline.images.reader import MEASURED_COLUMNS, ImageReader, decode_source, read_source
from pipeline.ingest.plan import Plan
from pipeline.io.scratch import Scratch
from pipeline.records import MIN_SIDE_PX, SPLITS, Array, ManifestEntry, Scalar, SourceImage
from pipeline.splits import assign_splits
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec, code_version, fill_value

Colour: TypeAlias = Literal["auto", "grey", "rgb"]
Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
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
_SHARD_BYTES: Final = 256 * 2**20


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
        validation_fraction: Share of the groups kept for validation where no official split is.
        test_fraction: Share of the groups kept for testing where no official split is.
        seed: Seed of the random splits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Literal["image", "radiograph", "histology"] = "image"
    size_px: SizePx = 64
    crop_px: int | None = Field(None, ge=MIN_SIDE_PX)
    colour: Colour = "auto"
    equalize: bool = False
    resampling: Resampling = "antialiased"
    voi: Voi = 0
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.2
    seed: int = Field(0, ge=0)

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


def plan_images(
    images: Sequence[SourceImage],
    settings: ImageSettings,
    *,
    source: str,
    rejected: Sequence[ManifestEntry] = (),
) -> Plan:
    """Plan a dataset of images: split them by group, declare one shape, fix every row.

    Rows are ordered by split, then by `image_id`, so that a split is read in whole chunks.

    Args:
        images: Images to ingest; every `image_id` once.
        settings: Size, colour, resampling and splits of the dataset.
        source: Name of the dataset's source, e.g. `chestxray14`.
        rejected: Items that the source itself left out, for the manifest.

    Raises:
        SchemaError: The official splits divide a group.
        SettingsError: Equalising images that have colour.
        ValueError: Two images share an id.
    """
    in_order, splits = _split_and_order(images, settings)
    channels = _decide_channels(in_order, settings)
    columns = _collect_columns(in_order, splits)
    shape = (settings.size_px, settings.size_px, channels)
    shard_images, chunk_images = choose_shards(len(in_order), image_bytes=prod(shape))
    spec = DatasetSpec(
        modality=settings.modality,
        source=source,
        image_shape=shape,
        image_count=len(in_order),
        shard_images=shard_images,
        chunk_images=chunk_images,
        columns={
            **{
                name: _DTYPES.get(name, _TEXT if values.dtype.kind == "O" else values.dtype)
                for name, values in columns.items()
            },
            **MEASURED_COLUMNS,
            **BASE_COLUMNS,
        },
        mpp_um=None,
        # What was decided, not `auto`: equal images give equal datasets.
        parameters={**settings.model_dump(mode="json"), "colour": _COLOUR_OF[channels]},
        code_version=code_version(),
    )
    return Plan(
        spec=spec,
        sources=tuple(in_order),
        source_index=np.arange(len(in_order), dtype=np.int32),
        columns=columns,
        rejected=tuple(rejected),
    )


def make_reader(plan: Plan, scratch: Scratch | None = None) -> ImageReader:
    """The reader of the images that `plan_images` planned.

    Args:
        plan: Plan that `plan_images` made.
        scratch: Folder where archives are unpacked; None for the usual one.
    """
    settings = ImageSettings.model_validate(plan.spec.parameters)
    return ImageReader(
        size_px=plan.spec.image_shape[0],
        channels=plan.spec.image_shape[2],
        crop_px=settings.crop_px,
        equalize=settings.equalize,
        resampling=settings.resampling,
        voi=settings.voi,
        scratch=scratch,
    )


def choose_shards(image_count: int, *, image_bytes: int) -> tuple[int, int]:
    """Choose how many images a shard and a chunk hold.

    From the dataset alone, so that any number of workers makes the same bytes: eight shards or
    more of 512 to 2048 images, two shards of fewer images than that, and never more images than
    fit a worker's memory.

    Args:
        image_count: Rows of the dataset.
        image_bytes: Size of one, uncompressed.

    Returns:
        Images a shard, a multiple of the second: images a chunk.
    """
    chunk = 64 if 64 * image_bytes <= _CHUNK_BYTES else 32
    eighth = 1 << (min(max(image_count // 8, 512), 2048).bit_length() - 1)
    wanted = max(-(-min(eighth, -(-image_count // 2)) // 64), 1) * 64
    fitting = max(_SHARD_BYTES // image_bytes // chunk, 1) * chunk
    return min(wanted, fitting), chunk


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
        return is_grey(decode_source(read_source(image, max_bytes=max_bytes), image.public_name))
    except (SourceError, AbsentError):
        return None


def _collect_columns(images: Sequence[SourceImage], splits: Sequence[str]) -> dict[str, Array]:
    columns: dict[str, Array] = {
        "image_id": np.array([image.image_id for image in images], object),
        "group_id": np.array([image.group_id for image in images], object),
        "split": np.array(splits, object),
        "label": np.array([image.label for image in images], np.int8),
    }
    examples: dict[str, Scalar] = {
        name: value for image in images for name, value in image.columns.items()
    }
    for name, example in sorted(examples.items()):
        dtype = _DTYPES.get(name, _DTYPE_OF_TYPE[type(example)])
        unknown = fill_value(name, dtype)
        values = [image.columns.get(name, unknown) for image in images]
        columns[name] = np.array(values, object if dtype.kind == "T" else dtype)
    return columns
