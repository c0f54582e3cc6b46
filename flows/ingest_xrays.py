"""`normscope ingest xrays`: ChestX-ray14 or DICOM radiographs to a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.engine import open_engine
from flows.shared.progress import progress
from flows.shared.pseudonym_key import open_key
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from pipeline.images.decode import Resampling
from pipeline.images.ingest import ingest_images
from pipeline.images.plan import ImageSettings, SizesPx
from pipeline.ingest.run import IngestReport
from pipeline.io.scratch import DEFAULT_FOLDER, GIB, Scratch
from pipeline.sources.chestxray14.experiments import Experiment
from pipeline.sources.chestxray14.table import Views
from pipeline.sources.xrays import SourceFormat, list_xrays


@flow(name="ingest-xrays")
def ingest_xrays(
    source: str,
    dataset: str,
    *,
    source_format: SourceFormat | Literal["auto"] = "auto",
    table: str | None = None,
    experiment: Experiment | None = None,
    experiment_lists: str | None = None,
    views: Views = "all",
    findings: list[str] | None = None,
    voi: int | str = 0,
    size_px: SizesPx = (64,),
    crop_px: int | None = None,
    equalize: bool = False,
    resampling: Resampling = "antialiased",
    seed: int = 0,
    scratch: str | None = None,
    scratch_gib: Annotated[float, Field(gt=0)] = 100.0,
) -> IngestReport:
    """Preprocess ChestX-ray14 or DICOM radiographs into a sealed dataset.

    Images may lie at any depth below the source, ChestX-ray14's also in its archives, and may be
    only a part of the data set: rows of the table without an image are counted. Patients are
    never divided by a split. DICOM files need NORMSCOPE_PSEUDONYM_KEY; where it is set, names and
    numbers of PNGs that are not ChestX-ray14's own become pseudonyms too.

    What you name yourself here is kept with the run as you write it: name no person in it.

    Args:
        source: Folder or `s3://` prefix of the images.
        dataset: Where the dataset goes: a path or an `s3://` URL. The size replaces {size_px} in
            it, which several sizes need; they are made one after the other.
        source_format: chestxray14 or dicom; auto looks at names and first bytes.
        table: The official Data_Entry_2017 table; by default found in the source or its parent.
            For DICOM a table of labels: path or sop_instance_uid, label, and split if it likes.
        experiment: One of the paper's, by its authors' lists: subset, PA or AP.
        experiment_lists: These lists, dpa_nih_folds.tar.gz; by default found likewise.
        views: Radiographs of this view position only, or all.
        findings: Of the anomalous, those with one of these findings only; all by default.
        voi: Which VOI LUT or window of DICOM files: its position, or its explanation there.
        size_px: Height and width of the dataset's images; several give a dataset each.
        crop_px: Side of the square cut from each centre first, in the file's pixels.
        equalize: Equalise the histogram, as the reference method does.
        resampling: antialiased, or area: the mean of the pixels that fall into one.
        seed: Of the splits, where there are no official lists.
        scratch: Folder that archives are unpacked in, on every node; a temporary one by default.
        scratch_gib: What it may hold, in GiB.
    """
    settings = ImageSettings(
        modality="radiograph",
        crop_px=crop_px,
        colour="grey",
        equalize=equalize,
        resampling=resampling,
        voi=voi,
        seed=seed,
    )
    bounded = Scratch(Path(scratch or DEFAULT_FOLDER), int(scratch_gib * GIB))
    surroundings = load_settings()
    key = open_key(surroundings)
    with open_engine(surroundings) as map_work, progress("Radiographs") as advance:
        name, listing = list_xrays(
            source,
            source_format=source_format,
            key=key,
            table_url=table,
            views=views,
            findings=findings or (),
            experiment=experiment,
            lists_url=experiment_lists,
            scratch=bounded,
            map_work=map_work,
        )
        report = resumable(ingest_images)(
            dataset,
            listing,
            settings,
            map_work,
            source=name,
            sizes_px=size_px,
            scratch=bounded,
            on_progress=advance,
        )
    return publish(report)
