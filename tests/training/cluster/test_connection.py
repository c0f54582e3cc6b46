from __future__ import annotations

import pytest
import ray

from training.cluster.connection import Share, WorkersError, running_ray

# Ray warns of its own settings while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no-such-host.invalid:6379"]
)
def test_a_cluster_that_does_not_answer_is_named(address: str) -> None:
    with (
        pytest.raises(WorkersError, match=f"{address}: no Ray cluster answers. Start one"),
        running_ray(address, 1),
    ):
        pass


@pytest.mark.slow
def test_a_ray_of_our_own_has_cores_for_all_workers_though_fewer_will_do() -> None:
    with running_ray(None, 7, Share(cpus=2), fewest=1):
        assert ray.cluster_resources()["CPU"] >= 14  # type: ignore[no-untyped-call]  # Ray's own


@pytest.mark.slow
def test_gpus_that_are_not_there_are_not_waited_for() -> None:
    with (
        pytest.raises(WorkersError, match=r"100 GPU needed, \d+ available\. Ask for less"),
        running_ray(None, 200, Share(gpus=0.5)),
    ):
        pass
