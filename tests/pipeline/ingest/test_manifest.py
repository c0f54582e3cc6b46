"""A manifest is written and read entry by entry as it is at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.ingest import manifest
from pipeline.ingest.manifest import read_manifest, stream_manifest, write_manifest
from pipeline.records import ManifestEntry

ENTRIES = (
    ManifestEntry("a.svs", "done", facts={"decoder": "x", "level": "0"}),
    ManifestEntry("Bär\n  }.svs", "failed", 'ends with "]\n}"'),
    ManifestEntry("c.svs", "skipped", "\n  {", {"decoder": "]"}),
)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_it_is_json_and_is_read_a_block_at_a_time(
    count: int, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "manifest.json")
    write_manifest(url, ENTRIES[:count], run="of a [")
    whole = json.loads(Path(url).read_bytes())
    assert list(whole) == ["run", "counts", "items"]
    assert whole["run"] == "of a ["
    assert sum(whole["counts"].values()) == len(whole["items"]) == count
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    assert Path(url).read_text("utf-8") == text
    assert read_manifest(url) == ENTRIES[:count]
    monkeypatch.setattr(manifest, "_BLOCK_BYTES", block_bytes)
    assert tuple(stream_manifest(url)) == ENTRIES[:count]
