"""Who is in quarantine is one image, called by its public name."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.images.reader import ImageReader
from pipeline.ingest.quarantine import Quarantine
from pipeline.records import SourceImage


def test_one_member_of_an_archive_is_refused_and_no_url_is_shown() -> None:
    archive = "memory://quarantine/MUSTERFRAU.tar"
    deadly, other = (
        SourceImage(name, "p", archive, "1", name=name, span_bytes=(0, 9)) for name in ("ab", "cd")
    )
    reader = Quarantine(ImageReader(16, 1), frozenset({deadly.public_name}))
    assert "MUSTERFRAU" not in repr(reader)
    rows = {"label": np.zeros(1, np.int8)}
    with pytest.raises(SourceError, match=r"^ab: every worker"):
        reader.read(deadly, rows)
    with pytest.raises(SourceError, match=r"^cd: the file cannot be read \(AbsentError\)"):
        reader.read(other, rows)
