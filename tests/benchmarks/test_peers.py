"""Peers live in environments of their own."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from benchmarks.peers import make_environment, run_peer


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment([], cache=tmp_path_factory.mktemp("peers"))


def test_an_environment_is_made_once(python: Path) -> None:
    made = python.stat().st_ino, (python.parents[1] / "installed.json").stat().st_mtime_ns
    again = make_environment([], cache=python.parents[2])
    assert again == python
    assert made == (again.stat().st_ino, (again.parents[1] / "installed.json").stat().st_mtime_ns)


def test_a_peer_sees_nothing_of_ours(python: Path, tmp_path: Path) -> None:
    script = tmp_path / "look.py"
    script.write_text(
        "import importlib.util, json, sys\n"
        "print('chatter')\n"
        "names = ['numpy', 'pipeline', 'json']\n"
        "print(json.dumps([n for n in names if importlib.util.find_spec(n)] + sys.argv[1:]))\n"
    )
    assert run_peer(python, script, "asked") == ["json", "asked"]


def test_a_failing_peer_says_why(python: Path, tmp_path: Path) -> None:
    script = tmp_path / "fail.py"
    script.write_text("raise SystemExit('no such slide')\n")
    with pytest.raises(RuntimeError, match=r"fail\.py failed: no such slide"):
        run_peer(python, script)


def test_what_cannot_be_installed_is_named(tmp_path: Path) -> None:
    absent = f"thing @ {(tmp_path / 'absent.whl').as_uri()}"
    with pytest.raises(RuntimeError, match="cannot install thing"):
        make_environment([absent], cache=tmp_path)
    # Half an environment must not be taken for a whole one.
    assert not list(tmp_path.rglob("installed.json"))


def test_a_peer_may_be_installed_over_what_it_asks_for(tmp_path: Path) -> None:
    wheel = tmp_path / "picky-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("picky.py", "")
        facts = "Metadata-Version: 2.1\nName: picky\nVersion: 1.0\n"
        asked = "Requires-Dist: absent @ file:///absent-1.0-py3-none-any.whl\n"
        file.writestr("picky-1.0.dist-info/METADATA", facts + asked)
        file.writestr("picky-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("picky-1.0.dist-info/RECORD", "")
    python = make_environment([], cache=tmp_path, unpinned=[f"picky @ {wheel.as_uri()}"])
    script = tmp_path / "look.py"
    script.write_text("import picky; print(1)")
    assert run_peer(python, script) == 1
