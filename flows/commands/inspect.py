"""`normscope inspect`: what slides hold, before they are ingested. No server is needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Annotated, Any, Final

from cyclopts import Parameter
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pipeline.errors import NormscopeError, SettingsError, SourceError
from pipeline.io.storage import join, write_bytes
from pipeline.records import Slide
from pipeline.slides.inspect import Inspection, inspect_slide
from pipeline.sources.slide_files import SLIDE_SUFFIXES, list_files

_PIPE_WIDTH: Final = 200  # characters where the output is no terminal, so that no line is broken
_MIB: Final = 1 << 20


def inspect(
    files: Annotated[list[str], Parameter(consume_multiple=True)],
    *,
    picture: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Look at slides before they are ingested.

    Each slide's levels, um/px and where it comes from, format, ICC profile, whether it holds a
    picture of its label, which may show a patient's name, and the number of tiles that an ingest
    with the default settings makes of it. Exit status: 0 all could be opened; 1 some could not;
    2 none could.

    Args:
        files: Slides, each a path or an `s3://` URL; a folder or prefix stands for all in it.
        picture: Path or URL for a small picture (PNG) of the slide with its tissue outlined. For
            several slides it is a folder. Labels and macro images are never in it.
        as_json: Print JSON, a list with one object for each slide, in place of tables.
    """
    slides = [slide for url in files for slide in _list_slides(url)]
    if picture and len(slides) > 1 and PurePosixPath(picture).suffix.lower() == ".png":
        raise SettingsError(
            "--picture", f"{picture} is one file for {len(slides)} slides", "Name a folder"
        )
    console = Console() if sys.stdout.isatty() else Console(width=_PIPE_WIDTH)
    said: list[dict[str, Any]] = []
    errors: list[NormscopeError] = []
    for slide in slides:
        try:
            if isinstance(slide, NormscopeError):
                raise slide
            found = _inspect_one(slide, picture, len(slides))
        except NormscopeError as error:
            errors.append(error)
            said.append({"item": error.item, "problem": error.problem, "remedy": error.remedy})
            print(f"normscope: {error}", file=sys.stderr)
            continue
        said.append(asdict(found))
        if not as_json:
            console.print(_draw_tables(found))
    if as_json:
        print(json.dumps(said, indent=2, allow_nan=False))
    return 0 if not errors else 2 if len(errors) == len(slides) else 1


def _list_slides(url: str) -> Iterator[Slide | NormscopeError]:
    """List the slides that a URL stands for, and the errors of what cannot be looked at."""
    try:
        files, slides, rejected = list_files(url)
    except NormscopeError as error:
        yield error
        return
    for entry in rejected:
        yield SourceError(entry.item, entry.reason, "Leave it out, or name the command for it")
    if not slides and not rejected:
        suffixes = ", ".join(sorted(SLIDE_SUFFIXES))
        yield SourceError(url, f"no slide among {len(files)} files", f"Slides end in {suffixes}")
    for slide in slides:
        yield Slide(slide.slide_id, slide.info.url, slide.version, companions=slide.companion_urls)


def _inspect_one(slide: Slide, picture: str | None, count: int) -> Inspection:
    found, drawn = inspect_slide(slide, with_picture=picture is not None)
    if picture and drawn:
        is_file = count == 1 and PurePosixPath(picture).suffix.lower() == ".png"
        name = f"{slide.slide_id.replace('/', '_')}.png"
        write_bytes(picture if is_file else join(picture.rstrip("/"), name), drawn)
    return found


def _draw_tables(found: Inspection) -> Group:
    """Draw what was found as two tables: of the slide, and of its levels."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _list_facts(found):
        facts.add_row(Text(name, style="bold"), Text(value))
    levels = Table("level", "height x width, px", "downsample y x x", "stored tiles, px")
    for number, level in enumerate(found.levels):
        down_y, down_x = level.downsample_yx
        levels.add_row(
            str(number),
            f"{level.shape_yx[0]} x {level.shape_yx[1]}",
            f"{down_y:g} x {down_x:g}",
            f"{level.tile_yx[0]} x {level.tile_yx[1]}" if level.tile_yx else "not said",
        )
    return Group(Text(found.item, style="bold"), facts, levels, Text(""))


def _list_facts(found: Inspection) -> Iterator[tuple[str, str]]:
    yield "format", f"{found.vendor}, read by {found.reader}"
    files = f" in {found.file_count} files" if found.file_count > 1 else ""
    yield "size", f"{found.size_bytes / _MIB:.1f} MiB{files}"
    if found.mpp_yx:
        yield "um/px", f"{found.mpp_yx[0]:g} x {found.mpp_yx[1]:g} (y x x), {found.mpp_source}"
    else:
        yield "um/px", f"{found.mpp_source}: give it by --mpp-fallback-um or a table"
    yield "ICC profile", found.icc_profile or "none"
    may_name = set(found.associated) - {"thumbnail"}
    warning = ": check for names before you pass the file on" if may_name else ""
    yield "other pictures", f"{', '.join(found.associated) or 'none'}{warning}"
    if found.tile_count is not None:
        yield "tiles by default", str(found.tile_count)
    elif not found.remark:
        why = "not counted, that takes long: --picture does" if found.mpp_yx else "unknown"
        yield "tiles by default", why
    if found.remark:
        yield "remark", found.remark
