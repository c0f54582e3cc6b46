"""How many cores this process may use."""

from __future__ import annotations

from dask.system import cpu_count


def count_cores() -> int:
    """Count the cores that this process may use.

    Of the machine's cores a container's limit (cgroup) or an affinity mask leaves fewer.
    """
    return cpu_count()
