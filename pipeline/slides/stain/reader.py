"""Tiles read as the plan says: with the um/px that it found, in the stains that it fitted.

`tile_reader` reads pixels; what a survey has found on a slide travels in the plan's columns, so
that a slide's fit is part of its own rows and of no other's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.ingest.plan import SourceRead, read_whole
from pipeline.io.scratch import Scratch
from pipeline.io.staging import using_scratch
from pipeline.records import Slide
from pipeline.slides.reader import SlideTileReader
from pipeline.slides.settings import SlideSettings, StainSetting
from pipeline.slides.stain.fit import fit_stains
from pipeline.slides.stain.normalise import StainFit, Stains, normalise_stains
from pipeline.store.dataset import Array

# `unchanged`: nobody asked; `degenerate`: asked, but no two stains were found on the slide.
StainState: TypeAlias = Literal["unchanged", "normalised", "degenerate"]
STAIN_COLUMNS: Final[Mapping[str, np.dtype[Any]]] = {
    "stain_state": np.dtypes.StringDType(),
    "stain_fit": np.dtypes.StringDType(),
}

# A fit looks at so many pixels, of at least and at most so many tiles all over the slide.
_FIT_PX: Final = 1 << 20
_FIT_TILES: Final = (16, 256)


@dataclass(frozen=True)
class PlannedTileReader:
    """A `plan.Reader` of `records.Slide`: `SlideTileReader`, and what the plan adds to it.

    Args:
        tiles: Reads the pixels.
        stain: How stains are normalised.
        scratch: Where slides are staged; changes nothing in what is read.
    """

    tiles: SlideTileReader
    stain: StainSetting = "none"
    scratch: Scratch = field(default_factory=Scratch, repr=False, compare=False)

    def read(self, source: Slide, rows: Mapping[str, Array]) -> SourceRead:
        """Read tiles of one slide; quality is measured on them as they were scanned.

        Args:
            source: The slide.
            rows: `origin_yx`, and of a plan's columns `mpp_source`, `mpp_yx` and `stain_fit`.

        Raises:
            SourceError: The slide cannot be opened, or has changed since it was planned.
            StorageError: The slide cannot be fetched.
        """
        side = self.tiles.tile_size_px
        return read_whole(self, source, rows, shape=(len(rows["origin_yx"]), side, side, 3))

    def fill(
        self, source: Slide, rows: Mapping[str, Array], images: NDArray[np.uint8]
    ) -> Iterator[SourceRead]:
        """As `read`, into memory that is given: uint8 (n, side, side, 3)."""
        fit = self._choose_fit(rows)
        with using_scratch(self.scratch):
            for read in self._choose_tiles(rows).fill(source, rows, images):
                if fit:
                    read.images[:] = normalise_stains(read.images, fit)
                yield read

    def _choose_fit(self, rows: Mapping[str, Array]) -> StainFit | None:
        text = str(rows["stain_fit"][0]) if "stain_fit" in rows else ""
        if not text or self.stain == "none":
            return None
        return StainFit(self.stain, decode_stains(text))

    def _choose_tiles(self, rows: Mapping[str, Array]) -> SlideTileReader:
        """The reader, with the slide's own um/px where neither file nor settings give it."""
        if "mpp_source" in rows and rows["mpp_source"][0] in {"user table", "fallback"}:
            return replace(self.tiles, mpp_override_um=float(rows["mpp_yx"][0, 0]))
        return self.tiles


def make_reader(settings: SlideSettings, scratch: Scratch | None = None) -> PlannedTileReader:
    """The reader of the tiles that `slide_dataset.plan_slides` plans."""
    tiles = SlideTileReader(settings.tile_size_px, settings.mpp_um, settings.mpp_override_um)
    return PlannedTileReader(tiles, settings.stain, scratch or Scratch())


def fit_slide(
    slide: Slide, origins_yx: NDArray[np.int64], settings: SlideSettings
) -> StainFit | None:
    """Fit the stains of a slide once, on tiles from all over it.

    Args:
        slide: The slide.
        origins_yx: (n, 2), its planned tiles, level-0 pixels.
        settings: Of the dataset.

    Returns:
        The fit, perhaps degenerate; None where nothing is to be normalised.

    Raises:
        SourceError: The slide cannot be opened.
        StorageError: The slide cannot be fetched.
    """
    if settings.stain == "none" or not len(origins_yx):
        return None
    fewest, most = _FIT_TILES
    count = min(len(origins_yx), most, max(fewest, _FIT_PX // settings.tile_size_px**2))
    chosen = np.linspace(0, len(origins_yx) - 1, count).round().astype(int)
    read = make_reader(settings).tiles.read(slide, {"origin_yx": origins_yx[chosen]})
    is_readable = np.array([reason is None for reason in read.reasons])
    return fit_stains(read.images[is_readable], settings.stain, seed=settings.seed)


def state_of(fit: StainFit | None) -> StainState:
    """What a fit means for its slide's tiles."""
    if fit is None:
        return "unchanged"
    return "degenerate" if fit.is_degenerate else "normalised"


def encode_stains(fit: StainFit | None) -> str:
    """Stains as the column keeps them: JSON of haematoxylin, eosin (R, G, B) and their maxima."""
    if fit is None or fit.stains is None:
        return ""
    stains = fit.stains
    return json.dumps([stains.haematoxylin, stains.eosin, stains.max_concentrations])


def decode_stains(text: str) -> Stains:
    """The reverse of `encode_stains`."""
    haematoxylin, eosin, max_concentrations = (tuple(values) for values in json.loads(text))
    return Stains(haematoxylin, eosin, max_concentrations)
