"""DPO's loop: what it encodes, that parts equal the whole, that the reference stays, and that every loss learns."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib.algorithms import dpo
from course_lib.algorithms.dpo import DPOConfig, ImplicitReward, Pair
from course_lib.lm.logprobs import token_logprobs
from course_lib.objectives import DPO_LOSSES, REFERENCE_FREE

ROWS = [{"prompt": [{"role": "user", "content": f"Where is {name}?"}], "chosen": f"{name} is far.", "rejected": "No."}
        for name in ("SF", "LA", "Rome", "Oslo", "Bern")]


def moved(model, other):
    return max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), other.parameters()))


def test_pairs_are_the_prompt_and_both_answers_with_their_end(tiny_lm):
    _, tokenizer = tiny_lm
    (pair,) = dpo.encode_pairs(tokenizer, ROWS[:1])
    assert tokenizer.decode(pair.prompt) == "<|bos|><|user|>Where is SF?<|end|><|assistant|>"
    assert tokenizer.decode(pair.chosen) == "SF is far.<|end|>" and tokenizer.decode(pair.rejected) == "No.<|end|>"


def test_messages_and_strings_are_the_same_answer(tiny_lm):
    _, tokenizer = tiny_lm
    said = {side: [{"role": "assistant", "content": ROWS[0][side]}] for side in ("chosen", "rejected")}
    assert dpo.encode_pairs(tokenizer, [ROWS[0] | said]) == dpo.encode_pairs(tokenizer, ROWS[:1])


def test_log_probs_of_pairs_are_those_of_each_answer_alone(tiny_lm):
    model, tokenizer = tiny_lm
    pairs = dpo.encode_pairs(tokenizer, ROWS)
    together = dpo.all_logprobs(model, pairs, tokenizer.pad_token_id, "fp32", size=2)
    for pair, row in zip(pairs, together):
        for answer, got in zip((pair.chosen, pair.rejected), row):
            ids = torch.tensor([pair.prompt + answer])
            alone = token_logprobs(model, ids, torch.ones_like(ids)).detach()[0, len(pair.prompt) - 1 :].sum()
            assert float(got) == pytest.approx(float(alone), abs=1e-3)


@pytest.mark.parametrize(("row", "message"), [
    ({"prompt": "a", "chosen": "b"}, "row 1 has no rejected"),
    ({"prompt": "a", "chosen": "b", "rejected": "b"}, "row 1: chosen and rejected are the same"),
    ({"prompt": "a" * 300, "chosen": "b", "rejected": "c"}, "row 1 has 301 tokens of prompt"),
    ({"prompt": "a", "chosen": "b" * 300, "rejected": "c"}, "up to 301 of answer, max_length is 256"),
])
def test_bad_rows_are_named(tiny_lm, row, message):
    with pytest.raises(ValueError, match=message):
        dpo.encode_pairs(tiny_lm[1], [ROWS[0], row])


def test_no_rows_is_an_error(tiny_lm):
    with pytest.raises(ValueError, match="there are no pairs"):
        dpo.train(*tiny_lm, [])


def test_pitfall_18_a_pair_that_is_the_same_once_it_is_cut_is_an_error(tiny_lm):
    row = {"prompt": "a", "chosen": "bbbbbbbb1", "rejected": "bbbbbbbb2"}
    assert dpo.encode_pairs(tiny_lm[1], [row], max_length=12)
    with pytest.raises(ValueError, match="the same after they are cut"):
        dpo.encode_pairs(tiny_lm[1], [row], max_length=8, truncate=True)


def test_batches_hold_every_pair_once_in_an_order_that_the_seed_decides():
    pairs = [Pair([1] * (1 + i % 7), [2] * (1 + i % 5), [3]) for i in range(50)]
    cut = dpo.batches(pairs, 8, seed=3)
    assert sorted(torch.cat(cut).tolist()) == list(range(50))
    assert all(a.equal(b) for a, b in zip(cut, dpo.batches(pairs, 8, seed=3)))
    assert torch.cat(cut).tolist() != torch.cat(dpo.batches(pairs, 8, seed=4)).tolist()


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
@settings(max_examples=5, deadline=None)
@given(size=st.integers(1, 5))
def test_pitfall_31_micro_batches_equal_the_whole_batch(tiny_lm_factory, loss, size):
    config = dict(loss=loss, batch_size=5, lr=1e-3, precision="fp32")
    (whole, tokenizer), (parts, _) = tiny_lm_factory(), tiny_lm_factory()
    a = dpo.train(whole, tokenizer, ROWS, DPOConfig(**config))
    b = dpo.train(parts, tokenizer, ROWS, DPOConfig(**config, micro_batch_size=size))
    assert a[-1]["loss"] == pytest.approx(b[-1]["loss"], abs=1e-5)
    assert a[-1]["grad_norm"] == pytest.approx(b[-1]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_passes_without_gradients_keep_to_the_micro_batch_size_too(tiny_lm, loss, monkeypatch):
    """Four times as many pairs, for nothing is kept between the layers: the reference's, the held-out ones, and KTO's."""
    seen, logprobs = {True: set(), False: set()}, dpo.pair_logprobs
    monkeypatch.setattr(dpo, "pair_logprobs", lambda model, pairs, *rest: seen[torch.is_grad_enabled()].add(len(pairs))
                        or logprobs(model, pairs, *rest))
    dpo.train(*tiny_lm, ROWS * 2, DPOConfig(loss=loss, batch_size=10, micro_batch_size=1, precision="fp32"), held_out=ROWS)
    assert seen == {True: {1}, False: {4, 2, 1}}


@pytest.fixture(scope="module")
def tiny_lm_factory():
    from transformers import LlamaConfig, LlamaForCausalLM

    from course_lib.lm.tokenizer import train_tokenizer

    tokenizer = train_tokenizer([], vocab_size=263)

    def make():
        config = LlamaConfig(vocab_size=263, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                             num_attention_heads=4, max_position_embeddings=128, pad_token_id=0, bos_token_id=1,
                             eos_token_id=2)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LlamaForCausalLM(config).eval(), tokenizer

    return make


@pytest.mark.parametrize("loss", DPO_LOSSES)
def test_every_loss_raises_the_chosen_over_the_rejected(tiny_lm, loss):
    model, tokenizer = tiny_lm
    start = dpo.measures(dpo.all_logprobs(model, dpo.encode_pairs(tokenizer, ROWS), 0), torch.zeros(5, 2), 1.0)
    history = dpo.train(model, tokenizer, ROWS, DPOConfig(loss=loss, epochs=8, lr=3e-3, beta=0.1))
    end = dpo.measures(dpo.all_logprobs(model, dpo.encode_pairs(tokenizer, ROWS), 0), torch.zeros(5, 2), 1.0)
    assert end["margin"] > start["margin"] + 1
    assert history[-1]["loss"] < history[0]["loss"]


def test_the_first_loss_is_ln_2_because_policy_and_reference_agree(tiny_lm):
    history = dpo.train(*tiny_lm, ROWS, DPOConfig(precision="fp32"))
    assert history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert history[0]["margin"] == pytest.approx(0, abs=1e-4)


def test_pitfalls_16_and_25_the_reference_is_the_model_given_and_stays_as_it_was(tiny_lm):
    model, tokenizer = tiny_lm
    reference = copy.deepcopy(model)
    torch.nn.init.normal_(reference.model.embed_tokens.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    before = copy.deepcopy(reference)
    reference.train()
    history = dpo.train(model, tokenizer, ROWS, DPOConfig(precision="fp32"), reference=reference)
    assert moved(reference, before) == 0
    assert abs(history[0]["margin"]) > 1e-3  # it is not the policy's own start


def test_the_policy_may_be_its_own_reference_which_is_read_before_the_first_step(tiny_lm):
    model, tokenizer = tiny_lm
    other = copy.deepcopy(model)
    a = dpo.train(model, tokenizer, ROWS, DPOConfig(epochs=2, precision="fp32"))
    b = dpo.train(other, tokenizer, ROWS, DPOConfig(epochs=2, precision="fp32"), reference=other)
    assert a == b


def test_pitfall_07_dropout_is_off_in_both_passes(tiny_lm):
    model, tokenizer = tiny_lm
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    history = dpo.train(model, tokenizer, ROWS, DPOConfig(precision="fp32"))
    assert history[0]["margin"] == pytest.approx(0, abs=1e-4)


def test_pitfall_30_options_that_a_loss_does_not_have_are_an_error(tiny_lm, monkeypatch):
    monkeypatch.setattr(dpo, "all_logprobs", lambda *_: pytest.fail("found only after the reference was read"))
    for loss, options in (("sigmoid", {"label_smoothing": 0.1}), ("smoothed", {"smoothing": 0.1}), ("robust", {"beta": 0.1})):
        with pytest.raises(ValueError, match=f"the loss '{loss}' has no option {next(iter(options))}"):
            dpo.train(*tiny_lm, ROWS, DPOConfig(loss=loss, options=options))
    for beta in (0.0, -0.1):
        with pytest.raises(ValueError, match="beta must be above 0"):
            dpo.train(*tiny_lm, ROWS, DPOConfig(beta=beta))
    with pytest.raises(ValueError, match="loss is one of sigmoid"):
        dpo.train(*tiny_lm, ROWS, DPOConfig(loss="sigmod"))
    for loss in REFERENCE_FREE:
        with pytest.raises(ValueError, match="has no reference"):
            dpo.train(*tiny_lm, ROWS, DPOConfig(loss=loss), reference=tiny_lm[0])


@pytest.mark.parametrize(("name", "value"), [("beta", 0.7), ("batch_size", 3), ("epochs", 3), ("lr", 1e-2), ("warmup", 0.9),
                                             ("clip", 1e-3), ("seed", 1), ("loss", "ipo")])
def test_pitfall_30_no_setting_is_silently_unused(tiny_lm, name, value):
    def weights(**change):
        model = copy.deepcopy(tiny_lm[0])
        dpo.train(model, tiny_lm[1], ROWS, DPOConfig(**dict(batch_size=2, epochs=2, lr=1e-3, precision="fp32") | change))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert not torch.equal(weights(), weights(**{name: value}))


def test_ktos_answers_to_other_prompts_are_cut_to_max_length_too(tiny_lm, monkeypatch):
    """A long prompt with a short answer stands before a short one with a long answer."""
    rows = [{"prompt": "p" * 60, "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a" * 60, "rejected": "b"}]
    lengths, logprobs = [], dpo.pair_logprobs

    def measured(model, pairs, *rest):
        lengths.extend(len(p.prompt) + len(answer) for p in pairs for answer in (p.chosen, p.rejected))
        return logprobs(model, pairs, *rest)

    monkeypatch.setattr(dpo, "pair_logprobs", measured)
    dpo.train(*tiny_lm, rows, DPOConfig(loss="kto", max_length=80))
    assert max(lengths) == 80


@pytest.mark.parametrize(("evaluations", "expected"), [(2, [0, 3, 6]), (0, [0, 6])])
def test_held_out_pairs_and_watch_are_looked_at_from_the_start_to_the_end(tiny_lm, evaluations, expected):
    seen = []
    history = dpo.train(*tiny_lm, ROWS, DPOConfig(batch_size=2, epochs=2, evaluations=evaluations), held_out=ROWS[:2],
                        watch=lambda step: seen.append(step) or {"looked": step})
    assert seen == expected == [e["step"] for e in history if "held_out_loss" in e]
    assert [e["step"] for e in history] == [0, 1, 2, 3, 4, 5, 6]


def test_the_implicit_reward_is_beta_times_the_log_ratio(tiny_lm):
    model, tokenizer = tiny_lm
    reference = copy.deepcopy(model)
    dpo.train(model, tokenizer, ROWS, DPOConfig(epochs=4, lr=1e-3), reference=reference)
    reward = ImplicitReward(model, reference, tokenizer, beta=0.3, precision="fp32")
    pairs = dpo.encode_pairs(tokenizer, ROWS)
    expected = 0.3 * (dpo.all_logprobs(model, pairs, 0, "fp32") - dpo.all_logprobs(reference, pairs, 0, "fp32"))
    got = reward(prompts=[r["prompt"] for r in ROWS], completions=[r["rejected"] for r in ROWS], city=["x"] * 5)
    assert got == pytest.approx(expected[:, 1].tolist(), abs=1e-5)
    both = [(r["prompt"], r[side]) for side in ("rejected", "chosen") for r in ROWS]  # a prompt comes twice, far apart
    got = reward(prompts=[prompt for prompt, _ in both], completions=[said for _, said in both])
    assert got == pytest.approx(expected.flip(1).T.flatten().tolist(), abs=1e-5)
