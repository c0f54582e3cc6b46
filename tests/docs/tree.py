"""The tree of the code in `docs/explanation/architecture.md`, drawn from the code itself.

`python -m tests.docs.tree` draws it anew.
"""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "explanation" / "architecture.md"
PACKAGES: Final = ("pipeline", "training", "flows", "infra")
_START: Final = "```text\npipeline/"


def draw_tree() -> str:
    """Draw each package with its sentence and the names of its modules."""
    lines: list[str] = []
    for package in PACKAGES:
        folders = sorted(path.parent for path in (ROOT / package).rglob("__init__.py"))
        for folder in folders:
            depth = len(folder.relative_to(ROOT).parts) - 1
            says = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
            modules = sorted(
                path.stem for path in folder.glob("*.py") if not path.stem.startswith("__")
            )
            lines.append(f"{'    ' * depth}{folder.name}/".ljust(22) + says.split("\n\n")[0])
            indent = " " * (4 * depth + 4)
            lines += textwrap.wrap(
                " ".join(modules), 92, initial_indent=indent, subsequent_indent=indent
            )
    return "\n".join(lines)


def replace_tree(page: str) -> str:
    """Put today's tree into the text of the page."""
    start = page.index(_START)
    end = page.index("\n```\n", start)
    return page[:start] + "```text\n" + draw_tree() + page[end:]


if __name__ == "__main__":
    PAGE.write_text(replace_tree(PAGE.read_text()))
