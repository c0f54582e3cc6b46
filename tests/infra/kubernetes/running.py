"""Pods as processes of this machine, with what a cluster would give them but no containers.

A pod has its user and no capability, its volumes, its environment, and a root file system that
cannot be written to; the image is this machine's own, with the repository at `/app`. All pods share
one network, where the names of Services lead to loopback. Needs root and `unshare`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.infra.kubernetes.network import list_services, read_environment
from tests.infra.kubernetes.rendering import ROOT, Object, Pod, find, list_pods

# Debian's folders of programs, in place of the image's.
POSTGRES = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")]
_PROGRAMS = ("unshare", "nsenter", "setpriv", "chroot", "curl", "ip")
_PLACES = "/app /home/normscope /etc/normscope /dumps /var/lib/prefect /docker-entrypoint-initdb.d"
_HOLD = f"""
set -e
mount --make-rprivate /
ip link set lo up
mount -t tmpfs tmpfs "$1/over"
mkdir "$1/over/upper" "$1/over/work"
mount -t overlay -o "lowerdir=/,upperdir=$1/over/upper,workdir=$1/over/work" overlay "$1/root"
for place in dev sys; do mount --rbind "/$place" "$1/root/$place"; done
cd "$1/root"
chmod 755 root
for place in {_PLACES} /var/lib/postgresql/data /run/postgresql; do mkdir -p ".$place"; done
mount --bind "$2" app
echo "127.0.0.1 localhost s3 $3" > etc/hosts
for user in 999 10001; do echo "u$user:x:$user:$user::/home/normscope:/bin/sh" >> etc/passwd; done
touch "$1/up"
exec sleep infinity
"""
_ENTER = """
set -e
mount --make-rprivate /
{mounts}
mount -o remount,bind,ro {root}
exec chroot {root} setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs \
  --bounding-set=-all --inh-caps=-all env --ignore-environment --chdir=/app "$@"
