"""Visits a slide once: fetch, survey, tile, write, commit. One slide is one part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import AbsentError, ChangedError, NormscopeError, StorageError
from pipeline.ingest.manifest import describe_rows
from pipeline.ingest.parts import (
    Draft,
    Shard,
    commit_part,
    divide_rows,
    find_part,
    make_part,
    make_shard,
    read_source,
    report_defect,
)
from pipeline.ingest.run import Outcome
from pipeline.ingest.sources import SourceRead
from pipeline.io import storage
from pipeline.io.digests import digest_files
from pipeline.io.scratch import Scratch
from pipeline.io.staging import require_unchanged, stage
from pipeline.records import Array, ManifestEntry, Scalar, Slide
from pipeline.runtime.engines import engine_of_worker
from pipeline.slides.bounds import state_bounds
from pipeline.slides.formats import find_companions, require_whole
from pipeline.slides.reader import TileReader, name_icc_state, open_tiles
from pipeline.slides.readers.protocol import SlideReader
from pipeline.slides.readers.registry import open_slide
from pipeline.slides.settings import SlideSettings
from pipeline.slides.stain.fit import encode_stains
from pipeline.slides.stain.normalise import StainFit
from pipeline.slides.survey.measure import SlideSurvey, survey_slide
from pipeline.store.layout import REVIEW
from pipeline.store.part import Part, clear_part, is_there, name_file
from pipeline.store.spec import SCHEMA_VERSION, DatasetSpec
from pipeline.store.stamp import require_stamp

# Settings that choose splits, and change no part.
_NOT_OF_PARTS: Final = {"validation_fraction", "test_fraction"}


class SlideItem(NamedTuple):
    """A slide to visit, and its part in the dataset as it is.

    Args:
        slide: The slide as listed.
        known: Part of the slide in the dataset as it is; None where there is none yet.
    """

    slide: Slide
    known: Part | None


@dataclass(frozen=True)
class SlideVisit:
    """Keeps or makes the part of a slide. Picklable.

    Args:
        url: URL of the dataset.
        spec: Specification of the dataset.
        settings: Settings of the dataset.
        trusts_times: Whether a local file of the same size and time of modification counts as
            unchanged without being read. Objects on S3 are told apart by their ETag.
        scratch: Folder where slides on object storage are staged; None for the default one.
        is_cut: Whether other workers of the cluster would be idle, and make shards of a local
            slide too. The part is the same.
    """

    url: str
    spec: DatasetSpec
    settings: SlideSettings
    trusts_times: bool = False
    scratch: Scratch | None = None
    is_cut: bool = False

    def __call__(self, item: SlideItem) -> Outcome:
        """Visit a slide; whatever is wrong with it is said in its entry of the manifest.

        Raises:
            SettingsError: This worker makes other pixels than the driver.
            StorageError: The dataset cannot be written.
        """
        require_stamp("slides", self.spec.stamp)
        slide = item.slide
        if not _is_text(slide.url):
            reason = "its name is no text in UTF-8. Rename the file"
            return Outcome(None, (ManifestEntry(slide.url, "failed", reason),))
        try:
            return self._visit(item)
        except NormscopeError as error:
            if isinstance(error, StorageError) and f"{error.item}/".startswith(f"{self.url}/"):
                raise
            return self._fail(item, error)
        except Exception as error:  # noqa: BLE001 - one slide must not stop the batch
            reason = report_defect(slide, error)
            return Outcome(None, (ManifestEntry(slide.url, "failed", reason),))

    def _fail(self, item: SlideItem, error: NormscopeError) -> Outcome:
        """State a failure. What may pass by itself takes no part out of the dataset."""
        kept, reason = None, str(error)
        may_pass = isinstance(error, StorageError) and not isinstance(error, AbsentError)
        if (may_pass or isinstance(error, ChangedError)) and item.known is not None:
            with suppress(NormscopeError):
                if item.known.key == self._make_key(item.slide) and is_there(self.url, item.known):
                    kept = item.known
                    reason += ". Its part stays as an earlier ingest has made it"
        entry = ManifestEntry(item.slide.url, "failed", reason)
        return Outcome(kept, (entry,), is_kept=kept is not None)

    def _visit(self, item: SlideItem) -> Outcome:
        slide = item.slide
        key, place, found = self.find_part(item)
        is_remote = storage.parse(slide.url).scheme != "file"
        if found and found.source_version == slide.version and (is_remote or self.trusts_times):
            return Outcome(found, (_describe(slide, found),), is_kept=True)
        require_whole(slide)
        with stage(slide.url, slide.version, slide.companions, scratch=self.scratch) as path:
            files = (path, *find_companions(path))
            digest = digest_files(files)
            read_bytes = sum(file.stat().st_size for file in files)
            if found and found.source_digest == digest:
                found = replace(found, source_version=slide.version)
                entries = (_describe(slide, found),)
                return Outcome(found, entries, is_kept=True, read_bytes=read_bytes)
            draft = Draft(slide.slide_id, place, key, {}, slide.version, digest)
            return self._make(slide, path, draft, read_bytes)

    def find_part(self, item: SlideItem) -> tuple[str, str, Part | None]:
        """Find the part of a slide that a visit keeps if the slide has not changed.

        Args:
            item: The slide, and its part in the dataset.

        Returns:
            Key of work, folder for a part that is to be made, and the part found.
        """
        slide, known = item
        key = self._make_key(slide)
        return key, *find_part(self.url, known, slide.slide_id, key, slide.version)

    def _make(self, slide: Slide, path: Path, draft: Draft, read_bytes: int) -> Outcome:
        with open_listed(slide, path, self.settings) as reader:
            survey = survey_slide(slide, path, reader, self.settings, scratch=self.scratch)
            review = storage.join(self.url, name_review(slide.slide_id))
            storage.write_bytes(review, survey.picture)
            state = name_icc_state(reader.icc_profile, self.settings)
            draft = replace(draft, facts={**_state_facts(slide, survey), "icc_state": state})
            if len(survey.origins_yx):
                part = self._read(slide, path, reader, survey, draft)
            else:
                part = _make_empty(draft, survey)
        return Outcome(part, (_describe(slide, part),), read_bytes=read_bytes)

    def _read(
        self,
        slide: Slide,
        path: Path,
        reader: SlideReader,
        survey: SlideSurvey,
        draft: Draft,
    ) -> Part:
        fit = survey.stain_fit
        with open_tiles(path, reader, self.settings, fit) as tiles:
            draft = replace(
                draft,
                columns=_make_columns(slide, survey),
                facts={**draft.facts, "decoder": tiles.decoder},
                conclude=partial(_conclude, slide, survey),
                require=partial(require_unchanged, slide.url, slide.version, slide.companions),
            )
            pieces = divide_rows(self.spec, len(survey.origins_yx))
            is_local = storage.parse(slide.url).scheme == "file"
            if not (self.is_cut and is_local and len(pieces) > 1):
                read = partial(_read_rows, slide, tiles, survey.origins_yx)
                return make_part(self.url, self.spec, draft, read)
        make = _MakeShard(self.url, self.spec, self.settings, slide, path, fit)
        clear_part(storage.join(self.url, draft.place))
        with engine_of_worker() as map_work:
            made = dict(map_work(make, [(n, draft.cut(rows)) for n, rows in enumerate(pieces)]))
        shards = [made[number] for number in range(len(pieces))]
        return commit_part(self.url, self.spec, draft, shards)

    def _make_key(self, slide: Slide) -> str:
        """The key of work: all that a part follows from, but the bytes of the slide."""
        beside = (slide.annotation_url, slide.mask_url)
        own = {"slide_id", "label", "mpp_um", "is_partly_annotated"}
        facts = {
            "schema": SCHEMA_VERSION,
            "stamp": dict(self.spec.stamp),
            "settings": self.settings.model_dump(mode="json", exclude=_NOT_OF_PARTS),
            "slide": {name: value for name, value in asdict(slide).items() if name in own},
            "beside": [storage.describe(url).version if url else "" for url in beside],
        }
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _MakeShard:
    """Makes any shard of the part of a local slide. Picklable.

    Args:
        url: URL of the dataset.
        spec: Specification of the dataset.
        settings: Settings of the dataset.
        slide: The slide as listed.
        path: Local path of its file.
        fit: The slide's stains, or None to leave stains as they are.
    """

    url: str
    spec: DatasetSpec
    settings: SlideSettings
    slide: Slide
    path: Path
    fit: StainFit | None

    def __call__(self, piece: tuple[int, Draft]) -> tuple[int, Shard]:
        """Make a shard, of which number and rows are given; return its number with it.

        Raises:
            SettingsError: This worker makes other pixels than the driver.
            SourceError: The slide cannot be opened.
            StorageError: The shard cannot be written.
        """
        require_stamp("slides", self.spec.stamp)
        number, draft = piece
        origins_yx = draft.columns["origin_yx"]
        with (
            open_listed(self.slide, self.path, self.settings) as reader,
            open_tiles(self.path, reader, self.settings, self.fit) as tiles,
        ):
            read = partial(_read_rows, self.slide, tiles, origins_yx, 0, len(origins_yx))
            return number, make_shard(self.url, self.spec, draft, number, read)


def open_listed(slide: Slide, path: Path, settings: SlideSettings) -> SlideReader:
    """Open a listed slide; its own um/px, from the user's table, outweighs that of the settings.

    Args:
        slide: The slide as listed.
        path: Local path of its file.
        settings: Settings of the dataset.

    Raises:
        SourceError: The file cannot be opened, or its um/px is absent or impossible.
    """
    return open_slide(
        path,
        item=slide.url,
        mpp_override_um=settings.mpp_override_um if slide.mpp_um is None else slide.mpp_um,
        mpp_fallback_um=settings.mpp_fallback_um,
    )


def _read_rows(
    slide: Slide,
    tiles: TileReader,
    origins_yx: NDArray[np.int64],
    start: int,
    stop: int,
    images: NDArray[np.uint8],
) -> Iterator[SourceRead]:
    read = partial(tiles.read, origins_yx[start:stop], images)
    return read_source(slide, read, stop - start)


def _is_text(name: str) -> bool:
    """Whether a name can be stored; one of other bytes than UTF-8 comes with surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def name_review(slide_id: str) -> str:
    """Name the review picture of a slide, below the dataset's URL."""
    return f"{REVIEW}/{name_file(slide_id)}.png"


