"""Who is in quarantine is one image, called by its public name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import SourceError
from pipeline.images.reader import ImageReader
from pipeline.ingest.plan import read_all
from pipeline.ingest.quarantine import Quarantine, make_shard_without_killers
from pipeline.ingest.run import ingest
from pipeline.ingest.shards import cut_shards
from pipeline.records import SourceImage
from pipeline.runtime.engines import map_serially
from tests.support.made.datasets import MadeReader, plan_made, write_sources


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


class BrokenReader:
    def read(self, *_: Any) -> Any:
        raise TypeError


def test_a_source_whose_reader_raises_anything_is_no_killer(tmp_path: Path) -> None:
    plan, url = plan_made(write_sources(tmp_path / "in", {"a": b"0123"})), str(tmp_path / "out")
    ingest(url, plan, MadeReader(), map_serially)
    (task,) = cut_shards(plan, BrokenReader())
    commit = make_shard_without_killers(map_serially, url, BrokenReader(), task)
    assert commit.key == ""
    assert all("TypeError" in reason for _, reason in commit.unreadable)
    assert len(commit.unreadable) == 4
