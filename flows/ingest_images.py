"""`normscope ingest images`: a folder of images with a label table to a dataset."""

from __future__ import annotations

from functools import partial
from typing import Literal

from prefect import flow

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.engine import open_engine
from flows.shared.progress import progress
from flows.shared.pseudonym_key import open_key
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from pipeline.images import ingest as image_ingest
from pipeline.images.ingest import ImageIngestReport
from pipeline.images.plan import Colour, ImageSettings, SizesPx
from pipeline.io.storage import name_of
from pipeline.records import Split
from pipeline.sources.images import list_images
from pipeline.sources.private_listing import list_privately, name_source


@flow(name="ingest-images")
def ingest_images(
    source: str,
    dataset: str,
    *,
    labels: str | None = None,
    modality: Literal["image", "radiograph", "histology"] = "image",
    size_px: SizesPx = (64,),
    crop_px: int | None = None,
    colour: Colour = "auto",
    equalize: bool = False,
    split_map: dict[str, Split] | None = None,
    seed: int = 0,
) -> ImageIngestReport:
    """Preprocess a folder of images with a label table into a sealed dataset.

    The table is a CSV with a path and a label column, and may have a split and a group (patient
    or slide). Groups are never divided by a split. Where NORMSCOPE_PSEUDONYM_KEY is set, names
    and numbers of radiographs become pseudonyms.

    Args:
        source: Folder or `s3://` prefix.
        dataset: Where the dataset goes: a path or an `s3://` URL. The size replaces {size_px} in
            it, which several sizes need; they are made one after the other.
        labels: The table; by default manifest.csv or labels.csv in the folder or its parent.
        modality: What the images show.
        size_px: Height and width of the dataset's images; several give a dataset each.
        crop_px: Side of the square cut from each centre first, in the file's pixels.
        colour: Convert to grey or rgb; auto looks at a sample.
        equalize: Equalise the histogram, as the reference method does with radiographs.
        split_map: The table's word for a split -> train, validation or test.
        seed: Of the splits, where the table has none.
    """
    settings = ImageSettings(
        modality=modality, crop_px=crop_px, colour=colour, equalize=equalize, seed=seed
    )
    surroundings = load_settings()
    key = open_key(surroundings) if modality == "radiograph" else None
    list_them = partial(list_images, source, labels_url=labels, split_map=split_map)
    listing = list_privately(list_them, source, key)
    with open_engine(surroundings) as map_work, progress("Images") as advance:
        report = resumable(image_ingest.ingest_images)(
            dataset,
            listing,
            settings,
            map_work,
            source=name_source(name_of(source), key),
            sizes_px=size_px,
            on_progress=advance,
        )
    return publish(report)
