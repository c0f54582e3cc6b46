"""boto3's client of S3: for downloads, for checks, and for keys that obstore cannot name."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


class Key(NamedTuple):
    """An object as S3 lists it.

    Args:
        key: Key of the object, whatever characters it has.
        size_bytes: Size of the object in bytes.
        etag: ETag with its quotation marks; empty where the server gives none.
        modified_at: Time of the last write, UTC.
    """

    key: str
    size_bytes: int
    etag: str
    modified_at: datetime


def connect_s3(attempts: int = 3) -> S3Client:
    """Make a client with credentials and endpoint from the usual `AWS_*` variables and files.

    Args:
        attempts: Number of times that a request is tried in all.
    """
    patience = Config(
        connect_timeout=5,
        read_timeout=60,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    # A session of its own: the default one remembers the first credentials it has seen.
    return boto3.Session().client("s3", config=patience)


def list_keys(bucket: str, prefix: str) -> Iterator[Key]:
    """List all objects below a prefix, in the order of their keys.

    Args:
        bucket: Name of the bucket.
        prefix: Whole segments that the keys begin with; empty for the whole bucket.

    Raises:
        botocore.exceptions.ClientError: S3 refuses.
        botocore.exceptions.BotoCoreError: S3 does not answer, or there are no credentials.
    """
    pages = connect_s3().get_paginator("list_objects_v2")
    below = f"{prefix.rstrip('/')}/" if prefix else ""
    for page in pages.paginate(Bucket=bucket, Prefix=below):
        for found in page.get("Contents", []):
            yield Key(found["Key"], found["Size"], found.get("ETag", ""), found["LastModified"])
