"""Listed images -> sealed datasets, and what a person should look at before training on it.

Beside the arrays, in `review/`: `contact_sheet.png`, and `duplicates.json` with images that are,
or look like, one, though they belong to different patients or slides.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Final

from pipeline.errors import SettingsError
from pipeline.images.contact_sheet import choose_strips, draw_contact_sheet
from pipeline.images.duplicates import DuplicateSet, find_duplicates, read_hashes
from pipeline.images.plan import ImageSettings, make_reader, plan_images
from pipeline.ingest.run import IngestReport, ingest
from pipeline.io.scratch import Scratch
from pipeline.io.storage import join, write_bytes
from pipeline.records import Array, ImageListing, Progress, ignore_progress
from pipeline.runtime.engines import MapWork
from pipeline.store.dataset import Dataset, open_dataset

CONTACT_SHEET: Final = "review/contact_sheet.png"
DUPLICATES: Final = "review/duplicates.json"
SIZE_PLACE: Final = "{size_px}"
_LOOKED_AT: Final = frozenset(
    {
        "image_id",
        "group_id",
        "split",
        "label",
        "readable",
        "pixel_digest",
        "perceptual_hash",
        "burned_in_text",
    }
)
_NAMED: Final = 5  # duplicates that a report names; the file has them all


@dataclass(frozen=True)
class ImageIngestReport(IngestReport):
    """The outcome of an ingest of images, and of the review after it.

    Args:
        notes: Remarks on how the source was read, a line each.
        duplicates: Images of different groups that are, or look like, one; as `image_id`s.
        further: Reports on the datasets of further sizes, made in the same run.
    """

    notes: tuple[str, ...] = ()
    duplicates: tuple[tuple[DuplicateSet, tuple[str, ...]], ...] = ()
    further: tuple[ImageIngestReport, ...] = ()

    def describe_review(self) -> list[str]:
        """What to look at before training, a line each."""
        counts = Counter(found.kind for found, _ in self.duplicates)
        across = sum(found.crosses_splits for found, _ in self.duplicates)
        lines = [
            *self.notes,
            f"duplicates between groups: {counts['exact']} exact, {counts['near']} near, {across} "
            f"of them across splits; all are in `{DUPLICATES}`",
        ]
        for found, image_ids in self.duplicates[:_NAMED]:
            where = ", across splits" if found.crosses_splits else ""
            lines.append(f"{found.kind} duplicates{where}: {', '.join(image_ids[:_NAMED])}")
        return [*lines, f"contact sheet: `{join(self.url, CONTACT_SHEET)}`"]


def ingest_images(
    url: str,
    listing: ImageListing,
    settings: ImageSettings,
    map_work: MapWork,
    *,
    source: str,
    sizes_px: Sequence[int] = (),
    scratch: Scratch | None = None,
    on_progress: Progress = ignore_progress,
) -> ImageIngestReport:
    """Write and seal a dataset of images, find duplicates in it, and draw its contact sheet.

    Several sizes give a dataset each, one after the other. A run with one more size makes only
    that.

    Args:
        url: URL of the dataset; the size replaces `{size_px}` in it, which several sizes need.
        listing: The images to ingest, and what the source left out.
        settings: Size, colour, resampling and splits of the dataset.
        map_work: An engine of `pipeline.runtime.engines`.
        source: Name of the dataset's source, e.g. `chestxray14`.
        sizes_px: Sizes that replace the one of the settings; empty keeps it.
        scratch: Folder where archives are unpacked; None for the usual one.
        on_progress: Called with images done and in all, of all sizes.

    Returns:
        The report on the first size, which holds those on the further ones.

    Raises:
        SettingsError: Several sizes have one place.
        NormscopeError: As `plan_images` and `ingest`.
    """
    sizes = list(dict.fromkeys(sizes_px or [settings.size_px]))
    if len(sizes) > 1 and SIZE_PLACE not in url:
        raise SettingsError(
            url, f"one place for {len(sizes)} sizes", f"Put `{SIZE_PLACE}` into the dataset's URL"
        )
    reports = []
    for number, size in enumerate(sizes):
        resized = settings.model_copy(update={"size_px": size})
        plan = plan_images(listing.images, resized, source=source, rejected=listing.rejected)
        report = ingest(
            url.replace(SIZE_PLACE, str(size)),
            plan,
            make_reader(plan, scratch),
            map_work,
            on_progress=partial(_add_progress, on_progress, number, len(sizes)),
        )
        reports.append(_review(report, listing))
    return replace(reports[0], further=tuple(reports[1:]))


def _add_progress(report: Progress, sizes_done: int, sizes: int, done: int, total: int) -> None:
    """Report the progress of one size as that of all, which have the same images."""
    report(sizes_done * total + done, sizes * total)


def _review(report: IngestReport, listing: ImageListing) -> ImageIngestReport:
    """Write what a person should look at beside a sealed dataset."""
    dataset = open_dataset(report.url)
    columns = {name: dataset.column(name) for name in _LOOKED_AT & set(dataset.column_names)}
    duplicates = find_duplicates(
        columns["pixel_digest"],
        read_hashes(columns["perceptual_hash"]),
        columns["group_id"],
        columns["split"],
        readable=columns["readable"],
    )
    write_bytes(join(report.url, CONTACT_SHEET), _draw_sheet(dataset, columns))
    write_bytes(join(report.url, DUPLICATES), _write_duplicates(duplicates, columns))
    ids = columns["image_id"]
    return ImageIngestReport(
        **{field.name: getattr(report, field.name) for field in fields(report)},
        notes=listing.notes,
        duplicates=tuple((found, tuple(ids[list(found.rows)])) for found in duplicates),
    )


def _write_duplicates(duplicates: tuple[DuplicateSet, ...], columns: Mapping[str, Array]) -> bytes:
    names = ("image_id", "group_id", "split")
    found: list[dict[str, Any]] = [
        {
            "kind": each.kind,
            "crosses_splits": each.crosses_splits,
            "images": [{name: str(columns[name][row]) for name in names} for row in each.rows],
        }
        for each in duplicates
    ]
    return (json.dumps(found, indent=1) + "\n").encode()


def _draw_sheet(dataset: Dataset, columns: Mapping[str, Array]) -> bytes:
    strips = choose_strips(
        columns["split"], columns["label"], columns["readable"], columns.get("burned_in_text")
    )
    return draw_contact_sheet(
        [(strip, [dataset.read_images(row, row + 1)[0] for row in strip.rows]) for strip in strips]
    )
