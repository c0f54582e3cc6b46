"""Parses GeoJSON as QuPath writes it, and every other form of RFC 7946. Pure.

QuPath's `name` and the `name` or `names` of its `classification` are an outline's name and group:
https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html. A class such as
`["Tumor", "Positive"]`, which earlier versions write `Tumor: Positive`, is derived from the first.
"""

from __future__ import annotations

import json
from typing import Any, Final

import shapely
from pydantic_core import from_json
from shapely.geometry.base import BaseGeometry

from pipeline.errors import SourceError
from pipeline.slides.outlines.annotation import (
    REMEDY,
    Annotation,
    make_annotation,
    require_possible,
)

_SEPARATOR: Final = ": "
# Kinds of objects that QuPath makes by the thousand; without a class nobody has judged them.
_MADE: Final = frozenset({"cell", "detection", "tile", "tma core"})


def parse_geojson(content: bytes, item: str) -> list[Annotation]:
    """Parse a collection, a feature, a bare geometry, or the bare list of features of QuPath.

    NaN and infinity, which QuPath writes among its measurements, are read though RFC 8259 knows
    neither; in a coordinate they are refused.

    Args:
        content: Bytes of the file.
        item: Name of the file, for errors.

    Raises:
        SourceError: It is malformed, or a coordinate is not finite or lies beyond any slide.
    """
    try:
        document = from_json(content, allow_inf_nan=True)
    except ValueError as error:
        raise SourceError(item, f"malformed JSON ({error})", REMEDY) from error
    features = _list_features(document)
    if not isinstance(features, list):
        raise SourceError(item, "not GeoJSON: its `features` are not a list", REMEDY)
    return [_parse_feature(feature, number, item) for number, feature in enumerate(features, 1)]


def _list_features(document: Any) -> Any:
    if isinstance(document, list):
        return document
    if "features" in document:
        return document["features"]
    return [document if document.get("type") == "Feature" else {"geometry": document}]


def _parse_feature(feature: Any, number: int, item: str) -> Annotation:
    """Parse a feature, which may have no geometry and no classification."""
    try:
        feature = _read_object({"feature": feature}, "feature")
        properties = _read_object(feature, "properties")
        classes = _list_classes(_read_object(properties, "classification"))
        outline = _read_outline(feature)
    except (TypeError, ValueError, shapely.GEOSException) as error:
        raise SourceError(item, f"not GeoJSON: feature {number}: {error}", REMEDY) from error
    kind = str(properties.get("objectType") or "")
    name = str(properties.get("name") or "")
    # "A: B: C" first, then what that is derived from: "A: B" and "A".
    lineage = tuple(_SEPARATOR.join(classes[:stop]) for stop in range(len(classes), 0, -1))
    maker = kind if kind in _MADE and not lineage else ""
    require_possible(shapely.get_coordinates(outline), name or f"feature {number}", item)
    return make_annotation(name, lineage, outline, maker=maker)


def _list_classes(classification: dict[str, Any]) -> list[str]:
    """List the classes that a classification consists of, the most general first."""
    names = classification.get("names")
    if names is None:
        return [part for part in str(classification.get("name") or "").split(_SEPARATOR) if part]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"the names of its classification are not a list but {str(names)[:40]!r}")
    return [name for name in names if name]


def _read_outline(feature: dict[str, Any]) -> BaseGeometry:
    if "geometry" not in feature:
        raise ValueError("it has no geometry")
    geometry = _read_object(feature, "geometry")
    outline = shapely.from_geojson(json.dumps(geometry, allow_nan=False)) if geometry else None
    return outline or shapely.Polygon()


def _read_object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a member that must be an object; empty where it is null or absent."""
    value = parent.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"its {name} is not an object but {str(value)[:40]!r}")
    return value
