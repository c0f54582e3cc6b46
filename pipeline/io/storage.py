"""URLs to bytes, listings and Zarr stores.

A URL is a plain path, `file:///path`, `s3://bucket/key` or, for tests, `memory://name/key`.
Credentials and the endpoint of S3 come from the usual `AWS_*` variables, which obstore and boto3
read themselves: keys passed as arguments would end up in pickles.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, InvalidPathError
from obstore.store import LocalStore, MemoryStore, S3Store
from zarr.storage import ObjectStore, StorePath

from pipeline.errors import AbsentError, DeniedError, SourceError, StorageError
from pipeline.io.atomic_files import Part, written_beside
from pipeline.io.refusals import CREDENTIALS_REMEDY, find_refusal

if TYPE_CHECKING:
    from obstore import ObjectMeta

_ABSENT_REMEDY: Final = "Check the spelling of the URL"
_NO_FILE: Final = {errno.ENOENT, errno.ELOOP}  # removed meanwhile, a link to nowhere or itself


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One file or object.

    Args:
        url: Plain path or URL of the file.
        size_bytes: Size of the file in bytes.
        version: Changes when the content does: the ETag, or size and modification time.
        modified_at: Time of the last write, UTC; compare `version` to detect a change.
    """

    url: str
    size_bytes: int
    version: str
    # S3 gives fractions of a second in listings only.
    modified_at: datetime = field(compare=False)


def join_versions(files: Sequence[ObjectInfo]) -> str:
    """Combine the versions of the files of one item: changes when any of them does."""
    if len(files) == 1:
        return files[0].version
    facts = [(name_of(info.url), info.version) for info in files]
    return sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Place:
    """A parsed URL; `root` is the bucket or the memory store's name, empty for files."""

    scheme: Literal["file", "s3", "memory"]
    root: str
    key: str


def parse(url: str) -> Place:
    """Parse a URL.

    Raises:
        StorageError: It has another scheme.
    """
    if "://" not in url:
        return Place("file", "", str(Path(url).absolute()))
    parts = urlsplit(url, allow_fragments=False)
    # A `?` is a legal character of a name or key, so the query is put back.
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return Place("file", "", unquote(path))
    key = path.strip("/")
    if parts.scheme == "s3" and parts.netloc:
        return Place("s3", parts.netloc, key)
    if parts.scheme == "memory" and parts.netloc:
        return Place("memory", parts.netloc, key)
    raise DeniedError(
        url, "not a URL that can be stored to", "Use a path, file:///path or s3://bucket/key"
    )


def plain_url(url: str) -> str:
    """Resolve a URL to an absolute path where it names a local file; drop a final slash.

    A `file://` URL is percent-encoded and a path is not: what is listed below a folder or joined to
    it is always a plain path, so that no name is decoded that was never encoded.
    """
    place = parse(url)
    return (place.key if place.scheme == "file" else url).rstrip("/")


def decode_file_url(url: str) -> str:
    """Return the plain path that a `file://` URL names, and any other path or URL as it is."""
    return plain_url(url) if url.startswith("file:") else url