def _describe(slide: Slide, part: Part) -> ManifestEntry:
    """State what became of a slide; its part tells."""
    remark = str(part.facts["remark"])
    if not part.image_count:
        return ManifestEntry(slide.url, "skipped", remark)
    state: Literal["done", "failed"] = (
        "failed" if part.unreadable_count == part.image_count else "done"
    )
    return ManifestEntry(slide.url, state, remark, {"decoder": str(part.facts["decoder"])})


def _state_facts(slide: Slide, survey: SlideSurvey) -> dict[str, Scalar]:
    """State the facts of a slide that hold for all its tiles."""
    fit = survey.stain_fit
    state = "unchanged" if fit is None else "degenerate" if fit.is_degenerate else "normalised"
    return {
        "slide_id": slide.slide_id,
        "slide_label": int(slide.label),
        "has_lesion": survey.has_lesion,
        "height_px": survey.shape_yx[0],
        "width_px": survey.shape_yx[1],
        "mpp_y_um": survey.mpp_yx[0],
        "mpp_x_um": survey.mpp_yx[1],
        "mpp_source": survey.mpp_source,
        "stain_state": state,
        "stain_fit": encode_stains(fit),
        "review": name_review(slide.slide_id),
        **state_bounds(survey.bounds_yx),
    }


