"""Two processes take the steps that one takes; and what else training at scale needs: memory, half precision, resuming."""

import copy
import dataclasses
import json
import signal
from types import SimpleNamespace

import pytest
import torch

from course_lib.algorithms import dpo, grpo, ppo, pretrain, processes, reinforce, reward_model, rlhf, sft, training
from course_lib.environments import LMAgent, Questions
from course_lib.lm.heads import LMCritic, SharedCritic, ValueModel
from course_lib.lm.logprobs import completion_logprobs, eval_mode, recompute
from course_lib.lm.reward_head import RewardModel
from course_lib.lm.sampling import sample
from course_lib.memory import Saved


@pytest.fixture(autouse=True)
def alone():
    """Nothing of one test's run, such as the scale of its losses, is left for the next."""
    yield
    processes.use(None)
    processes._training = processes._Training()


@pytest.fixture(scope="module")
def together(two_processes):
    """What two processes found, see `together.py`: (of the first, of the second)."""
    return two_processes("together.py")


CASES = ["pretrain", "pretrain muon", "sft", "reward_model", "reward_model ranking", "dpo", "dpo kto", "reinforce rloo",
         "reinforce batch", "reinforce running", "reinforce learned", "rlhf", "rlhf k3", "ppo", "ppo shared", "grpo GRPO",
         "grpo Dr. GRPO", "grpo DAPO", "grpo GSPO", "grpo silent half", "grpo all silent"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_pitfall_31_two_processes_take_the_step_of_one(together, name):
    """The same global batch: equal gradients, and equal numbers in the history, in both processes."""
    for found in together:
        case = found[name]
        assert case["gradient"] < 1e-5 and case["history"] < 1e-5 and case["weights"] < 1e-4
        silent = name == "grpo all silent"
        assert (case["steps"] == 0) == silent and (case["size"] > 1e-3) != silent  # there was something to compare


@pytest.mark.slow
def test_no_case_is_forgotten(together):
    assert set(together[0]) == {*CASES, "alone", "killed", "memory"}


@pytest.mark.slow
def test_each_process_plays_its_own_share(together):
    first, second = (found["alone"]["said"] for found in together)
    assert [len(batch) for batch in first] == [len(batch) for batch in second] == [8, 8]  # of 16 a batch
    assert all(a != b for x, y in zip(first, second) for a, b in zip(x, y))
    assert [prompt for prompt, _ in first[0]] != [prompt for prompt, _ in second[0]]


@pytest.mark.slow
def test_the_first_process_alone_writes_and_logs(together):
    first, second = (found["alone"] for found in together)
    assert (first["written"], second["written"]) == (2, 0)
    assert first["logged"] == [[e["step"], {k: v for k, v in e.items() if k != "step"}] for e in first["history"]]
    assert second["logged"] == [] and second["history"] == first["history"]
    assert not first["left"]  # a run that is over needs no checkpoint


@pytest.mark.slow
def test_two_killed_processes_go_on_to_the_same_history(together):
    assert [found["killed"] for found in together] == [{"same": True, "steps": 5}] * 2


@pytest.mark.slow
def test_one_process_without_memory_makes_both_begin_anew(together):
    first, second = (found["memory"] for found in together)
    assert max(first["gradient"], first["history"], second["gradient"], second["history"]) < 1e-5
    assert second["rows"] == 1


# ---- one process -----------------------------------------------------------------------------------------------------


def test_alone_every_function_hands_back_what_it_is_given():
    x = torch.randn(3, 2)
    assert processes.share(x) is processes.total(x) is processes.gathered(x) is x and processes.mine(x, x) is x
    assert processes.share(7) == processes.total(7) == processes.largest(7) == 7
    assert processes.own_seed(5) == 5 and (processes.rank(), processes.size()) == (0, 1)
    assert processes.total({"a": 1.0}) == {"a": 1.0}


def test_prompts_that_cannot_be_dealt_out_are_an_error(monkeypatch):
    monkeypatch.setattr(processes, "size", lambda: 3)
    assert processes.share(6) == 2
    with pytest.raises(ValueError, match="16 prompts .* 3 processes.*count"):
        processes.share(16)


@pytest.mark.parametrize("kind", ["DEEPSPEED", "MEGATRON_LM", "XLA"])
def test_other_ways_of_sharing_are_refused(kind):
    with pytest.raises(ValueError, match=f"not with {kind}.*multi-GPU"):
        processes.use(SimpleNamespace(distributed_type=SimpleNamespace(value=kind)))
    assert processes.size() == 1


WORDS = ["a", "bc", "def", "g", "hijk", "lm", "no", "pqrst", "u", "vwxyz", "12", "345"]
ROWS = [{"prompt": word} for word in WORDS]
PAIRS = [{"prompt": f"say {w}", "chosen": w * 2, "rejected": w + "!"} for w in WORDS]
POLICY = dict(steps=4, count=2, samples=4, lr=1e-3, warmup=1, evaluations=4, checkpoint_every=1)


def letters(prompts, completions, **columns):
    return [sum(map(ord, text)) % 17 / 17 for text in completions]


def agent_of(model, tokenizer, precision="fp32"):
    return LMAgent(model, tokenizer, max_new_tokens=5, precision=precision)


def online(train, config, **more):
    def run(model, tokenizer, precision="fp32", **arguments):
        made = {name: make(model) for name, make in more.items()}
        return train(agent_of(model, tokenizer, precision), Questions(ROWS, letters), config, **made, **arguments)

    return run


def supervised(train, config, data):
    return lambda model, tokenizer, precision="fp32", **arguments: train(
        model, tokenizer, data, dataclasses.replace(config, precision=precision), **arguments)


def judged(model, tokenizer, precision="fp32", **arguments):
    judge = RewardModel.on(model)
    config = reward_model.RewardConfig(batch_size=3, log_every=1, checkpoint_every=1, precision=precision)
    history = reward_model.train(judge, tokenizer, PAIRS, config, evaluations=4, **arguments)
    model.load_state_dict({f"model.{k}": v for k, v in judge.backbone.state_dict().items()}, strict=False)
    return history


RUNS = {
    "sft": supervised(sft.train, sft.SFTConfig(batch_size=3, epochs=1, log_every=1, evaluations=4, checkpoint_every=1),
                      [sft.qa(f"say {w}", w) for w in WORDS]),
    "reward_model": judged,
    "dpo": supervised(dpo.train, dpo.DPOConfig(batch_size=3, evaluations=4, checkpoint_every=1), PAIRS),
    "reinforce learned": online(reinforce.train, reinforce.ReinforceConfig(**POLICY, baseline="learned")),
    "reinforce running": online(reinforce.train, reinforce.ReinforceConfig(**POLICY, baseline="running")),
    "rlhf": online(rlhf.train, rlhf.RLHFConfig(**POLICY, beta=0.2, target_kl=0.01), reference=rlhf.frozen),
    "ppo": online(ppo.train, ppo.PPOConfig(**POLICY, beta=0.2, target_kl=0.01), reference=rlhf.frozen,
                  critic=lambda model: LMCritic(ValueModel(model), "fp32")),
    "grpo": online(grpo.train, grpo.GRPOConfig(**POLICY | dict(samples=4))),
}


class Killed(BaseException):
    pass


def kill(step):
    if step == 3:
        raise Killed
    return {"seen": step}


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_to_the_same_history(tiny_lm, tmp_path, name):
    (model, tokenizer), run = tiny_lm, RUNS[name]
    whole, first, second = (copy.deepcopy(model) for _ in range(3))
    expected = run(whole, tokenizer, watch=lambda step: {"seen": step})
    with pytest.raises(Killed):
        run(first, tokenizer, watch=kill, checkpoint=tmp_path / "c")
    assert (tmp_path / "c" / "state.json").exists()
    looked = []
    history = run(second, tokenizer, watch=lambda step: looked.append(step) or {"seen": step}, checkpoint=tmp_path / "c")
    assert history == expected and min(looked) == 3  # nothing was done again that had been saved
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters()))
    assert not (tmp_path / "c").exists()


