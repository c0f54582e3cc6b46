"""A source that is not there: the same words for slides, images and radiographs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.errors import AbsentError
from pipeline.privacy import PseudonymKey
from pipeline.sources import chestxray14, dicom
from pipeline.sources.camelyon16 import list_slides
from pipeline.sources.images import list_images
from pipeline.sources.xrays import list_xrays
from pipeline.storage import join

KEY = PseudonymKey.parse("0f" * 32)
LISTERS: dict[str, Callable[[str], object]] = {
    "slides": list_slides,
    "images": list_images,
    "radiographs": list_xrays,
    "ChestX-ray14": chestxray14.list_radiographs,
    "DICOM": lambda url: dicom.list_radiographs(url, KEY),
}


@pytest.mark.parametrize("list_them", LISTERS.values(), ids=LISTERS)
def test_a_source_that_is_not_there_is_said_to_be_absent(
    list_them: Callable[[str], object], store_url: str
) -> None:
    url = join(store_url, "misspelt")
    with pytest.raises(AbsentError, match=r"misspelt: no such folder or file.*\. Check the spell"):
        list_them(url)
