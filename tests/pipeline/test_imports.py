"""Importing a library must not change its host: other libraries' settings stay as they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pydicom import config

from pipeline.dicom.parse import refusing

SCRIPT = """
import importlib, json, logging, sys, warnings
from pathlib import Path
import cv2, highdicom, numpy, PIL.Image, pydicom
from pydicom import config
from pydicom.pixels.decoders.base import _PIXEL_DATA_DECODERS

def describe():
    log = logging.getLogger("pydicom")
    plain = (str, int, float, bool, type(None))
    return {
        "config": {k: v for k, v in vars(config).items() if isinstance(v, plain)},
        "modes": [str(config.settings.reading_validation_mode),
                  str(config.settings.writing_validation_mode)],
        "log": [log.level, log.propagate, log.disabled, repr(log.handlers), repr(log.filters)],
        "root log": repr(logging.getLogger().handlers),
        "decoders": {uid: sorted([*d._available, *d._unavailable])
                     for uid, (d, _) in _PIXEL_DATA_DECODERS.items()},
        "threads": cv2.getNumThreads(),
        "pillow": PIL.Image.MAX_IMAGE_PIXELS,
        "numpy": numpy.geterr(),
    }

before = describe()
names = [
    path.with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for path in sorted(Path("pipeline").rglob("*.py"))
]
for name in names:
    importlib.import_module(name)
print(json.dumps([before, describe(), len(names)]))
"""


def test_importing_every_module_changes_no_setting_of_other_libraries() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after, count = json.loads(done.stdout)
    assert count > 50
    assert after == before


def test_reading_puts_pydicoms_settings_back_once_the_last_reader_is_done() -> None:
    before = config.settings.reading_validation_mode
    assert before != config.IGNORE
    one, other = (refusing("a", "damaged", "Leave it out") for _ in range(2))
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert config.settings.reading_validation_mode == config.IGNORE
    other.__exit__(None, None, None)
    assert config.settings.reading_validation_mode == before
