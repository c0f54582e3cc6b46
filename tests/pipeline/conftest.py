"""Fixtures of the pipeline's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from distributed import LocalCluster

from tests.support.clusters import running_cluster


@pytest.fixture(scope="module")
def mending_cluster() -> Iterator[LocalCluster]:
    """A running cluster that gives an item up at its second death: one may be the machine's."""
    with running_cluster(allowed_failures=1, memory_limit="1GiB") as found:
        yield found
