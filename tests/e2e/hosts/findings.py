"""What the hosts have written: weights of trainings, and secrets that nothing may hold."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Final

import torch

from pipeline.io import storage
from tests.e2e.hosts.network import Lan
from tests.e2e.hosts.servers import SECRETS
from training.learning.checkpoint import Checkpoint, Checkpoints

# What is configuration, and read by its server alone: no product of a run. S3's store holds its
# users' keys; its objects are read through it. Prefect hands a run's process its environment in a
# file of mode 0600, and deletes it unless the host is killed.
_CONFIGURATION: Final = (
    "control/tmp/auth.ini",
    "s3/tmp/s3/state.json",
    "s3/tmp/s3/osd/block",
    "worker/tmp/prefect-workspace-attempt-*/workspace.json",
)
_BUCKETS: Final = ("s3://lake/", "s3://mlflow/")
_BLOCK_BYTES: Final = 1 << 24


def compare_weights(storage_url: str, first: str, second: str) -> float:
    """Largest difference between the last weights of two trainings.

    Args:
        storage_url: Storage of both.
        first: Name of a run.
        second: Name of the other run.
    """
    one, other = (_read_last(storage.join(storage_url, name)).networks for name in (first, second))
    assert one.keys() == other.keys()
    return max(float(torch.max(torch.abs(one[name] - other[name]))) for name in one)


def digest_weights(storage_url: str, name: str) -> str:
    """SHA-256 of a training's last weights.

    Args:
        storage_url: Storage of the training.
        name: Name of the run.
    """
    networks, digest = _read_last(storage.join(storage_url, name)).networks, sha256()
    for tensor in sorted(networks):
        digest.update(networks[tensor].numpy().tobytes())
    return digest.hexdigest()


def _read_last(run_url: str) -> Checkpoint:
    found = Checkpoints(storage.join(run_url, "checkpoints"), kept=1).read_latest()
    assert found is not None
    assert found.is_last
    return found


def find_planted(lan: Lan) -> list[str]:
    """Search all disks, logs and objects of the hosts for the secrets of their servers.

    Disks hold the databases, Prefect's logs and artifacts among them; objects are read as well,
    as S3's own disk may compress them.

    Args:
        lan: Network of the hosts; this process must be able to read their S3.

    Returns:
        One line a finding, empty if there is none.
    """
    found: list[str] = []
    for path in sorted(lan.folder.rglob("*")):
        name = path.relative_to(lan.folder).as_posix()
        is_known = any(fnmatch(name, pattern) for pattern in _CONFIGURATION)
        if path.is_file() and not path.is_symlink() and not is_known:
            found += _search(name, _read_blocks(path))
    for bucket in _BUCKETS:
        for info in storage.list_objects(bucket):
            if info.size_bytes:  # else a marker of a folder, which Ray makes
                found += _search(info.url, iter([storage.read_bytes(info.url)]))
    return found


def _read_blocks(path: Path) -> Iterator[bytes]:
    """Read a file in blocks that overlap, so that no secret is cut; holes of a file are skipped."""
    overlap = max(map(len, SECRETS.values()))
    try:
        with path.open("rb") as file:
            tail = b""
            while block := file.read(_BLOCK_BYTES):
                yield tail + block
                tail = block[-overlap:]
    except OSError:  # gone meanwhile, or a socket
        return


def _search(name: str, blocks: Iterator[bytes]) -> list[str]:
    held = {
        kind for block in blocks for kind, secret in SECRETS.items() if secret.encode() in block
    }
    return [f"{name} holds the secret `{kind}`" for kind in sorted(held)]
