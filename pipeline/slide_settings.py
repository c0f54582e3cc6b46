"""Settings of a slide dataset."""

from __future__ import annotations

from typing import Annotated, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.annotations import EXCLUDED_GROUPS, LESION_GROUPS

Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]


class SlideSettings(BaseModel):
    """How slides become tiles.

    Args:
        tile_size_px: Height and width of a tile.
        mpp_um: Micrometres per tile pixel. A 10x objective gives about 1.0, 20x 0.5, 40x 0.25;
            the objective itself is never used, since cameras differ.
        stride_px: From one tile to the next, in tile pixels; None for side by side.
        min_tissue_fraction: A tile with a smaller share of tissue is left out.
        mask_mpp_um: Micrometres per pixel of the thumbnail that tissue is sought on.
        max_tiles_per_slide: A random sample of so many, or None for all.
        lesion_threshold: A tile with a larger lesion share is anomalous, one without any is
            normal, and one between is mixed: its label stays unknown.
        lesion_groups: Annotation groups that outline lesions.
        excluded_groups: Annotation groups that outline holes in lesions.
        mpp_override_um: Micrometres per level-0 pixel, in place of what every slide says.
        validation_fraction: Share of the normal training slides kept for validation.
        test_fraction: Share of the slides kept for testing where no official split exists.
        seed: Of the splits and of the sample of tiles.
        shard_images: Tiles in a shard.
        chunk_images: Tiles in a chunk.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile_size_px: int = Field(64, ge=8, le=4096)
    mpp_um: float = Field(1.0, gt=0.0)
    stride_px: int | None = Field(None, ge=1)
    min_tissue_fraction: Fraction = 0.5
    mask_mpp_um: float = Field(8.0, gt=0.0)
    max_tiles_per_slide: int | None = Field(None, ge=1)
    lesion_threshold: Fraction = 0.1
    lesion_groups: tuple[str, ...] = LESION_GROUPS
    excluded_groups: tuple[str, ...] = EXCLUDED_GROUPS
    mpp_override_um: float | None = Field(None, gt=0.0)
    validation_fraction: Fraction = 0.2
    test_fraction: Fraction = 0.2
    seed: int = Field(0, ge=0)
    shard_images: int = Field(1024, ge=1)
    chunk_images: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} and test_fraction "
                f"{self.test_fraction} leave nothing to train on: lower one"
            )
        if self.shard_images % self.chunk_images:
            raise ValueError(
                f"shard_images {self.shard_images} is not a multiple of chunk_images "
                f"{self.chunk_images}: choose a multiple"
            )
        return self
