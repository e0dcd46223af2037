"""docs/hardware.md: the page is what its script writes, and what the script assumes holds."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from course_lib.memory import estimate, shape_of

PATH = Path(__file__).resolve().parents[1] / "docs" / "hardware.py"


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
    sources = {path.stem[:2] for path in (PATH.parents[1] / "notebooks" / "src").glob("0[1-8]_*.py")}
    assert {notebook[:2] for notebook, _, _ in hardware.NOTEBOOKS} == sources


def test_adapters_have_as_many_parameters_as_peft_gives_them(hardware):
    pytest.importorskip("peft")
    from course_lib.lm.lora import add_lora

    name = "SmolLM2-135M"
    with torch.device("meta"):
        model = LlamaForCausalLM(hardware.config_of(name))
    model = add_lora(model, rank=hardware.RANK)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == hardware.adapter_parameters(shape_of(hardware.config_of(name)))


def test_lora_holds_one_copy_and_an_adapter(hardware):
    """By hand: float32 weights of one model; 16 bytes for each of the adapter's parameters."""
    shape = shape_of(hardware.config_of("Qwen2.5-0.5B"))
    usage = estimate("DPO", shape, rows=2, prompt_tokens=8, new_tokens=8, precision="autocast")
    found = hardware.with_adapters(usage, shape)
    assert set(found) == {"policy"}
    policy, adapter = found["policy"], hardware.adapter_parameters(shape)
    assert policy.weights + policy.gradients + policy.optimizer == 4 * shape.parameters + 16 * adapter
    assert policy.activations == usage["policy"].activations


def test_a_verdict_keeps_a_reserve(hardware):
    assert [hardware.verdict(full, 8.0, 10) for full in (8.0, 8.1)] == ["full", "LoRA"]
    assert hardware.verdict(9.0, 8.1, 10) == "no"