def press_ctrl_c(step):
    if step == 2:
        signal.raise_signal(signal.SIGINT)
    return {"seen": step}


@pytest.mark.parametrize("name", RUNS)
def test_ctrl_c_loses_no_step_of_a_run_that_saves_itself(tiny_lm, tmp_path, name):
    (model, tokenizer), run = tiny_lm, RUNS[name]
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    with pytest.raises(KeyboardInterrupt):
        run(first, tokenizer, watch=press_ctrl_c, checkpoint=tmp_path / "c")
    assert json.loads((tmp_path / "c" / "state.json").read_text())["step"] == 2
    looked = []
    run(second, tokenizer, watch=lambda step: looked.append(step) or {"seen": step}, checkpoint=tmp_path / "c")
    assert min(looked) == 3


@pytest.mark.parametrize("name", RUNS)
def test_a_checkpoint_of_another_config_is_refused(tiny_lm, tmp_path, name):
    model, tokenizer = tiny_lm
    with pytest.raises(Killed):
        RUNS[name](copy.deepcopy(model), tokenizer, watch=kill, checkpoint=tmp_path / "c")
    state = json.loads((tmp_path / "c" / "state.json").read_text())
    (tmp_path / "c" / "state.json").write_text(json.dumps(state | {"config": state["config"].replace("lr=", "lr=1")}))
    with pytest.raises(ValueError, match="another config"):
        RUNS[name](model, tokenizer, checkpoint=tmp_path / "c")


