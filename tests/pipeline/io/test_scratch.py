"""The scratch folder: bounded, never twice at once, nothing evicted that is in use."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import DeniedError, SettingsError, StorageError
from pipeline.io.scratch import DEFAULT_FOLDER, Copy, Scratch


def fill(path: Path, content: bytes = b"slide") -> None:
    path.write_bytes(content)


def use(scratch: Scratch, key: str, size_bytes: int) -> None:
    content = key.encode() * size_bytes
    with scratch.hold(
        key, key, Copy(f"{key}.tif", size_bytes, partial(fill, content=content))
    ) as path:
        assert path.read_bytes() == content
        assert path.name == f"{key}.tif"


def held(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*/*")}


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, max_bytes=100)
    for key in ("a", "b", "a"):
        use(scratch, key, 40)
        time.sleep(0.01)
    use(scratch, "c", 40)
    assert held(tmp_path) == {"a", "c"}
    use(scratch, "d", 100)
    assert held(tmp_path) == {"d"}


def test_folders_of_others_are_neither_counted_nor_evicted(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(bytes(90))
    scratch = Scratch(tmp_path, max_bytes=100)
    for key in ("a", "b", "c"):
        use(scratch, key, 60)
    assert held(tmp_path) == {"one", "c"}


@pytest.mark.parametrize("is_there", [False, True])
def test_nothing_in_use_is_evicted(tmp_path: Path, is_there: bool) -> None:
    scratch = Scratch(tmp_path, max_bytes=100, patience_s=0.3)
    if is_there:  # fetched before, by somebody who is done with it
        with scratch.hold("a", "a", Copy("a.tif", 60, partial(fill, content=bytes(60)))):
            pass
    with scratch.hold("a", "a", Copy("a.tif", 60, partial(fill, content=bytes(60)))) as path:
        with pytest.raises(StorageError, match=r"b: no room.*60 bytes needed, 60 of 100 in use"):
            use(scratch, "b", 60)
        assert path.exists()
        use(scratch, "c", 40)
    use(scratch, "b", 60)
    assert held(tmp_path) <= {"b", "c"}


def test_waits_until_others_are_done(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, max_bytes=100, patience_s=30)
    is_held, may_go = threading.Event(), threading.Event()

    def hold_a() -> None:
        with scratch.hold("a", "a", Copy("a.tif", 60, partial(fill, content=bytes(60)))):
            is_held.set()
            may_go.wait(30)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(hold_a)
        assert is_held.wait(30)
        second = pool.submit(use, scratch, "b", 60)
        time.sleep(0.3)
        assert not second.done()
        may_go.set()
        first.result()
        second.result()
    assert held(tmp_path) == {"b"}


def fetch_slowly(path: Path, *, log: Path) -> None:
    with log.open("a") as file:
        file.write("fetched\n")
    time.sleep(0.3)
    fill(path)


def hold_in_threads(folder: Path, log: Path) -> None:
    scratch = Scratch(folder, max_bytes=100)

    def hold(_: int) -> bytes:
        with scratch.hold("a", "a", Copy("a.tif", 5, partial(fetch_slowly, log=log))) as path:
            return path.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(hold, range(4))) == {b"slide"}


def test_nothing_is_fetched_twice_on_one_node(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    arguments = (tmp_path / "scratch", log)
    processes = [context.Process(target=hold_in_threads, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert log.read_text() == "fetched\n"


def test_what_can_never_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"a: its 101 bytes .* \(100\)"):
        use(Scratch(tmp_path, max_bytes=100), "a", 101)


def test_a_full_disk_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(Scratch(tmp_path), "old", 10)
    nearly_full = shutil.disk_usage(tmp_path)._replace(free=5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)
    with pytest.raises(StorageError, match=r"a: no room .* 40 bytes needed, 5 free.*Free space"):
        use(Scratch(tmp_path), "a", 40)
    assert held(tmp_path) == set()  # what could go has gone


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"a: no room in the scratch folder .*file/below"):
        use(Scratch(tmp_path / "file" / "below"), "a", 1)


def test_a_fetch_that_broke_off_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.tif.part").write_bytes(b"half")  # of a process that was killed

    def break_off(path: Path) -> None:
        path.write_bytes(b"ha")
        raise StorageError("a", "away", "Run again")

    scratch = Scratch(tmp_path, max_bytes=100)
    with (
        pytest.raises(StorageError, match="away"),
        scratch.hold("a", "a", Copy("a.tif", 9, break_off)),
    ):
        pass
    assert held(tmp_path) == set()
    use(scratch, "a", 9)


def test_of_files_that_belong_together_all_are_there_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Scratch(tmp_path / "scratch", max_bytes=100)
    companions = [Copy(f"a/{name}", 20, partial(fill, content=name.encode())) for name in "bc"]

    def read_all() -> list[bytes]:
        with scratch.hold("a", "a", Copy("a.mrxs", 20, fill), companions) as path:
            return [(path.parent / "a" / name).read_bytes() for name in "bc"]

    def be_killed(folder: Path, **_: bool) -> None:
        for path in folder.glob("a/b"):
            path.unlink()
            raise KeyboardInterrupt

    assert read_all() == [b"b", b"c"]
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", be_killed)
        with pytest.raises(KeyboardInterrupt):
            use(scratch, "x", 100)
    assert read_all() == [b"b", b"c"]
    use(scratch, "x", 100)  # what was left behind is counted, and goes
    assert held(scratch.folder) == {"x"}


def test_the_folder_is_for_its_user_alone(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch")
    use(scratch, "a", 5)
    assert scratch.folder.stat().st_mode & 0o777 == 0o700
    assert (scratch.folder / "a").stat().st_mode & 0o777 == 0o700
    assert DEFAULT_FOLDER.name.endswith(f"-{os.getuid()}")


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Scratch(tmp_path / "scratch")
    use(scratch, "a", 5)
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    if tmp_path.stat().st_uid == 0:
        os.chown(scratch.folder, 4712, -1)
    with pytest.raises(DeniedError, match=r"belongs to another user .* name another"):
        use(scratch, "a", 5)


def test_a_link_of_another_user_is_refused_and_ones_own_is_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "scratch").symlink_to(tmp_path / "elsewhere")
    scratch = Scratch(tmp_path / "scratch")
    use(scratch, "a", 5)
    if os.getuid() != 0:
        pytest.skip("only root can give a link to another user")
    os.chown(tmp_path / "scratch", 4712, -1, follow_symlinks=False)
    with pytest.raises(DeniedError, match="belongs to another user"):
        use(scratch, "a", 5)


def test_a_copy_that_another_user_has_planted_is_refused(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)  # such as a volume that every container may write to
    tmp_path.chmod(0o1777)
    use(scratch, "a", 5)
    (tmp_path / "a").chmod(0o777)
    with pytest.raises(DeniedError, match=r"other users may write to it \(mode 777\)\. Delete it"):
        use(scratch, "a", 5)
    (tmp_path / "a").chmod(0o755)
    use(scratch, "a", 5)
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    for path in (next((tmp_path / "a").iterdir()), tmp_path / "a"):
        os.chown(path, 4712, -1)
        with pytest.raises(DeniedError, match=r"a.*: it belongs to another user \(id 4712\)"):
            use(scratch, "a", 5)
        os.chown(path, 0, -1)
