"""The next-token loop: resuming, accumulating, stopping."""

import copy
import dataclasses
import gc
import itertools
import json
import math
import signal

import psutil
import pytest
import torch

from course_lib import objectives
from course_lib.algorithms import pretrain, training
from course_lib.algorithms.reinforce import adam
from course_lib.lm.heads import SharedCritic
from course_lib.lm.model import build_lm

DOCUMENTS = [[1, *range(10, 10 + n), 2] for n in (3, 7, 5, 9, 4, 6, 8, 3, 5, 7, 6, 4)] * 3


@pytest.fixture
def model(tiny_lm, device):
    return build_lm(tiny_lm[1], (32, 2, 2, 64), device=device)


def config(**changes):
    return pretrain.PretrainConfig(**({"context": 16, "batch_size": 4, "precision": "fp32", "checkpoint_every": 2} | changes))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumes_after_a_kill_to_equal_bits(model, tmp_path, optimizer):
    whole = copy.deepcopy(model)
    expected = pretrain.train(whole, DOCUMENTS, config(epochs=2, optimizer=optimizer), held_out=DOCUMENTS[:4])

    class Killed(BaseException):
        pass

    def kill(step):
        if step >= 5:
            raise Killed
        return {}

    first = copy.deepcopy(model)
    with pytest.raises(Killed):
        pretrain.train(first, DOCUMENTS, config(epochs=2, optimizer=optimizer), held_out=DOCUMENTS[:4],
                       checkpoint=tmp_path / "c", watch=kill)
    second = copy.deepcopy(model)
    history = pretrain.train(second, DOCUMENTS, config(epochs=2, optimizer=optimizer), held_out=DOCUMENTS[:4],
                             checkpoint=tmp_path / "c")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters()))
    assert history == expected
    assert not (tmp_path / "c").exists()


def test_a_crash_between_the_renames_loses_nothing(model, tmp_path):
    optimizers = training.make_optimizers(model, 1e-3)
    training.save_checkpoint(tmp_path / "c", model, optimizers, {"step": 4})
    (tmp_path / "c").rename(tmp_path / "c.old")
    assert training.load_checkpoint(tmp_path / "c", model, optimizers) == {"step": 4}