"""


def find_missing() -> str | None:
    """What this machine lacks for pods; None if nothing."""
    if os.geteuid() != 0:
        return "pods need root"
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"pods need {', '.join(missing)}" if missing else None


@dataclass
class Machine:
    """Where pods run; made by `running_machine`.

    Args:
        folder: Folder of the pods' volumes and logs.
        objects: The objects of an overlay, as the site has changed them.
        secrets: The entries of each Secret.
    """

    folder: Path
    objects: list[Object]
    secrets: Mapping[str, Mapping[str, str]]
    _holder: int = 0
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, name: str, *words: str, **variables: str) -> None:
        """Start the first container of a pod.

        Args:
            name: Name of the pod.
            words: Command instead of the container's own.
            variables: Environment variables beside its own.
        """
        with (self.folder / f"{name}.log").open("ab") as log:
            command = self._enter(name, 0, words, variables)
            self._started.append(
                subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
            )

    def run(self, name: str, *words: str, container: int = 0, **variables: str) -> str:
        """Run a container of a pod to its end, and return what it prints.

        Args:
            name: Name of the pod.
            words: Command instead of the container's own.
            container: Number of the container, those that run first included.
            variables: Environment variables beside its own.
        """
        command = self._enter(name, container, words, variables)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        (self.folder / f"{name}-{container}.log").write_text(done.stdout + done.stderr)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
        return done.stdout

    def ask(self, url: str, *options: str) -> int:
        """The HTTP status that a server answers, 0 for none.

        Args:
            url: URL to ask.
            options: Further options of curl.
        """
        curl = ("curl", "--silent", "--output", "/dev/null", "--max-time", "10", *options)
        asked = (*self._nsenter(), *curl, "--write-out", "%{http_code}", url)
        return int(subprocess.run(asked, capture_output=True, check=False).stdout)

    def serve(self, *words: str, **variables: str) -> None:
        """Start a program that is no pod, on the pods' network.

        Args:
            words: Program and arguments.
            variables: Its environment variables.
        """
        command = [*self._nsenter(), *words]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, **variables}
        with (self.folder / f"{words[0]}.log").open("ab") as log:
            self._started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))

    def is_well(self, name: str) -> bool:
        """Whether a pod answers all of its probes well, sent as a node sends them."""
        (container, *_) = self._find(name).list_containers()
        kinds = container.keys() & {"startupProbe", "readinessProbe", "livenessProbe"}
        assert kinds, f"{name} has no probes"
        return all(self._is_answered(name, container, container[kind]) for kind in kinds)

    def _is_answered(self, name: str, container: Object, probe: Object) -> bool:
        if "exec" in probe:
            command = self._enter(name, 0, tuple(probe["exec"]["command"]), {})
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        get = probe["httpGet"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        url = f"http://127.0.0.1:{ports[get['port']]}{get['path']}"
        return self.ask(url, "-HHost: 10.1.2.3") == 200  # a node knows no other name of the pod

    def wait(self, name: str, limit_s: float = 240) -> None:
        """Wait until a pod is well."""
        deadline = time.monotonic() + limit_s
        while not self.is_well(name):
            log = (self.folder / f"{name}.log").read_text()
            assert time.monotonic() < deadline, f"{name} is not well: {log[-3000:]}"
            time.sleep(1)

    def stop(self) -> None:
        """End all that was started, at once: `unshare` hands no gentler signal on."""
        for process in reversed(self._started):
            process.kill()
            process.wait()

    def _find(self, name: str) -> Pod:
        (pod,) = (pod for pod in list_pods(self.objects) if pod.name == name)
        return pod

    def _nsenter(self) -> tuple[str, ...]:
        return ("nsenter", "--target", str(self._holder), "--mount", "--net", "--")

    def _enter(
        self, name: str, number: int, words: tuple[str, ...], variables: Mapping[str, str]
    ) -> list[str]:
        pod = self._find(name)
        container = pod.list_containers()[number]
        environment = {**self._read_environment(container), **variables}
        own = [*container.get("command", ()), *container.get("args", ())]
        command = [_expand(str(word), environment) for word in words or own]
        root = self.folder / "root"
        script = _ENTER.format(
            mounts="\n".join(self._list_mounts(pod, container, root)),
            root=root,
            user=pod.spec["securityContext"]["runAsUser"],
        )
        return [
            *self._nsenter(),
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc"),
            *("bash", "-c", script, name),
            *(f"{key}={value}" for key, value in environment.items()),
            *command,
        ]

    def _list_mounts(self, pod: Pod, container: Object, root: Path) -> Iterator[str]:
        volumes = {volume["name"]: volume for volume in pod.spec.get("volumes", ())}
        for mount in container["volumeMounts"]:
            volume: Mapping[str, Any] = volumes.get(mount["name"], {"persistentVolumeClaim": {}})
            (kind,) = volume.keys() - {"name"}
            owner = "claims" if kind == "persistentVolumeClaim" else pod.name
            place = self.folder / "volumes" / owner / mount["name"]
            place.mkdir(parents=True, exist_ok=True)
            place.chmod(0o777)
            if kind == "configMap":
                data = find(self.objects, "ConfigMap", volume["configMap"]["name"])["data"]
                for name, text in data.items():
                    (place / name).write_text(text)
            # A link on the way would lead out of the pod's root.
            target = mount["mountPath"].replace("/var/run/", "/run/")
            yield f"mount --bind {place} {root}{target}"

    def _read_environment(self, container: Object) -> dict[str, str]:
        image = re.findall(
            r"^\s+(?:ENV )?([A-Z_]+)=(\S+)", (ROOT / "infra" / "Dockerfile").read_text(), re.M
        )
        path = ":".join([str(Path(sys.executable).parent), *POSTGRES, "/usr/bin", "/bin"])
        own = {"PATH": path, "HOME": "/home/normscope", "PYTHONDONTWRITEBYTECODE": "1"}
        variables = {**dict(image), **own, **read_environment(self.objects, container)}
        for source in container.get("envFrom", ()):
            if "secretRef" in source:
                variables |= self.secrets[source["secretRef"]["name"]]
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef", {})
            if reference.get("name") in self.secrets:
                variables[variable["name"]] = self.secrets[reference["name"]][reference["key"]]
        return variables


def _expand(word: str, environment: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], word)


@contextmanager
def running_machine(
    folder: Path, objects: list[Object], secrets: Mapping[str, Mapping[str, str]]
) -> Iterator[Machine]:
    """A machine without pods yet; all of them end with the block.

    Args:
        folder: Empty folder, not below `/tmp`, which pods cover with volumes of their own.
        objects: The objects of an overlay, as the site has changed them.
        secrets: The entries of each Secret.
    """
    for name in ("over", "root"):
        (folder / name).mkdir()
    names = " ".join(list_services(objects))
    holds = ("--mount", "--net", "--pid", "--fork", "--kill-child")
    hold = ("bash", "-c", _HOLD, "hold", str(folder), str(ROOT), names)
    with subprocess.Popen(["unshare", *holds, *hold]) as process:
        machine = Machine(folder, objects, secrets)
        try:
            deadline = time.monotonic() + 30
            while not (folder / "up").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            machine._holder = int(children.split()[0])
            yield machine
        finally:
            machine.stop()
            process.kill()
