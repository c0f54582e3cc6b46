"""Names of models and runs: made lawful where they are ours, refused early where given."""

from __future__ import annotations

import pytest

from pipeline.errors import SettingsError
from training.names import check_run_name, choose_model_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("camelyon16", "camelyon16-anomaly"),
        ("site.A", "site.A-anomaly"),
        ("My images", "My-images-anomaly"),
        ("O'Brien", "O-Brien-anomaly"),
        ("Zürich/2", "Zurich-2-anomaly"),
        ("a" * 300, "a" * 100 + "-anomaly"),
    ],
)
def test_a_default_name_is_lawful(source: str, name: str) -> None:
    assert choose_model_name(source) == name
    check_run_name(choose_model_name(source))


def test_sources_without_a_latin_letter_keep_names_that_differ() -> None:
    names = {choose_model_name(source) for source in ("東京", "大阪", "...")}
    assert len(names) == 3
    for name in names:
        check_run_name(name)


@pytest.mark.parametrize("name", ["chest 1", "chest_1.v2", "7", "A-b"])
def test_a_lawful_name_is_kept(name: str) -> None:
    assert choose_model_name("source", name) == name


@pytest.mark.parametrize("name", ["chest:1", "a/b", "O'Brien", "", " a", "a ", "-a", "ü", "a\nb"])
def test_a_name_that_mlflow_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"model name: .* cannot name a model\. Use letters"):
        choose_model_name("source", name)


@pytest.mark.parametrize("name", ["a b", "O'Brien", "a/b", "", ".a"])
def test_a_run_needs_a_name_for_a_folder(name: str) -> None:
    with pytest.raises(SettingsError, match=r"run name: .* cannot name a folder"):
        check_run_name(name)


def test_a_name_too_long_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"has 201 characters, at most 200 fit"):
        check_run_name("a" * 201)
    with pytest.raises(SettingsError, match=r"has 201 characters, at most 200 fit"):
        choose_model_name("source", "a" * 201)
