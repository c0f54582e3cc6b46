"""A scratch folder of bounded size: files held while in use, evicted by last use.

Any number of threads and processes of one node share a folder. Each file, or the files that belong
together, has a lock (`flock`, which the kernel releases when a process is killed): exclusive
while it is fetched, so that nothing is fetched twice at once; shared while it is read, so that
nothing in use is evicted. Room is taken on the disk before the first byte is fetched.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeAlias

from pydantic import Field

from pipeline.errors import DeniedError, SettingsError, StorageError

GIB: Final = 1 << 30
SizeGib: TypeAlias = Annotated[float, Field(gt=0.0, le=float(GIB))]  # one EiB at most
_POLL_S: Final = 0.2
DEFAULT_FOLDER: Final = Path(tempfile.gettempdir(), f"normscope-scratch-{os.getuid()}")
"""A folder for each user of the machine: patients' images lie in it."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A file to hold.

    Args:
        name: Path of the copy in its folder; readers go by its suffix.
        size_bytes: Size of the file in bytes.
        fetch: Function that fills an existing file of this size.
    """

    name: str
    size_bytes: int
    fetch: Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Scratch:
    """Where copies of remote files may lie, and how many bytes of them.

    Args:
        folder: A local folder on every node; made, for its user alone, where it is absent.
        max_bytes: Limit in bytes for all copies together.
        patience_s: Seconds to wait for room that other readers use.
    """

    folder: Path = DEFAULT_FOLDER
    max_bytes: int = 100 * GIB
    patience_s: float = 900.0

    @contextmanager
    def hold(
        self, item: str, key: str, copy: Copy, companions: Sequence[Copy] = ()
    ) -> Iterator[Path]:
        """Give a file, fetched if it is not there, and keep it for as long as the block runs.

        Args:
            item: Name of the remote file, for errors.
            key: Identity of the content: the same key is the same bytes.
            copy: The file to hold.
            companions: Further files that are fetched, kept and evicted together with it.

        Raises:
            SettingsError: They are larger than the whole scratch folder may be.
            StorageError: There is no room for them, or the disk fails.
        """
        path = self.folder / key / copy.name
        with self._open_lock(item, f"{key}.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            while not path.exists():
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    self._fill(item, self.folder / key, copy, companions)
                # The kernel releases the lock in between: the file may be evicted meanwhile.
                fcntl.flock(lock, fcntl.LOCK_SH)
            os.utime(lock)
            _require_own(self.folder / key, is_private=True)
            _require_own(path)
            yield path

    def _fill(self, item: str, folder: Path, copy: Copy, companions: Sequence[Copy]) -> None:
        """Fetch all files; the first gets its name last, by which all are known to be there."""
        part = folder / f"{copy.name}.part"
        copies = {folder / other.name: other for other in companions} | {part: copy}
        try:
            shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
            folder.mkdir(mode=0o700)
            self._reserve(item, {path: other.size_bytes for path, other in copies.items()})
            for path, other in copies.items():
                other.fetch(path)
            part.replace(folder / copy.name)
        except OSError as error:
            raise self._refuse(item, str(error)) from error
        finally:
            if not (folder / copy.name).exists():
                shutil.rmtree(folder, ignore_errors=True)

    def _reserve(self, item: str, sizes_bytes: Mapping[Path, int]) -> None:
        """Take room on the disk for some files, evicting others and waiting for those in use."""
        size_bytes = sum(sizes_bytes.values())
        if size_bytes > self.max_bytes:
            raise SettingsError(
                item,
                f"its {size_bytes} bytes are more than the scratch folder may hold "
                f"({self.max_bytes})",
                "Raise the scratch folder's limit, or leave the file out",
            )
        deadline = time.monotonic() + self.patience_s
        while True:
            with self._open_lock(item, "scratch.lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                in_use_bytes = self._make_room(size_bytes)
                if in_use_bytes is None and _allocate(sizes_bytes):
                    return
            if not in_use_bytes:
                free = shutil.disk_usage(self.folder).free
                raise self._refuse(item, f"disk full: {size_bytes} bytes needed, {free} free")
            if time.monotonic() > deadline:
                raise self._refuse(
                    item, f"{size_bytes} bytes needed, {in_use_bytes} of {self.max_bytes} in use"
                )
            time.sleep(_POLL_S)

    def _make_room(self, size_bytes: int) -> int | None:
        """Evict the files that were used longest ago until there is room; others' are left alone.

        Returns:
            None where there is room, else how many bytes are in use.
        """
        used = {path: _measure(path) for path in self.folder.iterdir() if _is_held(path)}
        by_last_use = sorted(used, key=lambda path: (_last_use(path), path.name))
        for path in by_last_use:
            if self._has_room(sum(used.values()), size_bytes):
                return None
            if _evict(path):
                del used[path]
        return None if self._has_room(sum(used.values()), size_bytes) else sum(used.values())

    def _has_room(self, used_bytes: int, size_bytes: int) -> bool:
        is_within_limit = used_bytes + size_bytes <= self.max_bytes
        return is_within_limit and shutil.disk_usage(self.folder).free >= size_bytes

    @contextmanager
    def _open_lock(self, item: str, name: str) -> Iterator[int]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_own(self.folder)
            lock = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._refuse(item, str(error)) from error
        try:
            yield lock
        finally:
            os.close(lock)

    def _refuse(self, item: str, problem: str) -> StorageError:
        return StorageError(
            item,
            f"no room in the scratch folder {self.folder} ({problem})",
            "Free space there, or name another scratch folder",
        )


def _require_own(path: Path, *, is_private: bool = False) -> None:
    """Refuse a folder or copy of another user, who could put other bytes in its place.

    The scratch folder itself may be one that all may write to, such as a volume of a container:
    then its copies tell whose they are.
    """
    # A link of another user's counts too: it may lead anywhere tomorrow.
    found = path.stat()
    owners = {path.lstat().st_uid, found.st_uid} - {0, os.getuid()}
    remedy = "Delete it, or name another scratch folder"
    if owners:
        raise DeniedError(str(path), f"it belongs to another user (id {owners.pop()})", remedy)
    if is_private and found.st_mode & 0o022:
        problem = f"other users may write to it (mode {found.st_mode & 0o777:o})"
        raise DeniedError(str(path), problem, remedy)


def _is_held(path: Path) -> bool:
    """Whether this is a file's folder, which has a lock beside it, or what is left of one."""
    return path.is_dir() and _lock_of(path.with_suffix("")).exists()


def _measure(folder: Path) -> int:
    """Bytes of a file's folder, which others may be renaming or deleting."""
    total = 0
    with suppress(FileNotFoundError):
        for path in folder.rglob("*"):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _last_use(folder: Path) -> int:
    lock = _lock_of(folder)
    return lock.stat().st_mtime_ns if lock.exists() else 0


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _evict(folder: Path) -> bool:
    """Delete a file's folder unless somebody uses it; its empty lock stays.

    It loses its name first: a process that is killed here must not leave half of its files.
    """
    gone = folder.with_suffix(".gone")
    lock = os.open(_lock_of(folder), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder != gone:
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    except FileNotFoundError:
        return True  # its fetch has failed meanwhile
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _allocate(sizes_bytes: Mapping[Path, int]) -> bool:
    """Take the room for some files on the disk; False, and none taken, where it has too little."""
    try:
        for path, size_bytes in sizes_bytes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                if size_bytes:
                    os.posix_fallocate(file.fileno(), 0, size_bytes)
    except OSError as error:
        for path in sizes_bytes:
            path.unlink(missing_ok=True)
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise
        return False
    return True
