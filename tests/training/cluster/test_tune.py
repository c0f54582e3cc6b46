"""The space of a search, and the settings of one trial."""

from __future__ import annotations

import pytest
from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

from tests.support.toys import make_settings
from training.cluster import tune
from training.cluster.tune import SearchSpace, apply_choice

# Ray warns of its own settings while it is imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def test_the_space_lies_around_the_settings() -> None:
    space = SearchSpace.around(make_settings())
    assert space.learning_rates == pytest.approx((1e-3 / 3, 1e-3, 3e-3))
    assert space.latent_channels == (3, 6, 12)
    assert space.final_layers == ("relu1_2", "relu2_1")


def test_a_choice_changes_three_settings_alone() -> None:
    before = make_settings()
    choice = {"learning_rate": 0.01, "latent_channels": 9, "final_layer": "relu1_2"}
    after = apply_choice(before, choice)
    assert after.optimiser.learning_rate == 0.01
    assert after.network.latent_channels == 9
    assert after.loss.layers == {**before.loss.layers, 32: {"relu1_2": 1.0}}
    unchanged = {"learning_rate": 1e-3, "latent_channels": 6, "final_layer": "relu2_1"}
    assert apply_choice(before, unchanged) == before


def test_trials_get_no_keys_of_s3_by_what_ray_logs() -> None:
    assert tune.CHOSEN_BY
    assert not [name for name in ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")]
