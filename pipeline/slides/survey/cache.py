"""Caches surveys next to a dataset, so that only new and changed slides are surveyed again.

A survey fetches the whole slide; of ten thousand slides one may be new. A survey's key is a digest
of all that it depends on: the slide as listed, its annotation, the settings, the code.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from io import BytesIO
from typing import Any, Final

import numpy as np

from pipeline.errors import AbsentError
from pipeline.io import storage
from pipeline.records import Slide
from pipeline.slides.settings import SlideSettings
from pipeline.slides.stain.fit import decode_stains, encode_stains
from pipeline.slides.stain.normalise import StainFit
from pipeline.slides.survey.measure import SlideSurvey
from pipeline.store.spec import code_version

_ARRAYS: Final = ("origins_yx", "tissue_fraction", "lesion_fraction", "label", "tissue_um2")
_FACTS: Final = ("mpp_yx", "mpp_source", "coverage", "digest")


def load_or_survey(
    url: str,
    slide: Slide,
    settings: SlideSettings,
    is_partly_annotated: bool,
    survey: Callable[[], SlideSurvey],
) -> SlideSurvey:
    """Load the cached survey of a slide, or make and cache a new one if anything has changed.

    Args:
        url: Place of this slide's survey in the cache.
        slide: The slide as listed.
        settings: Settings that the survey is made with.
        is_partly_annotated: Whether there may be lesions that nobody outlined.
        survey: Function that makes a new survey.

    Raises:
        SourceError: The slide or its annotations cannot be used.
        StorageError: One of them cannot be fetched.
    """
    key = _make_key(slide, settings, is_partly_annotated)
    try:
        cached = _decode(storage.read_bytes(url), slide, key)
    except AbsentError:
        cached = None
    if cached is not None:
        return cached
    made = survey()
    storage.write_bytes(url, _encode(made, key))
    return made


def _make_key(slide: Slide, settings: SlideSettings, is_partly_annotated: bool) -> str:
    annotation = storage.describe(slide.annotation_url).version if slide.annotation_url else ""
    facts = [
        asdict(slide),
        annotation,
        settings.model_dump(mode="json"),
        is_partly_annotated,
        code_version(),
    ]
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _encode(found: SlideSurvey, key: str) -> bytes:
    facts: dict[str, Any] = {name: getattr(found, name) for name in _FACTS}
    fit = found.stain_fit
    facts["stain_fit"] = [fit.method, fit.reason, encode_stains(fit)] if fit else None
    arrays = {name: getattr(found, name) for name in _ARRAYS}
    buffer = BytesIO()
    np.savez_compressed(buffer, key=np.array(key), facts=np.array(json.dumps(facts)), **arrays)
    return buffer.getvalue()


def _decode(data: bytes, slide: Slide, key: str) -> SlideSurvey | None:
    """Decode a survey; None where its key is another or it is damaged."""
    try:
        with np.load(BytesIO(data), allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            facts = json.loads(str(file["facts"]))
            arrays = {name: file[name] for name in _ARRAYS}
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
        return None
    mpp_y, mpp_x = facts.pop("mpp_yx")
    fit = facts.pop("stain_fit")
    if fit:
        method, reason, text = fit
        fit = StainFit(method, decode_stains(text) if text else None, reason)
    return SlideSurvey(slide=slide, mpp_yx=(mpp_y, mpp_x), stain_fit=fit, **facts, **arrays)
