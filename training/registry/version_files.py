"""Digests of a version's files: kept in the ledger at registration, verified before every use.

A version keeps weights and code in the artifact store, and a promotion runs that code. Whoever can
write to the store could change both. So the ledger, which lies elsewhere, has the SHA-256 of each
file, and nothing of a version is read before all of its files were compared with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from pipeline.errors import RegistryError
from training.registry.ledger import Entry
from training.scoring.outputs import digest_file

_NOTE: Final = "registered_model_meta"  # MLflow writes it beside the files of each download
_NAMED: Final = 3  # files that an error names at most


def digest_folder(folder: Path) -> dict[str, str]:
    """Digest every file of a downloaded version.

    Args:
        folder: Folder that holds the version's files and nothing else.

    Returns:
        The SHA-256 of each file by its path below the folder, in hexadecimal.
    """
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != _NOTE:
            digests[name] = digest_file(path)
    return digests


def find_digests(entries: Sequence[Entry], version: str, run_id: str) -> dict[str, str] | None:
    """Find the digests that a ledger keeps of a version's files; None if it has none.

    Args:
        entries: All entries of the model's ledger.
        version: Number of the version.
        run_id: Identifier of the run that made it; a model that was deleted and made anew counts
            its versions from 1 again.
    """
    key = {"version": version, "run_id": run_id}
    for entry in entries:
        if entry.kind == "registered" and key.items() <= entry.content.items():
            return TypeAdapter(dict[str, str]).validate_python(entry.content["files"])
    return None


def require_files(item: str, found: Mapping[str, str], recorded: Mapping[str, str]) -> None:
    """Check that a version's files are those that were registered.

    Args:
        item: Name of the version, for the error.
        found: Digests of the files as they are now.
        recorded: Digests that the ledger keeps.

    Raises:
        RegistryError: A file was changed, added or removed; names the first three.
    """
    both = found.keys() & recorded.keys()
    wrong = [
        *(f"{name} was changed" for name in sorted(both) if found[name] != recorded[name]),
        *(f"{name} was added" for name in sorted(found.keys() - both)),
        *(f"{name} is missing" for name in sorted(recorded.keys() - both)),
    ]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise RegistryError(
            item,
            f"its files are not those that were registered: {', '.join(wrong[:_NAMED])}{more}",
            "Find out who wrote to the artifact store, and restore the files or train again",
        )
