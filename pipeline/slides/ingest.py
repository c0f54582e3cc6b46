"""Ingests listed slides in one call: every slide is visited once, and becomes one part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np

from pipeline.ingest.run import IngestReport, Outcome, Work, ingest, read_known_parts
from pipeline.io import storage
from pipeline.io.scratch import Scratch
from pipeline.records import (
    ManifestEntry,
    Progress,
    Slide,
    SlideListing,
    ignore_progress,
)
from pipeline.runtime.engines import DEATH, DEATH_REMEDY, MapWork, describe_workers
from pipeline.slides.quality import QUALITY_COLUMNS
from pipeline.slides.resolution import find_odd_scales
from pipeline.slides.settings import SlideSettings
from pipeline.slides.visit import SlideItem, SlideVisit, name_review
from pipeline.splits import SlideFacts, assign_slide_splits, explain_slide_splits
from pipeline.store.layout import require_destination, sweep_pictures
from pipeline.store.part import Part, SharedFacts
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec
from pipeline.store.stamp import make_stamp

_FLOAT: Final = np.dtype("float32")
SLIDE_COLUMNS: Final[Mapping[str, np.dtype[Any]]] = {
    **BASE_COLUMNS,
    "origin_yx": np.dtype("int64"),
    "tissue_fraction": _FLOAT,
    "lesion_fraction": _FLOAT,
    **dict.fromkeys(QUALITY_COLUMNS, _FLOAT),
}


def ingest_slides(
    url: str,
    listing: SlideListing,
    settings: SlideSettings,
    map_work: MapWork,
    *,
    trusts_times: bool = False,
    scratch: Scratch | None = None,
    on_progress: Progress = ignore_progress,
) -> IngestReport:
    """Tile slides into a sealed dataset; run again, it makes only what is new or has changed.

    A slide that cannot be used is listed as failed and the rest goes on. One without a tile is
    listed as skipped.

    Args:
        url: Folder or prefix of the dataset; it may hold nothing else.
        listing: Slides to tile, e.g. from `pipeline.list_slides`.
        settings: Tile size, um/px, stains and splits.
        map_work: Engine to work with, e.g. `pipeline.map_serially`.
        trusts_times: Whether a local slide of the same size and time of modification counts as
            unchanged; otherwise a later run reads all its bytes to know.
        scratch: Scratch folder that slides on S3 are copied to; the usual one if None.
        on_progress: Function that gets slides done and slides in all.

    Raises:
        StorageError: The destination holds other files or cannot be written.
        SourceError: No slide can be used.
        ValueError: Two slides share an id.
    """
    _require_unique(listing.slides)
    require_destination(url)
    url = storage.plain_url(url)
    known = read_known_parts(url)
    spec = specify_slides(settings, listing.source)
    slides = sorted(listing.slides, key=lambda slide: slide.slide_id)
    work = Work(
        spec=spec,
        items=[SlideItem(slide, known.get(slide.slide_id)) for slide in slides],
        visit=SlideVisit(
            url,
            spec,
            settings,
            trusts_times,
            scratch,
            is_cut=describe_workers(map_work).count > len(slides),
        ),
        give_up=_fail_deadly,
        arrange=partial(_arrange, slides, settings),
        weigh=_count_one,
        rejected=listing.rejected,
        source_identity="size and time" if trusts_times else "bytes",
    )
    report = ingest(url, work, map_work, on_progress=on_progress)
    sweep_pictures(url, {name_review(slide.slide_id) for slide in slides})
    return report


def specify_slides(settings: SlideSettings, source: str) -> DatasetSpec:
    """Specify the dataset of slides that settings give.

    Args:
        settings: Tile size, um/px, stains and splits.
        source: Name of the dataset's source.
    """
    side = settings.tile_size_px
    return DatasetSpec(
        modality="histology",
        source=source,
        image_shape=(side, side, 3),
        shard_images=settings.shard_images,
        chunk_images=settings.chunk_images,
        columns=SLIDE_COLUMNS,
        mpp_um=settings.mpp_um,
        parameters=settings.model_dump(mode="json"),
        stamp=dict(make_stamp("slides")),
    )


def _count_one(_: SlideItem) -> int:
    return 1


def _fail_deadly(item: SlideItem) -> Outcome:
    reason = f"{DEATH}. {DEATH_REMEDY}"
    return Outcome(None, (ManifestEntry(item.slide.url, "failed", reason),))


def _require_unique(slides: Sequence[Slide]) -> None:
    urls: dict[str, list[str]] = {}
    for slide in slides:
        urls.setdefault(slide.slide_id, []).append(slide.url)
    for slide_id, found in urls.items():
        if len(found) > 1:
            raise ValueError(f"slide_id {slide_id!r} names {' and '.join(found)}: make ids unique")


def _arrange(
    slides: Sequence[Slide], settings: SlideSettings, parts: Sequence[Part]
) -> tuple[list[Part], dict[str, str]]:
    """Order parts by name, and give each what its slide's listing and the other slides tell."""
    by_id = {slide.slide_id: slide for slide in slides}
    ordered = sorted(parts, key=lambda part: part.name)
    tiled = [part for part in ordered if part.image_count]
    facts = [_state_facts(part, by_id[part.name]) for part in tiled]
    assigned = assign_slide_splits(
        facts,
        seed=settings.seed,
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
    )
    splits = dict(zip([part.name for part in tiled], assigned, strict=True))
    arranged = [_add_listing(part, by_id[part.name], splits.get(part.name, "")) for part in ordered]
    remarks = _find_copies(tiled, by_id)
    for slide_id, remark in find_odd_scales(_list_scales(ordered)).items():
        url = by_id[slide_id].url
        remarks[url] = "; ".join(filter(None, [remark, remarks.get(url)]))
    for slide_id, remark in explain_slide_splits(facts, assigned).items():
        url = by_id[slide_id].url
        remarks[url] = "; ".join(filter(None, [remarks.get(url), remark]))
    return arranged, remarks


def _add_listing(part: Part, slide: Slide, split: str) -> Part:
    """Add to a part what the listing says of its slide, which is no part of its key of work."""
    facts = {"patient": slide.patient, "site": slide.site, "scanner": slide.scanner}
    whole = SharedFacts({**part.facts, **facts})
    return replace(part, group_id=slide.group_id, split=split, facts=whole)


def _state_facts(part: Part, slide: Slide) -> SlideFacts:
    return SlideFacts(
        slide_id=slide.slide_id,
        group_id=slide.group_id,
        digest=part.source_digest,
        official=slide.split or "",
        label=int(slide.label),
        has_lesion=bool(part.facts["has_lesion"]),
    )


def _list_scales(parts: Sequence[Part]) -> dict[str, tuple[float, float]]:
    return {
        part.name: (float(part.facts["mpp_y_um"]), float(part.facts["mpp_x_um"])) for part in parts
    }


def _find_copies(parts: Sequence[Part], by_id: Mapping[str, Slide]) -> dict[str, str]:
    """Find slides of the same bytes: URL of a slide -> remark for the manifest."""
    urls: dict[str, list[str]] = {}
    for part in parts:
        urls.setdefault(part.source_digest, []).append(by_id[part.name].url)
    remarks = {}
    for same in urls.values():
        for url in same if len(same) > 1 else ():
            first = next(other for other in same if other != url)
            more = f" and {len(same) - 2} more" if len(same) > 2 else ""
            remarks[url] = f"the same bytes as {first}{more}: one of them is enough"
    return remarks
