"""LoRA: one copy of the weights is policy and reference, the sampler sees the adapter, and export is a plain model."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from course_lib.algorithms import dpo, grpo, ppo, rlhf, sft
from course_lib.environments import LMAgent, Questions
from course_lib.lm.decoding import LlamaDecoder
from course_lib.lm.heads import SharedCritic
from course_lib.lm.logprobs import completion_logprobs, token_logprobs
from course_lib.lm.model import load_lm, save_lm
from course_lib.lm.sampling import sample
from course_lib.memory import live

pytest.importorskip("peft")

from course_lib.lm.lora import adapter_off, add_lora, load_lora, merge_lora, save_lora  # noqa: E402

IDS = torch.tensor([[1, 9, 20, 31, 40, 8]])
ROWS = [{"prompt": [{"role": "user", "content": word}]} for word in ("one", "two", "three")]


def shaken(model, size=0.3):
    """The adapter somewhere else than at its start."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=size)
    return model


def vowels(prompts, completions, **_):
    return [float(sum(c in "aeiou" for c in turn[-1]["content"])) for turn in completions]


@pytest.fixture
def lora(tiny_lm):
    """(model with an adapter at its start, tokenizer, a copy of the model before)."""
    model, tokenizer = tiny_lm
    before = copy.deepcopy(model)
    return add_lora(model, rank=4), tokenizer, before


def test_it_starts_as_the_model_and_trains_the_adapter_alone(lora):
    model, _, before = lora
    assert torch.equal(model(IDS).logits, before(IDS).logits)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora_" in name for name in trained) and not model.training
    share = sum(p.numel() for p in model.parameters() if p.requires_grad) / sum(p.numel() for p in before.parameters())
    assert share < 0.5


