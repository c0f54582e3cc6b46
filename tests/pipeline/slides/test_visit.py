"""A slide is visited once: its part is kept while nothing has changed that it follows from."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import SettingsError, StorageError
from pipeline.io import storage
from pipeline.records import Label, Slide
from pipeline.slides import visit
from pipeline.slides.ingest import specify_slides
from pipeline.slides.settings import SlideSettings
from pipeline.slides.survey.measure import survey_slide
from pipeline.slides.visit import SlideItem, SlideVisit, name_review
from pipeline.store.part import Part, open_part
from tests.support.content import content_of
from tests.support.made.slides import (
    SETTINGS,
    list_slide,
    visit_made,
    write_asap,
    write_slide,
)

OUTLINE = [(128.0, 64.0), (192.0, 64.0), (192.0, 96.0)]  # half of the upper half of one tile


def make(url: Path, slide: Slide, settings: SlideSettings = SETTINGS) -> Part:
    """Visit a slide for the first time."""
    outcome = visit_made(url, slide, settings)
    assert outcome.state == "made"
    assert outcome.part is not None
    return outcome.part


@pytest.mark.parametrize(
    ("label", "shift_px", "said"),
    [(Label.ANOMALOUS, 5000.0, "outside the slide"), (Label.NORMAL, 0.0, "labelled normal")],
)
def test_an_annotation_that_contradicts_its_slide_fails_the_slide(
    tmp_path: Path, label: Label, shift_px: float, said: str
) -> None:
    outline = [(x + shift_px, y) for x, y in OUTLINE]
    annotation = write_asap(tmp_path / "a.xml", [("Tumor", outline)])
    slide = list_slide(write_slide(tmp_path, "a"), label=label, annotation=annotation)
    outcome = visit_made(tmp_path / "out", slide)
    (entry,) = outcome.entries
    assert outcome.part is None
    assert outcome.state == entry.state == "failed"
    assert said in entry.reason
    assert "a.xml" in entry.reason


def test_a_slide_too_coarse_for_the_tiles_is_refused(tmp_path: Path) -> None:
    slide = list_slide(write_slide(tmp_path, "a"))
    settings = SETTINGS.model_copy(update={"mpp_um": 0.25})
    (entry,) = visit_made(tmp_path / "out", slide, settings).entries
    assert "0.5 um/px" in entry.reason
    assert "0.25 um/px" in entry.reason


def test_a_visit_makes_one_whole_part_and_a_review_picture(tmp_path: Path) -> None:
    slide = list_slide(write_slide(tmp_path, "a"))
    outcome = visit_made(tmp_path / "out", slide)
    assert outcome.part is not None
    opened = open_part(str(tmp_path / "out"), outcome.part)
    assert opened.read_images(0, 42).shape == (42, 32, 32, 3)
    assert outcome.read_bytes == Path(slide.url).stat().st_size
    assert outcome.part.source_digest
    assert (tmp_path / "out" / name_review("a")).is_file()
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"parts", "review"}


def test_a_later_visit_keeps_what_is_there(tmp_path: Path) -> None:
    slide, url = list_slide(write_slide(tmp_path, "a")), tmp_path / "out"
    part, before = make(url, slide), content_of(str(url))
    kept = visit_made(url, slide, known=part)
    assert (kept.part, kept.state) == (part, "kept")
    assert kept.read_bytes == Path(slide.url).stat().st_size  # all its bytes tell
    trusting = visit_made(url, slide, known=part, trusts_times=True)
    assert (trusting.part, trusting.state, trusting.read_bytes) == (part, "kept", 0)
    assert content_of(str(url)) == before


def test_what_a_killed_run_has_made_but_not_sealed_is_kept(tmp_path: Path) -> None:
    slide, url = list_slide(write_slide(tmp_path, "a")), tmp_path / "out"
    part = make(url, slide)
    again = visit_made(url, slide)
    assert (again.part, again.state) == (part, "kept")
    storage.delete(storage.join(str(url), part.place, "zarr.json"))  # as if killed before
    assert visit_made(url, slide).state == "made"


def test_a_part_that_was_deleted_by_hand_is_made_again(tmp_path: Path) -> None:
    slide, url = list_slide(write_slide(tmp_path, "a")), tmp_path / "out"
    part, before = make(url, slide), content_of(str(url))
    shutil.rmtree(url / part.place)
    again = visit_made(url, slide, known=part, trusts_times=True)
    assert (again.part, again.state) == (part, "made")
    assert content_of(str(url)) == before


def test_a_file_that_was_touched_is_kept_and_its_new_time_remembered(tmp_path: Path) -> None:
    path, url = write_slide(tmp_path, "a"), tmp_path / "out"
    part = make(url, list_slide(path))
    os.utime(path, (10**9, 10**9))
    touched = list_slide(path)
    for trusts_times in (False, True):
        kept = visit_made(url, touched, known=part, trusts_times=trusts_times)
        assert (kept.part, kept.state) == (replace(part, source_version=touched.version), "kept")


def test_other_bytes_of_the_same_size_and_time_are_noticed_unless_times_are_trusted(
    tmp_path: Path,
) -> None:
    path, url = write_slide(tmp_path, "a"), tmp_path / "out"
    part, status, data = make(url, list_slide(path)), path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = list_slide(path)
    assert changed.version == part.source_version
    assert visit_made(url, changed, known=part, trusts_times=True).part == part
    made = visit_made(url, changed, known=part)
    assert made.state == "made"
    assert made.part is not None
    assert made.part.source_digest != part.source_digest


def test_a_changed_file_makes_a_part_beside_the_one_that_is_read(tmp_path: Path) -> None:
    path, url = write_slide(tmp_path, "a"), tmp_path / "out"
    part = make(url, list_slide(path))
    write_slide(tmp_path, "a", boxes=[(64, 64, 320, 448)])
    made = visit_made(url, list_slide(path), known=part)
    assert made.part is not None
    assert made.part.place != part.place
    assert made.part.image_count == 24
    assert open_part(str(url), part).read_images(0, 42).any()  # for whoever reads the old one


CHANGES: dict[str, Callable[[Slide, SlideSettings], tuple[Slide, SlideSettings]]] = {
    "label": lambda slide, own: (replace(slide, label=Label.ANOMALOUS), own),
    "mpp": lambda slide, own: (replace(slide, mpp_um=0.25), own),
    "partly": lambda slide, own: (replace(slide, is_partly_annotated=True), own),
    "seed": lambda slide, own: (slide, own.model_copy(update={"seed": 1})),
    "stain": lambda slide, own: (slide, own.model_copy(update={"stain": "macenko"})),
    "tissue": lambda slide, own: (slide, own.model_copy(update={"min_tissue_fraction": 0.9})),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_the_tiles_follow_from_makes_the_part_again(
    tmp_path: Path, change: Callable[[Slide, SlideSettings], tuple[Slide, SlideSettings]]
) -> None:
    slide, url = list_slide(write_slide(tmp_path, "a")), tmp_path / "out"
    part = make(url, slide)
    other, settings = change(slide, SETTINGS)
    made = visit_made(url, other, settings, known=part, trusts_times=True)
    assert made.state == "made"
    assert made.part is not None
    assert made.part.place != part.place


def test_what_only_the_table_tells_makes_no_part_again(tmp_path: Path) -> None:
    slide, url = list_slide(write_slide(tmp_path, "a")), tmp_path / "out"
    part = make(url, slide)
    other = replace(slide, split="test", patient="p", site="s", scanner="x")
    settings = SETTINGS.model_copy(update={"validation_fraction": 0.3, "test_fraction": 0.3})
    assert visit_made(url, other, settings, known=part).state == "kept"


def test_another_annotation_makes_the_part_again(tmp_path: Path) -> None:
    annotation = write_asap(tmp_path / "a.xml", [("Tumor", OUTLINE)])
    slide = list_slide(write_slide(tmp_path, "a"), annotation=annotation)
    url = tmp_path / "out"
    part = make(url, slide)
    before = open_part(str(url), part).column("lesion_fraction")
    write_asap(annotation, [("Tumor", [*OUTLINE, (128.0, 96.0)])])
    made = visit_made(url, slide, known=part, trusts_times=True)
    assert made.part is not None
    after = open_part(str(url), made.part).column("lesion_fraction")
    assert after.sum() == pytest.approx(2 * before.sum())


def test_another_stamp_is_another_key_and_a_worker_of_another_stamp_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, url = list_slide(write_slide(tmp_path, "a")), tmp_path / "out"
    part = make(url, slide)
    spec = specify_slides(SETTINGS, "made")
    other = replace(spec, stamp={**spec.stamp, "simplejpeg": "0.0.1"})
    work = SlideVisit(str(url), other, SETTINGS)
    with pytest.raises(SettingsError, match=r"simplejpeg \S+, the driver has 0\.0\.1"):
        work(SlideItem(slide, part))
    monkeypatch.setattr(visit, "require_stamp", lambda *_: None)
    assert work(SlideItem(slide, part)).state == "made"


def test_a_slide_without_a_tile_is_not_visited_in_vain_again(tmp_path: Path) -> None:
    slide, url = list_slide(write_slide(tmp_path, "a", boxes=[])), tmp_path / "out"
    first = visit_made(url, slide)
    assert (first.state, first.entries[0].state) == ("skipped", "skipped")
    assert first.part is not None
    again = visit_made(url, slide, known=first.part, trusts_times=True)
    assert (again.part, again.entries, again.read_bytes) == (first.part, first.entries, 0)


def test_a_reader_that_fails_half_way_is_tried_again_by_a_later_visit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide, url = list_slide(write_slide(tmp_path, "a")), tmp_path / "out"

    def fail(*_: Any) -> None:
        raise TypeError("no reader of ours")

    with monkeypatch.context() as broken:
        broken.setattr("pipeline.slides.reader.normalise_stains", fail)
        broken.setattr("pipeline.slides.reader.measure_quality", fail)
        outcome = visit_made(url, slide)
    assert outcome.part is not None
    assert (outcome.part.key, outcome.part.unreadable_count) == ("", 42)
    assert outcome.entries[0].state == "failed"
    assert "raised TypeError" in outcome.entries[0].reason
    assert "no reader of ours" not in outcome.entries[0].reason  # it may name a person
    again = visit_made(url, slide, known=outcome.part, trusts_times=True)
    assert again.state == "made"
    assert again.part is not None
    assert again.part.unreadable_count == 0


def test_where_the_dataset_cannot_be_written_the_ingest_stops(tmp_path: Path) -> None:
    slide = list_slide(write_slide(tmp_path, "a"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "parts").write_text("no folder")
    with pytest.raises(StorageError):
        visit_made(tmp_path / "out", slide)


def test_a_visit_travels_and_states_its_settings(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"mpp_override_um": 0.3})
    work = SlideVisit(str(tmp_path), specify_slides(settings, "made"), settings)
    assert pickle.loads(pickle.dumps(work)) == work  # noqa: S301  # our own bytes
    assert all(text in repr(work) for text in ("32", "1.0", "0.3"))


def test_tiles_have_names_origins_and_digests_of_their_own(tmp_path: Path) -> None:
    part = make(tmp_path / "out", list_slide(write_slide(tmp_path, "a")))
    opened = open_part(str(tmp_path / "out"), part)
    names = [f"a_y{y}_x{x}" for y, x in opened.column("origin_yx").tolist()]
    assert opened.column("image_id").tolist() == names
    images = opened.read_images(0, 42)
    distinct = len(np.unique(images.reshape(42, -1), axis=0))
    assert len(set(opened.column("pixel_digest"))) == distinct > 1


def test_a_slide_that_is_out_of_reach_keeps_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = list_slide(write_slide(tmp_path, "a"))
    made = visit_made(tmp_path / "out", slide).part
    assert made is not None

    def fail(*_: object, **__: object) -> None:
        raise StorageError(slide.url, "storage failed (503)", "Run again")

    monkeypatch.setattr(visit, "stage", fail)
    changed = replace(slide, version="another")
    outcome = visit_made(tmp_path / "out", changed, known=made)
    assert outcome.part == made
    (entry,) = outcome.entries
    assert entry.state == "failed"
    assert "503" in entry.reason
    assert "stays as an earlier ingest has made it" in entry.reason
    unknown = visit_made(tmp_path / "out", replace(changed, label=Label.NORMAL), known=made)
    assert unknown.part is None  # made from other facts, it would be of another slide


def test_a_slide_replaced_since_it_was_listed_keeps_its_earlier_part(tmp_path: Path) -> None:
    path = write_slide(tmp_path, "a")
    slide = list_slide(path)
    made = make(tmp_path / "out", slide)
    os.utime(path, (0, 0))
    outcome = visit_made(tmp_path / "out", slide, known=made)
    assert outcome.part == made
    assert outcome.entries[0].state == "failed"
    assert "changed since it was listed" in outcome.entries[0].reason


def test_a_slide_replaced_while_it_is_read_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_slide(tmp_path, "a")
    slide = list_slide(path)

    def replace_then_survey(*args: Any, **options: Any) -> Any:
        os.utime(path, (0, 0))
        return survey_slide(*args, **options)

    monkeypatch.setattr(visit, "survey_slide", replace_then_survey)
    outcome = visit_made(tmp_path / "out", slide)
    assert outcome.part is None
    assert "changed since it was listed" in outcome.entries[0].reason
    assert not list((tmp_path / "out").rglob("zarr.json"))


def test_a_name_of_other_bytes_and_a_pipe_fail_alone(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(str(tmp_path)) + b"/bad\xff.tif")
    shutil.copy(write_slide(tmp_path, "a"), odd)
    outcome = visit_made(tmp_path / "out", replace(list_slide(tmp_path / "a.tif"), url=odd))
    assert "no text in UTF-8. Rename the file" in outcome.entries[0].reason
    os.mkfifo(tmp_path / "pipe.tif")
    pipe = Slide("pipe.tif", str(tmp_path / "pipe.tif"), "1")
    (entry,) = visit_made(tmp_path / "out", pipe).entries
    assert "not a regular file" in entry.reason


def test_a_slide_beside_a_dataset_of_a_similar_name_fails_alone(tmp_path: Path) -> None:
    gone = Slide("b.tif", str(tmp_path / "out-slides" / "b.tif"), "1")
    assert visit_made(tmp_path / "out", gone).entries[0].state == "failed"
