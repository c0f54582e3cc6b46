from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.records import Slide
from pipeline.slides.settings import SlideSettings
from pipeline.slides.survey import cache as survey_cache
from pipeline.slides.survey.cache import load_or_survey
from pipeline.slides.survey.measure import SlideSurvey, survey_slide
from tests.support.made.slides import SETTINGS, list_slide, write_asap, write_slide


class Cache:
    """A slide's place in a cache; it counts surveys."""

    def __init__(self, folder: Path) -> None:
        self.url, self.surveys = str(folder / "survey.npz"), 0

    def load(
        self, slide: Slide, settings: SlideSettings = SETTINGS, is_partly_annotated: bool = False
    ) -> SlideSurvey:
        def survey() -> SlideSurvey:
            self.surveys += 1
            return survey_slide(slide, settings)

        return load_or_survey(self.url, slide, settings, is_partly_annotated, survey)


def test_a_survey_is_kept_whole(tmp_path: Path) -> None:
    cache, slide = Cache(tmp_path), list_slide(write_slide(tmp_path, "a"))
    settings = SETTINGS.model_copy(update={"stain": "macenko"})
    made, loaded = (cache.load(slide, settings) for _ in range(2))
    assert cache.surveys == 1
    for name in SlideSurvey.__dataclass_fields__:
        np.testing.assert_equal(getattr(loaded, name), getattr(made, name))


def test_whatever_a_survey_depends_on_makes_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, slide = Cache(tmp_path), list_slide(write_slide(tmp_path, "a"))
    cache.load(slide)
    cache.load(replace(slide, split="test"))
    cache.load(slide, SETTINGS.model_copy(update={"seed": 1}))
    cache.load(slide, is_partly_annotated=True)
    assert cache.surveys == 4
    monkeypatch.setattr(survey_cache, "code_version", lambda: "another")
    cache.load(slide, is_partly_annotated=True)
    assert cache.surveys == 5


def test_another_annotation_makes_a_new_survey(tmp_path: Path) -> None:
    outline = [(128.0, 64.0), (192.0, 64.0), (192.0, 96.0)]
    annotation = write_asap(tmp_path / "a.xml", [("Tumor", outline)])
    cache, slide = Cache(tmp_path), list_slide(write_slide(tmp_path, "a"), annotation=annotation)
    before = cache.load(slide)
    write_asap(annotation, [("Tumor", [*outline, (128.0, 96.0)])])
    after = cache.load(slide)
    assert after.lesion_fraction.sum() == pytest.approx(2 * before.lesion_fraction.sum())


def test_a_damaged_survey_is_made_anew(tmp_path: Path) -> None:
    cache, slide = Cache(tmp_path), list_slide(write_slide(tmp_path, "a"))
    cache.load(slide)
    kept = Path(cache.url)
    kept.write_bytes(kept.read_bytes()[:100])
    cache.load(slide)
    assert cache.surveys == 2
