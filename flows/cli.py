"""`normscope ...`: the flows themselves, in this process or against `PREFECT_API_URL`.

Every command but the last few is a Prefect flow with its own names and types; what `--help` says
of a parameter is what Prefect's form says of it. Exit status: 0 all done; 1 done, but some items
failed (the manifest lists them); 2 refused or impossible, with one line that says what to do.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from shlex import quote
from typing import Annotated, Any, Final

from cyclopts import App, CycloptsError, Parameter
from cyclopts.help import DefaultFormatter, HelpEntry
from cyclopts.help.specs import ColumnSpec, NameRenderer, get_default_parameter_columns
from pydantic import ValidationError
from rich.console import Console, ConsoleOptions
from rich.markdown import Markdown

from flows.local.access import USER, Access, Host, password_path
from flows.local.loopback import HOST
from flows.local.stack import (
    Port,
    StackPorts,
    find_stack,
    running_prefect_server,
    start_stack,
    stop_stack,
    usual_stack,
)
from flows.shared.settings import (
    Settings,
    adopt_environment,
    library_environment,
    prepare_environment,
)
from pipeline.errors import NormscopeError, SettingsError
from training.presets import explain

_HELP: Final = (
    "Learn what normal medical images look like, and rank new ones by how far they stray from it.\n"
    "\n"
    "The way through: `ingest` scans into a dataset, `train` on it, `promote` the new version, "
    "`score` new images with the champion. `demo` does all of it on synthetic scans."
)
_PORTS: Final = StackPorts()
_NAME_WIDTH: Final = 46  # of the longest option, --train.acceleration.no-uses-channels-last
# Command -> (flow, what it does, example). The flows are imported when called: they bring Ray.
_FLOWS: Final[dict[tuple[str, ...], tuple[str, str, str]]] = {
    ("demo",): (
        "flows.demo:demo",
        "Run the whole chain on synthetic slides and X-rays.",
        "normscope demo",
    ),
    ("ingest", "slides"): (
        "flows.ingest_slides:ingest_slides",
        "Tile whole-slide images into a dataset.",
        "normscope ingest slides s3://archive/camelyon16 s3://lake/camelyon16 --mpp-um 1",
    ),
    ("ingest", "xrays"): (
        "flows.ingest_xrays:ingest_xrays",
        "Preprocess ChestX-ray14 radiographs into a dataset.",
        "normscope ingest xrays ChestX-ray14/ xrays.zarr --views PA --size-px 64",
    ),
    ("ingest", "images"): (
        "flows.ingest_images:ingest_images",
        "Preprocess a folder of images with a label table into a dataset.",
        "normscope ingest images pcam/ pcam.zarr --labels pcam/manifest.csv",
    ),
    ("export",): (
        "flows.export:export",
        "Write where the tiles of each slide lie, for QuPath, CLAM, TRIDENT or a table.",
        "normscope export camelyon.zarr tiles/ --export-format geojson",
    ),
    ("train",): (
        "flows.train:train",
        "Train on a dataset's normal images and register the result as challenger.",
        "normscope train pcam.zarr --preset quick --vgg-weights vgg19.pth --workers 2",
    ),
    ("search",): (
        "flows.search:search",
        "Choose hyperparameters by the few labelled anomalies of the validation split.",
        "normscope search pcam.zarr --trials 6",
    ),
    ("promote",): (
        "flows.promote:promote",
        "Let the challenger face the champion, and move the alias if it wins.",
        "normscope promote pcam-anomaly pcam.zarr",
    ),
    ("answer",): (
        "flows.registry.answer:answer",
        "Approve or refuse a challenger that the gate has held for a person.",
        'normscope answer pcam-anomaly --verdict approve --name "A. Reader" --reason "as good"',
    ),
    ("rollback",): (
        "flows.registry.rollback:rollback",
        "Make the champion before this one champion again.",
        'normscope rollback pcam-anomaly --reason "it ranks pen marks first"',
    ),
    ("adopt",): (
        "flows.registry.adopt:adopt",
        "Vouch for the files of a version that an earlier release registered.",
        'normscope adopt pcam-anomaly --version 3 --name "A. Reader" --reason "from our backup"',
    ),
    ("ledger",): (
        "flows.registry.ledger:ledger",
        "Verify and print what became of a model.",
        "normscope ledger pcam-anomaly",
    ),
    ("lineage",): (
        "flows.registry.lineage:lineage",
        "Trace a score to model, run, datasets, source bytes and code.",
        "normscope lineage out/ valid/tumor/00017.jpg",
    ),
    ("feedback",): (
        "flows.feedback:feedback",
        "Take readers' exported verdicts into a table of labels.",
        "normscope feedback verdicts-pcam-anomaly-version-3.json --table verdicts.csv",
    ),
    ("score",): (
        "flows.score:score",
        "Score a folder, prefix or dataset with the champion and write the worklist.",
        "normscope score new-images/ out/ --model-name pcam-anomaly",
    ),
}

# Plain functions of `flows.commands`, in a module of that name -> what it does, example.
_COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "status": (
        "Say how far a dataset is: sealed, being made, or left halfway.",
        "normscope status s3://lake/camelyon16",
    ),
    "sheet": (
        "Write a sample sheet of a folder's slides or images, to be filled in.",
        "normscope sheet s3://archive/slides slides.csv",
    ),
    "inspect": (
        "Look at slides before they are ingested: levels, um/px, format, colours, tissue.",
        "normscope inspect slide.svs --picture slide.png",
    ),
    "metrics": (
        "Serve figures of the flow runs to Prometheus: images, bytes, queue, failures.",
        "normscope metrics --port 9400",
    ),
    "verify": (
        "Verify every digest of a dataset against what lies there.",
        "normscope verify s3://lake/camelyon16",
    ),
    "remove": (
        "Remove a patient or a slide from a dataset, with an entry in its ledger.",
        "normscope remove s3://lake/xrays.zarr --patient 00013 "
        '--name "A. Reader" --reason "consent withdrawn" --dry-run',
    ),
}


def _make_columns(
    console: Console, options: ConsoleOptions, entries: list[HelpEntry]
) -> tuple[ColumnSpec, ...]:
    """Make the columns of the help; names of options are whole, however narrow the terminal."""
    return tuple(
        column.copy(renderer=NameRenderer(max_width=_NAME_WIDTH), max_width=_NAME_WIDTH)
        if isinstance(column.renderer, NameRenderer)
        else column
        for column in get_default_parameter_columns(console, options, entries)
    )


app = App(name="normscope", help=_HELP, version=version("normscope"))
_ingest = App(name="ingest", help="Turn scans into a sealed dataset.")
app.command(_ingest)
for _path, (_flow, _what, _example) in _FLOWS.items():
    (_ingest if len(_path) == 2 else app).command(
        _flow,
        name=_path[-1],
        help=_what,
        help_epilogue=f"Example: {_example}",
        help_formatter=DefaultFormatter(column_specs=_make_columns),
        version_flags=[],  # `answer` has an option of that name
    )


for _name, (_what, _example) in _COMMANDS.items():
    app.command(
        f"flows.commands.{_name}:{_name}",
        name=_name,
        help=_what,
        help_epilogue=f"Example: {_example}",
        help_formatter=DefaultFormatter(column_specs=_make_columns),
    )


@app.command(help_epilogue="Example: normscope up")
def up(
    *,
    host: Host = HOST,
    passwords: bool | None = None,
    prefect_port: Port = _PORTS.prefect,
    mlflow_port: Port = _PORTS.mlflow,
    ray_port: Port = _PORTS.ray,
    ray_dashboard_port: Port = _PORTS.ray_dashboard,
) -> None:
    """Start Prefect, a worker, MLflow and Ray on this machine, and leave them running.

    Args:
        host: Address that their pages listen on: 127.0.0.1 for this machine alone, 0.0.0.0 for
            every network that it is in.
        passwords: Let Prefect and MLflow ask for a password, which commands read from the home
            folder; by default where other machines reach them. Ray always asks for its token.
        prefect_port: Port of Prefect's server and page; 0 takes a free one.
        mlflow_port: Port of MLflow's server and page; 0 takes a free one.
        ray_port: Port of Ray's control store; 0 takes a free one.
        ray_dashboard_port: Port of Ray's page, which takes jobs too; 0 takes a free one.
    """
    settings = Settings()
    ports = StackPorts(prefect_port, mlflow_port, ray_port, ray_dashboard_port)
    stack = start_stack(settings, ports, Access(host, passwords))
    print(f"Prefect  {stack.prefect_api_url.removesuffix('/api')}")
    print(f"MLflow   {stack.mlflow_tracking_uri}")
    print(f"Ray      {stack.ray_address}")
    if stack.password is not None:
        print(f"Pages    user {USER}, password in {password_path(settings)}")
    print("Commands find them by themselves. Next: normscope deploy")


@app.command(help_epilogue="Example: normscope down")
def down() -> None:
    """Stop what `up` started; all state stays in the home folder."""
    stopped = stop_stack(Settings())
    print(f"Stopped {', '.join(stopped)}." if stopped else "Nothing was running.")


@app.command(help_epilogue='Example: eval "$(normscope env)"')
def env() -> None:
    """Print the variables for servers and shells of your own, at the usual ports of this machine.

    Prefect, MLflow, Ray and workers that you start by hand all need the same ones.
    """
    settings = Settings()
    stack = find_stack(settings) or usual_stack()
    for name, value in {**library_environment(settings), **stack.environment()}.items():
        print(f"export {name}={quote(value)}")


@app.command(help_epilogue="Example: normscope deploy")
def deploy() -> None:
    """Deploy every flow to the work pool `local` of the server at `PREFECT_API_URL` or of `up`.

    With them come automations that run lost runs again and, where `NORMSCOPE_NOTIFY_URL` is set,
    notify of drift, undecided promotions and failed runs.
    """
    from flows.local.deployments import deploy_all  # noqa: PLC0415 -- imports every flow

    deployed = deploy_all()
    for name in deployed.deployments:
        print(f"Deployed {name}")
    for name in deployed.kept:
        print(f"Kept what was set on Prefect's page of {name}")
    for name in deployed.automations:
        print(f"Automation {name!r}")
    for note in deployed.notes:
        print(f"Note: {note}")


@contextmanager
def _prefect(settings: Settings) -> Iterator[None]:
    """A Prefect API for one command: the one that is set, the local stack's, or our own."""
    from prefect.logging.handlers import APILogHandler  # noqa: PLC0415 -- slow
    from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: PLC0415

    from flows.local.prefect_api import require_prefect_server  # noqa: PLC0415

    if settings.prefect_api_url:
        require_prefect_server(settings.prefect_api_url)
        yield
        return
    with running_prefect_server(settings) as url, temporary_settings({PREFECT_API_URL: url}):
        try:
            yield
        finally:
            APILogHandler().flush()  # before the server is gone


