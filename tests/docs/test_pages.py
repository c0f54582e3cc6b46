"""The documentation: its commands run, its paths exist, every part of the code has its place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.docs.tree import PAGE, replace_tree

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "infra/README.md")),
)
_FENCE: Final = re.compile(
    r"(?:<!-- test: (?P<mark>[^>]*?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_PATH: Final = re.compile(
    r"`((?:pipeline|training|flows|infra|tests|benchmarks|docs)/[\w./-]*(?:\.\w+|/))`"
)
_RUN: Final = "run"
_SKIP: Final = "skip, "


@dataclass(frozen=True)
class Block:
    """Commands in a page.

    Attributes:
        mark: What the comment above says: `run`, or `skip, ` and why; empty without one.
        body: The commands, as a shell takes them.
    """

    mark: str
    body: str


def list_blocks(text: str) -> Iterator[Block]:
    """Find the blocks of commands in a page."""
    for found in _FENCE.finditer(text):
        if found["language"] in {"bash", "python"}:
            yield Block(found["mark"] or "", found["body"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_are_run_or_say_why_not(page: Path) -> None:
    unmarked = [
        block.body
        for block in list_blocks(page.read_text())
        if block.mark != _RUN and not block.mark.startswith(_SKIP)
    ]
    assert not unmarked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_paths_exist(page: Path) -> None:
    named = set(_PATH.findall(page.read_text()))
    assert not sorted(path for path in named if not (ROOT / path).exists())


def test_the_tree_is_todays() -> None:
    assert replace_tree(PAGE.read_text()) == PAGE.read_text(), "python -m tests.docs.tree"


def test_every_decision_is_listed() -> None:
    folder = ROOT / "docs" / "adr"
    listing = (folder / "index.md").read_text()
    records = [path.name for path in folder.glob("[0-9]*.md")]
    assert records
    assert not [name for name in records if f"({name})" not in listing]


def test_marks_are_read() -> None:
    text = "<!-- test: run -->\n```bash\nls\n```\n\n```bash\nrm x\n```\n\n```text\na tree\n```\n"
    assert list(list_blocks(text)) == [Block("run", "ls\n"), Block("", "rm x\n")]


_RUNNABLE: Final = [
    page for page in PAGES if any(block.mark == _RUN for block in list_blocks(page.read_text()))
]


@pytest.mark.slow
@pytest.mark.parametrize("page", _RUNNABLE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_run(page: Path, tmp_path: Path, prefect_server: str) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if "MLFLOW" not in name},
        "NORMSCOPE_HOME": str(tmp_path / "home"),
        "PREFECT_API_URL": prefect_server,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for block in list_blocks(page.read_text()):
        if block.mark != _RUN:
            continue
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.body],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block.body}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
