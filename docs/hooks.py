"""Pages of the reference that are made from the code, each time the documentation is built."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT: Final = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those that lie in `docs/`."""
    for path, make in PAGES.items():
        files.append(File.generated(config, path, content=make()))
    return files


def write_settings() -> str:
    """Every setting of every command, with its default and its meaning."""
    from flows.shared.settings import Settings
    from pipeline.images.plan import ImageSettings
    from pipeline.slides.settings import SlideSettings
    from training.settings import TrainSettings

    sections: dict[str, tuple[str, type[BaseModel]]] = {
        "Environment": ("Read once, when a command or a flow begins.", Settings),
        "Training": (
            "The fields of the form of `train`; presets fill the rest.",
            TrainSettings,
        ),
        "Slides": ("How `ingest slides` tiles.", SlideSettings),
        "Images and radiographs": ("How `ingest images` and `ingest xrays` read.", ImageSettings),
    }
    text = ["# Settings", "", "Made from the code. Units stand in the names."]
    for title, (says, model) in sections.items():
        text += [
            "",
            f"## {title}",
            "",
            says,
            "",
            "| setting | type | default | meaning |",
            "|---|---|---|---|",
        ]
        text += _list_fields(model)
    return "\n".join(text)


def _list_fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    meanings, types = _read_attributes(model), get_type_hints(model)  # bare, without bounds
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _list_fields(inner, f"{prefix}{name}.")
            continue
        variable = str(model.model_config.get("env_prefix", "")) + name
        shown = variable.upper() if variable != name else prefix + name
        if isinstance(field.validation_alias, str):
            shown = field.validation_alias
        meaning = field.description or meanings.get(name, "")
        cells = [f"`{shown}`", f"`{_name_type(types[name])}`", _show_default(field), meaning]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _name_type(annotation: Any) -> str:
    if isinstance(annotation, type) and not hasattr(annotation, "__args__"):
        return annotation.__name__
    text = str(annotation)
    for module in ("typing.", "collections.abc.", "pydantic.types."):
        text = text.replace(module, "")
    return text.replace(" | ", " or ")


def _show_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "computed"
    return f"`{field.default}`" if isinstance(field.default, Path) else f"`{field.default!r}`"


def _read_attributes(model: type[BaseModel]) -> Mapping[str, str]:
    """The entries of a class docstring's Attributes or Args section."""
    found: dict[str, str] = {}
    name = ""
    for line in (model.__doc__ or "").splitlines():
        head, colon, rest = line.strip().partition(": ")
        if colon and head.isidentifier():
            name, found[head] = head, rest
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def write_messages() -> str:
    """Every message that a command may end or mark an item with, and what to do then."""
    rows = sorted(set(_find_messages()))
    table = [f"| {problem} | {remedy} | `{place}` |" for problem, remedy, place in rows]
    return "\n".join(
        [
            "# Messages",
            "",
            "A message reads `item: problem. Remedy`. Search this page for the part that does not "
            "depend on your data; `{...}` stands for what does. Made from the code.",
            "",
            "| problem | what to do | raised in |",
            "|---|---|---|",
            *table,
        ]
    )


def _find_messages() -> Iterator[tuple[str, str, str]]:
    for package in ("pipeline", "training", "flows"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or len(node.args) != 3:
                    continue
                if not ast.unparse(node.func).endswith("Error"):
                    continue
                problem, remedy = (_render(each) for each in node.args[1:])
                if problem.strip("{}. "):
                    yield problem, remedy, path.relative_to(ROOT).as_posix()


def _render(node: ast.expr) -> str:
    """An expression as a reader would search it: text as it is, the rest in braces."""
    if isinstance(node, ast.Constant):
        text = str(node.value)
    elif isinstance(node, ast.JoinedStr):
        text = "".join(
            str(part.value) if isinstance(part, ast.Constant) else "{...}" for part in node.values
        )
    else:
        text = "{...}"
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "reference/settings.md": write_settings,
    "reference/messages.md": write_messages,
}
