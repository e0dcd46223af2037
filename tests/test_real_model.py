"""A real model learns the course's question: SmolLM2 from its package, a few steps of each kind."""

import importlib.util
import math
from pathlib import Path

import pytest

from course_lib import store
from course_lib.experiments.questions import ask
from course_lib.lm import hub, load_lm
from course_lib.rewards import rubric
from course_lib.worlds import atlas

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600),
              pytest.mark.skipif(hub.smollm2_file() is None, reason=f"needs a package: {hub.INSTALL}")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SmolLM2, converted once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_STORE", str(tmp_path_factory.mktemp("real")))
        return store.get(hub.smollm2())


@pytest.fixture(scope="module")
def learn():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "real_model.py"
    spec = importlib.util.spec_from_file_location("real_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.learn


def test_sft_changes_the_answer(folder, learn):
    model, tokenizer = load_lm(folder)
    before = ask(model, tokenizer, ["Where is SF?"])[0]
    losses = [e["loss"] for e in learn("sft", model, tokenizer, steps=10, rows=4, lr=1e-4) if "loss" in e]
    after = ask(model, tokenizer, ["Where is SF?"])[0]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
    assert after.finished and after.text.startswith("SF usually refers to")
    assert rubric.score(after.text, atlas.cities()[0]) > rubric.score(before.text, atlas.cities()[0])


def test_dpo_prefers_the_form_and_grpo_runs_on_one_copy_of_the_weights(folder, learn):
    pytest.importorskip("peft")
    from course_lib.lm.lora import adapter_off, add_lora

    model, tokenizer = load_lm(folder)
    history = learn("dpo", model, tokenizer, steps=5, rows=4, lr=2e-5)
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-2)  # bfloat16 where it pays
    assert history[-1]["loss"] < 0.55 and history[-1]["accuracy"] == 1
    policy = add_lora(model)
    history = learn("grpo", policy, tokenizer, steps=2, rows=8, lr=2e-4, reference=adapter_off(policy),
                    precision="fp32")
    assert len(history) == 2 and all(math.isfinite(v) for entry in history for v in entry.values())
    assert abs(history[0]["kl"]) < 1e-3 and history[0]["sampler_gap"] < 1e-3  # the adapter starts at nothing
