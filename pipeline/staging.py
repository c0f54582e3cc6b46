"""S3 through boto3: the check before the work, and local copies of slides.

The only importer of boto3, whose transfer manager does the parallel ranged download.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import botocore.exceptions
from botocore.config import Config

from pipeline.errors import DeniedError, SourceError, StorageError
from pipeline.storage import (
    BUCKET_REMEDY,
    CREDENTIALS_REMEDY,
    describe,
    name_of,
    parse,
    read_bytes,
)

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


def require_reachable(url: str) -> None:
    """Check, before work is spent, that a URL's bucket exists and lets us in.

    Raises:
        StorageError: It does not, with what to do about it.
    """
    place = parse(url)
    if place.scheme != "s3":
        return
    try:
        _s3_client().head_bucket(Bucket=place.root)
    except botocore.exceptions.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in {"404", "NoSuchBucket"}:
            raise DeniedError(url, f"no bucket {place.root!r}", BUCKET_REMEDY) from error
        raise DeniedError(url, f"S3 refuses us ({code})", CREDENTIALS_REMEDY) from error
    except botocore.exceptions.NoCredentialsError as error:
        raise DeniedError(url, "no credentials for S3", CREDENTIALS_REMEDY) from error
    except botocore.exceptions.BotoCoreError as error:
        raise StorageError(
            url, f"S3 does not answer ({error})", "Check AWS_ENDPOINT_URL and the server"
        ) from error


def _s3_client() -> S3Client:
    patience = Config(connect_timeout=5, read_timeout=60, retries={"total_max_attempts": 3})
    # A session of its own: the default one remembers the first credentials it has seen.
    return boto3.Session().client("s3", config=patience)


@contextmanager
def stage(url: str, version: str) -> Iterator[Path]:
    """A local file with the bytes of `url`, for libraries that only read files.

    A local file is given in place. An object on S3 is fetched by boto3's parallel ranged
    download into a scratch folder, once for each version, and stays there for the next user.

    Args:
        url: Of the file.
        version: As listed; a file that has changed since is refused.

    Raises:
        SourceError: It has changed.
        AbsentError: It is gone.
        StorageError: It cannot be fetched.
    """
    place = parse(url)
    now = describe(url)
    if now.version != version:
        raise SourceError(
            url, f"changed since it was listed ({version} -> {now.version})", "Run again"
        )
    if place.scheme == "file":
        yield Path(place.key)
        return
    # The key's own name stays last: readers tell formats by the suffix.
    folder = Path(tempfile.gettempdir(), "normscope-staged")
    scratch = folder / sha256(f"{url}\n{version}".encode()).hexdigest()[:24]
    path = scratch / name_of(url)
    if not path.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        _fetch(url, path)
    yield path


def _fetch(url: str, path: Path) -> None:
    place = parse(url)
    handle, name = tempfile.mkstemp(dir=path.parent)
    os.close(handle)
    try:
        if place.scheme == "s3":
            _s3_client().download_file(place.root, place.key, name)
        else:
            Path(name).write_bytes(read_bytes(url))
        Path(name).replace(path)
    except botocore.exceptions.BotoCoreError as error:
        raise StorageError(url, f"download failed ({error})", "Run again") from error
    finally:
        Path(name).unlink(missing_ok=True)
