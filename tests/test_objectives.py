"""The equations against hand-computed numbers and closed forms."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from course_lib import objectives


def test_cross_entropy_by_hand():
    # p(token 1) = 1/4 at both positions; only x_2 and x_3 are predicted
    logits = torch.tensor([[[0.0, 0.0, math.log(2)]] * 3])  # softmax: 1/4, 1/4, 1/2
    ids = torch.tensor([[2, 1, 2]])
    loss = objectives.next_token_loss(logits, ids, torch.ones_like(ids, dtype=torch.bool))
    assert loss.item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_pitfall_logprobs_shifted_by_one():
    """Logits that know the next token exactly give loss 0; logits that know the present one do not."""
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    knows_next = torch.nn.functional.one_hot(ids.roll(-1, 1), 6) * 50.0
    knows_present = torch.nn.functional.one_hot(ids, 6) * 50.0
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert objectives.next_token_loss(knows_next, ids, mask) < 1e-6
    assert objectives.next_token_loss(knows_present, ids, mask) > 10


def test_pitfall_prompt_tokens_in_the_loss():
    """Only targets under the mask carry a gradient."""
    logits = torch.randn(1, 5, 7, requires_grad=True)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    mask = torch.tensor([[False, False, False, True, True]])
    objectives.next_token_loss(logits, ids, mask).backward()
    assert (logits.grad.abs().sum(-1) > 0).tolist() == [[False, False, True, True, False]]


def test_pitfall_all_masked_row_is_zero_not_nan():
    values = torch.tensor([[1.0, float("inf")]], requires_grad=True)
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    loss = objectives.masked_mean(values, nothing)
    loss.backward()
    assert loss == 0 and torch.isfinite(values.grad).all()
    assert objectives.sequence_logprob(torch.full((1, 3), -torch.inf), torch.zeros(1, 3, dtype=torch.bool)) == 0


@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_pitfall_accumulation_of_unequal_micro_batches(rows, part, random):
    """Micro-batches divided by the whole batch's count sum to the whole batch's mean, however it is split."""
    values = torch.tensor([[random.random() for _ in range(4)] for _ in range(rows)], dtype=torch.float64)
    mask = torch.tensor([[random.random() < 0.5 for _ in range(4)] for _ in range(rows)])
    whole = objectives.masked_mean(values, mask)
    parts = sum(objectives.masked_mean(v, m, mask.sum()) for v, m in zip(values.split(part), mask.split(part)))
    assert parts.item() == pytest.approx(whole.item(), abs=1e-12)


def test_losses_are_float32_for_half_precision_logits():
    losses = objectives.token_losses(torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.long))
    assert losses.dtype == torch.float32


def test_temperature_and_top_k_by_hand():
    logits = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125]))
    hot = objectives.adjust_logits(logits, temperature=0.5).softmax(-1)  # squares: 16, 4, 1, 1
    assert torch.allclose(hot, torch.tensor([16.0, 4, 1, 1]) / 22)
    top = objectives.adjust_logits(logits, top_k=2).softmax(-1)
    assert torch.allclose(top, torch.tensor([2 / 3, 1 / 3, 0, 0]))
    assert torch.allclose(objectives.adjust_logits(logits, top_k=99).softmax(-1), logits.exp())


def test_temperature_zero_is_refused():
    with pytest.raises(ValueError, match="argmax"):
        objectives.adjust_logits(torch.zeros(3), temperature=0)


# ---- proximal policy optimization ------------------------------------------------------------------------------------


def brute_force_gae(rewards, values, mask, gamma, lam, last_value):
    """A_t = sum_l (gamma lam)^l delta_{t+l}, every sum written out, on the choices that count."""
    out = torch.zeros_like(values)
    for i in range(len(values)):
        at = mask[i].nonzero()[:, 0].tolist()
        v = [float(values[i, t]) for t in at] + [float(last_value[i])]
        delta = [float(rewards[i, t]) + gamma * v[k + 1] - v[k] for k, t in enumerate(at)]
        for k, t in enumerate(at):
            out[i, t] = sum((gamma * lam) ** (l - k) * delta[l] for l in range(k, len(at)))
    return out


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(1, 4), st.integers(1, 7), st.sampled_from([0.0, 0.5, 0.95, 1.0]), st.sampled_from([0.9, 1.0]),
       st.integers(0, 99))
def test_gae_equals_the_sum_written_out(rows, length, lam, gamma, seed):
    rewards, values = numbers(rows, length, seed=seed), numbers(rows, length, seed=seed + 1)
    last = numbers(rows, seed=seed + 2)
    mask = numbers(rows, length, seed=seed + 3) > -0.5  # holes as between the steps of an episode, and empty rows
    advantages, returns = objectives.gae(rewards, values, mask, gamma, lam, last)
    assert torch.allclose(advantages, brute_force_gae(rewards, values, mask, gamma, lam, last))
    assert torch.allclose(returns, torch.where(mask, advantages + values, 0))


def test_gae_by_hand():
    """r = 0 0 1, V = .5 .25 .5, and a token of padding that holds nonsense."""
    rewards = torch.tensor([[0.0, 0, 1, 99]])
    values = torch.tensor([[0.5, 0.25, 0.5, 99]])
    mask = torch.tensor([[True, True, True, False]])
    # deltas: .25 - .5 = -.25; .5 - .25 = .25; 1 - .5 = .5
    for lam, expected in ((0.0, [-0.25, 0.25, 0.5]), (0.5, [0.0, 0.5, 0.5]), (1.0, [0.5, 0.75, 0.5])):
        advantages, returns = objectives.gae(rewards, values, mask, 1.0, lam)
        assert advantages.tolist() == [[*expected, 0]]
        assert returns.tolist() == [[a + v for a, v in zip(expected, [0.5, 0.25, 0.5])] + [0]]
    discounted, _ = objectives.gae(rewards, values, mask, 0.5, 1.0)  # deltas: -.375, 0, .5
    assert discounted.tolist() == [[-0.25, 0.25, 0.5, 0]]


def test_gae_limits():
    """lam = 1 is what came minus the value, lam = 0 the error of one step."""
    rewards, values, mask = numbers(3, 5), numbers(3, 5, seed=1), torch.ones(3, 5, dtype=torch.bool)
    what_came = rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose(objectives.gae(rewards, values, mask, lam=1.0)[0], what_came - values)
    after = torch.cat([values[:, 1:], values.new_zeros(3, 1)], 1)
    assert torch.allclose(objectives.gae(rewards, values, mask, lam=0.0)[0], rewards + after - values)


def test_pitfall_bootstrap_past_the_end():
    """What stands behind an answer changes nothing; a value after a cut-off answer counts only when it is given."""
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards, values = numbers(2, 3), numbers(2, 3, seed=1)
    first = objectives.gae(rewards, values, mask)[0]
    assert torch.equal(objectives.gae(rewards, values.masked_fill(~mask, 1e3), mask)[0], first)
    assert float(first[0, 1]) == pytest.approx(float(rewards[0, 1] - values[0, 1]))
    cut_off = objectives.gae(rewards, values, mask, last_value=torch.tensor([2.0, 0.0], dtype=torch.float64))[0]
    assert float(cut_off[0, 1]) == pytest.approx(float(first[0, 1]) + 2) and torch.equal(cut_off[1], first[1])


def test_pitfall_advantages_not_detached():
    values = numbers(2, 3).requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    advantages, returns = objectives.gae(numbers(2, 3), values, mask)
    assert not advantages.requires_grad and not returns.requires_grad
    logprobs = torch.zeros(2, 3, requires_grad=True)
    losses = objectives.clipped_surrogate(logprobs, logprobs, values).losses
    assert torch.autograd.grad(losses.sum(), [logprobs, values], allow_unused=True)[1] is None


def test_clipped_surrogate_at_and_beyond_both_edges():
    """Objective and gradient (by ln p, which is r times that by r) by hand, low = .25, high = .5."""
    for advantage, ratio, objective, moves in [
        (2.0, 1.0, 2.0, True), (2.0, 1.25, 2.5, True), (2.0, 1.6, 3.0, False), (2.0, 0.5, 1.0, True),
        (-2.0, 1.0, -2.0, True), (-2.0, 0.8, -1.6, True), (-2.0, 0.5, -1.5, False), (-2.0, 1.6, -3.2, True),
    ]:
        logprob = torch.tensor([[math.log(ratio)]], requires_grad=True)
        out = objectives.clipped_surrogate(logprob, torch.zeros(1, 1), torch.tensor([[advantage]]), 0.25, 0.5)
        (gradient,) = torch.autograd.grad(out.losses.sum(), logprob)
        assert float(-out.losses.detach()) == pytest.approx(objective)
        assert float(-gradient) == pytest.approx(ratio * advantage if moves else 0.0)
        assert bool(out.clipped) == (not moves)
        assert float(out.kl) == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-7)
    edge = objectives.clipped_surrogate(torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([1.0]), 0.0)
    assert edge.clipped == 0  # at the edge itself nothing has been cut off


def test_first_gradient_of_the_surrogate_is_reinforces():
    logprobs, advantages = numbers(3, 4).requires_grad_(), numbers(3, 1, seed=1)
    mask = torch.ones(3, 4, dtype=torch.bool)
    surrogate = objectives.clipped_surrogate(logprobs, logprobs, advantages).losses.sum() / 3
    plain = objectives.policy_gradient_loss(logprobs, mask, advantages[:, 0])
    assert torch.allclose(*[torch.autograd.grad(loss, logprobs)[0].double() for loss in (surrogate, plain)])


def test_without_a_clip_the_surrogate_is_the_importance_ratio():
    out = objectives.clipped_surrogate(torch.tensor([2.0, -2.0]), torch.zeros(2), torch.tensor([1.0, -1.0]), math.inf)
    assert torch.allclose(out.losses, torch.tensor([-math.exp(2), math.exp(-2)])) and not out.clipped.any()


def test_pitfall_value_clipping_on_the_wrong_side():
    """The clip takes credit away and never hides an error: the larger of two losses."""
    old, returns = torch.zeros(4), torch.tensor([1.0, 1.0, 1.0, 0.1])
    values = torch.tensor([0.5, 0.1, -0.5, 0.5])  # towards R past the clip; within it; away from R; past R
    losses = objectives.clipped_value_losses(values, old, returns, clip=0.2)
    assert torch.allclose(losses, torch.tensor([0.8**2, 0.9**2, 1.5**2, 0.4**2]) / 2)
    plain = objectives.clipped_value_losses(values, old, returns, clip=math.inf)
    assert torch.allclose(plain, (values - returns).square() / 2)


def test_pitfall_whitening_over_padding():
    values = torch.tensor([[1.0, 3.0, 100.0]])
    mask = torch.tensor([[True, True, False]])
    assert torch.allclose(objectives.whiten(values, mask), torch.tensor([[-1.0, 1, 0]]))  # the biased deviation is 1


def test_pitfall_whitening_rewards_must_keep_their_mean():
    values, mask = torch.full((1, 3), -1.0), torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(objectives.whiten(values, mask), torch.zeros(1, 3))  # no NaN for equal values
    rewards = objectives.whiten(torch.tensor([[-6.0, -2]]), mask[:, :2], shift_mean=False)
    assert torch.allclose(rewards, torch.tensor([[-5.0, -3]]))


def test_explained_variance():
    returns, mask = torch.tensor([[1.0, 2, 3, 9]]), torch.tensor([[True, True, True, False]])
    assert objectives.explained_variance(returns + 5, returns, mask) == 1  # a constant error explains all variance
    assert objectives.explained_variance(torch.zeros_like(returns), returns, mask) == 0
    assert objectives.explained_variance(-returns, returns, mask) == pytest.approx(-3)
    assert objectives.explained_variance(returns, torch.ones(1, 4), mask) == 0


def test_pitfall_reward_on_the_wrong_token():
    """Answers of 2, 4 and 0 tokens: the score belongs to the last token of each, the price of leaving to all."""
    mask = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    new, ref = torch.full((3, 4), -1.0, requires_grad=True), torch.full((3, 4), -3.0)
    rewards = objectives.token_rewards(torch.tensor([5.0, 7.0, 9.0]), new, ref, mask, beta=0.5)
    assert rewards.tolist() == [[-1, 4, 0, 0], [-1, -1, -1, 6], [0, 0, 0, 0]] and not rewards.requires_grad
    gap = torch.tensor([[True, False, True, False]])
    assert objectives.last_token(gap).tolist() == [[False, False, True, False]]
