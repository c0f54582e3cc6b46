"""Pseudonyms, and de-identification of DICOM headers.

The profile is the Basic Application Level Confidentiality Profile of PS3.15, annex E. Its table
(E.1-1, as of 2026c) comes from the package dicom-anonymizer. Applying it is done here, because
that package leaves nested items alone and draws its UIDs at random, so that the same study would
get another UID in every run.

None of this looks at pixels: text that is burned into an image stays there. `burned_in_text` says
how likely that is, from the header, and a person must look.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

from dicomanonymizer.dicom_anonymization_databases import (  # type: ignore[import-untyped]  # has no types
    dicomfields_2026c as profile,
)
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from pipeline.dicom.parse import refusing
from pipeline.errors import SettingsError

BurnedInText: TypeAlias = Literal["stated", "possible", "denied"]
KEY_NAME: Final = "NORMSCOPE_PSEUDONYM_KEY"
_KEY_BYTES: Final = 32
_MAKE_KEY: Final = (
    "Make one with `openssl rand -hex 32`, keep it secret and apart from the data, and give the "
    "same one every time: the same patient then gets the same pseudonym"
)
SECONDARY_CAPTURES: Final = frozenset(
    {
        SecondaryCaptureImageStorage,
        MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    }
)

# What to do with an element: remove it, empty it, put a dummy there, map its UID, or go into it.
_Action: TypeAlias = Literal["remove", "empty", "replace", "map_uid", "enter"]
# Where the table leaves a choice (X unless Z or D is needed for conformance), the element stays,
# without its content.
_ACTIONS: Final[Mapping[str, _Action]] = {
    "X_TAGS": "remove",
    "Z_TAGS": "empty",
    "X_Z_TAGS": "empty",
    "D_TAGS": "replace",
    "Z_D_TAGS": "replace",
    "X_D_TAGS": "replace",
    "X_Z_D_TAGS": "replace",
    "U_TAGS": "map_uid",
    "X_Z_U_STAR_TAGS": "enter",
}
_TABLE: Final[list[tuple[tuple[int, ...], _Action]]] = [
    (tuple(tag), action) for name, action in _ACTIONS.items() for tag in getattr(profile, name)
]
# Single elements, and those of repeating groups: (group, element, mask of each).
_RULES: Final = {(tag[0] << 16) + tag[1]: action for tag, action in _TABLE if len(tag) == 2}
_PATTERNS: Final = [(tag, action) for tag, action in _TABLE if len(tag) == 4]
_PATIENT_ID: Final = Tag("PatientID")
_CHARACTERISTICS: Final = frozenset({Tag("PatientAge"), Tag("PatientSex")})
_DATES: Final = frozenset({"DA", "DT", "TM"})
_DUMMIES: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "ANONYMIZED"),
    **dict.fromkeys(("DS", "IS"), "0"),
    **dict.fromkeys(("FD", "FL", "SS", "US", "SL", "UL", "SV", "UV"), 0),
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
}


@dataclass(frozen=True, slots=True)
class PseudonymKey:
    """The secret from which pseudonyms are derived (HMAC-SHA256); its `repr` keeps it secret.

    Args:
        secret: At least 32 bytes.
    """

    secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str | None) -> PseudonymKey:
        """Take a key from a setting.

        Args:
            text: At least 64 hexadecimal digits.

        Raises:
            SettingsError: There is none, or it is none. The text is not quoted.
        """
        if not text or not text.strip():
            problem = "no key, and DICOM files carry patients' names and numbers"
            raise SettingsError(KEY_NAME, problem, _MAKE_KEY)
        try:
            secret = bytes.fromhex(text.strip())
        except ValueError:
            raise SettingsError(KEY_NAME, "not hexadecimal digits", _MAKE_KEY) from None
        if len(secret) < _KEY_BYTES:
            problem = f"{2 * len(secret)} hexadecimal digits, at least {2 * _KEY_BYTES} are needed"
            raise SettingsError(KEY_NAME, problem, _MAKE_KEY)
        return cls(secret)

    def pseudonym(self, kind: str, value: str) -> str:
        """A pseudonym: 32 hexadecimal digits that only this key gives.

        Args:
            kind: What is named, e.g. `patient`: equal values of different kinds differ.
            value: The name or number; blanks around it do not matter.
        """
        return self._digest(kind, value).hex()[:32]

    def map_uid(self, uid: str) -> str:
        """The UID that stands for another, below the root for UUIDs (PS3.5 B.2)."""
        return f"2.25.{UUID(bytes=self._digest('uid', uid)[:16], version=5).int}"

    def _digest(self, kind: str, value: str) -> bytes:
        text = f"{kind}\0{value.strip().strip(chr(0))}"
        return hmac.digest(self.secret, text.encode("utf-8", "surrogateescape"), sha256)


def deidentify(
    dataset: Dataset, key: PseudonymKey, name: str, *, keeps_characteristics: bool = False
) -> Dataset:
    """A copy of a dataset by the Basic Application Level Confidentiality Profile.

    Beyond the table: private elements and those that the standard does not know are removed,
    persons' names and dates that the table does not list are emptied, and the same holds in every
    nested item. `PatientID` becomes its pseudonym, UIDs become those of `PseudonymKey.map_uid`.
    An element that cannot be read is removed. Pixels stay as they are.

    Args:
        dataset: A whole file's, or a header's.
        key: Of the pseudonyms.
        name: What errors call the file.
        keeps_characteristics: Whether the patient's age and sex stay (of the Retain Patient
            Characteristics Option).

    Returns:
        A new dataset that says of itself what was done (PS3.3 C.12.1.1.7, C.7.1.1).

    Raises:
        SourceError: Its structure cannot be read.
    """
    kept = _CHARACTERISTICS if keeps_characteristics else frozenset[BaseTag]()
    with refusing(name, "the DICOM elements cannot be de-identified", "Leave the file out"):
        clean = _clean_items(dataset, key, kept)
        clean.file_meta = _clean_meta(dataset, key)
    clean.PatientIdentityRemoved = "YES"
    clean.LongitudinalTemporalInformationModified = "REMOVED"
    clean.DeidentificationMethod = "DICOM PS3.15 2026c basic profile"
    codes = [("113100", "Basic Application Confidentiality Profile")]
    if keeps_characteristics:
        codes.append(("113108", "Retain Patient Characteristics Option"))
    clean.DeidentificationMethodCodeSequence = Sequence([_code(*code) for code in codes])
    return clean


def burned_in_text(dataset: Dataset) -> BurnedInText:
    """Whether text may be burned into the pixels, by the header alone.

    Returns:
        `stated` where the file says so; `denied` where it says there is none; `possible` where it
        says nothing, and for any secondary capture that does not state it: a capture takes
        whatever was on a screen.
    """
    word = str(dataset.get("BurnedInAnnotation") or "").strip().upper()
    if word == "YES":
        return "stated"
    is_capture = str(dataset.get("SOPClassUID") or "") in SECONDARY_CAPTURES
    return "denied" if word == "NO" and not is_capture else "possible"


def _clean_items(dataset: Dataset, key: PseudonymKey, kept: frozenset[BaseTag]) -> Dataset:
    clean = Dataset()
    for tag in sorted(dataset.keys()):
        try:
            cleaned = _clean_element(dataset[tag], key, kept)
        except Exception:  # noqa: BLE001, S112 - foreign bytes; what cannot be read is removed
            continue
        if cleaned is not None:
            clean.add(cleaned)
    return clean


def _clean_element(
    element: DataElement, key: PseudonymKey, kept: frozenset[BaseTag]
) -> DataElement | None:
    """The element as the profile leaves it, or None where it is removed."""
    tag, vr, value = element.tag, str(element.VR), element.value
    if tag.is_private or tag.element == 0 or not keyword_for_tag(tag):
        return None
    action = "keep" if tag in kept else _choose_action(tag, vr)
    if tag == _PATIENT_ID:
        value = key.pseudonym("patient", str(value)) if value else value
    elif action == "remove":
        return None
    elif vr == "SQ":
        is_entered = action in {"enter", "keep"}
        value = Sequence([_clean_items(item, key, kept) for item in value if is_entered])
    elif vr == "UI" and action in {"map_uid", "enter"}:
        value = _map_uids(value, key)
    elif action == "replace" and vr in _DUMMIES:
        value = _DUMMIES[vr]
    elif action != "keep":
        value = element.empty_value
    return DataElement(tag, vr, value)


def _choose_action(tag: BaseTag, vr: str) -> _Action | Literal["keep"]:
    """What the table says; for elements that it does not list, what their type says."""
    if tag in _RULES:
        return _RULES[tag]
    for pattern, action in _PATTERNS:
        if _matches(tag, pattern):
            return action
    return "empty" if vr == "PN" or vr in _DATES else "keep"


def _matches(tag: BaseTag, pattern: tuple[int, ...]) -> bool:
    group, element, group_mask, element_mask = pattern
    return tag.group & group_mask == group & group_mask and (
        tag.element & element_mask == element & element_mask
    )


def _map_uids(value: Any, key: PseudonymKey) -> Any:
    if not value:
        return value
    return key.map_uid(value) if isinstance(value, str) else [key.map_uid(uid) for uid in value]


def _clean_meta(dataset: Dataset, key: PseudonymKey) -> FileMetaDataset:
    """A meta header with nothing but what a reader needs."""
    meta, before = FileMetaDataset(), getattr(dataset, "file_meta", Dataset())
    for keyword in ("MediaStorageSOPClassUID", "TransferSyntaxUID"):
        if keyword in before:
            meta[keyword] = deepcopy(before[keyword])
    uid = dataset.get("SOPInstanceUID") or before.get("MediaStorageSOPInstanceUID")
    if uid:
        meta.MediaStorageSOPInstanceUID = UID(key.map_uid(str(uid)))
    return meta


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "DCM"
    item.CodeMeaning = meaning
    return item
