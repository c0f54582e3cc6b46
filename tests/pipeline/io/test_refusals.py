"""S3 says no: with wrong keys, and with keys that lack the right."""

from __future__ import annotations

import json
from collections.abc import Callable

import boto3
import pytest

from pipeline.errors import DeniedError
from pipeline.io import storage
from pipeline.io.refusals import find_refusal
from pipeline.io.staging import require_reachable

USES: tuple[Callable[[str], object], ...] = (
    require_reachable,
    storage.list_objects,
    storage.list_folder,
    storage.read_bytes,
    lambda url: storage.write_bytes(url, b"x"),
    lambda url: storage.create_bytes(url, b"x"),
)


@pytest.mark.s3
@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("AWS_ACCESS_KEY_ID", "S3 does not know this access key. Set AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "the secret key does not fit the access key. Set AWS_ACCESS"),
    ],
)
def test_a_wrong_key_is_named(
    real_s3_url: str, monkeypatch: pytest.MonkeyPatch, variable: str, said: str
) -> None:
    with monkeypatch.context() as wrong:
        wrong.setenv(variable, "wrong")
        storage.reset_connections()
        for use in USES:
            with pytest.raises(DeniedError, match=said):
                use(f"{real_s3_url}/x")
    storage.reset_connections()
    storage.write_bytes(f"{real_s3_url}/x", b"x")


@pytest.mark.s3
def test_keys_without_the_right_are_told_which_right(real_s3_url: str) -> None:
    bucket = real_s3_url.removeprefix("s3://")
    storage.write_bytes(f"{real_s3_url}/x", b"x")
    client = boto3.Session().client("s3")
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": ["s3:GetObject", "s3:PutObject", "s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"],
    }
    policy = {"Version": "2012-10-17", "Statement": [deny]}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    try:
        for use in USES:
            with pytest.raises(DeniedError, match=r"no right to it\. Give them the right"):
                use(f"{real_s3_url}/x")
    finally:
        client.delete_bucket_policy(Bucket=bucket)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code>", "clock .* Set both clocks"),
        ("error: InvalidCertificate(UnknownIssuer)", "no CA .* Set SSL_CERT_FILE"),
        ("403 Forbidden", r"S3 refuses the request \(403\)"),
        ("403", r"S3 refuses the request \(403\)"),
        ("404 Not Found: <Code>NoSuchBucket</Code>", "the bucket does not exist. Create"),
    ],
)
def test_an_answer_is_explained(answer: str, said: str) -> None:
    with pytest.raises(DeniedError, match=f"s3://lake/x: .*{said}"):
        raise find_refusal("s3://lake/x", answer) or AssertionError


@pytest.mark.parametrize("answer", ["500 Internal Server Error", "key AccessDenied/403", ""])
def test_what_is_no_refusal_may_pass(answer: str) -> None:
    assert find_refusal("s3://lake/x", answer) is None
