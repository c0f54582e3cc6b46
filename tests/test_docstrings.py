"""What docstrings owe their readers: entries that stand alone, examples that run.

`python -m tests.test_docstrings FOLDER...` lists the entries of a folder that do not stand alone.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).parents[1]
HELD: Final[tuple[str, ...]] = (
    "flows",
    "benchmarks",
    "pipeline/dicom",
    "pipeline/images",
    "pipeline/privacy",
    "pipeline/slides",
    "pipeline/synthetic",
    "pipeline/ingest",
    "pipeline/io",
    "pipeline/runtime",
    "pipeline/store",
    "training/cluster",
    "training/data",
    "training/evaluation",
    "training/learning",
    "training/networks",
    "training/registry",
    "training/scoring",
    "training/worklist",
    "training/presets.py",
    "training/score.py",
    "training/search.py",
    "training/settings.py",
    "training/train.py",
)
"""Folders of which every entry stands alone."""

_SECTION: Final = re.compile(r"^ *(Args|Attributes):\n((?:(?: +.*)?\n?)*)", re.MULTILINE)
_ENTRY: Final = re.compile(r"^( *)(\*{0,2}\w+)(?: \([^)]*\))?: +(.+)$")
_FRAGMENT: Final = re.compile(
    r"^(Of|Likewise|As|Which|How|Where|When|What|See|Ditto|Same|The same|For|In|Those|Its|Theirs)\b"
)
_WORDS: Final = 3


def find_fragments(path: str, source: str) -> list[str]:
    """Entries of Args and Attributes that say nothing by themselves, as a tooltip shows them."""
    return [
        f"{path}:{line} {name}: {text}"
        for line, name, text in _entries(source)
        if _FRAGMENT.match(text) or len(text.split()) < _WORDS
    ]


def _entries(source: str) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        for section in _SECTION.finditer(ast.get_docstring(node) or ""):
            lines = section[2].splitlines()
            indent = next((len(each) - len(each.lstrip()) for each in lines if each.strip()), 0)
            for at, line in enumerate(lines):
                entry = _ENTRY.match(line)
                if entry is None or len(entry[1]) != indent:
                    continue
                rest = [entry[3]]
                for more in lines[at + 1 :]:
                    if len(more) - len(more.lstrip()) <= indent:
                        break
                    rest.append(more.strip())
                yield node.lineno, entry[2], " ".join(rest)


def list_files(*folders: str) -> list[Path]:
    """The Python files among paths below the root and in the folders among them."""
    return sorted(
        path
        for place in map(ROOT.joinpath, folders)
        for path in ([place] if place.is_file() else place.rglob("*.py"))
    )


def test_every_entry_stands_alone() -> None:
    found = [
        line
        for path in list_files(*HELD)
        for line in find_fragments(path.relative_to(ROOT).as_posix(), path.read_text())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("entry", "is_found"),
    [
        ("seed: Of the resamples.", True),
        ("seed: Likewise.", True),
        ("seed: As for `draw`.", True),
        ("seed: Sealed dataset.", True),
        ("seed: Seed of the bootstrap's random resampling.", False),
        ("seed: Seed\n            of the resampling.", False),
    ],
)
def test_a_fragment_is_found(entry: str, is_found: bool) -> None:
    source = f'def draw(seed):\n    """Draw.\n\n    Args:\n        {entry}\n    """\n'
    assert bool(find_fragments("a.py", source)) is is_found


def _list_modules_with_examples() -> list[str]:
    return [
        path.relative_to(ROOT)
        .with_suffix("")
        .as_posix()
        .replace("/", ".")
        .removesuffix(".__init__")
        for path in list_files("pipeline", "training", "flows")
        if ">>> " in path.read_text()
    ]


@pytest.mark.parametrize("name", _list_modules_with_examples())
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted
    assert not result.failed


if __name__ == "__main__":
    for folder in sys.argv[1:] or ("pipeline", "training", "flows"):
        for file in list_files(folder):
            for finding in find_fragments(file.relative_to(ROOT).as_posix(), file.read_text()):
                print(finding)
