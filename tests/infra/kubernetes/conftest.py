from __future__ import annotations

import pytest

from tests.infra.kubernetes.rendering import OVERLAYS, Object, Pod, list_pods, render_overlay


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """The objects of each overlay."""
    return render_overlay(request.param)


@pytest.fixture
def pods(objects: list[Object]) -> list[Pod]:
    """The pods of each overlay."""
    return list_pods(objects)
