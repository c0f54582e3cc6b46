"""Ingest new scans with the parameters of an existing dataset: same tiles, same pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from pipeline.errors import SettingsError
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings
from pipeline.ingest.run import IngestReport
from pipeline.io.storage import list_objects, plain_url
from pipeline.privacy.key import PseudonymKey
from pipeline.records import (
    ImageListing,
    ManifestEntry,
    Progress,
    Slide,
    SlideListing,
    SourceImage,
    ignore_progress,
)
from pipeline.runtime.engines import MapWork
from pipeline.slides.ingest import ingest_slides
from pipeline.slides.settings import SlideSettings
from pipeline.sources.images import list_images
from pipeline.sources.modified_range import ALWAYS, ModifiedRange
from pipeline.sources.private_listing import list_privately, name_source
from pipeline.sources.slides import list_slides
from pipeline.sources.xrays import list_xrays, recognise_format
from pipeline.store.dataset import MissingDatasetError, open_dataset

Scan = TypeVar("Scan", Slide, SourceImage)


def is_dataset(url: str) -> bool:
    """Whether there is a sealed dataset at the URL.

    Raises:
        SchemaError: The dataset is unsealed or of another version.
    """
    try:
        open_dataset(url)
    except MissingDatasetError:
        return False
    return True


def ingest_alike(
    source: str,
    dataset: str,
    parameters: Mapping[str, Any],
    map_work: MapWork,
    *,
    name: str,
    sheet: str | None = None,
    labels: str | None = None,
    mpp_table: str | None = None,
    key: PseudonymKey | None = None,
    period: ModifiedRange = ALWAYS,
    on_progress: Progress = ignore_progress,
) -> IngestReport:
    """Ingest scans with the parameters of another dataset, e.g. the one a model learned from.

    Args:
        source: Folder, prefix or file of slides or images.
        dataset: URL of the new dataset.
        parameters: The other dataset's attribute `parameters`; they tell slides from images.
        map_work: An engine of `pipeline.runtime.engines`.
        name: Name of the new dataset's source; replaced where radiographs get pseudonyms, as a
            folder's name may name a person too.
        sheet: URL of a sample sheet of slides (see `sheet.read_sheet`). The other dataset's
            `mpp_override_um` applies where neither a table nor the slide gives um/px.
        labels: URL of a table of labels; None where labels are unknown.
        mpp_table: URL of a table of um/px for slides (see `sheet.read_mpp`).
        key: Secret key of the pseudonyms of radiographs; required for DICOM files.
        period: Ingest only files last modified in this range; the manifest counts the others.
        on_progress: Called with images done and in all.

    Raises:
        SourceError: There is nothing to ingest.
        SettingsError: There are DICOM files and no key, or images and a sheet or `mpp_table`.
    """
    if "tile_size_px" in parameters:
        listing = list_slides(source, sheet=sheet, labels=labels, mpp_table=mpp_table)
        chosen, own = _choose_slides(source, listing, parameters, name, period)
        return ingest_slides(
            dataset, chosen, own, map_work, trusts_times=True, on_progress=on_progress
        )
    if sheet:
        problem, remedy = "a sheet of slides, but these are images", "Give it as `labels`"
        raise SettingsError(sheet, problem, remedy)
    if mpp_table:
        raise SettingsError(
            mpp_table, "a table of um/px is for slides, these are images", "Leave it out"
        )
    settings = ImageSettings.model_validate(parameters)
    name, images = _list_images(source, settings, labels, key, map_work, name, period)
    return ingest_images(
        dataset,
        images,
        settings,
        map_work,
        source=name,
        trusts_times=True,
        on_progress=on_progress,
    )


def _list_images(
    source: str,
    settings: ImageSettings,
    labels: str | None,
    key: PseudonymKey | None,
    map_work: MapWork,
    name: str,
    period: ModifiedRange,
) -> tuple[str, ImageListing]:
    """List images or DICOM radiographs; radiographs under pseudonyms if there is a key."""
    if settings.modality == "radiograph" and recognise_format(source) == "dicom":
        return list_xrays(
            source,
            source_format="dicom",
            key=key,
            table_url=labels,
            period=period,
            map_work=map_work,
        )
    list_them = partial(list_images, source, labels_url=labels, keeps_unlisted=True)
    if settings.modality == "radiograph":
        name, listing = name_source(name, key), list_privately(list_them, source, key)
    else:
        listing = list_them()
    images, left_out = _choose_modified(listing.images, plain_url(source), period)
    return name, replace(listing, images=images, rejected=(*left_out, *listing.rejected))


def _choose_slides(
    source: str,
    listing: SlideListing,
    parameters: Mapping[str, Any],
    name: str,
    period: ModifiedRange,
) -> tuple[SlideListing, SlideSettings]:
    settings = SlideSettings.model_validate(parameters)
    # The other slides' override applies to new ones only where they give no um/px.
    fallback_um = settings.mpp_override_um or settings.mpp_fallback_um
    settings = settings.model_copy(update={"mpp_override_um": None, "mpp_fallback_um": fallback_um})
    slides, left_out = _choose_modified(listing.slides, source, period)
    rejected = (*left_out, *listing.rejected)
    return replace(listing, source=name, slides=slides, rejected=rejected), settings


def _choose_modified(
    scans: Sequence[Scan], url: str, period: ModifiedRange
) -> tuple[tuple[Scan, ...], tuple[ManifestEntry, ...]]:
    """Choose scans by the time of their file, and count the others for the manifest.

    A table may name them all, so they are chosen after listing. For a slide of several files the
    latest time counts.
    """
    if not period.is_bounded:
        return tuple(scans), ()
    modified_at = {info.url: info.modified_at for info in list_objects(url)}

    def is_inside(scan: Scan) -> bool:
        urls = (scan.url, *(scan.companions if isinstance(scan, Slide) else ()))
        times = [modified_at[url] for url in urls if url in modified_at]
        return bool(times) and period.covers(max(times))

    chosen = tuple(filter(is_inside, scans))
    return chosen, period.leave_out(len(scans) - len(chosen))