def test_frozen_weights_are_no_part_of_a_checkpoint(tiny_lm, tmp_path):
    model, _ = tiny_lm
    model.model.requires_grad_(False)
    optimizers = training.make_optimizers(model, 1e-3)
    training.save_checkpoint(tmp_path / "c", model, optimizers, {"step": 1})
    size = sum(file.stat().st_size for file in (tmp_path / "c").iterdir())
    assert size < 1.5 * 4 * model.lm_head.weight.numel()
    model.lm_head.weight.data.zero_()
    assert training.load_checkpoint(tmp_path / "c", model, optimizers) == {"step": 1}
    assert model.lm_head.weight.abs().sum() > 0


# ---- memory ----------------------------------------------------------------------------------------------------------


def limited(model, rows):
    """The model, which cannot read more than `rows` at once while gradients are recorded; and what it was given."""
    given = []

    def check(module, args, kwargs):
        given.append(len(kwargs["input_ids"]))
        if torch.is_grad_enabled() and given[-1] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    getattr(model, "backbone", model.get_decoder() if hasattr(model, "get_decoder") else model).register_forward_pre_hook(
        check, with_kwargs=True)
    return given


@pytest.mark.parametrize("name", ["sft", "dpo", "rlhf", "ppo", "grpo"])
def test_out_of_memory_halves_the_micro_batch_and_nothing_else(tiny_lm, capsys, name):
    model, tokenizer = tiny_lm
    small = copy.deepcopy(model)
    expected = RUNS[name](model, tokenizer)
    given = limited(small, 2)
    history = RUNS[name](small, tokenizer)
    for a, b in zip(expected, history):
        assert a == pytest.approx(b, abs=1e-5)
    assert "out of memory with" in capsys.readouterr().err
    assert given[-1] <= 2


def test_an_attempt_that_fails_half_way_leaves_no_gradient_behind(tiny_lm):
    model, _ = tiny_lm
    optimizers = training.make_optimizers(model, 1e-3)
    processes.begin(optimizers)
    weight, tried = model.lm_head.weight, []

    def attempt(rows):
        tried.append(rows)
        for part in torch.ones(8).split(rows):
            (weight.sum() * part.sum()).backward()
            if len(part) > 2 and len(tried) < 4:
                raise torch.OutOfMemoryError
        return "done"

    assert processes.within_memory(attempt, 8) == "done"
    assert tried == [8, 4, 2] and torch.equal(weight.grad, torch.full_like(weight, 8.0))
    assert processes.within_memory(attempt, 8) == "done" and tried[-1] == 2  # it is remembered


