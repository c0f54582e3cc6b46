"""`normscope ingest slides`: whole-slide images to a dataset of tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from prefect import flow
from pydantic import NonNegativeInt, PositiveInt

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.engine import open_engine
from flows.shared.events import publish_reviews
from flows.shared.progress import progress
from flows.shared.reports import EstimateReport, publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from pipeline.ingest.run import IngestReport
from pipeline.io.scratch import DEFAULT_FOLDER, GIB, Scratch, SizeGib
from pipeline.slides import ingest as slide_ingest
from pipeline.slides.annotations import AnnotationOrigin
from pipeline.slides.settings import (
    AreaUm2,
    Fraction,
    IccSetting,
    MppUm,
    ShardImages,
    SlideMppUm,
    StainSetting,
    StridePx,
    TileSizePx,
    load_slide_preset,
)
from pipeline.slides.survey.estimate import estimate_slides
from pipeline.slides.survey.tissue import TissueMethod
from pipeline.sources.slides import list_slides
from pipeline.store.layout import require_destination


@flow(name="ingest-slides")
def ingest_slides(
    source: str,
    dataset: str,
    *,
    preset: Literal["all-tissue", "paper", "ihc", "fluorescence"] = "all-tissue",
    sheet: str | None = None,
    labels: str | None = None,
    errata: str | None = None,
    mpp_table: str | None = None,
    tile_size_px: TileSizePx | None = None,
    mpp_um: MppUm | None = None,
    stride_px: StridePx | None = None,
    min_tissue_fraction: Fraction | None = None,
    mask_mpp_um: MppUm | None = None,
    tissue_method: TissueMethod | None = None,
    min_tissue_area_um2: AreaUm2 | None = None,
    max_hole_area_um2: AreaUm2 | None = None,
    max_tiles_per_slide: PositiveInt | None = None,
    lesion_groups: list[str] | None = None,
    excluded_groups: list[str] | None = None,
    ignored_groups: list[str] | None = None,
    annotation_origin: AnnotationOrigin | None = None,
    lesion_threshold: Fraction | None = None,
    stain: StainSetting | None = None,
    icc: IccSetting | None = None,
    mpp_override_um: SlideMppUm | None = None,
    mpp_fallback_um: SlideMppUm | None = None,
    shard_images: ShardImages | None = None,
    seed: NonNegativeInt = 0,
    trust_times: bool = False,
    scratch: str | None = None,
    scratch_gib: SizeGib = 100.0,
    dry_run: bool = False,
) -> IngestReport | EstimateReport:
    """Tile whole-slide images into a sealed dataset.

    Reads Camelyon16's official layout (training/normal, training/tumor, testing/images,
    annotations), a folder or prefix of slides, or one slide. A MIRAX slide is its `.mrxs` file
    and folder, a DICOM slide a folder of its own. A review picture of every slide goes to
    `review/` in the dataset. After slides have been added, a second run makes only what is new.

    Args:
        source: Folder or `s3://` prefix of slides, or a single slide.
        dataset: Destination of the dataset, a path or an `s3://` URL.
        preset: Set of settings: `all-tissue` uses every tile of tissue, `paper` those that
            Shvetsova et al. 2021 used of Camelyon16; `ihc` and `fluorescence` find the tissue of
            immunohistochemistry and on dark backgrounds. The settings below win over it.
        sheet: Sample sheet, a CSV table with the column path and any of patient, group, split,
            label, mpp_um, mask, annotation, site, scanner; `normscope sheet` writes one to fill
            in. Paths are below the sheet's folder or the source. Slides of one patient share a
            split, slides without a row are tiled too, and an empty cell says nothing.
        labels: CSV table (slide, label), where a label is all that a sheet would say. Where
            several folders hold a slide of one name, name it by its path under the source.
        errata: CSV table (slide, state, reason, source) of slides of Camelyon16 to leave out, in
            place of the published errata; `none` leaves nothing out.
        mpp_table: CSV table (slide, mpp_um) with the micrometres per pixel of single slides, where
            that is all that a sheet would say.
        tile_size_px: Height and width of a tile in px; 64 by default.
        mpp_um: Micrometres per pixel of the tiles; 1 by default, about that of a 10x objective.
        stride_px: Distance from one tile to the next in px of the tiles. Less than tile_size_px
            makes tiles overlap, more leaves gaps; equal to it by default.
        min_tissue_fraction: Smallest share of tissue in a tile, 0 to 1; 0.5 by default.
        mask_mpp_um: Micrometres per pixel of the thumbnail that tissue is found on; 8 by default.
        tissue_method: Signal that tells tissue from background: `chroma`, the default, for
            haematoxylin and eosin, `ihc` for pale counterstains with a chromogen,
            `dark-background` for fluorescence.
        min_tissue_area_um2: Area of the smallest piece of tissue in square micrometres; smaller
            ones are dropped. 17 pixels of the thumbnail by default.
        max_hole_area_um2: Area of the largest hole in tissue in square micrometres that is filled;
            16 pixels of the thumbnail by default.
        max_tiles_per_slide: Largest number of tiles per slide, a random sample; all by default.
        lesion_groups: Annotation groups (in QuPath classes) that outline lesions; Camelyon16's
            Tumor, _0 and _1 by default. A class such as Tumor: Positive is one of Tumor, and so is
            a group that is part of it; upper and lower case and blanks do not matter.
        excluded_groups: Annotation groups that outline holes in lesions; Camelyon16's _2 and
            Exclusion by default.
        ignored_groups: Annotation groups that say nothing of lesions; none by default. A tile that
            an outline of any other group touches has no label unless a lesion covers it.
        annotation_origin: Point that annotations and outlines of tissue count from: `canvas`, the
            slide's own corner, `bounds`, the corner of the scanned part, which QuPath shows alone,
            or `auto`, the default: the bounds for GeoJSON, the canvas for XML.
        lesion_threshold: Share of lesion above which a tile is anomalous, 0 to 1; 0.1 by default.
            A tile without any lesion is normal, one in between has no label.
        stain: Stain normalisation: `macenko`, `vahadane` or `none`, the default.
        icc: Colours of the tiles: `keep`, the default, leaves them as scanned; `srgb` converts them
            by the ICC profile of the slide's file, so that scanners differ less. A slide without
            a profile is left as it is.
        mpp_override_um: Micrometres per pixel of every slide, in place of what the files say.
        mpp_fallback_um: Micrometres per pixel of slides whose files do not say.
        shard_images: Tiles in a shard, which a worker makes at once: a multiple of 64, 1024 by
            default. Fewer need less memory.
        seed: Seed of the random division into splits and of the sample of tiles.
        trust_times: Take a local slide of the same size and time of modification for unchanged.
            Otherwise a later run reads all bytes of all local slides to know. Objects on S3 are
            told apart by their ETag, either way.
        scratch: Folder on every node where slides from S3 are copied; a temporary one by default.
        scratch_gib: Largest size of the scratch folder in GiB.
        dry_run: Say what would be made and at what cost, from a sample of the slides, and write
            nothing at the destination.
    """
    settings = load_slide_preset(
        preset,
        tile_size_px=tile_size_px,
        mpp_um=mpp_um,
        stride_px=stride_px,
        min_tissue_fraction=min_tissue_fraction,
        mask_mpp_um=mask_mpp_um,
        tissue_method=tissue_method,
        min_tissue_area_um2=min_tissue_area_um2,
        max_hole_area_um2=max_hole_area_um2,
        max_tiles_per_slide=max_tiles_per_slide,
        lesion_groups=lesion_groups,
        excluded_groups=excluded_groups,
        ignored_groups=ignored_groups,
        annotation_origin=annotation_origin,
        lesion_threshold=lesion_threshold,
        stain=stain,
        icc=icc,
        mpp_override_um=mpp_override_um,
        mpp_fallback_um=mpp_fallback_um,
        shard_images=shard_images,
        seed=seed,
    )
    require_destination(dataset)
    bounded = Scratch(Path(scratch or DEFAULT_FOLDER), int(scratch_gib * GIB))
    listing = list_slides(source, sheet=sheet, labels=labels, errata=errata, mpp_table=mpp_table)
    with open_engine(load_settings()) as map_work, progress("Slides") as advance:
        work = (dataset, listing, settings, map_work)
        if dry_run:
            found = resumable(estimate_slides)(*work, trusts_times=trust_times)
            return publish(EstimateReport((found,)))
        report = resumable(slide_ingest.ingest_slides)(
            *work, trusts_times=trust_times, scratch=bounded, on_progress=advance
        )
    publish_reviews(dataset)
    return publish(report)
