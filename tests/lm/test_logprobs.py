"""Teacher-forced log-probs against one plain forward pass per prefix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from course_lib.lm.logprobs import completion_logprobs, eval_mode, position_ids, token_logprobs
from course_lib.lm.sampling import Rollouts
from course_lib.objectives import sequence_logprob

SHAPE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
ARCHITECTURES = {
    "llama": SHAPE,
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4),
    "qwen2": SHAPE,
    "gemma2": SHAPE | dict(head_dim=8, query_pre_attn_scalar=8),  # logits are squashed after the head
    "cohere": SHAPE,  # logits are scaled after the head
}
VOCAB = 40


def make_lm(architecture="llama"):
    config = CONFIG_MAPPING[architecture](
        **ARCHITECTURES[architecture], vocab_size=VOCAB, max_position_embeddings=32, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


MODELS = {}


def cached_lm(architecture="llama"):
    """One model for all tests that do not change it."""
    if architecture not in MODELS:
        MODELS[architecture] = make_lm(architecture)
    return MODELS[architecture]


def by_prefix(model, row, temperature=1.0):
    """log p(row[t] | row[:t]) from a forward pass over row[:t] alone, for t = 1, 2, ..."""
    with torch.no_grad():
        logits = [model(torch.tensor([row[:t]])).logits[0, -1] / temperature for t in range(1, len(row))]
    return torch.stack([line.log_softmax(-1)[token] for line, token in zip(logits, row[1:])])


def pad(rows, left):
    """Rows of token ids -> ids and mask, both (B, T)."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), True
    return ids, mask


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("left", [True, False])
def test_pitfall_01_each_logprob_belongs_to_its_own_token(architecture, left):
    model, rows = cached_lm(architecture), [[5, 9, 30, 2, 7], [8, 3], [11, 4, 4, 21]]
    ids, mask = pad(rows, left)
    logprobs = token_logprobs(model, ids, mask, temperature=0.7)
    assert logprobs.shape == (3, 4) and logprobs.dtype == torch.float32
    for row, line in zip(rows, logprobs):
        own = line[-(len(row) - 1) :] if left else line[: len(row) - 1]
        torch.testing.assert_close(own, by_prefix(model, row, 0.7), atol=1e-4, rtol=0)
    assert ((logprobs != 0).sum(-1) == mask.sum(-1) - 1).all(), "padding, and the first token of a row, give 0"


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8), min_size=1, max_size=4),
    extra=st.integers(0, 5),
)
def test_pitfall_02_padding_on_either_side_changes_nothing(rows, extra):
    model = cached_lm()
    right, left = pad(rows, left=False), pad(rows, left=True)
    wider = [torch.nn.functional.pad(x, (extra, 0)) for x in left]
    sums = [sequence_logprob(token_logprobs(model, ids, mask), mask[:, 1:]) for ids, mask in (right, left, wider)]
    torch.testing.assert_close(sums[0], sums[1], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(sums[1], sums[2], atol=1e-4, rtol=1e-5)


def test_positions_count_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    assert position_ids(mask.bool()).equal(position_ids(mask))


def rollouts_of(prompts, completions):
    """A `Rollouts` of given ids, as `sample` would return it."""
    prompt_ids, prompt_mask = pad(prompts, left=True)
    completion_ids, completion_mask = pad(completions, left=False)
    n = len(prompts)
    return Rollouts(prompt_ids, prompt_mask, completion_ids, completion_mask, torch.zeros(completion_ids.shape),
                    torch.ones(n, dtype=torch.bool), torch.arange(n), [""] * n)  # fmt: skip


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reading_a_prompt_once_for_its_samples_changes_neither_values_nor_gradients(architecture, temperature):
    model = make_lm(architecture)
    prompts = [[1, 7, 8, 9], [1, 7, 8, 9], [1, 5], [1, 5]]
    shared = rollouts_of(prompts, [[11, 12, 13], [14], [15, 16], [17, 18, 2, 19]])
    apart = rollouts_of(prompts, [[11, 12, 13], [14], [15, 16], [17, 18, 2, 19]])
    shared.group = torch.tensor([3, 3, 0, 0])
    weights = torch.randn(shared.completion_ids.shape, generator=torch.Generator().manual_seed(1))
    got = completion_logprobs(model, shared, temperature)
    expected = completion_logprobs(model, apart, temperature)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    pairs = (torch.autograd.grad((x * weights).sum(), list(model.parameters()), allow_unused=True) for x in (got, expected))
    for a, b in zip(*pairs):
        if a is not None or b is not None:
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_pitfall_03_prompt_tokens_are_no_part_of_it():
    model = cached_lm()
    prompts, completions = [[5, 9, 30], [8], [7, 7]], [[4, 2], [3, 6, 2], [2]]
    logprobs = completion_logprobs(model, rollouts_of(prompts, completions))
    assert logprobs.shape == (3, 3)
    for line, prompt, completion in zip(logprobs, prompts, completions):
        expected = by_prefix(model, prompt + completion)[len(prompt) - 1 :]
        torch.testing.assert_close(line[: len(completion)], expected, atol=1e-4, rtol=0)
        assert (line[len(completion) :] == 0).all()


def test_the_head_sees_only_the_positions_that_are_used():
    model, rows = make_lm(), []
    model.lm_head.register_forward_hook(lambda module, args, output: rows.append(output.shape[:-1].numel()))
    completion_logprobs(model, rollouts_of([[5, 9, 30], [8], [7, 7]], [[4, 2], [3, 6, 2], [2]]))
    ids, mask = pad([[5, 9, 30, 2], [8, 3]], left=True)
    token_logprobs(model, ids, mask)
    token_logprobs(model, ids, mask, targets=ids == 2)
    assert rows == [6, 4, 1]
    assert not model.lm_head._forward_pre_hooks


def test_targets_choose_tokens_by_their_own_place():
    model = cached_lm()
    ids, mask = pad([[5, 9, 30, 2], [8, 3]], left=False)
    targets = torch.tensor([[True, False, True, False], [False, True, True, True]])
    chosen, full = token_logprobs(model, ids, mask, targets=targets), token_logprobs(model, ids, mask)
    assert (chosen != 0).tolist() == [[False, True, False], [True, False, False]]
    torch.testing.assert_close(chosen, torch.where(targets[:, 1:], full, 0), atol=1e-5, rtol=0)


def test_gradients_are_those_of_the_plain_formula():
    model, row = make_lm(), [5, 9, 30, 2]
    ids, mask = pad([row, [8, 3]], left=True)
    token_logprobs(model, ids, mask, targets=ids == 2).sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(torch.tensor([row[:3]])).logits[0, -1].log_softmax(-1)[2].backward()
    for gradient, parameter in zip(ours, model.parameters()):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_softmax_is_in_float32_for_a_bfloat16_model():
    model = make_lm().bfloat16()
    ids, mask = pad([[5, 9, 30, 2]], left=True)
    logprobs = token_logprobs(model, ids, mask)
    expected = model(ids).logits[0, :-1].float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs[0], expected, atol=1e-6, rtol=0)