def test_the_seed_decides_and_the_global_state_stays(tiny_lm):
    model, _ = tiny_lm
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    a, b, c = (add_lora(copy.deepcopy(model), seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    first = [next(p for n, p in m.named_parameters() if "lora_A" in n) for m in (a, b, c)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_a_second_adapter_and_a_missing_one_are_refused(lora):
    model, _, before = lora
    with pytest.raises(ValueError, match="merge_lora"):
        add_lora(model)
    with pytest.raises(ValueError, match="rlhf.frozen"):
        adapter_off(before)
    with pytest.raises(ValueError, match="no adapter"):
        merge_lora(before)


@pytest.mark.parametrize("fast", [True, False])
def test_pitfall_the_sampler_uses_the_adapted_weights(lora, fast, monkeypatch):
    """The same texts and log-probs as the merged model, by the course's decoder and by Hugging Face's."""
    model, tokenizer, before = lora
    shaken(model)
    assert LlamaDecoder.fits(model)
    if not fast:
        monkeypatch.setattr(LlamaDecoder, "fits", staticmethod(lambda model: False))
    asked = dict(max_new_tokens=12, samples_per_prompt=4, seed=5)
    out = sample(model, tokenizer, ["Where is", "Hm"], **asked)
    assert torch.allclose(completion_logprobs(model, out), out.logprobs, atol=1e-4)
    assert out.texts != sample(before, tokenizer, ["Where is", "Hm"], **asked).texts
    assert out.texts == sample(merge_lora(model), tokenizer, ["Where is", "Hm"], **asked).texts


@pytest.mark.parametrize("state", ["off", "merged"])
def test_the_decoder_follows_the_state_of_the_adapter(lora, state):
    model, tokenizer, before = lora
    shaken(model)
    asked = dict(max_new_tokens=8, samples_per_prompt=3)
    expected = sample(model, tokenizer, ["Where is"], **asked).texts
    if state == "merged":
        model.merge_adapter()
        assert sample(model, tokenizer, ["Where is"], **asked).texts == expected
    else:
        with model.disable_adapter():
            now = sample(model, tokenizer, ["Where is"], **asked).texts
        assert now == sample(before, tokenizer, ["Where is"], **asked).texts != expected


def test_dora_is_left_to_hugging_face(tiny_lm):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_lm[0], LoraConfig(r=4, use_dora=True, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert not LlamaDecoder.fits(model)


def test_adapter_off_is_the_start_whatever_the_adapter_learns(lora):
    model, tokenizer, before = lora
    reference = adapter_off(model)
    shaken(model)
    mask = torch.ones_like(IDS)
    expected = token_logprobs(before, IDS, mask)
    assert torch.allclose(token_logprobs(reference, IDS, mask), expected, atol=1e-6)
    assert not torch.allclose(token_logprobs(model, IDS, mask), expected, atol=1e-3)
    assert not list(reference.parameters()) and live({"policy": model, "reference": reference})["reference"].total == 0


def test_a_reference_is_not_sampled_from(lora):
    model, tokenizer, _ = lora
    with pytest.raises(ValueError, match="only judges: sample inside `with policy.disable_adapter"):
        sample(adapter_off(model), tokenizer, ["Where is"], max_new_tokens=2)


def test_pairs_are_judged_by_the_start_as_by_a_copy_of_it(lora):
    model, tokenizer, before = lora
    shaken(model)
    pairs = dpo.encode_pairs(tokenizer, [{**row, "chosen": "eel", "rejected": "fly"} for row in ROWS])
    judged, expected, adapted = (dpo.all_logprobs(m, pairs, 0, "fp32") for m in (adapter_off(model), before, model))
    assert torch.allclose(judged, expected, atol=1e-4) and not torch.allclose(judged, adapted, atol=1e-2)


def test_merged_is_the_adapted_model_in_plain_transformers(lora, tmp_path):
    model, tokenizer, _ = lora
    shaken(model)
    expected = model(IDS).logits
    save_lm(tmp_path, merge_lora(model), tokenizer)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__name__ == "LlamaForCausalLM" and not any("lora" in n for n, _ in again.named_parameters())
    assert (again(IDS).logits - expected).abs().max() < 1e-5
    assert (load_lm(tmp_path, device="cpu")[0](IDS).logits - expected).abs().max() < 1e-5


def test_a_saved_adapter_is_small_and_goes_on_its_base_alone(lora, tmp_path, tiny_tokenizer):
    from course_lib.lm.model import build_lm

    model, _, before = lora
    shaken(model)
    save_lora(tmp_path, model)
    size = sum(f.stat().st_size for f in tmp_path.glob("*.safetensors"))
    assert size < 4 * sum(p.numel() for p in model.parameters() if p.requires_grad) + 10_000
    again = load_lora(before, tmp_path)
    assert torch.equal(again(IDS).logits, model(IDS).logits) and any(p.requires_grad for p in again.parameters())
    with pytest.raises(ValueError, match="does not fit"):
        load_lora(build_lm(tiny_tokenizer, (16, 1, 2, 32), device="cpu"), tmp_path)
    with pytest.raises(ValueError, match="holds an adapter.*load_lora"):
        load_lm(tmp_path)
    with pytest.raises(ValueError, match="no adapter in"):
        load_lora(build_lm(tiny_tokenizer, (16, 1, 2, 32), device="cpu"), tmp_path / "nowhere")


def run(algorithm, model, tokenizer, reference):
    agent = LMAgent(model, tokenizer, max_new_tokens=6, precision="fp32")
    environment, few = Questions(ROWS, vowels), dict(steps=2, count=2, samples=3, lr=1e-2)
    if algorithm == "sft":
        return sft.train(model, tokenizer, [sft.qa("one", "eel"), sft.qa("two", "owl")],
                         sft.SFTConfig(lr=1e-2, precision="fp32", epochs=2, batch_size=2, log_every=1))
    if algorithm == "dpo":
        pairs = [{**row, "chosen": "eel", "rejected": "fly"} for row in ROWS]
        return dpo.train(model, tokenizer, pairs, dpo.DPOConfig(lr=1e-2, precision="fp32", batch_size=3, epochs=2),
                         reference=reference)
    if algorithm == "rlhf":
        return rlhf.train(agent, environment, rlhf.RLHFConfig(**few), reference=reference)
    if algorithm == "grpo":
        return grpo.train(agent, environment, grpo.GRPOConfig(**few, beta=0.1), reference=reference)
    return ppo.train(agent, environment, ppo.PPOConfig(**few, beta=0.1, minibatches=1, epochs=2), reference=reference,
                     critic=SharedCritic(model, precision="fp32"))


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "rlhf", "grpo", "ppo"])
def test_every_algorithm_trains_the_adapter_and_leaves_the_base(lora, algorithm):
    model, tokenizer, before = lora
    history = run(algorithm, model, tokenizer, adapter_off(model))
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, before(IDS).logits)
    assert not torch.equal(model(IDS).logits, before(IDS).logits)
    if "kl" in history[-1]:
        assert abs(history[0]["kl"]) < 1e-4 < abs(history[-1]["kl"])  # the first batch is from the start itself


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo"])
def test_an_adapter_on_half_precision_weights_is_trained_in_float32(tiny_lm, algorithm):
    model, tokenizer = tiny_lm
    model = add_lora(model.bfloat16(), rank=4)
    before = copy.deepcopy(model)
    run(algorithm, model, tokenizer, adapter_off(model))
    for (name, p), q in zip(model.named_parameters(), before.parameters()):
        assert p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16)
        assert p.requires_grad or torch.equal(p, q)
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters()))