@pytest.mark.skipif(not hasattr(psutil.Process, "memory_maps"), reason="this system does not say what is mapped")
def test_what_is_loaded_is_no_part_of_the_checkpoints_file(model, tmp_path):
    """Windows deletes no file of which something is still mapped."""
    optimizers = training.make_optimizers(model, 1e-3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizers[0].step()
    training.save_checkpoint(tmp_path / "c", model, optimizers, {"step": 1})
    training.load_checkpoint(tmp_path / "c", model, optimizers)
    assert optimizers[0].state
    gc.collect()
    assert not [place.path for place in psutil.Process().memory_maps() if place.path.endswith(".safetensors")]


def test_a_kept_checkpoint_is_that_of_the_last_step_and_goes_when_the_block_ends(model, tmp_path):
    optimizers, folder = training.make_optimizers(model, 1e-3), tmp_path / "c"
    with training.checkpoint_kept(folder):
        with training.Checkpoints(folder, model, optimizers, {}, every=2) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.after(step)
        assert json.loads((folder / "state.json").read_text())["step"] == 3
    assert not folder.exists()
    with pytest.raises(OSError), training.checkpoint_kept(folder):
        with training.Checkpoints(folder, model, optimizers, {}, every=2) as checkpoints:
            checkpoints.after(1)
        raise OSError
    assert folder.exists()
    with training.Checkpoints(folder, model, optimizers, {}, every=2):
        pass
    assert not folder.exists()


def test_a_checkpoint_of_another_config_is_refused(model, tmp_path):
    optimizers = training.make_optimizers(model, 1e-3, kind="muon")
    training.save_checkpoint(tmp_path / "c", model, optimizers, {"config": {}, "step": 1})
    with pytest.raises(ValueError, match="another config"):
        pretrain.train(model, DOCUMENTS, config(), checkpoint=tmp_path / "c")


@pytest.mark.parametrize("micro", [1, 2, 3])
def test_pitfall_accumulated_micro_batches_equal_the_full_batch(model, micro):
    whole, split = copy.deepcopy(model), copy.deepcopy(model)
    ids = pretrain.pack(DOCUMENTS, 16, 0)[:4].to(model.device)
    mask = pretrain.predicted(ids, 0, 1)
    mask[1, 5:] = mask[2, 9:] = False  # the rows count different numbers of tokens
    (training.loss_sum(whole, ids, mask, "fp32") / mask[:, 1:].sum()).backward()
    training.accumulate(split, ids, mask, micro, "fp32")
    for a, b in zip(whole.parameters(), split.parameters()):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


def scaled(kind, **more):
    """A tiny model of another family, with the size of embeddings that makes a wrong scale tell."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=263, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, pad_token_id=0, bos_token_id=1, eos_token_id=2, **more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    return model


SCALED = [("Granite", {"logits_scaling": 8.0}), ("Gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8}),
          ("Cohere", {"logit_scale": 0.0625})]


@pytest.mark.parametrize(("kind", "more"), [("Llama", {}), *SCALED])
def test_the_loss_is_that_of_the_models_own_logits(kind, more):
    """Some families scale or cap their logits behind the LM head."""
    model = scaled(kind, **more)
    ids = pretrain.pack(DOCUMENTS, 16, 0)[:4]
    mask = pretrain.predicted(ids, 0, 1)
    expected = objectives.next_token_loss(model(ids).logits, ids, mask)
    assert torch.allclose(training.loss_sum(model, ids, mask, "fp32") / mask[:, 1:].sum(), expected, rtol=1e-4)


@pytest.mark.parametrize(("kind", "more"), SCALED)
def test_a_critic_on_the_trunk_refuses_logits_that_are_more_than_the_heads(kind, more):
    with pytest.raises(ValueError, match=f"logits have a {[*more][0]}"):
        SharedCritic(scaled(kind, **more))
    SharedCritic(scaled("Granite"))  # its scale is 1


def test_micro_batch_size_changes_nothing(model):
    whole, split = copy.deepcopy(model), copy.deepcopy(model)
    pretrain.train(whole, DOCUMENTS, config(optimizer="adamw", lr=1e-3))
    pretrain.train(split, DOCUMENTS, config(optimizer="adamw", lr=1e-3, micro_batch_size=1))
    for a, b in zip(whole.parameters(), split.parameters()):
        assert torch.allclose(a, b, atol=1e-4)


def test_nan_stops_with_a_clear_error_and_the_last_good_checkpoint(model, tmp_path):
    def poison(step):
        if step == 5:
            with torch.no_grad():
                model.model.norm.weight.fill_(float("nan"))
        return {}

    with pytest.raises(training.TrainingDiverged, match=r"step 5: loss nan.*last good checkpoint is in .*c"):
        pretrain.train(model, DOCUMENTS, config(epochs=3, evaluations=100), checkpoint=tmp_path / "c", watch=poison)
    fresh = build_lm(type("T", (), {"__len__": lambda s: model.config.vocab_size, "pad_token_id": 0, "bos_token_id": 1,
                                    "eos_token_id": 2})(), (32, 2, 2, 64), device=model.device)
    state = training.load_checkpoint(tmp_path / "c", fresh, training.make_optimizers(fresh, 1e-3, kind="muon"))
    assert state["step"] == 4 and all(torch.isfinite(p).all() for p in fresh.parameters())


def test_a_bad_gradient_leaves_the_weights_alone(model, monkeypatch):
    monkeypatch.setattr(training, "collect_for_checkpoint", lambda: pytest.fail("moments are collected for an error's words"))
    optimizers = training.make_optimizers(model, 1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.full_like(p, float("inf"))
    with pytest.raises(training.TrainingDiverged):
        training.take_step(optimizers, 1e-3, 1.0, 1.0, "step 0")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_ctrl_c_saves_the_step_under_way_and_training_continues_from_it(model, tmp_path):
    """A real SIGINT, in the middle of a step, far from the next regular checkpoint."""
    settings = config(epochs=2, checkpoint_every=100)
    whole, first, second = (copy.deepcopy(model) for _ in range(3))
    pretrain.train(whole, DOCUMENTS, settings)
    calls, before = itertools.count(), signal.getsignal(signal.SIGINT)
    first.model.norm.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGINT) if next(calls) == 6 else None)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(first, DOCUMENTS, settings, checkpoint=tmp_path / "c")
    assert not first.training and signal.getsignal(signal.SIGINT) is before
    assert json.loads((tmp_path / "c" / "state.json").read_text())["step"] == 7
    pretrain.train(second, DOCUMENTS, settings, checkpoint=tmp_path / "c")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters()))


def test_ctrl_c_twice_does_not_wait_for_the_step(model, tmp_path):
    calls = itertools.count()

    def press(*_):
        if next(calls) == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("went on")

    model.model.norm.register_forward_hook(press)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(model, DOCUMENTS, config(epochs=2), checkpoint=tmp_path / "c")
    assert json.loads((tmp_path / "c" / "state.json").read_text())["step"] == 4


def test_ctrl_c_after_the_last_step_is_not_lost_and_nor_is_the_run(model, tmp_path):
    """In the last look at the model, say: the steps are done, and the checkpoint stays for the next call."""
    optimizers = training.make_optimizers(model, 1e-3)
    with pytest.raises(KeyboardInterrupt):
        with training.Checkpoints(tmp_path / "c", model, optimizers, {}, every=1) as checkpoints:
            checkpoints.after(1)
            signal.raise_signal(signal.SIGINT)
    assert json.loads((tmp_path / "c" / "state.json").read_text())["step"] == 1


def test_ctrl_c_is_as_ever_where_nothing_is_saved(model):
    calls = itertools.count()
    model.model.norm.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGINT) if next(calls) == 5 else None)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(model, DOCUMENTS, config(epochs=2))
    assert next(calls) == 6  # the step that was under way did not end


def test_pitfall_19_bf16_products_leave_the_weights_in_float32(model):
    """A step of 1e-5 on a weight near 1 is lost in bfloat16, whose neighbours of 1 are 0.004 apart."""
    before = model.model.norm.weight.detach().clone()
    pretrain.train(model, DOCUMENTS, config(precision="bf16", lr=1e-5))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    moved = (model.model.norm.weight - before).abs()
    assert 0 < moved.max() < 1e-3 and torch.equal(model.model.norm.weight.bfloat16(), before.bfloat16())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_pitfall_19_half_precision_weights_are_refused(model, dtype, precision):
    with pytest.raises(ValueError, match=r"trained are in (bfloat16|float16), .*dtype=torch\.float32.*add_lora"):
        pretrain.train(model.to(dtype), DOCUMENTS, config(precision=precision))


SETTINGS = dict(context=24, batch_size=2, micro_batch_size=1, epochs=2, lr=1e-2, warmup=0.5, optimizer="adamw",
                weight_decay=0.5, clip=1e-2, precision="bf16", seed=1, evaluations=3, log_every=1, checkpoint_every=3)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(pretrain.PretrainConfig)])
def test_pitfall_30_no_setting_is_silently_unused(model, monkeypatch, tmp_path, name):
    """A run with another value differs: in its weights, its history, its forward passes or its checkpoints."""

    def run(**change):
        trained, calls, saved = copy.deepcopy(model), [], []
        trained.model.norm.register_forward_hook(lambda module, args, output: calls.append(tuple(output.shape)))
        monkeypatch.setattr(training, "save_checkpoint", lambda folder, model, optimizers, state: saved.append(state["step"]))
        settings = config(**{"weight_decay": 0.1, "checkpoint_every": 2, "evaluations": 1} | change)
        history = pretrain.train(trained, DOCUMENTS, settings, held_out=DOCUMENTS[:4], checkpoint=tmp_path / "c")
        return [p.tolist() for p in trained.parameters()], history, calls, saved

    assert run() == run()
    assert run() != run(**{name: SETTINGS[name]})


def test_training_lowers_the_loss(model):
    history = pretrain.train(model, DOCUMENTS, config(epochs=4), held_out=DOCUMENTS[:12])
    looks = [e["held_out"] for e in history if "held_out" in e]
    assert looks[0] == pytest.approx(math.log(model.config.vocab_size), abs=0.3)
    assert looks[-1] < looks[0] - 1


@pytest.mark.parametrize(("evaluations", "expected"), [(0, {0, 7}), (1, {0, 7}), (2, {0, 4, 7}), (3, {0, 2, 5, 7}),
                                                       (7, set(range(8))), (20, set(range(8)))])
def test_the_steps_at_which_a_run_is_looked_at(evaluations, expected):
    assert training.looks(7, evaluations) == expected


@pytest.mark.parametrize("steps", [1, 2, 30, 61, 1003])
def test_looks_are_evenly_spread(steps):
    """The steps at which studies look, whose results are kept: they must not move."""
    for evaluations in range(1, 64):
        assert training.looks(steps, evaluations) == {round(i * steps / evaluations) for i in range(evaluations + 1)}


def test_without_evaluations_start_and_end_are_looked_at(model):
    seen = []
    history = pretrain.train(model, DOCUMENTS, config(evaluations=0), held_out=DOCUMENTS[:4],
                             watch=lambda step: seen.append(step) or {})
    assert seen == [0, history[-1]["step"]] == [e["step"] for e in history if "held_out" in e]


def test_schedule_by_hand():
    factors = [training.warmup_cosine(s, 10, 2, floor=0.0) for s in range(10)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5) and factors == sorted(factors[:1]) + sorted(factors[1:], reverse=True)


def test_muon_takes_the_inner_matrices_and_adamw_the_rest(model):
    adamw, muon = training.make_optimizers(model, 1e-3, kind="muon", weight_decay=0.1)
    inner = {id(p) for g in muon.param_groups for p in g["params"]}
    names = {n for n, p in model.named_parameters() if id(p) in inner}
    assert names == {n for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n}
    everything = inner | {id(p) for g in adamw.param_groups for p in g["params"]}
    assert everything == {id(p) for p in model.parameters()}
    assert all(p.ndim == 2 or g["weight_decay"] == 0 for g in adamw.param_groups for p in g["params"])


def test_muon_needs_no_adamw_where_all_are_inner_matrices(model):
    """As in an adapter."""
    for name, p in model.named_parameters():
        p.requires_grad_("q_proj" in name)
    (muon,) = training.make_optimizers(model, 1e-3, kind="muon")
    assert isinstance(muon, training.Muon) and len(muon.param_groups[0]["params"]) == 2
    pretrain.train(model, DOCUMENTS, config())


def test_bad_settings_are_refused(model):
    with pytest.raises(ValueError, match="adamw"):
        training.make_optimizers(model, 1e-3, kind="sgd")
    with pytest.raises(ValueError, match="nothing to train"):
        training.make_optimizers(copy.deepcopy(model).requires_grad_(False), 1e-3)
    with pytest.raises(ValueError, match="nothing to train"):
        adam(model, copy.deepcopy(model).requires_grad_(False))
    with pytest.raises(ValueError, match="nothing to evaluate"):
        training.mean_loss(model, [])
    nothing = (torch.ones(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="without a single token"):
        training.fit(model, lambda e: [nothing], config(), label="test")