def _make_columns(slide: Slide, survey: SlideSurvey) -> dict[str, Array]:
    """Make the columns that are known before tiles are read."""
    names = [f"{slide.slide_id}_y{y}_x{x}" for y, x in survey.origins_yx.tolist()]
    return {
        "image_id": np.array(names, object),
        "label": survey.label,
        "origin_yx": survey.origins_yx,
        "tissue_fraction": survey.tissue_fraction,
        "lesion_fraction": survey.lesion_fraction,
    }


def _conclude(
    slide: Slide, survey: SlideSurvey, reasons: Sequence[str | None]
) -> dict[str, Scalar]:
    """Account for the slide's tissue, and remark on what is notable."""
    is_lost = np.array([reason is not None for reason in reasons])
    lost_um2 = float(survey.tissue_um2[is_lost].sum())
    areas = {**survey.coverage, "unreadable": lost_um2}
    areas["tiled"] -= lost_um2
    remarks = [describe_rows(slide.url, reasons).reason, *survey.remarks]
    if slide.annotation_url and np.isnan(survey.lesion_fraction).all():
        remarks.append("its annotation outlines no lesion on its tiles: none is known to be normal")
    if survey.stain_fit and survey.stain_fit.is_degenerate:
        remarks.append(f"stains left as they are: {survey.stain_fit.reason}")
    return {"remark": "; ".join(filter(None, remarks)), **_name_areas(areas)}


def _name_areas(areas: Mapping[str, float]) -> dict[str, Scalar]:
    return {f"{fate}_um2": area for fate, area in areas.items()}


def _make_empty(draft: Draft, survey: SlideSurvey) -> Part:
    """Make the row of a slide without a tile, so that no later run visits it in vain."""
    tissue_um2 = survey.coverage["tissue"]
    remark = (
        f"no tile holds enough of its {tissue_um2:.0f} um^2 of tissue"
        if tissue_um2
        else "no tissue found"
    )
    remark = "; ".join([remark, *survey.remarks])
    areas = _name_areas({**survey.coverage, "unreadable": 0.0})
    return Part(
        name=draft.name,
        place="",
        image_count=0,
        unreadable_count=0,
        normal_count=0,
        anomalous_count=0,
        key=draft.key,
        digest="",
        source_version=draft.source_version,
        source_digest=draft.source_digest,
        stored_bytes=0,
        facts={**draft.facts, "decoder": "", "remark": remark, **areas},
    )
