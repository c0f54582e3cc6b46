"""What an ingest of images would do and cost; nothing is written."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from pipeline.images.ingest import list_sizes, prepare_visit
from pipeline.images.plan import ImagePart, ImageSettings, collect_columns
from pipeline.images.visit import ImageVisit, join_versions
from pipeline.ingest.estimate import (
    Estimate,
    Fate,
    choose_sample,
    count_objects,
    measure_stored,
)
from pipeline.ingest.preflight import measure_memory
from pipeline.io import storage
from pipeline.io.scratch import Scratch
from pipeline.records import ImageListing, ManifestEntry, SourceImage
from pipeline.runtime.engines import MapWork


@dataclass(frozen=True)
class ImageLook:
    """What reading one image showed: seconds, and bytes read and stored; or the problem."""

    seconds: float = 0.0
    read_bytes: int = 0
    stored_bytes: float = 0.0
    entry: ManifestEntry | None = None


@dataclass(frozen=True)
class LookAtImage:
    """Reads an image and drops it. Picklable.

    Args:
        visit: Visit that an ingest would make.
    """

    visit: ImageVisit

    def __call__(self, source: SourceImage) -> ImageLook:
        """Time the reading of an image, and measure what it would take in the dataset."""
        images = np.zeros((1, *self.visit.spec.image_shape), np.uint8)
        began = time.perf_counter()
        try:
            (read,) = self.visit.reader.read(source, images)
            problem = read.reasons[0]
        except Exception as error:  # noqa: BLE001 - one file must not stop the estimate
            problem = str(error) if hasattr(error, "problem") else type(error).__name__
        if problem is not None:
            return ImageLook(entry=ManifestEntry(source.public_name, "failed", problem))
        stored = measure_stored(images)
        seconds = time.perf_counter() - began
        span = source.span_bytes
        size = span[1] - span[0] if span else storage.describe(source.url).size_bytes
        return ImageLook(seconds, size, stored)


def estimate_images(
    url: str,
    listing: ImageListing,
    settings: ImageSettings,
    map_work: MapWork,
    *,
    source: str,
    sizes_px: Sequence[int] = (),
    trusts_times: bool = False,
    scratch: Scratch | None = None,
) -> tuple[Estimate, ...]:
    """Estimate what an ingest of images would do and cost; nothing is written at the destination.

    Parts and images are counted. At most 32 images of the parts that would be made are read;
    bytes and time are scaled from them.

    Args:
        url: URL of the dataset; the size replaces `{size_px}` in it.
        listing: The images to ingest.
        settings: Size, colour, resampling and splits of the dataset.
        map_work: Engine that would do the work.
        source: Name of the dataset's source.
        sizes_px: Sizes that replace the one of the settings; empty keeps it.
        trusts_times: Whether local files of the same size and time of modification count as
            unchanged, so that their bytes are not read again.
        scratch: Folder where archives are unpacked; None for the usual one.

    Returns:
        An estimate for each size.

    Raises:
        NormscopeError: As `ingest_images` before it reads the first image.
    """
    found = []
    for place, resized in list_sizes(url, settings, sizes_px):
        visit, parts, gone = prepare_visit(
            place, listing, resized, source=source, trusts_times=trusts_times, scratch=scratch
        )
        fates = {part.name: _find_fate(visit, part) for part in parts}
        found.append(_sum_up(visit, parts, fates, gone, listing, map_work))
    return tuple(found)


def _find_fate(visit: ImageVisit, part: ImagePart) -> Fate:
    known = part.known
    if known is None:
        return "new"
    key = visit.make_key(collect_columns(visit.spec, part))
    is_same = known.key == key and known.source_version == join_versions(part.images)
    return "kept" if is_same else "changed"


def _sum_up(
    visit: ImageVisit,
    parts: Sequence[ImagePart],
    fates: dict[str, Fate],
    gone: set[str],
    listing: ImageListing,
    map_work: MapWork,
) -> Estimate:
    """Sum up the parts, scaled from a sample of the images that would be read."""
    spec, memory = visit.spec, measure_memory(visit.spec, map_work)
    made = [part for part in parts if fates[part.name] != "kept"]
    images = [image for part in made for image in part.images]
    again = (
        0
        if visit.trusts_times
        else sum(map(_is_local, _list_images(parts))) - sum(map(_is_local, images))
    )
    sample = choose_sample(images)
    looks = list(map_work(LookAtImage(visit), sample))
    good = [look for look in looks if look.entry is None]
    is_known = bool(good) or not images
    mean = (
        np.mean([[e.seconds, e.read_bytes, e.stored_bytes] for e in good], axis=0)
        if good
        else [0.0] * 3
    )
    seconds, read_bytes, stored_bytes = (float(value) for value in mean)
    count = len(images)
    shards = sum(ceil(len(part.images) / spec.shard_images) for part in made)
    return Estimate(
        url=visit.url,
        unit="parts",
        counts=Counter(fates.values()),
        removed_count=len(gone),
        image_count=count,
        is_exact=True,
        read_bytes=round((count + again) * read_bytes) if good or not (count + again) else None,
        stored_bytes=round(count * stored_bytes) if is_known else None,
        object_count=len(made) * count_objects(spec) + shards,
        seconds=count * seconds / max(1, min(memory.worker_count, len(made))) if is_known else None,
        worker_count=memory.worker_count,
        needed_bytes=memory.needed_bytes,
        memory_bytes=memory.memory_bytes,
        sampled_count=len(sample),
        rejected=(*(look.entry for look in looks if look.entry), *listing.rejected),
    )


def _list_images(parts: Sequence[ImagePart]) -> list[SourceImage]:
    return [image for part in parts for image in part.images]


def _is_local(image: SourceImage) -> bool:
    return storage.parse(image.url).scheme == "file"
