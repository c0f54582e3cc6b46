"""A source that is not there: the same words for slides, images and radiographs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.errors import AbsentError
from pipeline.io.storage import join, plain_url, write_bytes
from pipeline.privacy.key import PseudonymKey
from pipeline.sources import dicom
from pipeline.sources.chestxray14.listing import list_chestxray14
from pipeline.sources.images import list_images
from pipeline.sources.listing import list_source
from pipeline.sources.slides import list_slides
from pipeline.sources.xrays import list_xrays

KEY = PseudonymKey.parse("0f" * 32)
LISTERS: dict[str, Callable[[str], object]] = {
    "slides": list_slides,
    "images": list_images,
    "radiographs": list_xrays,
    "ChestX-ray14": list_chestxray14,
    "DICOM": lambda url: dicom.list_radiographs(url, KEY),
}


@pytest.mark.parametrize("list_them", LISTERS.values(), ids=LISTERS)
def test_a_source_that_is_not_there_is_said_to_be_absent(
    list_them: Callable[[str], object], store_url: str
) -> None:
    url = join(store_url, "misspelt")
    with pytest.raises(AbsentError, match=r"misspelt: no such folder or file.*\. Check the spell"):
        list_them(url)


def test_a_dataset_below_a_source_is_no_part_of_it(store_url: str) -> None:
    for key in ("a/one.png", "a/out/zarr.json", "a/out/review/contact_sheet.png", "a/outer.png"):
        write_bytes(join(store_url, key), b"")
    found, refused = list_source(store_url)
    assert not refused
    assert [info.url for info in found] == [
        plain_url(join(store_url, "a/one.png")),
        plain_url(join(store_url, "a/outer.png")),
    ]
