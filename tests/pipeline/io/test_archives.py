from __future__ import annotations

import gzip
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import SettingsError, SourceError, StorageError
from pipeline.io import archives
from pipeline.io.archives import is_archive, list_members, read_member
from pipeline.io.ranges import open_by_range
from pipeline.io.scratch import Scratch
from pipeline.io.storage import ObjectInfo, describe, write_bytes
from tests.support.made.archives import pack

CONTENTS = {"images/b.png": b"second, " * 200, "images/a.png": b"first", "../../x.png": b"odd"}


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch", max_bytes=4 * 10_240)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar.gz", "w:gz"), ("a.TGZ", "w:gz"), ("a.tar", "w")]
)
def test_members_are_listed_and_read_in_any_order(
    store_url: str, scratch: Scratch, name: str, mode: str
) -> None:
    url = f"{store_url}/{name}"
    write_bytes(url, pack(CONTENTS, mode=mode))
    assert is_archive(url)
    info = describe(url)
    members = list_members(info, scratch)
    assert [member.name for member in members] == list(CONTENTS)
    for member in members[::-1]:
        assert read_member(url, info.version, member.span_bytes, scratch) == CONTENTS[member.name]


def test_an_archive_is_inflated_once_on_a_machine(
    tmp_path: Path, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(pack(CONTENTS))
    opened: list[ObjectInfo] = []

    def open_and_note(info: ObjectInfo, *, block_bytes: int) -> io.BufferedReader:
        opened.append(info)
        return open_by_range(info, block_bytes=block_bytes)

    monkeypatch.setattr(archives, "open_by_range", open_and_note)
    info = describe(str(path))
    for _ in range(2):
        for member in list_members(info, scratch):
            read_member(info.url, info.version, member.span_bytes, scratch)
    assert len(opened) == 1
    # Another machine has none of it: its first reader inflates the archive there.
    elsewhere = replace(scratch, folder=tmp_path / "elsewhere")
    (member, *_) = list_members(info, elsewhere)
    assert (
        read_member(info.url, info.version, member.span_bytes, elsewhere) == CONTENTS[member.name]
    )
    assert len(opened) == 2


def test_the_scratch_folder_stays_within_its_bound(tmp_path: Path, scratch: Scratch) -> None:
    infos = []
    for number in range(8):
        (tmp_path / f"{number}.tar.gz").write_bytes(pack({"a.png": bytes([number]) * 50}))
        infos.append(describe(str(tmp_path / f"{number}.tar.gz")))
    for number in (*range(8), 0, 7, 3):
        info = infos[number]
        (member,) = list_members(info, scratch)
        data = read_member(info.url, info.version, member.span_bytes, scratch)
        assert data == bytes([number]) * 50
        kept = [path.stat().st_size for path in scratch.folder.rglob("*.tar")]
        assert sum(kept) <= scratch.max_bytes
    assert len(kept) == 4  # of 10,240 bytes each, as tar fills its last record
    with pytest.raises(SettingsError, match=r"10240 bytes are more than the scratch folder"):
        list_members(infos[0], Scratch(tmp_path / "small", max_bytes=10_000))


NOISE = np.random.default_rng(0).bytes(40_000)


@pytest.mark.parametrize(
    "data",
    [b"this is text", gzip.compress(b"this is text" * 99), pack({"a": NOISE})[:20_000]],
    ids=["text", "gzipped text", "cut short"],
)
def test_what_is_no_whole_archive_is_refused(tmp_path: Path, scratch: Scratch, data: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.tar\.gz: not a whole tar archive"):
        list_members(describe(str(path)), scratch)
    assert not list(scratch.folder.rglob("*.part"))


def test_an_archive_that_unpacks_to_another_size_than_it_states_is_refused(
    tmp_path: Path, scratch: Scratch
) -> None:
    whole = pack(CONTENTS)
    path = tmp_path / "a.tar.gz"
    for data in (whole + whole, whole[:-4] + (5_000).to_bytes(4, "little")):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"a\.tar\.gz: (not a whole|it does not unpack to)"):
            list_members(describe(str(path)), scratch)


def test_an_archive_that_changed_or_explodes_or_does_not_fit_is_refused(
    tmp_path: Path, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(pack(CONTENTS))
    old = describe(str(path))
    path.write_bytes(pack({"z.png": b"another"}))
    with pytest.raises(SourceError, match="changed since"):
        list_members(old, scratch)
    path.write_bytes(gzip.compress(bytes(30_000_000)))
    with pytest.raises(SourceError, match="over 20 times its size"):
        list_members(describe(str(path)), scratch)
    path.write_bytes(pack(CONTENTS))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5}))
    with pytest.raises(StorageError, match="5 free"):
        list_members(describe(str(path)), scratch)
