"""Plans a dataset of tiles: surveys every slide, splits them, and gives every tile its row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np

from pipeline.errors import NormscopeError
from pipeline.ingest.plan import Plan
from pipeline.ingest.shards import report_defect
from pipeline.io.scratch import Scratch
from pipeline.io.staging import require_reachable
from pipeline.io.storage import join
from pipeline.records import Array, Label, ManifestEntry, Slide
from pipeline.runtime.engines import DEATH, DEATH_REMEDY, MapWork
from pipeline.slides.quality import QUALITY_COLUMNS
from pipeline.slides.reader import DECODER_COLUMN
from pipeline.slides.settings import SlideSettings
from pipeline.slides.stain.fit import encode_stains
from pipeline.slides.stain.normalise import StainFit
from pipeline.slides.survey.cache import load_or_survey
from pipeline.slides.survey.measure import SlideSurvey, survey_slide
from pipeline.slides.tiling import name_states
from pipeline.splits import SlideFacts, assign_slide_splits
from pipeline.store.spec import BASE_COLUMNS, DatasetSpec, code_version

_FLOAT: Final = np.dtype("float32")
SLIDE_COLUMNS: Final[Mapping[str, np.dtype[Any]]] = {
    **BASE_COLUMNS,
    "origin_yx": np.dtype("int64"),
    "mpp_yx": np.dtype("float64"),
    "mpp_source": np.dtypes.StringDType(),
    "tissue_fraction": _FLOAT,
    "lesion_fraction": _FLOAT,
    "tile_state": np.dtypes.StringDType(),
    "stain_state": np.dtypes.StringDType(),
    "stain_fit": np.dtypes.StringDType(),
    **dict.fromkeys(QUALITY_COLUMNS, _FLOAT),
    DECODER_COLUMN: np.dtypes.StringDType(),
}


def plan_slides(
    slides: Sequence[Slide],
    settings: SlideSettings,
    map_work: MapWork,
    *,
    source: str,
    rejected: Sequence[ManifestEntry] = (),
    known_order: Sequence[str] = (),
    review_url: str | None = None,
    survey_url: str | None = None,
    scratch: Scratch | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Survey every slide, split them, and fix every tile's row.

    A slide that cannot be used is listed as failed and the rest goes on. One without a tile is
    listed as skipped, and its account says what became of its tissue.

    Args:
        slides: Slides to tile, each with its own `slide_id`.
        settings: Settings of the dataset.
        map_work: An engine of `pipeline.runtime.engines`; surveys run on it, one slide an item.
        source: Name of the dataset's source, e.g. `camelyon16`.
        rejected: Items that the source could not list, with the reason.
        known_order: Ids of the slides of the dataset that this plan replaces, in its order
            (`schema.read_group_order`): they keep it and new ones come last, so that the shards
            in front stay as they are.
        review_url: Folder for one review picture a slide, or None for none.
        survey_url: Folder that caches surveys, or None to survey every slide anew.
        scratch: Folder where slides on object storage are staged; None for the default one.
        on_progress: Called with the number of slides surveyed and of all slides.

    Returns:
        The plan, in order of slide id after `known_order`; its coverage is in um^2 of tissue.

    Raises:
        ValueError: Two slides share an id.
        StorageError: The folder for pictures or surveys is out of reach.
    """
    rank = {slide_id: number for number, slide_id in enumerate(known_order)}
    ordered = sorted(slides, key=lambda s: (rank.get(s.slide_id, len(rank)), s.slide_id))
    _require_unique(ordered)
    for url in filter(None, (review_url, survey_url)):
        require_reachable(url)
    survey = partial(
        _try_survey,
        settings=settings,
        review_url=review_url,
        survey_url=survey_url,
        scratch=scratch or Scratch(),
    )
    outcomes: dict[str, SlideSurvey | ManifestEntry] = {}
    for slide_id, outcome in map_work(survey, ordered, give_up=_fail_deadly):
        outcomes[slide_id] = outcome
        if on_progress:
            on_progress(len(outcomes), len(ordered))
    in_order = [outcomes[slide.slide_id] for slide in ordered]
    surveys = [outcome for outcome in in_order if isinstance(outcome, SlideSurvey)]
    failed = [outcome for outcome in in_order if isinstance(outcome, ManifestEntry)]
    skipped = [_explain_skip(found) for found in surveys if not len(found.origins_yx)]
    return _assign_rows(surveys, settings, source, (*rejected, *failed, *skipped))


