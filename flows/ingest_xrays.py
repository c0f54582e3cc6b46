"""`normscope ingest xrays`: ChestX-ray14 or DICOM radiographs to a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prefect import flow
from pydantic import NonNegativeInt

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.engine import open_engine, open_key
from flows.shared.images import ingest_or_estimate
from flows.shared.progress import progress
from flows.shared.reports import EstimateReport, publish
from flows.shared.settings import load_settings
from pipeline.grey_range import GreyRange
from pipeline.images.decode import Resampling
from pipeline.images.plan import CropPx, SizesPx, make_image_settings
from pipeline.ingest.run import IngestReport
from pipeline.io.scratch import DEFAULT_FOLDER, GIB, Scratch, SizeGib
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
    grey_range: GreyRange = "full",
    size_px: SizesPx = (64,),
    crop_px: CropPx | None = None,
    equalize: bool = False,
    resampling: Resampling = "antialiased",
    seed: NonNegativeInt = 0,
    trust_times: bool = False,
    scratch: str | None = None,
    scratch_gib: SizeGib = 100.0,
    dry_run: bool = False,
) -> IngestReport | EstimateReport:
    """Preprocess ChestX-ray14 or DICOM radiographs into a sealed dataset.

    Images may lie at any depth under the source, those of ChestX-ray14 also in its archives. A
    part of the data set is enough: rows without an image are counted. Splits never divide a
    patient. DICOM files need NORMSCOPE_PSEUDONYM_KEY; if it is set, names and numbers of PNG files
    other than ChestX-ray14's become pseudonyms too.

    The parameters below are stored as you type them: name no person in them.

    Args:
        source: Folder or `s3://` prefix of the images.
        dataset: Destination of the dataset, a path or an `s3://` URL. {size_px} in it stands for
            the size; several sizes need it.
        source_format: Format of the source: `chestxray14` or `dicom`; `auto` decides by names and
            first bytes.
        table: Official table Data_Entry_2017, by default found in the source or its parent. For
            DICOM a table of labels with path or sop_instance_uid, label and optionally split.
        experiment: Experiment of the paper to reproduce, by its authors' lists: subset, PA or AP.
        experiment_lists: Archive of these lists, dpa_nih_folds.tar.gz; by default found in the
            source or its parent.
        views: View position to use, PA or AP, or all.
        findings: Findings that an anomalous image must have one of; all count by default.
        voi: VOI LUT or window of DICOM files: its position from 0, or its explanation in the file.
        grey_range: Values from black to white in DICOM files without a VOI LUT or window, and in
            PNG files of 16 bits: `full`, all that their bits can hold; `percentiles`, from 0.5 to
            99.5 % of the file's pixels; or two values as LOW,HIGH, e.g. 0,4095.
        size_px: Height and width of the dataset's images in px; several sizes make a dataset each.
        crop_px: Side of the central square to cut out before resizing, in px of the file; nothing
            is cut by default.
        equalize: Equalise the histogram, as the reference method does.
        resampling: Method of resizing: `antialiased`, or `area`, the mean of the pixels that fall
            into one.
        seed: Seed of the random division into splits, where there are no official lists.
        trust_times: Take a local file of the same size and time of modification for unchanged.
            Otherwise a later run reads all bytes of all local files to know. Objects on S3 are
            told apart by their ETag, either way.
        scratch: Folder on every node where archives are unpacked; a temporary one by default.
        scratch_gib: Largest size of the scratch folder in GiB.
        dry_run: Say what would be made and at what cost, from a sample of the images, and write
            nothing at the destination.
    """
    settings = make_image_settings(
        modality="radiograph",
        crop_px=crop_px,
        colour="grey",
        equalize=equalize,
        resampling=resampling,
        voi=voi,
        grey_range=grey_range,
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
        report = ingest_or_estimate(
            dataset,
            listing,
            settings,
            map_work,
            source=name,
            sizes_px=size_px,
            scratch=bounded,
            trusts_times=trust_times,
            dry_run=dry_run,
            on_progress=advance,
        )
    return publish(report)
