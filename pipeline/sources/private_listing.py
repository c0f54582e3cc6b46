"""A listing of images under pseudonyms, for files and tables that may name persons.

What ChestX-ray14 has published stays: its own pseudonyms (`00000013_005.png`, patient 13), its
words, its tables' names. Everything else is replaced by what only the user's key gives, emptied
or withheld. DICOM listings need none of this: they are pseudonymous from their first line on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from pipeline.dicom.header import OLDEST_YEARS
from pipeline.errors import NormscopeError, StorageError
from pipeline.privacy.key import PseudonymKey
from pipeline.privacy.redaction import withhold_quotes
from pipeline.records import ImageListing, ManifestEntry, Scalar, SourceImage
from pipeline.sources.chestxray14.table import FINDINGS, NO_FINDING, VIEW_POSITIONS

_PUBLISHED_NAME: Final = r"\d{8}_\d{3}\.png"
_PUBLISHED_ITEM: Final = re.compile(
    rf"(?:.*/)?({_PUBLISHED_NAME}|Data_Entry_2017(?:_v2020)?\.csv(?:\.gz)?"
    r"|BBox_List_2017\.csv(?:\.gz)?|images_\d{3}\.(?:tar|tar\.gz|tgz))"
)
# What our own listings append to an item: the column or line at fault.
_PLACE: Final = re.compile(r", (?:View Position|Patient Age|Finding Labels|line \d+)$")
# These columns come out of parsers that let nothing else through.
_PARSED: Final = frozenset({"sex", "boxes_yxhw"})
_WORDS: Final = frozenset({*FINDINGS, NO_FINDING})


def list_privately(
    list_them: Callable[[], ImageListing], url: str, key: PseudonymKey | None
) -> ImageListing:
    """List radiographs, under pseudonyms wherever there is a key.

    Args:
        list_them: Lists them under their own names.
        url: The place that the user has named, for errors.
        key: Key that the pseudonyms are made with, or None.

    Raises:
        NormscopeError: As `list_them`; without quotes where there is a key.
    """
    if key is None:
        return list_them()
    with withholding(url):
        listing = list_them()
    return pseudonymise(listing, key)


def name_source(name: str, key: PseudonymKey | None) -> str:
    """What a folder of radiographs is called in public: its name, where there is a key a digest."""
    return f"source-{key.pseudonym('source', name)[:12]}" if key else name


def pseudonymise(listing: ImageListing, key: PseudonymKey) -> ImageListing:
    """Replace whatever may name a person in a listing.

    Patients get the pseudonyms that they get from DICOM files too.

    Args:
        listing: Listing of files whose names, folders and table were not made for the public.
        key: Key that the pseudonyms are made with.
    """
    return ImageListing(
        tuple(_replace_image(image, key) for image in listing.images),
        tuple(_replace_entry(entry, key) for entry in listing.rejected),
        tuple(withhold_quotes(note) for note in listing.notes),
    )


@contextmanager
def withholding(item: str) -> Iterator[None]:
    """Let no error through that quotes a table or a file's name.

    Args:
        item: Place that the user has named; errors are about it.

    Raises:
        NormscopeError: The body's own, without its quotes.
    """
    try:
        yield
    except StorageError as error:
        # Its words are the libraries' own, which quote nothing properly.
        problem = f"something there cannot be read ({type(error).__name__})"
        raise type(error)(item, problem, error.remedy) from None
    except NormscopeError as error:
        raise type(error)(item, withhold_quotes(error.problem), error.remedy) from None


def _replace_image(image: SourceImage, key: PseudonymKey) -> SourceImage:
    columns = {name: _keep_words(name, value) for name, value in image.columns.items()}
    if _is_published(image):
        return replace(image, name=image.image_id, columns=columns)
    image_id = key.pseudonym("image", image.image_id)
    group_id = key.pseudonym("patient", image.group_id)
    return replace(image, image_id=image_id, group_id=group_id, name=image_id, columns=columns)


def _is_published(image: SourceImage) -> bool:
    """Whether the file's name and the patient's number are ChestX-ray14's own."""
    is_name = re.fullmatch(_PUBLISHED_NAME, image.image_id) is not None
    is_number = image.group_id.isascii() and image.group_id.isdecimal()
    return is_name and is_number and int(image.group_id) == int(image.image_id[:8])


def _keep_words(name: str, value: Scalar) -> Scalar:
    """A cell as far as it is of a known vocabulary."""
    if name == "view_position":
        return value if value in VIEW_POSITIONS else ""
    if name == "findings":
        return "|".join(word for word in str(value).split("|") if word in _WORDS)
    if name == "age_years":
        return min(int(value), OLDEST_YEARS)
    return value if name in _PARSED else ""


def _replace_entry(entry: ManifestEntry, key: PseudonymKey) -> ManifestEntry:
    place = _PLACE.search(entry.item)
    subject = entry.item[: place.start()] if place else entry.item
    published = _PUBLISHED_ITEM.fullmatch(subject)
    called = published[1] if published else f"item-{key.pseudonym('item', subject)[:12]}"
    item = called + (place[0] if place else "")
    return ManifestEntry(item, entry.state, withhold_quotes(entry.reason))
