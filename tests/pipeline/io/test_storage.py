"""One contract over every store: memory, files, a mocked S3 and a real one."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import AbsentError, DeniedError, SourceError, StorageError
from pipeline.io import storage
from pipeline.io.staging import require_reachable, stage


@pytest.fixture(autouse=True)
def fresh_connections() -> Iterator[None]:
    storage.reset_connections()
    yield
    storage.reset_connections()


ODD_NAME = "b/ü [1] 50%#.png"


def test_what_is_written_is_read_and_listed(store_url: str) -> None:
    place = storage.join(store_url, "a")
    storage.write_bytes(storage.join(place, "two.txt"), b"2")
    storage.write_bytes(storage.join(place, "one.txt"), b"first")
    storage.write_bytes(storage.join(place, "one.txt"), b"1")
    storage.write_bytes(storage.join(store_url, "ab.txt"), b"not below a")
    listed = storage.list_objects(place)
    assert [info.url for info in listed] == [f"{place}/one.txt", f"{place}/two.txt"]
    assert [info.size_bytes for info in listed] == [1, 1]
    assert storage.read_bytes(listed[0].url) == b"1"
    assert storage.list_objects(listed[0].url) == [storage.describe(listed[0].url)]
    assert storage.list_objects(storage.join(store_url, "nothing")) == []


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for folder in (root / "a", root / "b", elsewhere):
        folder.mkdir(parents=True)
        (folder / "one.txt").write_bytes(b"1")
    links = {
        "a/elsewhere": elsewhere,
        "a/self": root / "a",
        "up": root,
        "a/to_b": root / "b",
        "b/to_a": root / "a",
        "circle": root / "circle",
        "nowhere": root / "none",
    }
    for link, target in links.items():
        (root / link).symlink_to(target)
    listed = [Path(info.url).relative_to(root) for info in storage.list_objects(str(root))]
    assert sorted(path.parent.as_posix() for path in listed) == [
        "a",
        "a/elsewhere",
        "a/to_b",
        "b",
        "b/to_a",
        "b/to_a/elsewhere",
    ]


MIB = 1 << 20


@pytest.mark.parametrize("sizes", [(0,), (5,), (4096,), (2 * MIB, 1), (4095, 5 * MIB, 2, 4096)])
def test_a_large_file_is_its_parts_in_order(store_url: str, sizes: tuple[int, ...]) -> None:
    draw = np.random.default_rng(1)
    parts = [draw.bytes(size) for size in sizes]
    url = storage.join(store_url, "large")
    storage.write_parts(url, (memoryview(part) for part in parts))
    assert storage.read_bytes(url) == b"".join(parts)


def test_a_large_file_whose_parts_end_early_does_not_appear(tmp_path: Path) -> None:
    def give_up() -> Iterator[bytes]:
        yield bytes(3 * MIB)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        storage.write_parts(str(tmp_path / "large"), give_up())
    assert list(tmp_path.iterdir()) == []


def test_a_large_file_that_the_disk_refuses_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            storage.write_parts(str(tmp_path / "large"), iter([bytes(3 * MIB)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_names_need_no_care(store_url: str) -> None:
    url = storage.join(store_url, ODD_NAME)
    storage.write_bytes(url, b"x")
    assert [info.url for info in storage.list_objects(store_url)] == [url]
    assert storage.read_bytes(url) == b"x"
    assert storage.name_of(url) == "ü [1] 50%#.png"


def test_a_version_changes_with_the_content(store_url: str) -> None:
    url = storage.join(store_url, "x")
    storage.write_bytes(url, b"one")
    before = storage.describe(url)
    assert storage.describe(url) == before
    storage.write_bytes(url, b"four")
    assert storage.describe(url).version != before.version


def test_it_is_known_when_a_file_was_last_written(store_url: str) -> None:
    url = storage.join(store_url, "x")
    before = datetime.now(UTC)
    storage.write_bytes(url, b"one")
    second = timedelta(seconds=1)  # S3 cuts fractions off
    for info in (storage.describe(url), *storage.list_objects(store_url)):
        assert before - second < info.modified_at < datetime.now(UTC) + second
        assert info.modified_at.utcoffset() == timedelta(0)


def test_a_file_of_another_day_says_so(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "old.png"), b"1")
    os.utime(tmp_path / "old.png", (0, 86400.5))
    assert storage.describe(str(tmp_path / "old.png")).modified_at == datetime(
        1970, 1, 2, 0, 0, 0, 500000, UTC
    )


@pytest.mark.parametrize(
    ("seconds", "moment"), [(1e12, datetime.max), (-1e12, datetime.min), (1e300, datetime.max)]
)
def test_a_time_beyond_the_calendar_is_the_calendars_end(
    tmp_path: Path, seconds: float, moment: datetime
) -> None:
    storage.write_bytes(str(tmp_path / "far.png"), b"1")
    values = list((tmp_path / "far.png").stat())
    status = os.stat_result([*values[:8], seconds, values[9]])
    info = storage._local_info(str(tmp_path / "far.png"), status)
    assert info.modified_at == moment.replace(tzinfo=UTC)


def test_of_many_creators_one_wins(store_url: str) -> None:
    url = storage.join(store_url, "lock")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: storage.create_bytes(url, b"%d" % n), range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(url) == b"%d" % won.index(True)


def test_absent_and_deleted(store_url: str) -> None:
    url = storage.join(store_url, "x")
    assert not storage.exists(url)
    with pytest.raises(AbsentError, match="no such file or object"):
        storage.read_bytes(url)
    with pytest.raises(AbsentError):
        storage.describe(url)
    storage.write_bytes(url, b"")
    assert storage.exists(url)
    storage.delete(url)
    storage.delete(url)
    assert not storage.exists(url)


def test_staging_gives_the_bytes_and_notices_a_change(store_url: str) -> None:
    url = storage.join(store_url, "slide.tif")
    storage.write_bytes(url, b"pixels")
    version = storage.describe(url).version
    for _ in range(2):
        with stage(url, version) as path:
            assert path.read_bytes() == b"pixels"
            assert path.suffix == ".tif"
    storage.write_bytes(url, b"other pixels")
    with pytest.raises(SourceError, match="changed since"), stage(url, version):
        pass


def test_places_that_cannot_be_stored_to() -> None:
    for url in ("http://host/x", "s3:///key", "file://host/x"):
        with pytest.raises(StorageError, match="s3://bucket/key"):
            storage.list_objects(url)


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    storage.write_bytes(f"file://{tmp_path}/a%20b", b"1")
    assert (tmp_path / "a b").read_bytes() == b"1"


def test_a_file_store_pickles(tmp_path: Path) -> None:
    store = storage.open_zarr_store(str(tmp_path / "x"), read_only=False)
    assert pickle.loads(pickle.dumps(store)) == store  # noqa: S301 -- our own bytes


def test_a_wrong_bucket_is_named(s3_url: str) -> None:
    require_reachable(s3_url)
    with pytest.raises(StorageError, match="no bucket 'no-such-bucket'"):
        require_reachable("s3://no-such-bucket/x")


@pytest.mark.s3
def test_wrong_credentials_are_named(
    real_s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # moto lets everybody in
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    storage.reset_connections()
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
        require_reachable(real_s3_url)
    with pytest.raises(StorageError, match="AWS_ACCESS_KEY_ID"):
        storage.list_objects(real_s3_url)


def test_missing_credentials_are_named(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="Set AWS_ACCESS_KEY_ID"):
        require_reachable(s3_url)


def test_a_percent_sign_in_a_name_is_not_decoded(tmp_path: Path) -> None:
    contents = {"a%41.png": b"percent", "aA.png": b"plain", "what?.png": b"asked", "what": b"other"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    listed = storage.list_objects(tmp_path.as_uri())
    assert {Path(info.url).name: storage.read_bytes(info.url) for info in listed} == contents
    for name, data in contents.items():
        assert storage.read_bytes((tmp_path / name).as_uri()) == data
        assert storage.read_bytes(storage.join(tmp_path.as_uri(), name)) == data
    assert storage.read_bytes(f"{tmp_path.as_uri()}/what?.png") == b"asked"


def test_a_name_with_escapes_stays_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out.zarr"
    storage.write_bytes(storage.join(folder.as_uri(), "review", "..%2F..%2Fescaped.png"), b"x")
    assert [path.parent for path in tmp_path.rglob("*.png")] == [folder / "review"]


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    (tmp_path / "open" / "a.png").write_bytes(b"x")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DeniedError, match=r"closed: cannot be read \(Permission denied\)"):
        storage.list_objects(str(tmp_path))
    refused: list[StorageError] = []
    found = storage.list_objects(str(tmp_path), refused.append)
    assert [info.url for info in found] == [str(tmp_path / "open/a.png")]
    assert [error.item for error in refused] == [str(tmp_path / "closed")]
    with pytest.raises(StorageError, match="access denied"):  # there is nothing else
        storage.list_objects(str(tmp_path / "closed"), refused.append)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        storage.write_bytes(str(tmp_path / "small"), b"x")
        storage.write_parts(str(tmp_path / "large"), iter([b"x"]))
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [mode, mode]


def test_below_a_file_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "slide.tif").write_bytes(b"pixels")
    for read in (storage.read_bytes, storage.describe):
        with pytest.raises(AbsentError, match="no such file"):
            read(str(tmp_path / "slide.tif" / "zarr.json"))


def test_a_range_that_begins_at_the_end_is_empty(store_url: str) -> None:
    url = storage.join(store_url, "a.bin")
    storage.write_bytes(url, b"12345")
    assert storage.read_range(url, 3, 9) == b"45"
    assert storage.read_range(url, 5, 9) == b""
    with pytest.raises(AbsentError):
        storage.read_range(storage.join(store_url, "b.bin"), 5, 9)
