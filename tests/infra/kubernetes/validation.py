"""Schemas of Kubernetes and of its operators, with unknown fields refused."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
from jsonschema import Draft202012Validator, ValidationError

from tests.infra.kubernetes.rendering import Object

__all__ = ["OLDEST", "ValidationError", "validate"]

OLDEST = "1.31"
_FOLDER = Path(__file__).parent / "schemas"
_CUSTOM = {
    ("ray.io/v1", "RayCluster"),
    ("ray.io/v1", "RayJob"),
    ("kubernetes.dask.org/v1", "DaskCluster"),
    ("kubernetes.dask.org/v1", "DaskAutoscaler"),
}


def validate(object_: Object, version: str) -> None:
    """Check an object against its schema.

    Args:
        object_: The object.
        version: Version of Kubernetes.

    Raises:
        ValidationError: A field is unknown, absent or of another type.
    """
    if (object_["apiVersion"], object_["kind"]) in _CUSTOM:
        _read_custom(object_["kind"].lower()).validate(object_)
        metadata = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": object_["metadata"]}
        kubernetes_validate.validate(metadata, version, strict=True)
    else:
        kubernetes_validate.validate(object_, version, strict=True)


@cache
def _read_custom(kind: str) -> Draft202012Validator:
    schema = json.loads(gzip.decompress((_FOLDER / f"{kind}.json.gz").read_bytes()))
    for field in ("apiVersion", "kind", "metadata"):
        schema["properties"].setdefault(field, {})
    return Draft202012Validator(_close(schema))


def _close(schema: Any) -> Any:
    """Refuse fields that an object's schema does not name."""
    if isinstance(schema, list):
        return [_close(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _close(value) for key, value in schema.items()}
    is_open = closed.keys() & {"additionalProperties", "x-kubernetes-preserve-unknown-fields"}
    if closed.get("type") == "object" and "properties" in closed and not is_open:
        closed["additionalProperties"] = False
    return closed
