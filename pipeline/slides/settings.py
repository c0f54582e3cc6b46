"""Settings of a slide dataset, and their presets.

`all-tissue` takes every tile that is at least half tissue. `ihc` and `fluorescence` do the same,
for other stains and backgrounds: see `pipeline.slides.survey.tissue`. `paper` is what Shvetsova et
al. 2021 made of Camelyon16, from the public code (`ninatu/anomaly_detection` at 89b63fc,
`camelyon16_preprocessing/scripts`): tiles of 768 px at 40x (0.243 to 0.25 um/px) on cells that are
tissue throughout on a mask of 256 px a pixel, at most 50 a slide drawn at random, of tumour slides
only those that are tumour throughout; Vahadane's normalisation; reduced to 10x, 192 px. Training
then crops 64 px of them (the training preset `camelyon16-paper`). Three things differ: the unit is
um/px, so that both scanners' tiles show the same 192 um; tiles are reduced first and normalised
then, by stains that are fitted once per slide, to public reference stains in place of a region of
normal_056; and slides keep their borders, as a black border is no tissue here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import SettingsError
from pipeline.slides.annotations import AnnotationOrigin
from pipeline.slides.outlines.groups import EXCLUDED_GROUPS, LESION_GROUPS, fold_group
from pipeline.slides.resolution import MPP_LIMITS_UM
from pipeline.slides.stain.normalise import StainMethod
from pipeline.slides.survey.tissue import TissueMethod

StainSetting: TypeAlias = Literal["none"] | StainMethod
IccSetting: TypeAlias = Literal["keep", "srgb"]
Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
# Of tiles and thumbnails: at 1 mm/px a slide is 75 px long.
MppUm: TypeAlias = Annotated[float, Field(ge=MPP_LIMITS_UM[0], le=1000.0)]
SlideMppUm: TypeAlias = Annotated[float, Field(ge=MPP_LIMITS_UM[0], le=MPP_LIMITS_UM[1])]
AreaUm2: TypeAlias = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
TileSizePx: TypeAlias = Annotated[int, Field(ge=8, le=4096)]
ShardImages: TypeAlias = Annotated[int, Field(ge=1, le=1_048_576)]
StridePx: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)]


class SlideSettings(BaseModel):
    """How slides become tiles.

    Args:
        tile_size_px: Height and width of a tile in pixels.
        mpp_um: Micrometres per tile pixel. A 10x objective gives about 1.0, 20x 0.5, 40x 0.25;
            the objective itself is never used, since cameras differ.
        stride_px: Distance from one tile to the next in tile pixels; None for side by side.
        min_tissue_fraction: Least share of tissue; tiles with less are left out.
        mask_mpp_um: Micrometres per pixel of the thumbnail that tissue is found on.
        tissue_method: Signal that tells tissue from background: `chroma` for haematoxylin and
            eosin, `ihc` for pale counterstains with a chromogen, `dark-background` for
            fluorescence. A slide with a mask of its own needs none.
        min_tissue_area_um2: Smallest piece of tissue in square micrometres; smaller ones are
            dropped as dust. None for 17 pixels of the thumbnail, 1088 um^2 at 8 um/px.
        max_hole_area_um2: Largest hole in tissue in square micrometres that is filled; larger ones
            stay background. None for 16 pixels of the thumbnail, 1024 um^2 at 8 um/px.
        max_tiles_per_slide: Size of the random sample of a slide's tiles; None for all.
        lesion_tiles_only: Take only the anomalous tiles of slides with lesions.
        lesion_threshold: Lesion share above which a tile is anomalous. A tile without lesion is
            normal; one between is mixed, and its label stays unknown.
        lesion_groups: Annotation groups that outline lesions.
        excluded_groups: Annotation groups that outline holes in lesions.
        ignored_groups: Annotation groups that say nothing of lesions. Tiles that a group of none of
            these three touches have no label unless a lesion covers them.
        annotation_origin: Point that files of annotations and outlines of tissue count from:
            `canvas`, the slide's own corner; `bounds`, the corner of the scanned part, which
            QuPath shows alone; `auto`, the bounds in GeoJSON and the canvas in XML.
        mpp_override_um: Micrometres per level-0 pixel that replace every slide's own; a table
            of single slides takes precedence.
        mpp_fallback_um: Micrometres per level-0 pixel of slides whose files have none.
        stain: Method of stain normalisation, fitted on each slide; `none` leaves stains alone.
        icc: Colours of the tiles: `keep` leaves them as scanned; `srgb` converts them by the ICC
            profile of each slide before tissue, quality and stains are measured, and leaves slides
            without a profile as they are.
        validation_fraction: Share of the normal training slides kept for validation.
        test_fraction: Share of the slides kept for testing where no official split exists.
        seed: Seed of the splits and of the samples of tiles.
        shard_images: Number of tiles in a shard, a multiple of `chunk_images`.
        chunk_images: Number of tiles in a chunk.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile_size_px: TileSizePx = 64
    mpp_um: MppUm = 1.0
    stride_px: StridePx | None = None
    min_tissue_fraction: Fraction = 0.5
    mask_mpp_um: MppUm = 8.0
    tissue_method: TissueMethod = "chroma"
    min_tissue_area_um2: AreaUm2 | None = None
    max_hole_area_um2: AreaUm2 | None = None
    max_tiles_per_slide: int | None = Field(None, ge=1)
    lesion_tiles_only: bool = False
    lesion_threshold: Fraction = 0.1
    lesion_groups: tuple[str, ...] = Field(LESION_GROUPS, min_length=1)
    excluded_groups: tuple[str, ...] = EXCLUDED_GROUPS
    # At their defaults these leave no trace: a dataset keeps the fingerprint that it had before.
    ignored_groups: tuple[str, ...] = Field((), exclude_if=lambda groups: not groups)
    annotation_origin: AnnotationOrigin = Field("auto", exclude_if=lambda origin: origin == "auto")
    mpp_override_um: SlideMppUm | None = None
    mpp_fallback_um: SlideMppUm | None = None
    stain: StainSetting = "none"
    icc: IccSetting = "keep"
    validation_fraction: Fraction = 0.2
    test_fraction: Fraction = 0.2
    seed: int = Field(0, ge=0)
    shard_images: ShardImages = 1024
    chunk_images: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} and test_fraction "
                f"{self.test_fraction} leave nothing to train on: lower one"
            )
        self._require_one_meaning()
        if self.shard_images % self.chunk_images:
            raise ValueError(
                f"shard_images {self.shard_images} is not a multiple of chunk_images "
                f"{self.chunk_images}: choose a multiple"
            )
        return self

    def _require_one_meaning(self) -> None:
        """Refuse a group of two meanings, in whatever letters."""
        names = ("lesion_groups", "excluded_groups", "ignored_groups")
        for first, second in combinations(names, 2):
            others = set(map(fold_group, getattr(self, second)))
            if both := sorted(n for n in getattr(self, first) if fold_group(n) in others):
                raise ValueError(
                    f"{first} and {second} both name {', '.join(both)}: leave it to one of them"
                )


_PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "all-tissue": {},
        "paper": {
            "tile_size_px": 192,
            "mpp_um": 1.0,
            # A mask pixel is 256 px at 0.25 um/px. All nine of a tile are to be tissue; a tile of
            # ours need not lie on their edges, hence not quite 1.
            "mask_mpp_um": 64.0,
            "min_tissue_fraction": 0.99,
            "max_tiles_per_slide": 50,
            "lesion_tiles_only": True,
            "lesion_threshold": 0.99,
            "stain": "vahadane",
            "shard_images": 256,
        },
        "ihc": {"tissue_method": "ihc"},
        "fluorescence": {"tissue_method": "dark-background"},
    }
)
SLIDE_PRESETS: Final = tuple(_PRESETS)


def load_slide_preset(name: str, **changes: Any) -> SlideSettings:
    """Make settings from a preset.

    Args:
        name: Name of the preset, one of `SLIDE_PRESETS`.
        **changes: Settings that differ from the preset; None leaves one as it is.

    Raises:
        SettingsError: There is no such preset or setting, or they contradict each other.

    Examples:
        >>> load_slide_preset("paper", seed=3, stain=None).stain
        'vahadane'
    """
    if name not in _PRESETS:
        raise SettingsError(name, "no such preset", f"Choose {' or '.join(SLIDE_PRESETS)}")
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return SlideSettings.model_validate({**_PRESETS[name], **given})
    except ValidationError as error:
        raise SettingsError.of(error, f"preset {name}") from error