@pytest.mark.parametrize("rows", [4, 1])
def test_held_out_data_are_read_in_parts_that_fit_as_well(tiny_lm, monkeypatch, rows):
    """At most micro_batch_size rows at once, and fewer where these do not fit."""
    model, tokenizer = tiny_lm
    small, loss_sum, given = copy.deepcopy(model), training.loss_sum, []
    talks = [sft.qa(f"hi {i}", "ok" * (i % 3 + 1)) for i in range(6)]
    config = sft.SFTConfig(epochs=1, batch_size=2, precision="fp32", log_every=1, micro_batch_size=rows)

    def limited(model, ids, mask, precision):
        given.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss_sum(model, ids, mask, precision)

    expected = sft.train(model, tokenizer, talks, dataclasses.replace(config, micro_batch_size=64), held_out=talks)
    monkeypatch.setattr(training, "loss_sum", limited)
    history = sft.train(small, tokenizer, talks, config, held_out=talks)
    assert given[0] == rows and max(given[1:]) <= 2
    for a, b in zip(expected, history, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_not_even_one_row_is_a_clear_error(tiny_lm):
    limited(tiny_lm[0], 0)
    with pytest.raises(torch.OutOfMemoryError, match="not even one row"):
        RUNS["sft"](*tiny_lm)


@pytest.mark.parametrize("samples", [1, 4])
def test_gradient_checkpointing_keeps_less_and_changes_no_gradient(tiny_lm, samples):
    """Also where dropout is off and prompts are shared: Hugging Face's own layers recompute in training mode alone."""
    model, tokenizer = tiny_lm
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    rollouts = sample(model, tokenizer, ["abcdef", "xyz"], max_new_tokens=12, samples_per_prompt=samples)
    critics = LMCritic(ValueModel(model), "fp32"), SharedCritic(model, "fp32")
    for critic in critics:
        torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    losses = {"policy": lambda: completion_logprobs(model, rollouts).sum(),
              "value": lambda: critics[0].values(None, rollouts).sum(),
              "both": lambda: sum(x.sum() for x in critics[1].logprobs_and_values(rollouts, 1.0))}
    modules = torch.nn.ModuleList([model, critics[0].model, critics[1].model])

    def measured(name):
        modules.zero_grad()
        with Saved(modules) as saved:
            loss = losses[name]()
        loss.backward()
        return [p.grad.clone() for p in modules.parameters() if p.grad is not None], saved.bytes

    before = {name: measured(name) for name in losses}
    for part in (model, critics[0].trunk):
        recompute(part)
    for name, (gradients, kept) in before.items():
        again, less = measured(name)
        assert less < 0.7 * kept
        gap = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(gradients, again, strict=True))
        print("gap", name, samples, gap)
        assert gap < 1e-5
    assert not any(module.training for module in model.modules())
    with torch.no_grad():  # a cache can be read while nothing is recomputed
        assert torch.allclose(completion_logprobs(model, rollouts), rollouts.logprobs, atol=1e-4)
    with pytest.raises(ValueError, match="evaluation mode"), eval_mode(model.train()):
        pass


# ---- precision -------------------------------------------------------------------------------------------------------

TOLERANCE = {"fp32": 1e-6, "bf16": 2e-2, "fp16": 4e-3}  # nats a token: bfloat16 has 8 bits of mantissa, float16 has 11


@pytest.mark.parametrize("precision", TOLERANCE)
def test_autocast_losses_are_those_of_float32(tiny_lm, precision):
    model, tokenizer = tiny_lm
    examples = sft.encode_chat(tokenizer, [sft.qa(f"say {w}", w) for w in WORDS])
    ids, mask = sft.batch(examples, 0)
    exact = float(training.loss_sum(model, ids, mask, "fp32").detach()) / int(mask[:, 1:].sum())
    loss = training.loss_sum(model, ids, mask, precision).detach()
    assert loss.dtype == torch.float32
    assert float(loss) / int(mask[:, 1:].sum()) == pytest.approx(exact, abs=TOLERANCE[precision])
    pairs = dpo.encode_pairs(tokenizer, PAIRS)
    exact, logp = dpo.pair_logprobs(model, pairs, 0, "fp32"), dpo.pair_logprobs(model, pairs, 0, precision)
    length = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs])
    assert logp.dtype == torch.float32 and ((logp - exact) / length).abs().max() < TOLERANCE[precision]


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "rlhf", "ppo", "grpo"])
def test_half_precision_trains_with_a_scaled_loss(tiny_lm, monkeypatch, name):
    """float16 on the CPU: the loss is scaled, the gradients that are clipped are not."""
    model, tokenizer = tiny_lm
    scaled, norms = [], []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: scaled.append(float(loss.detach())) or backward(loss))
    expected = RUNS[name](copy.deepcopy(model), tokenizer)
    plain, scaled[:] = max(map(abs, scaled)), []
    history = RUNS[name](copy.deepcopy(model), tokenizer, "fp16")
    assert max(map(abs, scaled)) > 1000 * plain
    norms = [(a["grad_norm"], b["grad_norm"]) for a, b in zip(expected[1:2], history[1:2])]
    assert all(a > 0 and a == pytest.approx(b, rel=0.05) for a, b in norms)