def _fail_deadly(slide: Slide) -> tuple[str, SlideSurvey | ManifestEntry]:
    return slide.slide_id, ManifestEntry(slide.url, "failed", f"{DEATH}. {DEATH_REMEDY}")


def _require_unique(slides: Sequence[Slide]) -> None:
    urls: dict[str, list[str]] = {}
    for slide in slides:
        urls.setdefault(slide.slide_id, []).append(slide.url)
    for slide_id, found in urls.items():
        if len(found) > 1:
            raise ValueError(f"slide_id {slide_id!r} names {' and '.join(found)}: make ids unique")


def _assign_rows(
    surveys: Sequence[SlideSurvey],
    settings: SlideSettings,
    source: str,
    rejected: tuple[ManifestEntry, ...],
) -> Plan:
    """Give every tile its row."""
    tiled = [found for found in surveys if len(found.origins_yx)]
    counts = [len(found.origins_yx) for found in tiled]
    by_digest: dict[str, list[str]] = {}
    for found in tiled:
        by_digest.setdefault(found.digest, []).append(found.slide.url)
    return Plan(
        spec=_specify(settings, source, sum(counts), tiled),
        sources=tuple(found.slide for found in tiled),
        source_index=np.repeat(np.arange(len(tiled), dtype=np.int32), counts),
        columns=_make_columns(tiled, settings),
        rejected=rejected,
        coverage={found.slide.slide_id: found.coverage for found in surveys},
        area=_join([found.tissue_um2 for found in tiled], np.dtype("float64")),
        remarks={found.slide.url: note for found in tiled if (note := _note(found, by_digest))},
        manifest_columns=(DECODER_COLUMN,),
    )


def _note(found: SlideSurvey, by_digest: Mapping[str, Sequence[str]]) -> str:
    """Say what is notable about a slide that is done; "" for nothing."""
    notes = []
    copies = [url for url in by_digest[found.digest] if url != found.slide.url]
    if copies:
        more = f" and {len(copies) - 1} more" if len(copies) > 1 else ""
        notes.append(f"the same bytes as {copies[0]}{more}: one of them is enough")
    if found.slide.annotation_url and np.isnan(found.lesion_fraction).all():
        notes.append("its annotation outlines no lesion on its tiles: none is known to be normal")
    if found.stain_fit and found.stain_fit.is_degenerate:
        notes.append(f"stains left as they are: {found.stain_fit.reason}")
    return "; ".join(notes)


def _try_survey(
    slide: Slide,
    *,
    settings: SlideSettings,
    review_url: str | None,
    survey_url: str | None,
    scratch: Scratch,
) -> tuple[str, SlideSurvey | ManifestEntry]:
    own = settings
    if slide.mpp_um is not None:
        own = settings.model_copy(update={"mpp_override_um": slide.mpp_um})
    survey = partial(
        survey_slide,
        slide,
        own,
        is_partly_annotated=slide.is_partly_annotated,
        review_url=join(review_url, f"{slide.slide_id}.png") if review_url else None,
        scratch=scratch,
    )
    try:
        if survey_url:
            place = join(survey_url, f"{slide.slide_id}.npz")
            found = load_or_survey(place, slide, own, slide.is_partly_annotated, survey)
        else:
            found = survey()
    except NormscopeError as error:
        return slide.slide_id, ManifestEntry(slide.url, "failed", str(error))
    except Exception as error:  # noqa: BLE001 - one slide must not stop the batch
        return slide.slide_id, ManifestEntry(slide.url, "failed", report_defect(slide, error))
    return slide.slide_id, replace(found, mpp_source="user table") if own is not settings else found