def join(url: str, *parts: str) -> str:
    """Append path segments to a URL."""
    return "/".join([decode_file_url(url).rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(url: str) -> str:
    """The last segment of a URL: the file's name."""
    return parse(url).key.rpartition("/")[2]


@lru_cache(maxsize=64)
def _objects(scheme: Literal["s3", "memory"], root: str) -> S3Store | MemoryStore:
    if scheme == "memory":
        return MemoryStore()
    return S3Store(root, client_options={"allow_http": True})


def reset_connections() -> None:
    """Forget connections and memory stores, e.g. after `AWS_*` variables changed."""
    _objects.cache_clear()


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn the libraries' errors into one line with a remedy."""
    try:
        yield
    except FileNotFoundError as error:
        # obstore's NotFoundError is a FileNotFoundError too.
        if (refusal := find_refusal(url, str(error))) is not None:
            raise refusal from error
        raise AbsentError(url, "no such file or object", _ABSENT_REMEDY) from error
    except (BaseError, OSError) as error:
        text = str(error)
        if (refusal := find_refusal(url, text)) is not None:
            raise refusal from error
        if isinstance(error, PermissionError):
            remedy = "Check the credentials and their rights"
            raise DeniedError(url, "access denied", remedy) from error
        if "169.254.169.254" in text:
            raise DeniedError(url, "no credentials for S3", CREDENTIALS_REMEDY) from error
        first = text.splitlines()[0] if text else type(error).__name__
        remedy = "Check that the server or disk answers, then rerun"
        raise StorageError(url, f"storage failed ({first})", remedy) from error


def _local_info(url: str, status: os.stat_result) -> ObjectInfo:
    version = f"{status.st_size}-{status.st_mtime_ns}"
    return ObjectInfo(url, status.st_size, version, _find_moment(status.st_mtime))


def _find_moment(seconds: float) -> datetime:
    """Find the moment of a time of modification; beyond the calendar, the calendar's end."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        end = datetime.max if seconds > 0 else datetime.min
        return end.replace(tzinfo=UTC)


def _object_info(url: str, meta: ObjectMeta) -> ObjectInfo:
    size_bytes, modified_at = meta["size"], meta["last_modified"]
    version = choose_version(meta["e_tag"], size_bytes, modified_at)
    return ObjectInfo(url, size_bytes, version, modified_at)


def choose_version(etag: str | None, size_bytes: int, modified_at: datetime) -> str:
    """Choose what tells an object from one that replaces it.

    Args:
        etag: ETag of the object; None or empty where the server gives none.
        size_bytes: Size of the object in bytes.
        modified_at: Time of the last write, of which whole seconds count: an answer to HEAD has
            no more.
    """
    return etag or f"{size_bytes}-{int(modified_at.timestamp())}"


def raise_refusal(refusal: StorageError) -> None:
    """Raise what a listing cannot list, unless nothing is there: a link to nowhere."""
    if not isinstance(refusal, AbsentError):
        raise refusal


def list_objects(
    url: str, on_refusal: Callable[[StorageError], None] = raise_refusal
) -> list[ObjectInfo]:
    """List every file below a folder or prefix, sorted by URL; empty if there are none.

    Empty objects whose key ends in `/`, which consoles make for folders, are left out.

    Args:
        url: A folder, a prefix ending at a `/`, or one file, which is then the only entry.
        on_refusal: Called with the error on each folder below the URL that cannot be read, on each
            link to nowhere and on each key that is no path; the others are listed if it returns.

    Raises:
        StorageError: The bucket, the credentials or the folder itself cannot be read.
    """
    place = parse(url)
    with translated(url):
        if place.scheme == "file":
            base = plain_url(url) if url.startswith("file:") else url
            found = list(_walk(base, Path(place.key), on_refusal))
        else:
            found = _list_store(place, on_refusal)
            if not found and place.key:
                with suppress(FileNotFoundError):
                    found = [_head(url, place)]
    return sorted(found, key=lambda info: info.url)


def _list_store(place: Place, on_refusal: Callable[[StorageError], None]) -> list[ObjectInfo]:
    store = _objects(place.scheme, place.root)
    base = f"{place.scheme}://{place.root}"
    try:
        found = [
            _object_info(f"{base}/{meta['path']}", meta)
            for batch in obstore.list(store, prefix=place.key or None)
            for meta in batch
        ]
    except InvalidPathError:  # one such key, and obstore lists none
        found = list(_list_keys(place, on_refusal))
    # obstore drops the final slash of a key: only an object of the bare name can be asked for.
    return [info for info in found if info.size_bytes or exists(info.url)]


def _list_keys(place: Place, on_refusal: Callable[[StorageError], None]) -> Iterator[ObjectInfo]:
    # Slow to import, and hardly ever needed; a version that only scores has no boto3.
    from pipeline.io.s3_client import list_keys  # noqa: PLC0415

    for key, size_bytes, etag, modified_at in list_keys(place.root, place.key):
        url = f"{place.scheme}://{place.root}/{key}"
        if {"", ".", ".."} & set(key.removesuffix("/").split("/")):
            problem = "its key has an empty segment, `.` or `..`, so that it is no path"
            on_refusal(DeniedError(url, problem, "Copy the object to another key"))
        elif not key.endswith("/"):
            version = choose_version(etag, size_bytes, modified_at)
            yield ObjectInfo(url, size_bytes, version, modified_at)


def list_folder(url: str) -> tuple[list[str], list[str]]:
    """List what lies directly in a folder or below a prefix: names of files and of folders.

    Args:
        url: A folder or prefix; one that does not exist is empty. A file is listed under the
            empty name.

    Raises:
        StorageError: It cannot be read.
    """
    place = parse(url)
    with translated(url):
        if place.scheme == "file":
            return _scan(Path(place.key))
        store = _objects(place.scheme, place.root)
        found = obstore.list_with_delimiter(store, prefix=place.key or None)
        files = [meta["path"].rpartition("/")[2] for meta in found["objects"]]
        folders = [prefix.rpartition("/")[2] for prefix in found["common_prefixes"]]
        if not files and not folders and place.key and exists(url):
            return [""], []
    return sorted(files), sorted(folders)


def _scan(folder: Path) -> tuple[list[str], list[str]]:
    if folder.is_file():
        return [""], []
    if not folder.exists():
        return [], []
    with os.scandir(folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries)
    return [n for n, is_dir in found if not is_dir], [n for n, is_dir in found if is_dir]


def _walk(url: str, root: Path, on_refusal: Callable[[StorageError], None]) -> Iterator[ObjectInfo]:
    if root.is_file():
        yield _local_info(url, root.stat())
        return

    def refuse(error: OSError) -> None:
        path = Path(error.filename or root)
        if error.errno in _NO_FILE and not path.is_symlink():
            return
        if path == root:
            raise error
        below = join(url, path.relative_to(root).as_posix())
        if error.errno in _NO_FILE:
            problem, remedy = "a link to what is not there", "Mend the link, or remove it"
            on_refusal(AbsentError(below, problem, remedy))
            return
        problem = f"cannot be read ({error.strerror})"
        on_refusal(DeniedError(below, problem, "Give the right to read it, or leave it out"))

    real: dict[Path, str] = {}
    for name, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        folder = Path(name)
        real[folder] = os.path.realpath(folder)
        if any(real.get(above) == real[folder] for above in folder.parents):
            folders.clear()  # a link has led back to where it came from
            continue
        for path in map(folder.joinpath, files):
            try:
                yield _local_info(join(url, path.relative_to(root).as_posix()), path.stat())
            except OSError as error:
                refuse(error)


def _head(url: str, place: Place) -> ObjectInfo:
    if place.scheme == "file":
        base = plain_url(url) if url.startswith("file:") else url
        return _local_info(base, _stat(url, place))
    return _object_info(url, obstore.head(_objects(place.scheme, place.root), place.key))


def _stat(url: str, place: Place) -> os.stat_result:
    """Status of a local file; a pipe, whose reader would wait for ever, is refused."""
    try:
        status = Path(place.key).stat()
    except NotADirectoryError as error:  # below a file there is nothing
        raise FileNotFoundError(place.key) from error
    if not S_ISREG(status.st_mode) and not S_ISDIR(status.st_mode):
        raise DeniedError(url, "not a regular file", "Leave it out, or copy a file there")
    return status


def describe(url: str) -> ObjectInfo:
    """Size and version of one file; raises as `read_bytes`."""
    with translated(url):
        return _head(url, parse(url))


def exists(url: str) -> bool:
    """Whether the URL names a file or object (not a folder or prefix)."""
    place = parse(url)
    if place.scheme == "file":
        return Path(place.key).is_file()
    with translated(url), suppress(FileNotFoundError):
        _head(url, place)
        return True
    return False


def read_bytes(url: str, *, max_bytes: int | None = None) -> bytes:
    """Read one whole file.

    Args:
        url: URL of the file.
        max_bytes: Refuse a file of more bytes before it is read; None reads any.

    Raises:
        SourceError: It is larger.
        AbsentError: It does not exist.
        StorageError: It cannot be reached.
    """
    place = parse(url)
    with translated(url):
        if place.scheme == "file":
            _check_size(url, _stat(url, place).st_size, max_bytes)
            with Path(place.key).open("rb") as file:
                return file.read()
        # The answer begins with the size; the content is fetched after it.
        answer = obstore.get(_objects(place.scheme, place.root), place.key)
        _check_size(url, answer.meta["size"], max_bytes)
        return bytes(answer.bytes())


def _check_size(url: str, size_bytes: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size_bytes > max_bytes:
        raise SourceError(url, f"{size_bytes} bytes, at most {max_bytes} are read", "Leave it out")


def read_range(url: str, start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of a file, fewer where it ends before; raises as `read_bytes`."""
    place = parse(url)
    with translated(url):
        if place.scheme == "file":
            with Path(place.key).open("rb") as file:
                file.seek(start)
                return file.read(stop - start)
        store = _objects(place.scheme, place.root)
        try:
            return bytes(obstore.get_range(store, place.key, start=start, end=stop))
        except BaseError:
            if start < _head(url, place).size_bytes:
                raise
            return b""  # S3 calls a range that begins at the end an error


def holds(url: str, data: bytes) -> bool:
    """Whether a file is there and has these bytes."""
    with suppress(AbsentError):
        return read_bytes(url) == data
    return False


def write_bytes(url: str, data: bytes) -> None:
    """Write one whole file: readers see the old content or the new; StorageError if neither."""
    place = parse(url)
    with translated(url):
        if place.scheme == "file":
            with written_beside(Path(place.key), [data]) as temporary:
                temporary.replace(place.key)
        else:
            obstore.put(_objects(place.scheme, place.root), place.key, data)


def write_parts(url: str, parts: Iterator[Part]) -> None:
    """Write one large file part by part, never whole in memory; else as `write_bytes`."""
    place = parse(url)
    with translated(url):
        if place.scheme == "file":
            with written_beside(Path(place.key), parts, is_large=True) as temporary:
                temporary.replace(place.key)
        else:
            obstore.put(_objects(place.scheme, place.root), place.key, parts)


def create_bytes(url: str, data: bytes) -> bool:
    """Write one whole file unless there is one; of many writers only one gets True."""
    place = parse(url)
    with translated(url), suppress(AlreadyExistsError, FileExistsError):
        if place.scheme == "file":
            with written_beside(Path(place.key), [data]) as temporary:
                os.link(temporary, place.key)
        else:
            obstore.put(_objects(place.scheme, place.root), place.key, data, mode="create")
        return True
    return False


def delete(url: str) -> None:
    """Delete one file or object; one that is absent is no error."""
    place = parse(url)
    with translated(url), suppress(FileNotFoundError):
        if place.scheme == "file":
            Path(place.key).unlink()
        else:
            obstore.delete(_objects(place.scheme, place.root), place.key)


def remove_empty_folders(url: str) -> None:
    """Remove a local folder and those in it, as far as no file is left; S3 knows no folders."""
    place = parse(url)
    if place.scheme != "file":
        return
    for name, _, _ in os.walk(place.key, topdown=False):
        with suppress(OSError):  # it is not empty
            Path(name).rmdir()


def open_zarr_store(url: str, *, read_only: bool) -> StorePath:
    """Where zarr-python finds or makes the group at a URL; picklable unless in memory.

    Raises:
        AbsentError: There is no such folder to read.
        StorageError: The folder cannot be made.
    """
    place = parse(url)
    with translated(url):
        if place.scheme != "file":
            store: S3Store | MemoryStore = _objects(place.scheme, place.root)
            return StorePath(ObjectStore(store, read_only=read_only), place.key)
        if read_only and not Path(place.key).is_dir():
            raise AbsentError(url, "no such folder", _ABSENT_REMEDY)
        folder = LocalStore(place.key, mkdir=not read_only)
        return StorePath(ObjectStore(folder, read_only=read_only))