def test_an_overflow_by_the_scale_is_a_skipped_step_and_one_of_the_loss_an_error(tiny_lm):
    model, _ = tiny_lm
    optimizers = training.make_optimizers(model, 1e-2)
    processes.begin(optimizers, "fp16")
    weight, scale = model.lm_head.weight, processes._training.scaler.get_scale
    before, high = weight.detach().clone(), scale()

    def step(factor, loss=1.0):
        processes.backward((weight * factor).sum())
        return training.take_step(optimizers, 1e-2, 1.0, loss, "step 0")

    assert step(1e36) == 0.0 and torch.equal(weight, before) and weight.grad is None  # 1e36 * 65536 is infinite
    assert step(1.0) == pytest.approx(weight.numel() ** 0.5) and not torch.equal(weight, before)
    assert scale() == high / 2
    with pytest.raises(training.TrainingDiverged, match="check the data, or precision 'fp16' overflows: try 'fp32'"):
        step(1.0, loss=float("nan"))
    with pytest.raises(training.TrainingDiverged, match="gradient norm.*try 'fp32'"):
        for _ in range(200):  # the scale falls and falls: it is not the scale
            step(float("inf"))
    processes.begin(optimizers, "fp32")
    with pytest.raises(training.TrainingDiverged, match="check the data$"):
        step(1.0, loss=float("nan"))


def test_actor_and_critic_share_one_scale(tiny_lm):
    """Both steps of an update undo the scale that its losses had, even when the first one overflows."""
    model, other = tiny_lm[0], copy.deepcopy(tiny_lm[0])
    actor, own = training.make_optimizers(model, 1e-2), training.make_optimizers(other, 1e-2)
    processes.begin([*actor, *own], "fp16")
    a, b = model.lm_head.weight, other.lm_head.weight
    for _ in range(3):
        processes.backward(a.sum() * 1e37 + b.sum())
        assert training.take_step(actor, 1e-2, 1.0, 1.0, "actor") == 0.0
        assert training.take_step(own, 1e-2, 1.0, 1.0, "critic") == pytest.approx(b.numel() ** 0.5)


def test_the_scale_is_none_of_a_strangers_business(tiny_lm):
    """After a run in half precision, an optimizer of one's own takes plain steps; and no run keeps its model alive."""
    model, tokenizer = tiny_lm
    RUNS["sft"](model, tokenizer, "fp16")
    assert not processes._training.optimizers
    optimizers = training.make_optimizers(model, 1e-3)
    model.lm_head.weight.sum().backward()
    assert training.take_step(optimizers, 1e-3, 1.0, 1.0, "step 0") == pytest.approx(model.lm_head.weight.numel() ** 0.5)


def test_a_checkpoint_keeps_the_scale(tiny_lm, tmp_path):
    model, _ = tiny_lm
    optimizers = training.make_optimizers(model, 1e-3)
    processes.begin(optimizers, "fp16")
    processes.backward(model.lm_head.weight.sum() * float("inf"))
    training.take_step(optimizers, 1e-3, 1.0, 1.0, "step 0")
    training.save_checkpoint(tmp_path / "c", model, optimizers, {"step": 1})
    lower = processes._training.scaler.get_scale()
    processes.begin(optimizers, "fp16")
    assert processes._training.scaler.get_scale() == 2 * lower
    assert training.load_checkpoint(tmp_path / "c", model, optimizers) == {"step": 1}
    assert processes._training.scaler.get_scale() == lower
