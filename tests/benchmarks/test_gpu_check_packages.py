"""The packages that are carried to a machine with a GPU are all that the check needs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from benchmarks import gpu_check

FOLDER = Path(gpu_check.__file__).parent
LISTED = FOLDER / "gpu_check_packages.txt"
IMPORTING = """
import sys
sys.path[:0] = sys.argv[1:3]
from importlib import import_module
for name in sys.argv[3:]:
    import_module(f"benchmarks.{name}")
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def list_needed(name: str, known: set[str]) -> None:
    """Add a package, and all that it needs without extras, to those known."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in known:
        return
    try:
        needs = distribution(name).requires or []
    except PackageNotFoundError:  # for another system or Python
        return
    known.add(name)
    for need in needs:
        if "extra ==" not in need:
            list_needed(re.split(r"[^\w.-]", need)[0], known)


def read_listed() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in LISTED.read_text().splitlines())
    return [line for line in lines if line]


def link(folder: Path, packages: set[str]) -> None:
    """Link what the packages installed, and nothing else, into a folder."""
    for package in packages:
        for top in list_tops(package):
            target = folder / top.name
            if not target.exists():
                target.symlink_to(top)


def list_tops(package: str) -> Iterator[Path]:
    found = distribution(package)
    for name in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
        yield Path(str(found.locate_file(name)))


def test_the_listed_packages_are_enough_and_no_engine_is_among_them(tmp_path: Path) -> None:
    packages: set[str] = set()
    for name in ("torch", *read_listed()):
        list_needed(name, packages)
    link(tmp_path, packages)
    modules = [path.stem for path in sorted(FOLDER.glob("gpu_check*.py"))]
    command = [sys.executable, "-I", "-S", "-c", IMPORTING, str(FOLDER.parent), str(tmp_path)]
    said = subprocess.run([*command, *modules], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[-2000:]
    imported = set(said.stdout.split())
    assert {"torch", "zarr", "training"} <= imported
    assert not imported & {"ray", "mlflow", "prefect", "dask", "distributed"}


def test_pytorch_is_the_machines_own() -> None:
    packages: set[str] = set()
    for name in read_listed():
        list_needed(name, packages)
    assert "torch" not in packages