def _quieten(record: logging.LogRecord) -> bool:
    """Take the traceback off an error that the user can mend: its one line says it all."""
    if record.exc_info and isinstance(record.exc_info[1], NormscopeError):
        record.exc_info = None
    return True


def _run_flow(flow: Any, bound: Any, settings: Settings) -> int:
    from flows.shared.reports import count_failures, to_markdown  # noqa: PLC0415 -- imports Ray

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_quieten)
    with _prefect(settings):
        report = flow(*bound.args, **bound.kwargs)
    console, said = Console(), to_markdown(report)
    if console.is_terminal:
        console.print(Markdown(said))
    else:
        print(said)  # as it is: whoever reads a pipe or a log wants no line broken
    failures = count_failures(report)
    if failures:
        print(f"{failures} items failed; the manifest lists them.", file=sys.stderr)
    return 1 if failures else 0


app.meta.version_flags = []  # `app` has the flag; a command's own `--version` must get through


def _explain(error: CycloptsError | ValidationError) -> str:
    """Say in one line what is wrong with a command line, or with settings made of it."""
    if isinstance(error, ValidationError):
        return str(SettingsError.of(error, error.title))
    cause = error.__cause__ or error.__context__
    if isinstance(cause, ValidationError):
        first = cause.errors()[0]
        if any(isinstance(part, str) for part in first["loc"]):  # within the settings of a training
            return str(explain(cause))
        if error.argument:
            return f"{error.argument.name}: {first['input']!r} is not allowed: {first['msg']}"
    return " ".join(str(error).split())


