"""docs/hardware.md: the page is what its script writes, and what the script assumes holds."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from course_lib import launch
from course_lib.memory import estimate, shape_of, with_adapter

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "docs" / "hardware.py"


@pytest.fixture(scope="module")
def hardware():
    spec = importlib.util.spec_from_file_location("hardware", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(hardware):
    assert hardware.PAGE.read_text(encoding="utf-8") == hardware.page(), "run python docs/hardware.py"


def test_the_models_are_the_published_ones(hardware):
    """Parameters as on the hub; the formula's shape leaves out Qwen's biases, a hundredth of a percent."""
    counts = {name: hardware.parameters(name) for name in hardware.MODELS}
    assert counts == {"SmolLM2-135M": 134_515_008, "Qwen2.5-0.5B": 494_032_768, "Qwen2.5-1.5B": 1_543_714_304}
    for name, count in counts.items():
        assert shape_of(hardware.config_of(name)).parameters == pytest.approx(count, rel=1e-4)


def test_every_notebook_with_an_algorithm_is_there(hardware):
    sources = {path.stem[:2] for path in (ROOT / "notebooks" / "src").glob("0[1-8]_*.py")}
    assert {notebook[:2] for notebook, _, _ in hardware.NOTEBOOKS} == sources


def test_adapters_have_as_many_parameters_as_peft_gives_them(hardware):
    pytest.importorskip("peft")
    from course_lib.lm.lora import add_lora

    name = "SmolLM2-135M"
    with torch.device("meta"):
        model = LlamaForCausalLM(hardware.config_of(name))
    model = add_lora(model, rank=hardware.RANK)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == shape_of(hardware.config_of(name)).adapter(hardware.RANK)


def test_lora_holds_one_copy_and_an_adapter(hardware):
    """By hand: float32 weights of one model; 16 bytes for each of the adapter's parameters."""
    shape = shape_of(hardware.config_of("Qwen2.5-0.5B"))
    usage = estimate("DPO", shape, rows=2, prompt_tokens=8, new_tokens=8, precision="autocast")
    found = with_adapter(usage, shape, hardware.RANK)
    assert set(found) == {"policy"}
    policy, adapter = found["policy"], shape.adapter(hardware.RANK)
    assert policy.weights + policy.gradients + policy.optimizer == 4 * shape.parameters + 16 * adapter
    assert policy.activations == usage["policy"].activations


def test_lora_is_on_the_policy_alone_as_in_a_run_from_the_launcher(hardware):
    """A reward model has none, and what PPO's column says is a run with a shared critic: one of its own is trained whole."""
    shape = shape_of(hardware.config_of("Qwen2.5-0.5B"))
    options = {notebook: options for notebook, _, options in hardware.NOTEBOOKS}
    assert hardware.peak_gb(shape, lora=True, **options["04 reward model"]) is None
    settings, config = launch.read("ppo", ROOT / "configs" / "ppo.yaml", dict(
        critic="shared", lora="16", beta="0.1", gradient_checkpointing="true", samples="1", micro_batch_size="4",
        reward=str(ROOT)))
    usage = launch.memory_of("ppo", settings, config, shape, 64, hardware.PROMPT, hardware.NEW, "autocast")
    assert hardware.peak_gb(shape, lora=True, **options["06 PPO"]) == pytest.approx(sum(u.peak for u in usage.values()) / 1e9)
    own = dataclasses.replace(settings, critic="own")
    value = launch.memory_of("ppo", own, config, shape, 64, hardware.PROMPT, hardware.NEW, "autocast")["value"]
    assert value.gradients > 0.8 * 4 * shape.parameters


def test_a_verdict_keeps_a_reserve(hardware):
    assert [hardware.verdict(full, 8.0, 10) for full in (8.0, 8.1)] == ["full", "LoRA"]
    assert hardware.verdict(9.0, 8.1, 10) == hardware.verdict(9.0, None, 10) == "no"
