"""Radiographs in either form that archives have them: ChestX-ray14's PNGs, or DICOM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final, Literal, TypeAlias

import numpy as np

from pipeline.dicom.parse import is_dicom
from pipeline.errors import SettingsError
from pipeline.io.scratch import Scratch
from pipeline.io.storage import name_of, read_range
from pipeline.privacy.key import PseudonymKey
from pipeline.records import ImageListing, ManifestEntry
from pipeline.runtime.engines import MapWork, map_serially
from pipeline.sources import dicom
from pipeline.sources.chestxray14.experiments import Experiment, read_experiment
from pipeline.sources.chestxray14.listing import TABLE_NAMES, list_chestxray14
from pipeline.sources.chestxray14.table import Views
from pipeline.sources.dicom_labels import apply_labels
from pipeline.sources.listing import Folder, find_beside, is_image, list_folder
from pipeline.sources.modified_range import ALWAYS, ModifiedRange
from pipeline.sources.private_listing import list_privately, withholding

SourceFormat: TypeAlias = Literal["chestxray14", "dicom"]
_LISTS: Final = "dpa_nih_folds.tar.gz"
_SAMPLE: Final = 32
_DICOM_SUFFIXES: Final = frozenset({".dcm", ".dicom", ".ima"})


def list_xrays(
    url: str,
    *,
    source_format: SourceFormat | Literal["auto"] = "auto",
    key: PseudonymKey | None = None,
    table_url: str | None = None,
    views: Views = "all",
    findings: Sequence[str] = (),
    experiment: Experiment | None = None,
    lists_url: str | None = None,
    scratch: Scratch | None = None,
    period: ModifiedRange = ALWAYS,
    map_work: MapWork = map_serially,
) -> tuple[SourceFormat, ImageListing]:
    """List radiographs, under pseudonyms wherever there is a key.

    Args:
        url: Folder or prefix.
        source_format: Format of the files; `auto` detects it from their names and content.
        key: Secret key of the pseudonyms; required for DICOM, whose headers name persons.
        table_url: ChestX-ray14's table; or the labels of DICOM files (see `dicom_labels`).
        views: View position to keep, or `all`.
        findings: Keep ChestX-ray14's anomalous images that have one of these; empty keeps all.
        experiment: Experiment of the paper; its authors' lists give images, labels and splits.
        lists_url: URL of these lists; None looks for `dpa_nih_folds.tar.gz` below `url` or in its
            parent.
        scratch: Local folder for ChestX-ray14's unpacked archives; None for the default one.
        period: Read only DICOM files last modified in this range.
        map_work: An engine of `pipeline.runtime.engines`.

    Returns:
        The format, and the listing.

    Raises:
        SettingsError: There is no key for DICOM files, no lists for the experiment, or a choice
            that the format does not know.
        SourceError: There is nothing to list, or a table cannot be used.
        StorageError: Something cannot be read.
    """
    chosen = recognise_format(url) if source_format == "auto" else source_format
    if chosen == "dicom":
        if findings or experiment:
            raise SettingsError(
                "findings" if findings else "experiment",
                "DICOM files do not say such a thing",
                "Give a table of labels instead",
            )
        return chosen, _choose_views(_list_dicom(url, key, table_url, period, map_work), views)

    def list_pngs() -> ImageListing:
        lists = (
            read_experiment(lists_url or _find_lists(url, table_url), experiment)
            if experiment
            else None
        )
        return list_chestxray14(
            url,
            table_url=table_url,
            views=views,
            findings=findings,
            experiment=lists,
            scratch=scratch,
            map_work=map_work,
        )

    return chosen, list_privately(list_pngs, url, key)


def recognise_format(url: str) -> SourceFormat:
    """Tell from names and first bytes what a folder holds.

    DICOM where a sample of its files begins as such, ChestX-ray14 otherwise; and where its
    official table lies beside the images.

    Raises:
        StorageError: The folder cannot be read.
    """
    folder = list_folder(url)
    if find_beside(folder, TABLE_NAMES):
        return "chestxray14"
    candidates = [info for info in folder.files if not is_image(info.url)]
    suffixes = {PurePosixPath(name_of(info.url)).suffix.lower() for info in candidates}
    if suffixes & _DICOM_SUFFIXES:
        return "dicom"
    at = np.linspace(0, len(candidates) - 1, min(len(candidates), _SAMPLE)).astype(int)
    sample = [candidates[place] for place in at]
    has_dicom = any(
        is_dicom(read_range(info.url, 0, 132)) for info in sample if info.size_bytes > 132
    )
    return "dicom" if has_dicom else "chestxray14"


def _find_lists(url: str, table_url: str | None) -> str:
    for place in filter(None, (url, table_url)):
        folder = list_folder(place) if place == url else Folder(place, ())
        if found := find_beside(folder, [_LISTS]):
            return found
    raise SettingsError(
        "experiment",
        f"no {_LISTS} beside the images",
        "Put the authors' lists there, or give their URL as `experiment_lists`",
    )


def _list_dicom(
    url: str,
    key: PseudonymKey | None,
    table_url: str | None,
    period: ModifiedRange,
    map_work: MapWork,
) -> ImageListing:
    key = key or PseudonymKey.parse(None)
    listing = dicom.list_radiographs(url, key, period=period, map_work=map_work)
    if table_url:
        with withholding(table_url):
            return apply_labels(listing, table_url, url, key)
    return replace(listing, notes=(*listing.notes, "no labels: they are unknown"))


def _choose_views(listing: ImageListing, views: Views) -> ImageListing:
    if views == "all":
        return listing
    chosen = [image for image in listing.images if image.columns["view_position"] == views]
    left = len(listing.images) - len(chosen)
    entry = ManifestEntry("views", "skipped", f"{left} images: the view position is not {views}")
    rejected = (*listing.rejected, entry) if left else listing.rejected
    return replace(listing, images=tuple(chosen), rejected=rejected)
