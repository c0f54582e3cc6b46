"""How an ingest grows with the number of slides: memory, time, objects, bytes; and what S3 sends.

The slides are simulated: a tiny file each, and a reader that cuts its 128 tiles of 8 px out of
noise of tissue's colour, so that ten thousand take minutes. All else is real: engine (Dask, two
workers), digests, survey, review picture, parts on the local disk, table, seal. Each count of
slides is ingested in a process of its own, whose memory is that of the driver and of the
scheduler, which lives in it. `driver_growth_mib` is the growth of its peak from the fewest slides
to the most. `linearity` is the time of a slide among the most over that among the next fewer, 1
where time is linear; `linearity_by_processor` the same by the processor time of driver and workers,
which other load hardly touches. `task_bytes` is what the driver sends for a task,
`objects_per_slide` what the dataset holds in the end, all counted.

`fetched_share` is of real slides, synthetic TIFF pyramids in an S3 store: all bytes that a proxy
before the server has passed on, to the workers and to the driver, over the bytes of the slides.
`fetched_again_share` is the same for a second run, which finds nothing new. The server is Ceph's
gateway where that is installed, else moto's.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.harness import Comparison, Outcome, run_benchmark
from benchmarks.loading import running_s3
from benchmarks.peers import run_command
from benchmarks.simulated import TILES, install_reader, write_simulated
from flows.local.loopback import HOST
from pipeline.io.storage import write_bytes
from pipeline.synthetic.slides import write_slides

COUNTS: Final = {True: (100, 300, 1_000), False: (100, 1_000, 10_000)}
_WARM_UP: Final = 40
_REAL_SHAPE_YX: Final = (6144, 8192)
_BLOCK_BYTES: Final = 1 << 16


class CountingProxy(ThreadingTCPServer):
    """Passes connections on to a server, and counts what the server answers.

    Args:
        host: Host of the server.
        port: Port of the server.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int) -> None:
        super().__init__((HOST, 0), _Connection)
        self.upstream = host, port
        self.answered_bytes = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """URL of the proxy."""
        return f"http://{HOST}:{self.server_address[1]}"

    def count(self, size: int) -> None:
        """Count bytes of an answer."""
        with self._lock:
            self.answered_bytes += size


class _Connection(BaseRequestHandler):
    def handle(self) -> None:
        proxy = self.server
        assert isinstance(proxy, CountingProxy)  # noqa: S101 -- it made this
        with socket.create_connection(proxy.upstream) as upstream:
            threading.Thread(target=_pass_on, args=(self.request, upstream), daemon=True).start()
            _pass_on(upstream, self.request, proxy)


def _pass_on(
    source: socket.socket, target: socket.socket, proxy: CountingProxy | None = None
) -> None:
    with suppress(OSError):
        while data := source.recv(_BLOCK_BYTES):
            if proxy is not None:
                proxy.count(len(data))
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def counting(endpoint: str) -> Iterator[CountingProxy]:
    """Run a proxy before a server for a while."""
    place = urlsplit(endpoint)
    with CountingProxy(str(place.hostname), int(place.port or 80)) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield proxy
        proxy.shutdown()


def run_ingest(kind: str, source: str, dataset: str, warm_up: str = "") -> dict[str, Any]:
    """Ingest in a process of its own; what `benchmarks.ingest_scaling_run` says of it."""
    command = [sys.executable, "-m", "benchmarks.ingest_scaling_run", kind, source, dataset]
    found: dict[str, Any] = json.loads(run_command([*command, warm_up], "ingest failed"))
    return found


def grow(folder: Path, counts: tuple[int, ...]) -> dict[int, dict[str, Any]]:
    """Ingest so many simulated slides: count -> what the ingest says of it."""
    install_reader(folder / "installed")
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, paths), str(folder / "installed")])
    write_simulated(folder / "warm-up", _WARM_UP)
    found = {}
    for count in counts:
        source = folder / f"slides-{count}"
        write_simulated(source, count)
        dataset = str(folder / f"dataset-{count}")
        found[count] = run_ingest("simulated", str(source), dataset, str(folder / "warm-up"))
        if found[count]["tiles"] != count * TILES:
            raise ValueError(f"{found[count]['tiles']} tiles of {count} slides")
    return found


