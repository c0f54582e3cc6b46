"""The flow on radiographs; that nothing of a person comes out of it is shown in tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.cli import launch
from tests.support.hospital import write_films


def test_dicom_without_a_key_is_refused_in_one_line(
    tmp_path: Path,
    prefect_server: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("NORMSCOPE_WORKERS", "1")
    source = write_films(tmp_path / "films")
    assert launch("ingest", "xrays", str(source), str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "NORMSCOPE_PSEUDONYM_KEY: no key" in said
    assert "openssl rand -hex 32" in said
    assert not (tmp_path / "out").exists()
