from __future__ import annotations

import pytest

from pipeline.errors import SettingsError
from pipeline.slides.settings import SlideSettings, load_slide_preset


def test_all_tissue_is_what_there_is_without_a_preset() -> None:
    assert load_slide_preset("all-tissue") == SlideSettings()
    assert load_slide_preset("all-tissue", mpp_um=0.5, seed=None).mpp_um == 0.5


def test_paper_takes_what_the_reference_took() -> None:
    paper = load_slide_preset("paper")
    # 768 px at 40x, reduced to 10x.
    assert paper.tile_size_px * paper.mpp_um == 768 * 0.25
    assert (paper.max_tiles_per_slide, paper.stain) == (50, "vahadane")
    assert load_slide_preset("paper", stain="none", max_tiles_per_slide=9).max_tiles_per_slide == 9


def test_refuses_what_there_is_not() -> None:
    with pytest.raises(SettingsError, match="all-tissue or paper or ihc or fluorescence"):
        load_slide_preset("published")
    with pytest.raises(SettingsError, match="tile_size_px: 2 is not allowed"):
        load_slide_preset("paper", tile_size_px=2)
    with pytest.raises(SettingsError, match="preset paper: shard_images 100 is not a multiple"):
        load_slide_preset("paper", shard_images=100)


@pytest.mark.parametrize("name", ["mpp_um", "mask_mpp_um", "mpp_override_um", "mpp_fallback_um"])
@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan"), 1e300])
def test_refuses_um_per_pixel_that_no_slide_has(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"{name}: .* is not allowed"):
        load_slide_preset("all-tissue", **{name: value})
