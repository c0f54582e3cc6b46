"""`normscope ingest images`: a folder of images with a label table to a dataset."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal, TypeAlias, cast

from prefect import flow
from pydantic import Field, NonNegativeInt

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.engine import open_engine, open_key
from flows.shared.images import ingest_or_estimate
from flows.shared.progress import progress
from flows.shared.reports import EstimateReport, publish
from flows.shared.settings import load_settings
from pipeline.grey_range import GreyRange
from pipeline.images.ingest import ImageIngestReport
from pipeline.images.plan import Colour, CropPx, SizesPx, make_image_settings
from pipeline.io.storage import name_of
from pipeline.records import Split
from pipeline.sources.images import list_images
from pipeline.sources.private_listing import list_privately, name_source

SplitWord: TypeAlias = Annotated[str, Field(pattern="^.+=(train|validation|test)$")]
LabelWord: TypeAlias = Annotated[str, Field(pattern="^.*=(0|1|-1)$")]


@flow(name="ingest-images")
def ingest_images(
    source: str,
    dataset: str,
    *,
    labels: str | None = None,
    modality: Literal["image", "radiograph", "histology"] = "image",
    size_px: SizesPx = (64,),
    crop_px: CropPx | None = None,
    colour: Colour = "auto",
    grey_range: GreyRange = "full",
    equalize: bool = False,
    columns: dict[str, str] | None = None,
    label_map: list[LabelWord] | None = None,
    split_map: list[SplitWord] | None = None,
    seed: NonNegativeInt = 0,
    trust_times: bool = False,
    dry_run: bool = False,
) -> ImageIngestReport | EstimateReport:
    """Preprocess a folder of images with a label table into a sealed dataset.

    The table is a CSV file with the columns path and label, and optionally split and group
    (patient or slide). Splits never divide a group. If NORMSCOPE_PSEUDONYM_KEY is set, names and
    numbers of radiographs become pseudonyms.

    Args:
        source: Folder or `s3://` prefix of the images.
        dataset: Destination of the dataset, a path or an `s3://` URL. {size_px} in it stands for
            the size; several sizes need it.
        labels: Table of labels; by default manifest.csv or labels.csv in the folder or its parent.
        modality: Kind of images. Radiographs get pseudonyms, given a key.
        size_px: Height and width of the dataset's images in px; several sizes make a dataset each.
        crop_px: Side of the central square to cut out before resizing, in px of the file; nothing
            is cut by default.
        colour: Colour of the dataset's images: `grey` or `rgb`; `auto` decides by a sample.
        grey_range: Values from black to white in grey files of more than 8 bits: `full`, all that
            their bits can hold; `percentiles`, from 0.5 to 99.5 % of the file's pixels; or two
            values as LOW,HIGH, e.g. 0,4095.
        equalize: Equalise the histogram, as the reference method does with radiographs.
        columns: Names of the table's columns, where they are not the usual ones, each after what
            it holds: `--columns.label "No Finding"`, and so `path`, `split`, `group_id`,
            `view_position`, `age_years`, `sex`, `findings`, `site` and `scanner`.
        label_map: Words or numbers for labels in the table and the labels that they stand for,
            each as WORD=0 (normal), WORD=1 (anomalous) or WORD=-1 (unknown), e.g. benign=0.
        split_map: Names of splits in the table and the splits that they stand for, each as
            NAME=train, NAME=validation or NAME=test, e.g. valid=test.
        seed: Seed of the random division into splits, where the table names none.
        trust_times: Take a local file of the same size and time of modification for unchanged.
            Otherwise a later run reads all bytes of all local files to know. Objects on S3 are
            told apart by their ETag, either way.
        dry_run: Say what would be made and at what cost, from a sample of the images, and write
            nothing at the destination.
    """
    settings = make_image_settings(
        modality=modality,
        crop_px=crop_px,
        colour=colour,
        grey_range=grey_range,
        equalize=equalize,
        seed=seed,
    )
    surroundings = load_settings()
    key = open_key(surroundings) if modality == "radiograph" else None
    splits = cast("dict[str, Split]", _read_pairs(split_map))  # the pattern allows no others
    list_them = partial(
        list_images,
        source,
        labels_url=labels,
        columns={name.replace("-", "_"): theirs for name, theirs in (columns or {}).items()},
        label_map={word: int(label) for word, label in _read_pairs(label_map).items()},
        split_map=splits,
    )
    listing = list_privately(list_them, source, key)
    name = name_source(name_of(source), key)
    with open_engine(surroundings) as map_work, progress("Images") as advance:
        report = ingest_or_estimate(
            dataset,
            listing,
            settings,
            map_work,
            source=name,
            sizes_px=size_px,
            trusts_times=trust_times,
            dry_run=dry_run,
            on_progress=advance,
        )
    return publish(report)


def _read_pairs(pairs: list[str] | None) -> dict[str, str]:
    return dict(pair.rsplit("=", 1) for pair in pairs or ())