def test_a_model_in_64_bits_keeps_them():
    model, ids = make_lm().double(), torch.tensor([[1, 7, 9, 4]])
    with torch.no_grad():
        got = token_logprobs(model, ids, torch.ones_like(ids))
        plain = model(ids).logits.log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[..., 0]
    assert got.dtype == torch.float64 and torch.allclose(got, plain, rtol=0, atol=1e-12)


def test_pitfall_22_a_row_without_tokens_gives_zero_and_no_nan_gradient():
    model = make_lm()
    ids = torch.tensor([[5, 9, 30], [0, 0, 0], [0, 0, 4]])
    mask = torch.tensor([[1, 1, 1], [0, 0, 0], [0, 0, 1]]).bool()
    logprobs = token_logprobs(model, ids, mask)
    total = sequence_logprob(logprobs, mask[:, 1:])
    assert total[1] == 0 and total[2] == 0 and total[0] < 0
    total.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    none = token_logprobs(model, ids, mask, targets=torch.zeros_like(mask))
    assert none.tolist() == [[0, 0]] * 3 and none.requires_grad


def test_sequence_logprob_ignores_what_is_masked():
    inf, nan = torch.inf, torch.nan
    logprobs = torch.tensor([[-1, -2, -inf], [nan, -4, -0.5], [-1, -1, -1]], requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]]).bool()
    total = sequence_logprob(logprobs, mask)
    assert total.tolist() == [-3.0, -4.5, 0.0]
    total.sum().backward()
    assert logprobs.grad.equal(mask.float())


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_a_temperature_that_is_not_positive_is_an_error(temperature):
    ids, mask = pad([[5, 9]], left=True)
    with pytest.raises(ValueError, match="temperature must be positive"):
        token_logprobs(cached_lm(), ids, mask, temperature=temperature)


def test_the_head_is_whole_again_after_an_error():
    model = make_lm()
    ids, mask = pad([[5, VOCAB]], left=True)
    with pytest.raises(IndexError):
        token_logprobs(model, ids, mask)
    assert model(ids[:, :1]).logits.shape == (1, 1, VOCAB)


def test_eval_mode_restores_each_module():
    model = make_lm().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), eval_mode(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == before