def test_a_checkpoint_holds_the_adapter_alone_and_a_run_goes_on_from_it(lora, tmp_path):
    from course_lib.algorithms.training import load_checkpoint, make_optimizers, save_checkpoint

    model, _, before = lora
    shaken(model)
    save_checkpoint(tmp_path / "run", model, make_optimizers(model, 1e-3), {"step": 1})
    saved = load_file(tmp_path / "run" / "weights.safetensors")
    assert set(saved) == {name for name, p in model.named_parameters() if p.requires_grad}
    again = add_lora(before, rank=4, seed=9)
    assert load_checkpoint(tmp_path / "run", again, make_optimizers(again, 1e-3)) == {"step": 1}
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("saved", ["adapter", "larger adapter", "whole"])
def test_a_checkpoint_of_other_weights_is_refused_and_the_model_untouched(tiny_lm, tmp_path, saved):
    from course_lib.algorithms.training import load_checkpoint, make_optimizers, save_checkpoint

    model, _ = tiny_lm
    kinds = {"adapter": lambda: add_lora(copy.deepcopy(model), rank=4), "whole": lambda: copy.deepcopy(model),
             "larger adapter": lambda: add_lora(copy.deepcopy(model), rank=8)}
    first = kinds[saved]()
    save_checkpoint(tmp_path / "run", first, make_optimizers(first, 1e-3), {"step": 1})
    for other in kinds.keys() - {saved}:
        second = kinds[other]()
        before = copy.deepcopy(second)
        with pytest.raises(ValueError, match="of another model, or of one with .or without. an adapter"):
            load_checkpoint(tmp_path / "run", second, make_optimizers(second, 1e-3))
        assert all(torch.equal(p, q) for p, q in zip(second.parameters(), before.parameters()))


def test_the_reference_is_the_same_as_a_frozen_copy(tiny_lm):
    """GRPO with the adapter off as reference: the history of a run whose reference is a second copy of the start."""
    model, tokenizer = tiny_lm
    one, two = (add_lora(copy.deepcopy(model), rank=4) for _ in range(2))
    shared = run("grpo", one, tokenizer, adapter_off(one))
    copied = run("grpo", two, tokenizer, rlhf.frozen(model))
    assert [e.keys() for e in shared] == [e.keys() for e in copied]
    for a, b in zip(shared, copied):
        assert a == pytest.approx(b, abs=1e-5)


def test_without_peft_the_command_is_named(tiny_lm, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        add_lora(tiny_lm[0])
