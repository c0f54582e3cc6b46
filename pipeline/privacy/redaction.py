"""What may be said in public of a file whose name, folder or table row may name a person."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pipeline.errors import AbsentError, DeniedError, NormscopeError, SourceError, StorageError

# Whatever stands between quotation marks, escaped ones included, and whatever looks like a path.
_QUOTED: Final = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|\S*[/\\]\S*")
WITHHELD: Final = "(withheld)"


@contextmanager
def named_as(name: str) -> Iterator[None]:
    """Raise errors under a file's public name: none of them quotes its URL.

    Args:
        name: Public name of the file.

    Raises:
        SourceError: This one file cannot be read.
        StorageError: The storage is at fault; it may pass.
    """
    try:
        yield
    except (AbsentError, DeniedError, PermissionError) as error:
        problem = f"the file cannot be read ({type(error).__name__})"
        raise SourceError(name, problem, "Check that it is there and may be read") from None
    except StorageError as error:
        problem = f"the storage failed ({type(error).__name__})"
        raise StorageError(name, problem, "Check that the server or disk answers") from None
    except NormscopeError as error:
        raise type(error)(name, error.problem, error.remedy) from None


def withhold_quotes(text: str) -> str:
    """A message without what it quotes: cells of a table, names of files and folders."""
    return _QUOTED.sub(WITHHELD, text)
