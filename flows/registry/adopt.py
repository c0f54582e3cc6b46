"""`normscope adopt`: a person vouches for the files of a version that the ledger does not know."""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from pydantic import Field

import flows.shared.environment  # noqa: F401 -- sets variables, before the rest
from flows.shared.reports import publish
from flows.shared.settings import load_settings
from flows.shared.tasks import resumable
from training.registry.champion import LedgerReport, read_ledger
from training.registry.versions import record_files, resolve


@flow(name="adopt")
def adopt(
    model_name: str,
    *,
    version: str,
    name: Annotated[str, Field(min_length=1)],
    reason: Annotated[str, Field(min_length=1)],
    ledgers: str | None = None,
) -> LedgerReport:
    """Record the files of a version that an earlier release registered, so that it can be used.

    A version is loaded only if its files are those whose digests the ledger keeps. Since nobody
    has recorded these, a person answers for what the artifact store holds now.

    Args:
        model_name: Registered name, e.g. camelyon16-anomaly.
        version: Number or alias of the version, e.g. 3 or champion.
        name: Name of the person who vouches for the files, kept in the ledger.
        reason: Reason to trust them, kept in the ledger, e.g. compared with a backup.
        ledgers: Folder for the ledger of a model that has none yet, a path or `s3://`;
            `ledgers/` in NORMSCOPE_STATE by default.
    """
    place = load_settings().place("ledgers", ledgers)
    found = resolve(model_name, version)
    answer = {"name": name, "reason": reason}
    resumable(record_files)(found, ledgers_url=place, answer=answer)
    return publish(read_ledger(model_name, place))
