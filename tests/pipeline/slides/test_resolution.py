from __future__ import annotations

import pytest

from pipeline.errors import SourceError
from pipeline.slides.resolution import find_mpp


def test_takes_the_vendor_property_for_each_axis() -> None:
    properties = {"openslide.vendor": "aperio", "openslide.mpp-x": "0.25", "openslide.mpp-y": "0.5"}
    assert find_mpp(properties, None, "a") == ((0.5, 0.25), "vendor property")


def test_generic_tiff_owes_its_value_to_the_resolution_tags() -> None:
    properties = {
        "openslide.vendor": "generic-tiff",
        "openslide.mpp-x": "0.25",
        "openslide.mpp-y": "0.5",
    }
    assert find_mpp(properties, None, "a")[1] == "TIFF resolution tags"


def test_falls_back_on_resolution_tags() -> None:
    properties = {
        "openslide.vendor": "aperio",
        "tiff.ResolutionUnit": "inch",
        "tiff.XResolution": "50800",
        "tiff.YResolution": "25400",
    }
    assert find_mpp(properties, None, "a") == ((1.0, 0.5), "TIFF resolution tags")


def test_the_user_outweighs_the_file() -> None:
    properties = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}
    assert find_mpp(properties, 0.4, "a") == ((0.4, 0.4), "settings")


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({}, "no um/px"),
        ({"openslide.mpp-x": "0.25"}, "no um/px"),
        ({"openslide.objective-power": "40"}, "objective power of 40"),
        ({"openslide.mpp-x": "0", "openslide.mpp-y": "0"}, "0 x 0 um/px"),
        ({"openslide.mpp-x": "352.8", "openslide.mpp-y": "352.8"}, "352.8"),
        (
            {"tiff.ResolutionUnit": "none", "tiff.XResolution": "1", "tiff.YResolution": "1"},
            "no um",
        ),
        (
            {"tiff.ResolutionUnit": "inch", "tiff.XResolution": "0", "tiff.YResolution": "0"},
            "no um",
        ),
    ],
)
def test_refuses_rather_than_guesses(properties: dict[str, str], said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        find_mpp(properties, None, "slide.svs")
    assert caught.value.item == "slide.svs"
    remedy = "mpp_fallback_um" if said.startswith("no um") else "mpp_"
    assert remedy in caught.value.remedy


def test_a_fallback_holds_only_where_the_file_says_nothing() -> None:
    assert find_mpp({}, None, "a.tif", fallback_um=0.3) == ((0.3, 0.3), "fallback")
    stated = {"openslide.mpp-y": "0.25", "openslide.mpp-x": "0.5"}
    assert find_mpp(stated, None, "a.tif", fallback_um=0.3) == ((0.25, 0.5), "vendor property")
    assert find_mpp({}, 0.4, "a.tif", fallback_um=0.3) == ((0.4, 0.4), "settings")


@pytest.mark.parametrize("mpp", ["0", "25400", "nan"])
def test_a_fallback_holds_where_the_file_says_what_no_slide_has(mpp: str) -> None:
    nonsense = {"openslide.mpp-y": mpp, "openslide.mpp-x": mpp}
    assert find_mpp(nonsense, None, "a.tif", fallback_um=0.3) == ((0.3, 0.3), "fallback")
    with pytest.raises(SourceError, match="impossible for a slide"):
        find_mpp(nonsense, None, "a.tif")


def test_refuses_an_impossible_override() -> None:
    with pytest.raises(SourceError, match="from settings"):
        find_mpp({}, 500.0, "slide.svs")
