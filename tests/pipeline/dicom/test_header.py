from __future__ import annotations

from typing import Any

import pytest
from pydicom.uid import SecondaryCaptureImageStorage

from pipeline.dicom.header import burned_in_text, parse_age
from tests.support.made.dicom import make_dicom, ramp


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("58", 58),
        ("058Y", 58),
        ("94", 94),
        ("011M", 0),
        ("25M", 2),
        ("020D", 0),
        ("0", 0),
        ("57.0", 57),
        ("412Y", -1),
        ("148", -1),
        ("", -1),
        ("old", -1),
        ("-3", -1),
        ("58Y2", -1),
    ],
)
def test_ages_are_whole_years_or_unknown(text: str, years: int) -> None:
    assert parse_age(text) == years


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"BurnedInAnnotation": "YES"}, "stated"),
        ({"BurnedInAnnotation": "NO"}, "denied"),
        ({}, "possible"),
        ({"BurnedInAnnotation": "NO", "SOPClassUID": SecondaryCaptureImageStorage}, "possible"),
        ({"BurnedInAnnotation": "YES", "SOPClassUID": SecondaryCaptureImageStorage}, "stated"),
    ],
)
def test_burned_in_text_is_flagged(attributes: dict[str, Any], expected: str) -> None:
    assert burned_in_text(make_dicom(ramp(0, 9), **attributes)) == expected
