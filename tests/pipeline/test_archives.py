from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline import archives
from pipeline.archives import is_archive, list_members, read_member
from pipeline.errors import DeniedError, SourceError
from pipeline.ranges import open_by_range
from pipeline.storage import ObjectInfo, describe, write_bytes

CONTENTS = {"images/b.png": b"second, " * 200, "images/a.png": b"first", "../../x.png": b"odd"}


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def pack(contents: Mapping[str, bytes] = CONTENTS, *, mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]  # of str
        folder = tarfile.TarInfo("images")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar.gz", "w:gz"), ("a.TGZ", "w:gz"), ("a.tar", "w")]
)
def test_members_are_listed_and_read_in_any_order(store_url: str, name: str, mode: str) -> None:
    url = f"{store_url}/{name}"
    write_bytes(url, pack(mode=mode))
    assert is_archive(url)
    info = describe(url)
    members = list_members(info)
    assert [member.name for member in members] == list(CONTENTS)
    for member in members[::-1]:
        assert read_member(url, info.version, member.span_bytes) == CONTENTS[member.name]


def test_an_archive_is_inflated_once_on_a_machine(
    tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(pack())
    opened: list[ObjectInfo] = []

    def open_and_note(info: ObjectInfo, *, block_bytes: int) -> io.BufferedReader:
        opened.append(info)
        return open_by_range(info, block_bytes=block_bytes)

    monkeypatch.setattr(archives, "open_by_range", open_and_note)
    info = describe(str(path))
    for _ in range(2):
        for member in list_members(info):
            read_member(info.url, info.version, member.span_bytes)
    assert len(opened) == 1
    # Another machine has none of it: its first reader inflates the archive there.
    (member, *_) = list_members(info)
    for unpacked in scratch.rglob("*.tar"):
        unpacked.unlink()
    assert read_member(info.url, info.version, member.span_bytes) == CONTENTS[member.name]
    assert len(opened) == 2
    assert len([found for found in scratch.rglob("*") if found.is_file()]) == 2  # and its lock


NOISE = np.random.default_rng(0).bytes(40_000)


@pytest.mark.parametrize(
    "data", [b"this is text", gzip.compress(b"this is text" * 99), pack({"a": NOISE})[:20_000]]
)
def test_what_is_no_whole_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.tar\.gz: not a whole tar archive"):
        list_members(describe(str(path)))
    assert not list((tmp_path / "scratch").rglob("tmp*"))


def test_an_archive_that_changed_or_explodes_or_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(pack())
    old = describe(str(path))
    path.write_bytes(pack({"z.png": b"another"}))
    with pytest.raises(SourceError, match="changed since"):
        list_members(old)
    path.write_bytes(gzip.compress(bytes(30_000_000)))
    with pytest.raises(SourceError, match="more than 20 times its size"):
        list_members(describe(str(path)))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5}))
    with pytest.raises(DeniedError, match="5 are free"):
        list_members(describe(str(path)))