@dataclass(frozen=True)
class Fetched:
    """What an ingest of slides on S3 fetched.

    Args:
        slides: Number of the slides.
        slide_bytes: Size of all slides.
        first_bytes: Bytes that the server sent during the first ingest.
        again_bytes: Bytes that the server sent during the second ingest.
        server: Name of the server.
    """

    slides: int
    slide_bytes: int
    first_bytes: int
    again_bytes: int
    server: str


def fetch(folder: Path, count: int) -> Fetched:
    """Ingest real slides from S3 into S3, twice, and count what the server sends.

    The scratch folder is new: an earlier benchmark may have left copies of equal slides.
    """
    (folder / "scratch").mkdir()
    os.environ["TMPDIR"] = str(folder / "scratch")
    local = folder / "real"
    write_slides(
        str(local), normal_count=count, tumor_count=0, test_count=0, shape_yx=_REAL_SHAPE_YX
    )
    paths = sorted(local.rglob("*.tif"))
    with running_s3(folder / "server") as (bucket, server):
        for path in paths:
            write_bytes(f"{bucket}/slides/{path.name}", path.read_bytes())
        sent = []
        with counting(os.environ["AWS_ENDPOINT_URL"]) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.url
            for state in ("made", "kept"):
                before = proxy.answered_bytes
                found = run_ingest("real", f"{bucket}/slides", f"{bucket}/dataset")
                if found[state] != count:
                    raise ValueError(f"{found[state]} of {count} slides were {state}")
                sent.append(proxy.answered_bytes - before)
    size = sum(path.stat().st_size for path in paths)
    return Fetched(count, size, sent[0], sent[1], server)


def measure(quick: bool) -> Outcome:
    """Grow, then fetch."""
    with tempfile.TemporaryDirectory(prefix="normscope-scaling-") as name:
        fetched = fetch(Path(name), 4 if quick else 12)
        grown = grow(Path(name), COUNTS[quick])
    return conclude(grown, fetched)


def conclude(grown: dict[int, dict[str, Any]], fetched: Fetched) -> Outcome:
    """Make the figures."""
    fewest, middle, most = sorted(grown)
    slide_s, slide_core_s = (
        {count: found[name] / count for count, found in grown.items()}
        for name in ("seconds", "core_seconds")
    )
    rates = {f"{count:,} slides": [1 / seconds] for count, seconds in slide_s.items()}
    comparison = Comparison("Simulated slides", "slides/s", rates, f"{fewest:,} slides")
    peaks = {count: found["peak_memory_mib"] for count, found in grown.items()}
    metrics = {
        "driver_growth_mib": peaks[most] - peaks[fewest],
        "linearity": slide_s[most] / slide_s[middle],
        "linearity_by_processor": slide_core_s[most] / slide_core_s[middle],
        "objects_per_slide": grown[most]["objects"] / most,
        "task_bytes": grown[most]["sent_bytes_a_task"],
        "fetched_share": fetched.first_bytes / fetched.slide_bytes,
        "fetched_again_share": fetched.again_bytes / fetched.slide_bytes,
        "seconds_per_slide": slide_s[most],
        "core_seconds_per_slide": slide_core_s[most],
        **{f"driver_peak_mib_{count}": peak for count, peak in peaks.items()},
    }
    notes = (
        f"A simulated slide has {TILES} tiles of 8 px; two workers. The memory is that of the "
        "process of driver and scheduler.",
        f"Fetched: {fetched.slides} synthetic TIFF pyramids, "
        f"{fetched.slide_bytes / 2**20:.0f} MiB, on {fetched.server}.",
    )
    return Outcome([comparison], metrics, notes)


if __name__ == "__main__":
    run_benchmark("ingest_scaling", measure)
