"""The architecture: who may import whom, who reads the environment, how long things are.

Each rule is a function from source to findings, proved on a sample that breaks it.
"""

from __future__ import annotations

import ast
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Final

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT: Final[Mapping[str, frozenset[str]]] = {
    "pipeline": frozenset({"pipeline"}),
    "training": frozenset({"pipeline", "training"}),
    "flows": frozenset({"pipeline", "training", "flows"}),
}
"""Imports run one way: flows -> training -> pipeline."""

ORDER: Final[Mapping[str, tuple[str, ...]]] = {
    "pipeline": (
        "errors",
        "records",
        "splits",
        "grey_range",
        "io",
        "runtime",
        "store",
        "ingest",
        "privacy",
        "dicom",
        "images",
        "slides",
        "export",
        "sources",
        "synthetic",
        "conform",
    ),
    "training": (
        "names",
        "networks",
        "settings",
        "presets",
        "data",
        "evaluation",
        "learning",
        "cluster",
        "scoring",
        "worklist",
        "registry",
        "train",
        "search",
        "score",
        "score_on_workers",
    ),
}
"""Inside a package imports run one way too: each part imports only parts that stand before it."""

APART: Final[Mapping[str, frozenset[str]]] = {
    "training/evaluation": frozenset({"networks", "settings", "presets", "data"}),
    "training/scoring": frozenset({"learning", "cluster"}),
    "training/worklist": frozenset({"learning", "cluster"}),
    "training/registry": frozenset({"cluster"}),
}
"""What a part does not import although it stands before it."""

SOLE_IMPORTERS: Final[Mapping[str, tuple[str, ...]]] = {
    "openslide": ("pipeline/slides/readers/openslide_reader.py",),
    "dask": ("pipeline/runtime/cores.py", "pipeline/runtime/engines.py"),
    "distributed": ("pipeline/runtime/engines.py",),
    "obstore": ("pipeline/io/storage.py",),
    "boto3": ("pipeline/io/s3_client.py", "pipeline/io/staging.py"),
    "botocore": ("pipeline/io/s3_client.py", "pipeline/io/staging.py"),
    "highdicom": ("pipeline/dicom/export.py",),
    "pydicom": ("pipeline/dicom/*.py", "pipeline/sources/dicom.py"),
    "ray": ("training/cluster/*.py",),
    "mlflow": ("training/registry/*.py",),
    "prefect": ("flows/*",),
    "psutil": ("flows/local/loopback.py", "flows/local/processes.py"),
}
"""Where each library may be imported, as patterns of file names."""

ENVIRONMENT_READERS: Final = ("flows/shared/settings.py",)
LINES_OF_A_FILE: Final = 500
LINES_OF_A_FUNCTION: Final = 40
MODULES_OF_A_FOLDER: Final = 14
TOP_LEVEL: Final = frozenset(
    {"CHANGELOG.md", "CITATION.cff", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "LICENSE", "Makefile"}
    | {"README.md", "SECURITY.md", "mkdocs.yml", "pyproject.toml", "requirements.lock"}
    | {"benchmarks", "docs", "flows", "infra", "pipeline", "tests", "training"}
)
PACKAGES: Final = ("pipeline", "training", "flows")
SOURCE: Final = (*PACKAGES, "infra", "benchmarks")


