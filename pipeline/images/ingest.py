"""Listed images -> sealed datasets, and what a person should look at before training on it.

Beside the arrays, in `review/`: `contact_sheet.png`, and `duplicates.json` with images that are,
or look like, one, though they belong to different patients or slides.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Final

from pipeline.errors import SchemaError, SettingsError
from pipeline.images.contact_sheet import choose_strips, draw_contact_sheet
from pipeline.images.duplicates import DuplicateSet, find_duplicates, read_hashes
from pipeline.images.plan import ImagePart, ImageSettings, make_reader, plan_images
from pipeline.images.visit import ImageVisit, visit_without_killers
from pipeline.ingest.run import IngestReport, Work, ingest, read_known_parts
from pipeline.io.scratch import Scratch
from pipeline.io.storage import join, plain_url, write_bytes
from pipeline.records import Array, ImageListing, Progress, ignore_progress
from pipeline.runtime.engines import MapWork
from pipeline.store.dataset import Dataset, open_dataset
from pipeline.store.layout import require_destination
from pipeline.store.part import Part, open_part

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
    trusts_times: bool = False,
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
        trusts_times: Whether local files of the same size and time of modification count as
            unchanged; otherwise a later run reads all their bytes to know.
        scratch: Folder where archives are unpacked; None for the usual one.
        on_progress: Called with images done and in all, of all sizes.

    Returns:
        The report on the first size, which holds those on the further ones.

    Raises:
        SettingsError: Several sizes have one place.
        NormscopeError: As `plan_images` and `pipeline.ingest.run.ingest`.
    """
    sizes = list_sizes(url, settings, sizes_px)
    reports = []
    for number, (place, resized) in enumerate(sizes):
        visit, parts, _ = prepare_visit(
            place, listing, resized, source=source, trusts_times=trusts_times, scratch=scratch
        )
        work = Work(
            spec=visit.spec,
            items=parts,
            visit=visit,
            give_up=partial(visit_without_killers, map_work, visit),
            arrange=_order_parts,
            weigh=_count_images,
            rejected=listing.rejected,
            source_identity="size and time" if trusts_times else "bytes",
        )
        advance = partial(_add_progress, on_progress, number, len(sizes))
        reports.append(_review(ingest(visit.url, work, map_work, on_progress=advance), listing))
    return replace(reports[0], further=tuple(reports[1:]))


def list_sizes(
    url: str, settings: ImageSettings, sizes_px: Sequence[int]
) -> list[tuple[str, ImageSettings]]:
    """List the datasets that several sizes make: the URL and the settings of each.

    Args:
        url: URL of the datasets; the size replaces `{size_px}` in it, which several sizes need.
        settings: Size, colour, resampling and splits.
        sizes_px: Sizes that replace the one of the settings; empty keeps it.

    Raises:
        SettingsError: Several sizes have one place.
    """
    sizes = list(dict.fromkeys(sizes_px or [settings.size_px]))
    if len(sizes) > 1 and SIZE_PLACE not in url:
        raise SettingsError(
            url, f"one place for {len(sizes)} sizes", f"Put `{SIZE_PLACE}` into the dataset's URL"
        )
    return [
        (url.replace(SIZE_PLACE, str(size)), settings.model_copy(update={"size_px": size}))
        for size in sizes
    ]


def prepare_visit(
    url: str,
    listing: ImageListing,
    settings: ImageSettings,
    *,
    source: str,
    trusts_times: bool,
    scratch: Scratch | None,
) -> tuple[ImageVisit, list[ImagePart], set[str]]:
    """Prepare the making of one dataset; nothing is written.

    Args:
        url: URL of the dataset.
        listing: The images to ingest.
        settings: Size, colour, resampling and splits of the dataset.
        source: Name of the dataset's source.
        trusts_times: Whether local files of the same size and time of modification count as
            unchanged.
        scratch: Folder where archives are unpacked; None for the usual one.

    Returns:
        The visit of a part; the parts to visit, each with what the dataset has of it; and the
        names of parts of which the source has no image any longer.
    """
    require_destination(url)
    url = plain_url(url)
    known = read_known_parts(url)
    spec, parts = plan_images(
        listing.images, settings, source=source, known=read_image_ids(url, known)
    )
    visit = ImageVisit(url, spec, make_reader(spec, scratch), trusts_times, scratch)
    gone = known.keys() - {part.name for part in parts}
    return visit, [part._replace(known=known.get(part.name)) for part in parts], gone


def read_image_ids(url: str, parts: Mapping[str, Part]) -> dict[str, list[str]]:
    """Read which images each part of a dataset holds; those of a part that is gone are new.

    Args:
        url: URL of the dataset.
        parts: Parts of the dataset, by name.
    """
    found = {}
    for name, part in parts.items():
        with suppress(SchemaError):
            found[name] = open_part(url, part).column("image_id").tolist()
    return found


def _order_parts(parts: Sequence[Part]) -> tuple[Sequence[Part], Mapping[str, str]]:
    return sorted(parts, key=lambda part: part.name), {}


def _count_images(part: ImagePart) -> int:
    return len(part.images)


def _add_progress(report: Progress, sizes_done: int, sizes: int, done: int, total: int) -> None:
    """Report the progress of one size as that of all, which have the same images."""
    report(sizes_done * total + done, sizes * total)


def _review(report: IngestReport, listing: ImageListing) -> ImageIngestReport:
    """Write what a person should look at beside a sealed dataset."""
    return ImageIngestReport(
        **{field.name: getattr(report, field.name) for field in fields(report)},
        notes=listing.notes,
        duplicates=write_review(open_dataset(report.url)),
    )


def write_review(dataset: Dataset) -> tuple[tuple[DuplicateSet, tuple[str, ...]], ...]:
    """Write contact sheet and duplicates of a dataset of images beside it.

    Args:
        dataset: Sealed dataset that `ingest_images` has made.

    Returns:
        The duplicates, each with the `image_id`s.

    Raises:
        SchemaError: A part that an earlier ingest has made is damaged.
    """
    columns = {name: dataset.column(name) for name in _LOOKED_AT & set(dataset.column_names)}
    duplicates = find_duplicates(
        columns["pixel_digest"],
        read_hashes(columns["perceptual_hash"]),
        columns["group_id"],
        columns["split"],
        readable=columns["readable"],
    )
    write_bytes(join(dataset.url, CONTACT_SHEET), _draw_sheet(dataset, columns))
    write_bytes(join(dataset.url, DUPLICATES), _write_duplicates(duplicates, columns))
    ids = columns["image_id"]
    return tuple((found, tuple(ids[list(found.rows)])) for found in duplicates)


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
