"""Runs in the worker's container: prints as JSON what must outlive every container."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import boto3
from mlflow import MlflowClient
from prefect.client.orchestration import get_client


def read_models() -> dict[str, Any]:
    """Versions and aliases of every registered model."""
    client = MlflowClient()
    return {
        model.name: {
            "aliases": dict(client.get_registered_model(model.name).aliases),
            "versions": {
                version.version: version.run_id
                for version in client.search_model_versions(f"name='{model.name}'")
            },
        }
        for model in client.search_registered_models()
    }


def read_lake() -> dict[str, str]:
    """A digest over names and ETags for each ledger, dataset and scoring in the bucket."""
    digests: dict[str, Any] = {}
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket="lake")
    for entry in (entry for page in pages for entry in page.get("Contents", ())):
        parts = entry["Key"].split("/")
        name = "/".join(parts[: 3 if parts[0] == "state" else 1])
        line = f"{entry['Key']} {entry['ETag']} {entry['Size']}\n"
        digests.setdefault(name, hashlib.sha256()).update(line.encode())
    return {name: digest.hexdigest()[:16] for name, digest in sorted(digests.items())}


async def read_deployments() -> dict[str, Any]:
    """Schedules and triggers of every deployment, and the number of runs."""
    async with get_client() as client:
        deployments = await client.read_deployments()
        flows = {flow.id: flow.name for flow in await client.read_flows()}
        automations = await client.read_automations()
        return {
            "deployments": {
                f"{flows[deployment.flow_id]}/{deployment.name}": [
                    [str(schedule.schedule), schedule.active] for schedule in deployment.schedules
                ]
                for deployment in deployments
            },
            "automations": sorted(automation.name for automation in automations),
        }


print(
    json.dumps(
        {"models": read_models(), "lake": read_lake(), **asyncio.run(read_deployments())},
        sort_keys=True,
    )
)
