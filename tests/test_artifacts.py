"""The recipes of what the course trains: complete, and remade when the code that makes them changes."""

import pytest

from course_lib import artifacts, store

EXPERIMENTS = {"base": "pretraining", "scaling": "pretraining", "sft": "sft", "follow": "sft", "knowledge": "sft",
               "abstention": "sft", "open_ended": "sft"}


@pytest.mark.parametrize("name", artifacts.names())
def test_every_artifact_has_both_sizes_an_estimate_and_a_key(name, monkeypatch):
    monkeypatch.delenv("COURSE_SMOKE", raising=False)
    assert set(artifacts.SIZES[name]) == {"full", "smoke", "seconds"}
    assert set(artifacts.SIZES[name]["full"]) <= set(artifacts.SIZES[name]["smoke"])  # it may shrink a default as well
    full = store.key(name)
    monkeypatch.setenv("COURSE_SMOKE", "1")
    assert store.key(name) != full, "a rehearsal must never be taken for the result"


@pytest.mark.parametrize(("name", "module"), EXPERIMENTS.items())
def test_the_key_depends_on_the_experiment_that_makes_the_artifact(name, module):
    assert f"course_lib.experiments.{module}" in artifacts.recipe(name).code


def test_models_can_be_loaded_by_name():
    assert set(artifacts.models()) <= set(artifacts.names())