def list_files(*folders: str) -> list[str]:
    """Our Python files, as paths below the root."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def imported_modules(path: str, source: str) -> Iterator[str]:
    """The full name of every module that a file imports, wherever in the file it does."""
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*above, *([node.module] if node.module else [])])


def find_wrong_directions(path: str, source: str) -> list[str]:
    """Imports of a package that stands above; nothing imports `infra` or `benchmarks`."""
    package = path.partition("/")[0]
    allowed = MAY_IMPORT.get(package, frozenset(SOURCE))
    packages = {name.split(".")[0] for name in imported_modules(path, source)}
    ours = packages & {*SOURCE, "tests"}
    return [f"{path} imports {name}" for name in sorted(ours - allowed)]


def find_wrong_order(path: str, source: str) -> list[str]:
    """Imports of a part that stands later in the order, or that a part keeps apart from."""
    package, part = [*path.removesuffix(".py").split("/"), ""][:2]
    order = ORDER.get(package, ())
    if part not in order:
        return (
            [] if part in {"", "__init__"} or not order else [f"{path} has no place in the order"]
        )
    parts = {
        name.split(".")[1]
        for name in imported_modules(path, source)
        if name.startswith(f"{package}.") and name.split(".")[1] in order
    }
    later = set(order[order.index(part) + 1 :]) | APART.get(f"{package}/{part}", frozenset())
    return [f"{path} imports {package}.{name}" for name in sorted(parts & later)]


def find_foreign_imports(path: str, source: str) -> list[str]:
    """Imports of a library outside the modules that keep it."""
    roots = {name.split(".")[0] for name in imported_modules(path, source)}
    return [
        f"{path} imports {library}, which belongs to {', '.join(SOLE_IMPORTERS[library])}"
        for library in sorted(roots & SOLE_IMPORTERS.keys())
        if not any(fnmatch(path, room) for room in SOLE_IMPORTERS[library])
    ]


def find_environment_reads(path: str, source: str) -> list[str]:
    """Uses of environment variables outside the settings."""
    if path in ENVIRONMENT_READERS:
        return []
    names = {"environ", "environb", "getenv", "putenv", "unsetenv"}
    return [
        f"{path} uses os.{name}"
        for node in ast.walk(ast.parse(source))
        for name in sorted(_names_from_os(node) & names)
    ]


def _names_from_os(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
        return {node.attr}
    if isinstance(node, ast.ImportFrom) and node.module == "os":
        return {alias.name for alias in node.names}
    return set()


def find_long_files(path: str, source: str) -> list[str]:
    """Files that want splitting."""
    count = len(source.splitlines())
    return [f"{path} has {count} lines"] if count >= LINES_OF_A_FILE else []


def find_long_functions(path: str, source: str) -> list[str]:
    """Functions whose code is too long to take in; signature and docstring do not count."""
    return [
        f"{path}:{node.lineno} {node.name} has {count} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := _lines_of_code(node)) >= LINES_OF_A_FUNCTION
    ]


def _lines_of_code(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    code = node.body[ast.get_docstring(node) is not None :]
    return (code[-1].end_lineno or 0) - code[0].lineno + 1 if code else 0


def find_full_folders(files: list[str]) -> list[str]:
    """Folders of more modules than one takes in at a glance."""
    counts = Counter(str(PurePosixPath(file).parent) for file in files if "__init__" not in file)
    return [
        f"{folder} has {count} modules"
        for folder, count in sorted(counts.items())
        if count > MODULES_OF_A_FOLDER
    ]


def find_strays(names: list[str]) -> list[str]:
    """What does not belong in the root."""
    return sorted(name for name in set(names) - TOP_LEVEL if not name.startswith("."))


RULES: Final[Mapping[Callable[[str, str], list[str]], tuple[str, ...]]] = {
    find_wrong_directions: SOURCE,
    find_wrong_order: PACKAGES,
    find_foreign_imports: PACKAGES,
    find_environment_reads: PACKAGES,
    find_long_files: (*SOURCE, "tests"),
    find_long_functions: SOURCE,
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps_the_rule(rule: Callable[[str, str], list[str]]) -> None:
    files = list_files(*RULES[rule])
    assert files
    findings = [line for path in files for line in rule(path, (ROOT / path).read_text())]
    assert not findings, "\n".join(findings)


def test_no_folder_is_full() -> None:
    assert find_full_folders(list_files(*PACKAGES)) == []


def test_a_full_folder_is_found() -> None:
    files = [f"pipeline/io/m{number}.py" for number in range(MODULES_OF_A_FOLDER + 1)]
    assert find_full_folders(["pipeline/io/__init__.py", *files]) == ["pipeline/io has 15 modules"]
    assert find_full_folders(["pipeline/io/__init__.py", *files[1:]]) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pipeline/io/storage.py", "from pipeline.slides import formats"),
        ("pipeline/errors.py", "import pipeline.records"),
        ("training/scoring/table.py", "from training.learning.state import Recipe"),
        ("training/evaluation/metrics.py", "from training.settings import TrainSettings"),
        ("pipeline/helpers/text.py", ""),
    ],
)
def test_a_wrong_order_is_found(path: str, source: str) -> None:
    assert len(find_wrong_order(path, source)) == 1


def test_the_right_order_passes() -> None:
    source = (
        "from pipeline.io import storage\nfrom pipeline.slides.survey.tissue import find_tissue\n"
    )
    assert find_wrong_order("pipeline/slides/survey.py", source) == []
    assert find_wrong_order("pipeline/__init__.py", "from pipeline.conform import x") == []


def test_the_root_holds_what_it_should() -> None:
    listing = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout: what belongs to the project cannot be told")
    assert find_strays([path.split("/")[0] for path in listing.stdout.splitlines()]) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pipeline/slides/tiling.py", "import training.networks.losses"),
        ("pipeline/slides/tiling.py", "def late():\n    from flows import settings"),
        ("pipeline/sources/images.py", "from ...training import losses"),
        ("training/learning/loop.py", "from flows.shared.settings import Settings"),
        ("training/learning/loop.py", "import benchmarks.painted"),
        ("flows/train.py", "from tests import conftest"),
    ],
)
def test_a_wrong_direction_is_found(path: str, source: str) -> None:
    assert len(find_wrong_directions(path, source)) == 1


def test_right_directions_pass() -> None:
    source = "from pipeline import schema\nfrom . import losses\nimport numpy\n"
    assert find_wrong_directions("training/learning/loop.py", source) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pipeline/slides/tiling.py", "import openslide"),
        ("pipeline/slides_more.py", "from openslide import OpenSlide"),
        ("training/learning/loop.py", "def late():\n    import ray.train"),
        ("training/learning/loop.py", "from mlflow.pyfunc import load_model"),
        ("pipeline/ingest/run.py", "import dask.array as da"),
        ("training/learning/checkpoint.py", "import prefect"),
    ],
)
def test_a_foreign_import_is_found(path: str, source: str) -> None:
    assert len(find_foreign_imports(path, source)) == 1


def test_modules_may_import_what_they_keep() -> None:
    assert (
        find_foreign_imports("pipeline/slides/readers/openslide_reader.py", "import openslide")
        == []
    )
    assert find_foreign_imports("flows/train.py", "from prefect import flow") == []
    assert find_foreign_imports("training/learning/loop.py", "from . import ray_shell") == []


@pytest.mark.parametrize(
    "source",
    [
        "import os\nhome = os.environ['HOME']",
        "import os\nhome = os.getenv('HOME')",
        "from os import environ as surroundings",
    ],
)
def test_an_environment_read_is_found(source: str) -> None:
    assert len(find_environment_reads("training/learning/loop.py", source)) == 1
    assert find_environment_reads("flows/shared/settings.py", source) == []


def test_long_things_are_found() -> None:
    assert find_long_files("a.py", "x = 1\n" * LINES_OF_A_FILE)
    assert not find_long_files("a.py", "x = 1\n" * (LINES_OF_A_FILE - 1))
    line, head = "    x = 1\n", 'def f(\n    x,\n):\n    """Say\n\n    much.\n    """\n'
    assert find_long_functions("a.py", head + line * LINES_OF_A_FUNCTION)
    assert not find_long_functions("a.py", head + line * (LINES_OF_A_FUNCTION - 1))
    assert not find_long_functions("a.py", head)


def test_strays_are_found() -> None:
    assert find_strays(["README.md", "notes.txt", ".ci", "utils"]) == ["notes.txt", "utils"]
