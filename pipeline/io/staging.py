"""S3 through boto3: the check before the work, and local copies of slides.

docs/adr/0004-boto3-beside-obstore.md says why there are two clients.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from hashlib import file_digest, md5, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import botocore.exceptions
from boto3.s3.transfer import TransferConfig
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

from pipeline.errors import AbsentError, ChangedError, DeniedError, SourceError, StorageError
from pipeline.io.refusals import BUCKET_REMEDY, CREDENTIALS_REMEDY, find_refusal
from pipeline.io.s3_client import connect_s3
from pipeline.io.scratch import Copy, Scratch
from pipeline.io.storage import (
    ObjectInfo,
    Place,
    choose_version,
    describe,
    join_versions,
    name_of,
    parse,
    read_bytes,
)

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

# A server that answers 503 now and then is asked again, ever more slowly.
_DOWNLOAD_ATTEMPTS: Final = 8
_PARALLEL: Final = TransferConfig(
    multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=8
)
_TRANSFER_ERRORS: Final = (RetriesExceededError, S3DownloadFailedError)
_md5: Final = partial(md5, usedforsecurity=False)
_MD5_ETAG: Final = re.compile(r'"?[0-9a-f]{32}(?:-(\d+))?"?')


def require_reachable(url: str) -> None:
    """Check, before work is spent, that a URL's bucket exists and lets us in, or its folder does.

    Raises:
        StorageError: It does not, with what to do about it.
    """
    place = parse(url)
    if place.scheme == "file":
        _require_writable(url, Path(place.key))
    if place.scheme != "s3":
        return
    try:
        # The answer to HEAD would not say why it is no.
        connect_s3().list_objects_v2(Bucket=place.root, MaxKeys=1)
    except botocore.exceptions.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in {"404", "NoSuchBucket"}:
            raise DeniedError(url, f"no bucket {place.root!r}", BUCKET_REMEDY) from error
        refusal = find_refusal(url, code)
        raise refusal or StorageError(url, f"S3 fails ({code})", "Look at its logs") from error
    except botocore.exceptions.NoCredentialsError as error:
        raise DeniedError(url, "no credentials for S3", CREDENTIALS_REMEDY) from error
    except botocore.exceptions.BotoCoreError as error:
        remedy = "Check AWS_ENDPOINT_URL and the server"
        silence = StorageError(url, f"S3 does not answer ({error})", remedy)
        raise find_refusal(url, str(error)) or silence from error


def _require_writable(url: str, folder: Path) -> None:
    """Whether a folder can be written, or made: the first that there is on the way up tells."""
    try:
        while not folder.exists():
            folder = folder.parent
    except OSError as error:  # a name that the disk cannot hold, a folder that may not be read
        raise DeniedError(url, f"cannot be made ({error.strerror})", "Choose another") from error
    if not folder.is_dir():
        raise StorageError(url, f"{folder} is a file", "Choose a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DeniedError(
            url, f"{folder} cannot be written to", "Choose another, or ask for rights"
        )


@contextmanager
def stage(
    url: str, version: str, companions: Sequence[str] = (), *, scratch: Scratch | None = None
) -> Iterator[Path]:
    """A local file with the bytes of `url`, for libraries that only read files.

    A local file is given in place. An object on S3 is fetched by boto3's parallel ranged
    download into the scratch folder, once for each version, checked by its size and its ETag's
    MD5, and stays there for the next user until others need the room.

    Args:
        url: Path or URL of the file.
        version: Version when listed, by `storage.join_versions`; a changed file is refused.
        companions: URLs of files that its reader looks for next to it or in a folder there; they
            are fetched, kept and evicted together with it.
        scratch: Folder for copies of remote files; None for `scratch.DEFAULT_FOLDER`.

    Raises:
        ChangedError: One of the files has changed.
        SourceError: A companion is gone.
        AbsentError: It is gone.
        SettingsError: The files are larger than the scratch folder may be.
        StorageError: They cannot be fetched, or there is no room for them.
    """
    place = parse(url)
    files = require_unchanged(url, version, companions)
    if place.scheme == "file":
        yield Path(place.key)
        return
    key = sha256(f"{url}\n{version}".encode()).hexdigest()[:24]
    folder = url[: -len(name_of(url))]
    connect = cache(partial(connect_s3, attempts=_DOWNLOAD_ATTEMPTS))
    copies = [
        Copy(info.url.removeprefix(folder), info.size_bytes, partial(_fetch, info, connect))
        for info in files
    ]
    with (scratch or Scratch()).hold(url, key, copies[0], copies[1:]) as path:
        yield path


def require_unchanged(url: str, version: str, companions: Sequence[str] = ()) -> list[ObjectInfo]:
    """Check that a file and its companions still are as they were listed.

    Args:
        url: Path or URL of the file.
        version: Version when listed, by `storage.join_versions`.
        companions: URLs of the files that belong to it.

    Returns:
        The files as they are, `url` first.

    Raises:
        ChangedError: One of them has changed.
        SourceError: A companion is gone.
        AbsentError: The file is gone.
        StorageError: They cannot be reached.
    """
    files = [describe(url), *(_describe_companion(url, companion) for companion in companions)]
    if (now := join_versions(files)) != version:
        raise _changed(url, version, now)
    return files


def _describe_companion(url: str, companion: str) -> ObjectInfo:
    try:
        return describe(companion)
    except AbsentError as error:
        raise SourceError(
            url,
            f"one of its files is missing since it was listed: {companion}",
            "Copy it there again, or list the slides again",
        ) from error


def _changed(url: str, listed: str, found: str) -> ChangedError:
    return ChangedError(url, f"changed since it was listed ({listed} -> {found})", "Run again")


def _fetch(info: ObjectInfo, connect: Callable[[], S3Client], path: Path) -> None:
    """Fill a file with the object's bytes, and prove that they are its."""
    place = parse(info.url)
    if place.scheme == "memory":
        path.write_bytes(read_bytes(info.url))
        return
    client = connect()
    try:
        with path.open("r+b") as file:
            client.download_fileobj(place.root, place.key, file, Config=_PARALLEL)
        head = client.head_object(Bucket=place.root, Key=place.key)
        etag = head.get("ETag")
        now = choose_version(etag, head["ContentLength"], head["LastModified"])
        if now != info.version:
            raise _changed(info.url, info.version, now)
        found = _measure_etag(client, place, etag or "", path)
    except botocore.exceptions.ClientError as error:
        raise _translate(info.url, error) from error
    except (botocore.exceptions.BotoCoreError, *_TRANSFER_ERRORS) as error:
        raise StorageError(info.url, f"download failed ({error})", "Run again") from error
    is_encrypted = head.get("ServerSideEncryption") == "aws:kms" or "SSECustomerAlgorithm" in head
    is_whole = is_encrypted or found is None or found == info.version.strip('"')
    if path.stat().st_size != info.size_bytes or not is_whole:
        raise StorageError(
            info.url,
            f"download is damaged ({path.stat().st_size} of {info.size_bytes} bytes, MD5 {found} "
            f"for ETag {info.version})",
            "Run again",
        )


def _measure_etag(client: S3Client, place: Place, etag: str, path: Path) -> str | None:
    """The ETag that S3 would give the bytes of a file; None where it is no MD5.

    Of an object that was uploaded in parts it is the MD5 of the parts' MD5s.
    """
    if not (match := _MD5_ETAG.fullmatch(etag)):
        return None
    if match[1] is None:
        with path.open("rb") as file:
            return file_digest(file, _md5).hexdigest()
    part = client.head_object(Bucket=place.root, Key=place.key, PartNumber=1)
    if part.get("PartsCount", 0) != int(match[1]):
        return None  # the server does not say where the parts end
    total = _md5()
    with path.open("rb") as file:
        while data := file.read(part["ContentLength"]):
            total.update(_md5(data).digest())
    return f"{total.hexdigest()}-{match[1]}"


def _translate(url: str, error: botocore.exceptions.ClientError) -> StorageError:
    code = error.response.get("Error", {}).get("Code", "")
    if code in {"404", "NoSuchKey"}:
        return AbsentError(url, "no such object", "Check the spelling of the URL")
    refusal = find_refusal(url, code)
    return refusal or StorageError(url, f"download failed ({error})", "Run again")
