"""Files on disk that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_beside(
    target: Path, parts: Iterable[bytes], *, is_forced: bool = True
) -> Iterator[Path]:
    """A temporary file of these parts, in the target's folder so that a rename is atomic.

    Args:
        target: What it is to become, by a rename or a link in the block; its folder is made.
        parts: Of the content, in order.
        is_forced: Whether to wait until the disk has it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(parts)
            file.flush()
            if is_forced:
                os.fsync(file.fileno())
        temporary.chmod(0o644)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
