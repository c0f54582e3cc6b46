"""Images where no registry answers: Debian by debootstrap, PostgreSQL from its packages."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.e2e.compose.podman import Podman

BASE = "localhost/normscope-debian"
POSTGRES = "localhost/normscope-postgres"
VARIABLES = {"PYTHON_IMAGE": BASE, "DEBIAN_IMAGE": BASE, "POSTGRES_IMAGE": POSTGRES}
"""What makes the Compose file build on them."""

_RELEASE = "bookworm"
_PACKAGES = "ca-certificates,python3,python3-venv"


def make_base(podman: Podman, folder: Path) -> None:
    """Make Debian's smallest system with Python an image, unless it is one.

    Args:
        podman: The engine that keeps the image.
        folder: Empty folder for the system, removed afterwards.
    """
    if podman.succeeds("image", "exists", BASE):
        return
    root, archive = folder / "root", folder / "root.tar"
    podman.run(
        ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _RELEASE, str(root)],
        timeout_s=1200,
    )
    podman.run(["tar", "-C", str(root), "-cf", str(archive), "."])
    shutil.rmtree(root)
    podman("import", str(archive), BASE)
    archive.unlink()


def make_postgres(podman: Podman, root: Path) -> None:
    """Build PostgreSQL's image on that base.

    Args:
        podman: The engine that keeps the image.
        root: Root of the repository.
    """
    dockerfile = ["-f", str(root / "infra/postgres.Dockerfile"), "--build-arg", f"BASE={BASE}"]
    options = [*podman.build_arguments(), *dockerfile, "-t", POSTGRES]
    podman("build", *options, str(root), timeout_s=1200)
