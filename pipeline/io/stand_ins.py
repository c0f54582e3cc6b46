"""Tells what lies in a file's place where the file itself has never been fetched. Pure."""

from __future__ import annotations

import re
from typing import Final

from pipeline.errors import SourceError

# github.com/git-lfs/git-lfs, docs/spec.md; `hawser` is the name that the project had before.
_LFS: Final = re.compile(rb"version https://(git-lfs\.github\.com|hawser\.github\.com)/spec/")
_ANNEX: Final = re.compile(rb"(\S*\.git)?/annex/objects/\S")  # git-annex, pointer files
_PAGE: Final = re.compile(rb"\s*<(!doctype html|html)[\s>]", re.I)
_HEAD_BYTES: Final = 1024


def require_content(data: bytes, item: str) -> None:
    """Refuse what stands in a file's place: pointers of Git LFS and git-annex, and web pages.

    Args:
        data: Bytes of the file, or its first 1024.
        item: Public name of the file, for errors.

    Raises:
        SourceError: It is one of these.
    """
    head = data[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf")
    if _LFS.match(head):
        problem = "a pointer of Git LFS, which stands for the file"
        raise SourceError(item, problem, "Fetch the file itself: `git lfs pull`")
    if _ANNEX.match(head):
        problem = "a pointer of git-annex, which stands for the file"
        raise SourceError(item, problem, "Fetch the file itself: `git annex get .`")
    if _PAGE.match(head):
        problem = "a web page, such as a server sends in place of a file"
        raise SourceError(item, problem, "Download the file again, and log in first if need be")
