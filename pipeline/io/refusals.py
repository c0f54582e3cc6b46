"""Why S3 and this machine refuse each other: keys, rights, clocks and certificates."""

from __future__ import annotations

import re
from typing import Final

from pipeline.errors import DeniedError

CREDENTIALS_REMEDY: Final = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for a server of your "
    "own) where the work runs"
)
BUCKET_REMEDY: Final = "Create the bucket, or correct its name in the URL"
_RIGHTS_REMEDY: Final = "Give them the right to list, read and write there, or name another bucket"

_BY_CODE: Final = {
    "NoSuchBucket": ("the bucket does not exist", BUCKET_REMEDY),
    "InvalidAccessKeyId": ("S3 does not know this access key", CREDENTIALS_REMEDY),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key", CREDENTIALS_REMEDY),
    "ExpiredToken": ("the session token has expired", CREDENTIALS_REMEDY),
    "InvalidToken": ("S3 does not know this session token", CREDENTIALS_REMEDY),
    "AccessDenied": ("these keys have no right to it", _RIGHTS_REMEDY),
    "RequestTimeTooSkewed": (
        "the clock of this machine and that of S3 are over 15 minutes apart",
        "Set both clocks, e.g. by NTP",
    ),
}
_UNTRUSTED: Final = (
    "no CA that this machine trusts has signed the certificate of S3",
    "Set SSL_CERT_FILE to a file with that CA's certificate",
)
_UNTRUSTED_WORDS: Final = ("InvalidCertificate", "CERTIFICATE_VERIFY_FAILED")
# An answer to HEAD has no content, so that nobody learns which of them it was.
_UNSAID: Final = (
    "S3 refuses the request (403)",
    "Check the keys (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY), their rights, and the clock",
)


def find_refusal(url: str, answer: str) -> DeniedError | None:
    """Find out whether a request was refused, by S3 or for its certificate, and why.

    Args:
        url: The URL that was asked for.
        answer: S3's error code, or a library's message that quotes its answer.

    Returns:
        The error to raise; None where nothing was refused.
    """
    if any(word in answer for word in _UNTRUSTED_WORDS):
        return DeniedError(url, *_UNTRUSTED)
    (code,) = re.findall(r"<Code>(\w+)</Code>", answer)[:1] or [answer]
    if code in _BY_CODE:
        return DeniedError(url, *_BY_CODE[code])
    return DeniedError(url, *_UNSAID) if code == "403" or "403 Forbidden" in answer else None