def _parse(tokens: tuple[str, ...]) -> tuple[Any, Any]:
    """Find the command of a command line, and bind its arguments."""
    try:
        command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    except IndexError as error:  # cyclopts' own, where a group of settings gets a value
        arguments = app.parse_commands(tokens)[1][-1].assemble_argument_collection()
        options = {token.partition("=")[0] for token in tokens}
        group = next(each.name for each in arguments if each.children and options & {*each.names})
        problem, remedy = "it is a group of settings and takes no value", "give one of them a value"
        raise SettingsError(
            group, problem, f"See `--help` and {remedy} by `{group}.NAME`"
        ) from error
    return command, bound


@app.meta.default
def launch(*tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)]) -> int:
    """Run one command.

    Args:
        tokens: The command line.

    Returns:
        The exit status.
    """
    try:
        command, bound = _parse(tokens)
        if hasattr(command, "with_options"):  # a flow
            return _run_flow(command, bound, Settings())
        return command(*bound.args, **bound.kwargs) or 0
    except (CycloptsError, ValidationError) as error:
        print(f"normscope: {_explain(error)}", file=sys.stderr)
        return 2
    except NormscopeError as error:
        print(f"normscope: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit):  # the latter is what Ray makes of the former
        print("normscope: interrupted; the same command again goes on from here", file=sys.stderr)
        return 130
    except Exception:  # noqa: BLE001 -- whatever it is, 1 says that the work is done
        traceback.print_exc()
        print("normscope: this is a defect of Normscope's own; please report it", file=sys.stderr)
        return 3


def main() -> None:
    """The console script."""
    try:
        settings = Settings()
    except ValidationError as error:
        print(f"normscope: environment variables: {_explain(error)}", file=sys.stderr)
        sys.exit(2)
    stack = find_stack(settings)
    if stack is not None:
        adopt_environment(stack.environment())
        settings = Settings()
    prepare_environment(settings)
    if sys.stderr.isatty():  # there a bar shows how far the work is
        adopt_environment({"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING"})
    sys.exit(app.meta())