def _explain_skip(found: SlideSurvey) -> ManifestEntry:
    tissue_um2 = found.coverage["tissue"]
    reason = (
        f"no tile holds enough of its {tissue_um2:.0f} um^2 of tissue"
        if tissue_um2
        else "no tissue found"
    )
    return ManifestEntry(found.slide.url, "skipped", reason)


def _specify(
    settings: SlideSettings, source: str, image_count: int, tiled: Sequence[SlideSurvey]
) -> DatasetSpec:
    side = settings.tile_size_px
    return DatasetSpec(
        modality="histology",
        source=source,
        image_shape=(side, side, 3),
        image_count=image_count,
        shard_images=settings.shard_images,
        chunk_images=settings.chunk_images,
        columns=SLIDE_COLUMNS,
        mpp_um=settings.mpp_um,
        parameters=settings.model_dump(mode="json"),
        code_version=code_version(),
        group_order=tuple(found.slide.slide_id for found in tiled),
    )


def _make_columns(surveys: Sequence[SlideSurvey], settings: SlideSettings) -> dict[str, Array]:
    """Make the columns that are known before tiles are read."""
    splits = _split_slides(surveys, settings)
    words = {
        "mpp_source": [found.mpp_source for found in surveys],
        "stain_state": [_name_stain_state(found.stain_fit) for found in surveys],
        "stain_fit": [encode_stains(found.stain_fit) for found in surveys],
    }
    counts = [len(found.origins_yx) for found in surveys]
    names = np.array([found.slide.slide_id for found in surveys], dtype=object)
    origins_yx = _join([found.origins_yx for found in surveys], np.dtype("int64"), (2,))
    lesion_fraction = _join([found.lesion_fraction for found in surveys], _FLOAT)
    groups = np.array([found.slide.group_id for found in surveys], dtype=object)
    return {
        "image_id": np.array(
            [
                f"{name}_y{y}_x{x}"
                for name, (y, x) in zip(np.repeat(names, counts), origins_yx, strict=True)
            ],
            dtype=object,
        ),
        "group_id": np.repeat(groups, counts),
        "split": np.repeat(np.array(splits, dtype=object), counts),
        "label": _join([found.label for found in surveys], np.dtype("int8")),
        "origin_yx": origins_yx,
        "mpp_yx": np.repeat(
            np.array([found.mpp_yx for found in surveys], np.float64).reshape(-1, 2), counts, axis=0
        ),
        "tissue_fraction": _join([found.tissue_fraction for found in surveys], _FLOAT),
        "lesion_fraction": lesion_fraction,
        "tile_state": name_states(lesion_fraction, settings.lesion_threshold),
        **{name: np.repeat(np.array(values, object), counts) for name, values in words.items()},
    }


def _name_stain_state(fit: StainFit | None) -> str:
    """`unchanged` where nobody asked; `degenerate` where no two stains were found."""
    if fit is None:
        return "unchanged"
    return "degenerate" if fit.is_degenerate else "normalised"


def _join(parts: Sequence[Array], dtype: np.dtype[Any], tail: tuple[int, ...] = ()) -> Array:
    return np.concatenate([np.empty((0, *tail), dtype), *parts])


def _split_slides(surveys: Sequence[SlideSurvey], settings: SlideSettings) -> list[str]:
    return assign_slide_splits(
        [_state_facts(found) for found in surveys],
        seed=settings.seed,
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
    )


def _state_facts(found: SlideSurvey) -> SlideFacts:
    slide = found.slide
    return SlideFacts(
        slide_id=slide.slide_id,
        group_id=slide.group_id,
        digest=found.digest,
        official=slide.split or "",
        label=_label_slide(found),
        has_lesion=bool((found.lesion_fraction > 0).any()),  # NaN is not
    )


def _label_slide(found: SlideSurvey) -> int:
    """Return the slide's own label or, where it has none, the worst of its tiles."""
    if found.slide.label is not Label.UNKNOWN:
        return int(found.slide.label)
    return int(found.label.max())
