"""Small synthetic radiographs in ChestX-ray14's layout: for the demo and the tests, from a seed.

A chest painted from what absorbs: soft tissue, lungs, ribs, clavicles, spine, heart, diaphragm,
vessels. Patients differ in build, films in projection, exposure, tilt and size. Findings are
added where they would be: nodules and masses in the lungs, effusions at their bases, clouds of
infiltration, an enlarged heart. The look is that of a cartoon; layout, tables and lists are real.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.io.storage import holds, join, write_bytes

Grid: TypeAlias = NDArray[np.floating[Any]]  # one value a painted pixel

_HEADER: Final = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
_NO_FINDING: Final = "No Finding"
_FINDINGS: Final = ("Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule")
_SICK_SHARE: Final = 0.4  # of the patients
_TEST_SHARE: Final = 0.25  # of the patients
_TABLE: Final = "Data_Entry_2017.csv"


@dataclass(frozen=True, slots=True)
class _Film:
    """One radiograph: what its table row says and what it is painted from.

    Args:
        patient: Number of the patient, whose build all their films share.
        follow_up: Number of the film among them.
        findings: Official names; empty for none.
        age_years: Age of the patient when the film was taken.
        sex: `M` or `F`.
        view: `PA` or `AP`.
        height_px: Height of the image.
        width_px: Width of the image.
    """

    patient: int
    follow_up: int
    findings: tuple[str, ...]
    age_years: int
    sex: str
    view: str
    height_px: int
    width_px: int

    @property
    def name(self) -> str:
        return f"{self.patient:08}_{self.follow_up:03}.png"

    @property
    def row(self) -> str:
        return (
            f"{self.name},{'|'.join(self.findings) or _NO_FINDING},{self.follow_up},{self.patient},"
            f"{self.age_years:03}Y,{self.sex},{self.view},"
            f"{self.width_px * 10},{self.height_px * 10},0.143,0.143,\n"
        )


def write_xrays(url: str, *, seed: int, patients: int = 200, size_px: int = 256) -> None:
    """Write radiographs, their table and the official lists; nothing if they are there.

    Args:
        url: A folder or prefix; images go to `images/` in it.
        seed: Seed of the random generator; equal seeds give equal bytes.
        patients: Number of patients; each has one to five films.
        size_px: About the height and width; films differ by an eighth.

    Raises:
        StorageError: The place cannot be written.
    """
    films = list(_plan_films(seed, patients, size_px))
    table = (_HEADER + "".join(film.row for film in films)).encode()
    # The table is written last: where it stands, all the rest does.
    if holds(join(url, _TABLE), table):
        return
    for film in films:
        stream = BytesIO()
        Image.fromarray(_paint(film, seed)).save(stream, "PNG", compress_level=1)
        write_bytes(join(url, "images", film.name), stream.getvalue())
    drawn = np.random.default_rng([seed, 1]).permutation(patients) + 1
    tested = set(drawn[: max(1, round(patients * _TEST_SHARE))].tolist())
    for name, is_test in (("train_val_list.txt", False), ("test_list.txt", True)):
        names = [film.name for film in films if (film.patient in tested) is is_test]
        write_bytes(join(url, name), ("\n".join(names) + "\n").encode())
    write_bytes(join(url, _TABLE), table)


def _plan_films(seed: int, patients: int, size_px: int) -> Iterator[_Film]:
    for patient in range(1, patients + 1):
        rng = np.random.default_rng([seed, 2, patient])
        is_sick = rng.random() < _SICK_SHARE
        age, sex = int(rng.integers(18, 85)), str(rng.choice(["M", "F"]))
        for follow_up in range(int(rng.integers(1, 6))):
            count = int(rng.choice([0, 1, 1, 2])) if is_sick else 0
            findings = tuple(sorted(rng.choice(_FINDINGS, count, replace=False).tolist()))
            # Sick patients more often lie in bed, as in the real set.
            view = "AP" if rng.random() < (0.5 if findings else 0.3) else "PA"
            height, width = (int(size_px * rng.uniform(0.875, 1.125)) for _ in range(2))
            yield _Film(
                patient, follow_up, findings, age + follow_up // 2, sex, view, height, width
            )


def _paint(film: _Film, seed: int) -> NDArray[np.uint8]:
    """A film as uint8 (height, width); brighter where more is absorbed."""
    build = np.random.default_rng([seed, 3, film.patient])
    rng = np.random.default_rng([seed, 4, film.patient, film.follow_up])
    u, v = _place(film, build, rng)
    absorbed = _paint_chest(film, u, v, build, rng)
    for finding in film.findings:
        absorbed += _paint_finding(finding, u, v, rng)
    # Film saturates: what is dense already gains little.
    shown = np.tanh(np.clip(absorbed - 0.05, 0, None) * rng.uniform(1.05, 1.25))
    shown = shown ** rng.uniform(0.9, 1.15) + rng.normal(0, 0.015)
    # Anatomy is soft and is painted at half the size; noise is not.
    size = (film.width_px, film.height_px)
    large = np.asarray(Image.fromarray(shown.astype(np.float32)).resize(size))
    noise = rng.standard_normal(large.shape, np.float32) * np.float32(rng.uniform(0.008, 0.02))
    film_levels: NDArray[np.uint8] = np.clip((large + noise) * 255, 0, 255).astype(np.uint8)
    return film_levels


def _place(film: _Film, build: np.random.Generator, rng: np.random.Generator) -> tuple[Grid, Grid]:
    """Body coordinates (u, v) of every second pixel: -1 at the patient's right and at the top."""
    v, u = np.meshgrid(
        np.linspace(-1, 1, film.height_px // 2, dtype=np.float32),
        np.linspace(-1, 1, film.width_px // 2, dtype=np.float32),
        indexing="ij",
    )
    tilt = np.float32(np.deg2rad(rng.normal(0, 1.5)))
    wide, high = build.normal(1.0, 0.04), build.normal(1.0, 0.03)
    u, v = (
        np.asarray(u * np.cos(tilt) - v * np.sin(tilt), np.float32),
        np.asarray(u * np.sin(tilt) + v * np.cos(tilt), np.float32),
    )
    shift_u, shift_v = rng.normal(0, 0.03, 2)
    return (
        np.asarray(u / wide + shift_u, np.float32),
        np.asarray(v / high + shift_v, np.float32),
    )


def _paint_chest(
    film: _Film, u: Grid, v: Grid, build: np.random.Generator, rng: np.random.Generator
) -> Grid:
    """A healthy chest, or one whose heart is enlarged: absorption, about 0 to 1."""
    is_ap = film.view == "AP"
    # Nearer the source and lying: the heart is magnified, the diaphragm stands higher.
    heart_size = build.normal(1.0, 0.05) * (1.12 if is_ap else 1.0)
    heart_size *= 1.55 if "Cardiomegaly" in film.findings else 1.0
    dome_v = build.normal(0.58, 0.03) - (0.08 if is_ap else 0.0)
    torso = _soften(0.98 - 0.35 * np.clip(-v - 0.45, 0, 1) - np.abs(u), 0.05)
    lungs = _paint_lungs(u, v)
    wave = np.sin((v - 0.35 * u * u + build.uniform(-0.1, 0.1)) * build.normal(21.0, 0.8))
    ribs = np.clip(wave, 0, 1) * _soften(0.85 - np.abs(u), 0.1) * _soften(dome_v - v, 0.1)
    clavicle = np.abs(u) * 0.16 + v + 0.72 - build.normal(0, 0.01)
    clavicles = np.exp(-((clavicle / 0.03) ** 2)) * _soften(0.75 - np.abs(u), 0.05)
    spine = np.exp(-((u / 0.13) ** 2)) * torso
    heart = _soften(
        _ellipse(u, v, (0.13 * heart_size, 0.3), (0.26 * heart_size, 0.26 * heart_size)), 0.12
    )
    belly = _soften(v - dome_v - 0.22 * u * u + 0.05 * _soften(-u, 0.2), 0.03) * torso
    vessels = gaussian_filter(rng.standard_normal(u.shape, np.float32), 1.5)
    return np.asarray(
        0.55 * torso
        - 0.42 * lungs
        + 0.09 * ribs
        + 0.16 * clavicles
        + 0.2 * np.maximum(spine, 1.4 * heart)
        + 0.3 * np.maximum(belly, 0.5 * heart)
        + 0.2 * vessels * lungs * np.exp(-np.abs(u) * 1.5),
        np.float32,
    )


def _paint_lungs(u: Grid, v: Grid) -> Grid:
    right = _ellipse(u, v, (-0.45, -0.08), (0.36, 0.66))
    left = _ellipse(u, v, (0.47, -0.08), (0.33, 0.64))
    return _soften(np.maximum(right, left), 0.08)


def _paint_finding(finding: str, u: Grid, v: Grid, rng: np.random.Generator) -> Grid:
    """What a finding absorbs beyond the healthy chest; an enlarged heart is painted with it."""
    side = float(rng.choice([-1.0, 1.0]))
    at_u, at_v = side * rng.uniform(0.32, 0.6), rng.uniform(-0.45, 0.3)
    added: Grid = np.zeros_like(u)
    if finding == "Mass":
        radius = rng.uniform(0.14, 0.22)
        added = 0.4 * _soften(_ellipse(u, v, (at_u, at_v), (radius, radius * 1.2)), 0.25)
    elif finding == "Nodule":
        for _ in range(int(rng.integers(2, 6))):
            spot = (side * rng.uniform(0.25, 0.65), rng.uniform(-0.5, 0.35))
            radius = rng.uniform(0.045, 0.08)
            added = np.maximum(added, 0.38 * _soften(_ellipse(u, v, spot, (radius, radius)), 0.3))
    elif finding == "Infiltration":
        cloud = gaussian_filter(rng.standard_normal(u.shape, np.float32), 3.0)
        spread = np.exp(-(((u - at_u) / 0.28) ** 2) - ((v - at_v) / 0.35) ** 2)
        added = np.clip(0.25 + 4.0 * cloud, 0, 0.5) * spread * _paint_lungs(u, v)
    elif finding == "Effusion":
        # The fluid's surface climbs along the chest wall.
        surface = rng.uniform(0.0, 0.3) - 0.35 * np.clip(side * u - 0.45, 0, 1)
        added = 0.42 * _soften(v - surface, 0.05) * _paint_lungs(u, v) * _soften(side * u, 0.03)
    return added.astype(np.float32)


def _ellipse(
    u: Grid, v: Grid, centre_uv: tuple[float, float], radii_uv: tuple[float, float]
) -> Grid:
    """1 at the centre, 0 on the outline, negative outside."""
    (cu, cv), (ru, rv) = centre_uv, radii_uv
    return np.asarray(1 - ((u - cu) / ru) ** 2 - ((v - cv) / rv) ** 2, np.float32)


def _soften(inside: Grid, width: float) -> Grid:
    """From 0 (negative) to 1 (positive), blurred over a width."""
    return np.asarray(1 / (1 + np.exp(np.clip(-4 * inside / width, -30, 30))), np.float32)
