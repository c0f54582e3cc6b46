"""Who is in quarantine is one image, called by its public name."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.images.reader import ImageReader
from pipeline.ingest.plan import read_all
from pipeline.ingest.quarantine import Quarantine
from pipeline.records import SourceImage


def test_one_member_of_an_archive_is_refused_and_no_url_is_shown() -> None:
    archive = "memory://quarantine/MUSTERFRAU.tar"
    deadly, other = (
        SourceImage(name, "p", archive, "1", name=name, span_bytes=(0, 9)) for name in ("ab", "cd")
    )
    reader = Quarantine(ImageReader(16, 1), frozenset({deadly.public_name}))
    assert "MUSTERFRAU" not in repr(reader)
    rows, shape = {"label": np.zeros(1, np.int8)}, (1, 16, 16, 1)
    with pytest.raises(SourceError, match=r"^ab: every worker"):
        read_all(reader, deadly, rows, shape)
    with pytest.raises(SourceError, match=r"^cd: the file cannot be read \(AbsentError\)"):
        read_all(reader, other, rows, shape)
