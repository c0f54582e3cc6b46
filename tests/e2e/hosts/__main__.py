"""The long run: `python -m tests.e2e.hosts`, as root; it ends with status 0 if nothing was lost."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.e2e.hosts import network, servers
from tests.e2e.hosts.chain import Chain, reading_s3
from tests.e2e.hosts.disturbances import DISTURBANCES, Disturbance
from tests.e2e.hosts.findings import find_planted
from tests.e2e.hosts.long_run import LongRun, say
from tests.e2e.hosts.network import REPOSITORY, running_lan
from tests.e2e.hosts.servers import NAMES, Servers
from tests.e2e.hosts.steps import write_scans


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Arguments; those of the process by default.

    Returns:
        0 if every step made the same as in calm and no secret was written, 1 if not, 2 if this
        machine cannot run it.
    """
    chosen = _parse(arguments)
    wanted = [each for each in DISTURBANCES if chosen.only in {None, each.host}]
    if chosen.list:
        for each in wanted:
            print(
                f"{each.step:7} {each.modality:7} {each.host:9} {each.fault:7} {each.seconds:g} s"
            )
        return 0
    missing = network.find_missing() or servers.find_missing_server()
    if missing:
        print(missing, file=sys.stderr)
        return 2
    with TemporaryDirectory(prefix="hosts-", ignore_cleanup_errors=True) as folder:
        return _run(Path(folder), wanted)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.hosts", description=__doc__)
    parser.add_argument("--only", choices=NAMES, metavar="HOST", help="disturb this host alone")
    parser.add_argument("--list", action="store_true", help="list the disturbances, run nothing")
    return parser.parse_args(arguments)


def _run(folder: Path, wanted: Sequence[Disturbance]) -> int:
    began = time.monotonic()
    with running_lan(folder, {"PYTHONPATH": str(REPOSITORY)}) as lan:
        lan.add(*NAMES)
        started = Servers(lan)
        started.start()
        started.run_command("normscope", "deploy")
        with reading_s3(lan):
            write_scans()
            say(f"{len(NAMES)} hosts are up, the scans on S3; {time.monotonic() - began:.0f} s")
            run = LongRun(Chain(lan, started))
            run.run_calm({each.step for each in wanted})
            run.disturb(wanted)
            planted = find_planted(lan)
    say(f"secrets that were written: {planted or 'none'}")
    for each in run.failures:
        say(f"FAILED {each}")
    good, minutes = len(wanted) - len(run.failures), (time.monotonic() - began) / 60
    say(f"{good} of {len(wanted)} disturbances lost nothing; {minutes:.0f} min in all")
    return int(bool(run.failures or planted))


if __name__ == "__main__":
    sys.exit(main())
