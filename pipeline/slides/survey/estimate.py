"""What an ingest of slides would do and cost; nothing is written."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from blake3 import blake3

from pipeline.ingest.estimate import (
    Estimate,
    Fate,
    choose_sample,
    count_objects,
    measure_stored,
)
from pipeline.ingest.preflight import measure_memory
from pipeline.ingest.run import read_known_parts
from pipeline.io import storage
from pipeline.records import ManifestEntry, SlideListing
from pipeline.runtime.engines import MapWork
from pipeline.slides.ingest import specify_slides
from pipeline.slides.reader import open_tiles
from pipeline.slides.settings import SlideSettings
from pipeline.slides.survey.measure import survey_slide
from pipeline.slides.visit import SlideItem, SlideVisit, open_listed
from pipeline.store.layout import require_destination
from pipeline.store.spec import DatasetSpec

Depth: TypeAlias = Literal["list", "open", "survey"]
_SAMPLED_TILES: Final = 32
_HASHED_BYTES: Final = 32 << 20


@dataclass(frozen=True)
class SlideLook:
    """What a look at one slide showed.

    Args:
        fate: Whether an ingest would take the slide for new, changed or kept.
        size_bytes: Size of its files in bytes.
        read_bytes: Bytes that an ingest would read or fetch.
        is_open: Whether the slide was opened; a kept one and one on S3 is not.
        area_um2: Area of the slide; 0 where it was not opened.
        tile_count: Number of its tiles; None where it was not surveyed.
        survey_s: Seconds that the survey took.
        tile_s: Seconds that a tile takes; None where none was read.
        byte_s: Seconds that reading and digesting a byte takes.
        stored_bytes: Bytes that a tile takes in the dataset.
        problem: Why the slide cannot be used; empty where it can.
    """

    fate: Fate
    size_bytes: int
    read_bytes: int
    is_open: bool = False
    area_um2: float = 0.0
    tile_count: int | None = None
    survey_s: float = 0.0
    tile_s: float | None = None
    byte_s: float = 0.0
    stored_bytes: float = 0.0
    problem: str = ""


@dataclass(frozen=True)
class LookAtSlide:
    """Looks at a slide without writing. Picklable.

    Args:
        visit: Visit that an ingest would make.
    """

    visit: SlideVisit

    def __call__(self, item: tuple[int, SlideItem, Depth]) -> tuple[int, SlideLook]:
        """Look at a numbered slide: list it, open it too, or also survey it."""
        number, slide_item, depth = item
        slide = slide_item.slide
        is_remote = storage.parse(slide.url).scheme != "file"
        size, look = 0, None
        try:
            size = sum(storage.describe(url).size_bytes for url in (slide.url, *slide.companions))
            fate = self._find_fate(slide_item)
            reads = size if fate != "kept" or not (is_remote or self.visit.trusts_times) else 0
            look = SlideLook(fate, size, reads)
            if depth != "list":
                look = self._open(slide_item, look, is_surveyed=depth == "survey")
        except Exception as error:  # noqa: BLE001 - one slide must not stop the estimate
            fate = look.fate if look else "new"
            look = SlideLook(fate, size, size, problem=str(error) or type(error).__name__)
        return number, look

    def _find_fate(self, item: SlideItem) -> Fate:
        _, _, found = self.visit.find_part(item)
        if found and found.source_version == item.slide.version:
            return "kept"
        return "changed" if item.known or found else "new"

    def _open(self, item: SlideItem, look: SlideLook, *, is_surveyed: bool) -> SlideLook:
        slide, own = item.slide, self.visit.settings
        path = Path(slide.url)
        with open_listed(slide, path, own) as reader:
            area = float(prod(reader.level_shapes_yx[0]) * prod(reader.mpp_yx))
            if not is_surveyed:
                return replace(look, is_open=True, area_um2=area)
            began = time.perf_counter()
            survey = survey_slide(slide, path, reader, own)
            survey_s = time.perf_counter() - began
            origins = np.array(choose_sample(survey.origins_yx.tolist(), _SAMPLED_TILES), np.int64)
            images = np.zeros((len(origins), *self.visit.spec.image_shape), np.uint8)
            tile_s, stored = None, 0.0
            if len(origins):
                began = time.perf_counter()
                with open_tiles(path, reader, own, survey.stain_fit) as tiles:
                    list(tiles.read(origins, images))
                stored = measure_stored(images)
                tile_s = (time.perf_counter() - began) / len(origins)
        return replace(
            look,
            is_open=True,
            area_um2=area,
            tile_count=len(survey.origins_yx),
            survey_s=survey_s,
            tile_s=tile_s,
            byte_s=_time_bytes(path),
            stored_bytes=stored,
        )


def estimate_slides(
    url: str,
    listing: SlideListing,
    settings: SlideSettings,
    map_work: MapWork,
    *,
    trusts_times: bool = False,
) -> Estimate:
    """Estimate what an ingest of slides would do and cost; nothing is written.

    Every local slide that is to be made is opened; at most 32 of them, evenly chosen, are surveyed
    and some of their tiles read. The tiles of the others are scaled by area. Slides on S3 are not
    fetched: their tiles are scaled by bytes where local ones were surveyed, else unknown.

    Args:
        url: Folder or prefix of the dataset.
        listing: Slides to tile.
        settings: Tile size, um/px, stains and splits.
        map_work: Engine that would do the work.
        trusts_times: Whether local files of the same size and time of modification count as
            unchanged, so that their bytes are not read again.

    Raises:
        SettingsError: Something else lies at the destination.
        StorageError: The destination cannot be written.
    """
    require_destination(url)
    url, spec = storage.plain_url(url), specify_slides(settings, listing.source)
    known = read_known_parts(url)
    items = [SlideItem(slide, known.get(slide.slide_id)) for slide in listing.slides]
    look_at = LookAtSlide(SlideVisit(url, spec, settings, trusts_times))
    listed: list[tuple[int, SlideItem, Depth]] = [(n, item, "list") for n, item in enumerate(items)]
    looks = dict(map_work(look_at, listed))
    local = [
        number for number, look in sorted(looks.items()) if _can_be_opened(items[number], look)
    ]
    sampled = frozenset(choose_sample(local))
    deeper: list[tuple[int, SlideItem, Depth]] = [
        (number, items[number], "survey" if number in sampled else "open") for number in local
    ]
    looks |= dict(map_work(look_at, deeper))
    gone = known.keys() - {slide.slide_id for slide in listing.slides}
    rejected = tuple(
        ManifestEntry(items[number].slide.url, "failed", look.problem)
        for number, look in sorted(looks.items())
        if look.problem
    )
    usable = [look for look in looks.values() if not look.problem]
    return _sum_up(url, spec, usable, map_work, len(gone), (*rejected, *listing.rejected))


def _can_be_opened(item: SlideItem, look: SlideLook) -> bool:
    is_local = storage.parse(item.slide.url).scheme == "file"
    return is_local and look.fate != "kept" and not look.problem


def _sum_up(
    url: str,
    spec: DatasetSpec,
    looks: Sequence[SlideLook],
    map_work: MapWork,
    gone_count: int,
    rejected: tuple[ManifestEntry, ...],
) -> Estimate:
    """Sum up the looks at all slides, scaled from those that were surveyed."""
    memory = measure_memory(spec, map_work)
    made = [look for look in looks if look.fate != "kept"]
    surveyed = [look for look in made if look.tile_count is not None]
    tiles = [_count_tiles(look, surveyed) for look in made]
    is_known = all(count is not None for count in tiles)
    counts = [count or 0.0 for count in tiles]
    timed = [look for look in surveyed if look.tile_s is not None]
    read_bytes = sum(look.read_bytes for look in looks)
    seconds = stored = objects = None
    if is_known and (timed or not sum(counts)):
        tile_s = float(np.mean([look.tile_s for look in timed])) if timed else 0.0
        survey_s = float(np.mean([look.survey_s for look in surveyed])) if surveyed else 0.0
        byte_s = float(np.mean([look.byte_s for look in surveyed])) if surveyed else 0.0
        alone = sum(counts) * tile_s + len(made) * survey_s + read_bytes * byte_s
        seconds = alone / max(1, min(memory.worker_count, len(looks)))
        mean = float(np.mean([look.stored_bytes for look in timed])) if timed else 0.0
        stored = round(sum(counts) * mean)
        shards = sum(ceil(count / spec.shard_images) for count in counts)
        parts = sum(count > 0 for count in counts)
        objects = parts * count_objects(spec) + shards + len(made)  # a review picture each
    return Estimate(
        url=url,
        unit="slides",
        counts=Counter(look.fate for look in looks),
        removed_count=gone_count,
        image_count=round(sum(counts)) if is_known else None,
        is_exact=len(surveyed) == len(made),
        read_bytes=read_bytes,
        stored_bytes=stored,
        object_count=objects,
        seconds=seconds,
        worker_count=memory.worker_count,
        needed_bytes=memory.needed_bytes,
        memory_bytes=memory.memory_bytes,
        sampled_count=len(surveyed),
        rejected=rejected,
    )


def _count_tiles(look: SlideLook, surveyed: Sequence[SlideLook]) -> float | None:
    """Count a slide's tiles, or scale them from surveyed slides: by area, or else by bytes."""
    if look.tile_count is not None:
        return look.tile_count
    if not surveyed:
        return None
    total = sum(each.tile_count or 0 for each in surveyed)
    if look.is_open:
        return look.area_um2 * total / sum(each.area_um2 for each in surveyed)
    return look.size_bytes * total / sum(each.size_bytes for each in surveyed)


def _time_bytes(path: Path) -> float:
    """Time the reading and digesting of a byte, in seconds."""
    began = time.perf_counter()
    with path.open("rb") as file:
        data = file.read(_HASHED_BYTES)
    blake3(data).digest()
    return (time.perf_counter() - began) / max(1, len(data))
