"""The equations against hand-computed numbers and closed forms."""

import itertools
import math

import pytest
import torch
from hypothesis import given, strategies as st

from course_lib import exact, objectives


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


# ---- KL --------------------------------------------------------------------------------------------------------------


def two_models(seed=0):
    """Log-probs of all 40 sequences under a policy, with gradients, and under a reference; the policy's logits."""
    policy, reference = exact.TableLM(3, 3, seed=seed), exact.TableLM(3, 3, seed=seed + 100)
    return policy(), reference().detach(), policy.logits


def gradient(scalar, parameter):
    return torch.autograd.grad(scalar, parameter, retain_graph=True)[0]


def test_k1_and_k3_are_unbiased_and_k2_is_not():
    logp, logref, _ = two_models()
    means = {name: (logp.exp() * k(logp, logref)).sum().item() for name, k in objectives.KL_ESTIMATORS.items()}
    true = exact.kl(logp, logref).item()
    assert means["k1"] == pytest.approx(true, rel=1e-5) and means["k3"] == pytest.approx(true, rel=1e-5)
    assert abs(means["k2"] - true) > 0.1


def test_k2_is_right_to_second_order():
    logp, direction = two_models()[0].detach(), two_models(5)[0].detach()
    for step, allowed in ((0.1, 0.2), (0.01, 0.02)):
        near = (logp + step * direction).log_softmax(0)
        k2 = float((logp.exp() * objectives.k2(logp, near)).sum())
        assert k2 == pytest.approx(float(exact.kl(logp, near)), rel=allowed)


def test_k2_and_k3_are_never_negative_and_k1_is():
    logp, logref, _ = two_models()
    assert (objectives.k2(logp, logref) >= 0).all() and (objectives.k3(logp, logref) >= 0).all()
    assert (objectives.k1(logp, logref) < 0).any()


def test_the_expected_gradient_of_each_kl_estimate_as_a_loss():
    """Pitfall: a KL in the loss estimated so that its gradient is not the KL's."""
    logp, logref, logits = two_models()
    p = logp.exp().detach()
    expected = {name: gradient((p * k(logp, logref)).sum(), logits) for name, k in objectives.KL_ESTIMATORS.items()}
    kl, backwards = gradient(exact.kl(logp, logref), logits), gradient(exact.kl(logref, logp), logits)
    assert torch.allclose(expected["k1"], torch.zeros_like(kl), atol=1e-6)
    assert torch.allclose(expected["k2"], kl, atol=1e-6)
    assert torch.allclose(expected["k3"], backwards, atol=1e-6)
    assert not torch.allclose(backwards, kl, atol=1e-2)


def test_k3_keeps_small_differences():
    """Pitfall: exp(x) - 1 - x in float32 is noise where x is small; the KL of a first step is."""
    x = torch.tensor([1e-3, -1e-3, 3e-3, -3e-3])
    exactly = torch.expm1(x.double()) - x.double()
    careful, naive = objectives.k3(torch.zeros(4), x), x.exp() - 1 - x
    assert torch.allclose(careful.double(), exactly, rtol=1e-3, atol=0)
    assert not torch.allclose(naive.double(), exactly, rtol=1e-2, atol=0)


def test_the_penalised_reward_pays_for_what_the_policy_likes_more_than_the_reference():
    """Pitfall: KL with the wrong sign."""
    logp, logref = torch.tensor([[-1.0, -1.0], [-3.0, -7.0]], requires_grad=True), torch.tensor([[-2.0, -2.0], [-1.0, -1.0]])
    mask = torch.tensor([[True, True], [True, False]])
    paid = objectives.kl_penalised(torch.tensor([5.0, 5.0]), logp, logref, mask, 0.5)
    assert paid.tolist() == [4.0, 6.0] and not paid.requires_grad  # 5 - .5 (1 + 1); 5 - .5 (-2), the masked token is free


def test_kl_loss_is_a_sum_over_tokens_and_a_mean_over_answers():
    logp, logref = torch.tensor([[-1.0, -2.0], [-1.0, 9.0]]), torch.tensor([[-3.0, -2.0], [-2.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert float(objectives.kl_loss(logp, logref, mask, "k2")) == pytest.approx((2.0 + 0.0 + 0.5) / 2)
    assert float(objectives.kl_loss(logp, logref, mask, "k2", count=10)) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="k2 or k3"):
        objectives.kl_loss(logp, logref, mask, "k4")


# ---- best of n -------------------------------------------------------------------------------------------------------


def test_best_of_n_kl_bounds_the_exact_one_and_is_near_it_for_many_small_answers():
    logp, reward = exact.TableLM(3, 3, seed=1)().detach(), torch.randn(40, generator=torch.Generator().manual_seed(0))
    kls = [float(exact.kl(exact.best_of_n(logp, reward, n), logp)) for n in (1, 2, 4, 16)]
    assert kls[0] == pytest.approx(0, abs=1e-6) and kls == sorted(kls)
    assert all(kl < objectives.best_of_n_kl(n) for kl, n in zip(kls[1:], (2, 4, 16)))
    many = torch.full((5000,), -math.log(5000), dtype=torch.float64)
    fine = exact.kl(exact.best_of_n(many, torch.arange(5000.0), 4), many)
    assert float(fine) == pytest.approx(objectives.best_of_n_kl(4), abs=2e-3)


def test_exact_best_of_n_by_counting_and_with_ties():
    logp = torch.tensor([0.2, 0.3, 0.5]).log()
    best = exact.best_of_n(logp, torch.tensor([3.0, 1.0, 1.0]), 2).exp()
    assert torch.allclose(best, torch.tensor([1 - 0.8**2, 0.64 * 0.3 / 0.8, 0.64 * 0.5 / 0.8]), atol=1e-6)


def test_best_of_n_averages_over_all_choices():
    proxy, gold = torch.tensor([[0.1, 0.5, 0.5, 0.9]]), torch.tensor([[4.0, 1.0, 2.0, -1.0]])
    for n in (1, 2, 3, 4):
        means = []
        for chosen in itertools.combinations(range(4), n):
            top = max(float(proxy[0, i]) for i in chosen)
            ties = [float(gold[0, i]) for i in chosen if float(proxy[0, i]) == top]
            means.append(sum(ties) / len(ties))
        assert float(objectives.best_of_n(proxy, gold, n)) == pytest.approx(sum(means) / len(means), rel=1e-5)
    with pytest.raises(ValueError, match="at least 5 samples"):
        objectives.best_of_n(proxy, gold, 5)


def test_the_share_of_best_of_n_that_is_kept_equals_the_exact_one():
    """The two functions are one distribution seen from two sides."""
    logp, reward = exact.TableLM(2, 2, seed=1)().detach(), torch.arange(7.0)
    drawn = torch.multinomial(logp.exp(), 4000, replacement=True, generator=torch.Generator().manual_seed(0))
    estimate = objectives.best_of_n(reward[drawn][None], reward[drawn][None], 4)
    exactly = exact.expected_reward(exact.best_of_n(logp, reward, 4), reward)
    assert float(estimate) == pytest.approx(float(exactly), abs=0.1)


# ---- group relative policy optimization ------------------------------------------------------------------------------


def test_group_advantages_by_hand():
    scores = torch.tensor([[1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 2.0, 2.0]])
    std = torch.tensor([[0.5], [math.sqrt(2 / 3)]])  # over G - 1
    away = torch.tensor([[0.75, -0.25, -0.25, -0.25], [1.0, -1.0, 0.0, 0.0]])
    assert torch.allclose(objectives.group_advantages(scores), away / (std + 1e-4))
    assert torch.allclose(objectives.group_advantages(scores, scale=False), away)


@pytest.mark.parametrize("score", [0.0, 1.0, 0.1, 1.1, -3.7e5])
@pytest.mark.parametrize("scale", [True, False])
def test_pitfall_std_of_a_group_of_equal_rewards(score, scale):
    """Exactly 0, not NaN, and not the rounding of a mean of eight times 0.1, magnified by 1e4."""
    scores = torch.tensor([[score] * 7, [0.0] * 6 + [1.0]])
    advantages = objectives.group_advantages(scores, scale)
    assert (advantages[0] == 0).all() and (advantages[1] != 0).all()
    assert objectives.degenerate(scores).tolist() == [True, False]


def test_pitfall_biased_against_unbiased_std():
    scores = torch.tensor([[1.0, 0.0]])  # sample deviation 0.7071, population deviation 0.5
    assert objectives.group_advantages(scores)[0, 0] == pytest.approx(0.5 / (math.sqrt(0.5) + 1e-4))


@given(st.lists(st.floats(-2, 2, width=32), min_size=2, max_size=9))
def test_without_the_deviation_it_is_leave_one_out_times_a_constant(scores):
    scores = torch.tensor([scores])
    g = scores.shape[1]
    left = objectives.group_advantages(scores, scale=False)
    assert torch.allclose(left, (g - 1) / g * (scores - objectives.leave_one_out(scores)), atol=1e-5)


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        objectives.group_advantages(torch.ones(3, 1))


def test_token_weights_by_hand():
    mask = torch.tensor([[True, True, True, True], [True, False, False, False], [False] * 4])
    sequence, token, constant = (objectives.token_weights(mask, average, 10) for average in objectives.AVERAGES)
    assert torch.allclose(sequence, torch.tensor([[1 / 12] * 4, [1 / 3, 0, 0, 0], [0.0] * 4]))
    assert torch.allclose(token, torch.tensor([[1 / 5] * 4, [1 / 5, 0, 0, 0], [0.0] * 4]))
    assert torch.allclose(constant, torch.tensor([[1 / 30] * 4, [1 / 30, 0, 0, 0], [0.0] * 4]))
    assert objectives.token_weights(torch.zeros(2, 3, dtype=torch.bool)).eq(0).all()


def test_pitfall_length_normalisation_favours_long_wrong_answers():
    """One wrong answer of 2 tokens, one of 8: how hard is each token of them pushed down?"""
    mask = torch.arange(8) < torch.tensor([[2], [8]])
    per_token = {average: objectives.token_weights(mask, average, 8)[:, 0].tolist() for average in objectives.AVERAGES}
    assert per_token["sequence"][0] == pytest.approx(4 * per_token["sequence"][1])
    assert per_token["token"][0] == per_token["token"][1]
    assert per_token["constant"][0] == per_token["constant"][1]


def test_token_weights_refuse_what_they_cannot_do():
    mask = torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="average"):
        objectives.token_weights(mask, "mean")
    with pytest.raises(ValueError, match="longest"):
        objectives.token_weights(mask, "constant")


def test_the_ratio_of_sequences_is_the_geometric_mean_of_its_tokens_ratios():
    new, old = torch.tensor([[-1.0, -2.0, 9.0], [0.0, 0.0, 0.0]]), torch.tensor([[-2.0, -4.0, 5.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False], [False, False, False]])
    ratio = (objectives.mean_logprob(new, mask) - objectives.mean_logprob(old, mask)).exp()
    assert torch.allclose(ratio, torch.tensor([[math.exp(1.5)], [1.0]]))


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, c, k", [(8, 0, 3), (8, 2, 1), (8, 2, 3), (8, 7, 2), (6, 3, 6), (5, 5, 1)])
def test_pass_at_k_counts_the_subsets_that_hold_a_right_answer(n, c, k):
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert objectives.pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_is_unbiased_and_the_plug_in_estimate_is_not():
    p, n, k = 0.2, 8, 4
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = sum(q * objectives.pass_at_k(n, c, k) for c, q in enumerate(chance))
    plug_in = sum(q * (1 - (1 - c / n) ** k) for c, q in enumerate(chance))
    assert mean == pytest.approx(1 - (1 - p) ** k)
    assert plug_in < mean - 0.03


@pytest.mark.parametrize("n, c, k", [(8, 9, 1), (8, -1, 1), (8, 1, 9), (8, 1, 0)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="pass@k"):
        objectives.pass_at_k(n, c, k)


# ---- preferences -----------------------------------------------------------------------------------------------------


def test_bradley_terry_by_hand():
    chosen, rejected = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    expected = [-math.log(1 / (1 + math.exp(-1))), -math.log(1 / (1 + math.exp(2)))]
    assert objectives.bradley_terry(chosen, rejected).tolist() == pytest.approx(expected)
    assert objectives.bradley_terry(chosen, chosen).tolist() == pytest.approx([math.log(2)] * 2)


def test_bradley_terry_pulls_each_pair_by_the_probability_it_gets_wrong():
    """d loss / d r_w = -sigma(r_l - r_w), and the opposite for the loser: only differences count."""
    chosen, rejected = torch.tensor([1.0, -3.0], requires_grad=True), torch.tensor([0.5, 2.0], requires_grad=True)
    objectives.bradley_terry(chosen, rejected).sum().backward()
    wrong = torch.sigmoid(rejected - chosen).detach()
    assert torch.allclose(chosen.grad, -wrong) and torch.allclose(rejected.grad, wrong)
    moved = objectives.bradley_terry(chosen + 7, rejected + 7)
    assert torch.allclose(moved, objectives.bradley_terry(chosen, rejected), atol=1e-5)


def test_bradley_terry_is_finite_for_hopeless_pairs_and_half_precision():
    loss = objectives.bradley_terry(torch.tensor([-300.0]).bfloat16(), torch.tensor([300.0]).bfloat16())
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(600)


def test_margin_and_smoothing():
    chosen, rejected = torch.tensor([1.0]), torch.tensor([0.0])
    wide = objectives.bradley_terry(chosen, rejected, margin=2.0)
    assert wide.item() == pytest.approx(math.log(1 + math.exp(1)))
    lead = torch.tensor([3.0], requires_grad=True)  # with smoothing the best lead is finite: logit of 1 - s
    objectives.bradley_terry(lead, torch.zeros(1), smoothing=0.1).backward()
    assert lead.grad.item() > 0
    at_best = torch.tensor([math.log(9)], requires_grad=True)
    objectives.bradley_terry(at_best, torch.zeros(1), smoothing=0.1).backward()
    assert at_best.grad.item() == pytest.approx(0, abs=1e-6)


def test_plackett_luce_sums_to_one_over_all_rankings():
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.0])
    rows = torch.stack([rewards[list(order)] for order in itertools.permutations(range(4))])
    assert float((-objectives.plackett_luce(rows)).exp().sum()) == pytest.approx(1, abs=1e-5)


def test_plackett_luce_of_two_is_bradley_terry_and_of_three_by_hand():
    pair = torch.tensor([[1.5, -0.5]])
    assert torch.allclose(objectives.plackett_luce(pair), objectives.bradley_terry(pair[:, 0], pair[:, 1]))
    a, b, c = (math.exp(r) for r in (1.0, 0.0, -1.0))
    expected = -math.log(a / (a + b + c) * b / (b + c))
    assert float(objectives.plackett_luce(torch.tensor([[1.0, 0.0, -1.0]]))) == pytest.approx(expected, abs=1e-6)


def test_reliability_groups_by_confidence():
    confidence, hit = torch.tensor([0.52, 0.58, 0.97, 1.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    said, seen, count = objectives.reliability(confidence, hit, bins=5)
    assert count.tolist() == [2, 0, 0, 0, 2]
    assert said[[0, 4]].tolist() == pytest.approx([0.55, 0.985]) and seen[[0, 4]].tolist() == pytest.approx([0.5, 1.0])
    assert seen[1].isnan()
    error = objectives.expected_calibration_error(confidence, hit, bins=5)
    assert error == pytest.approx((2 * 0.05 + 2 * 0.015) / 4)


def test_a_calibrated_judge_has_no_calibration_error_and_an_overconfident_one_has():
    p = torch.linspace(0.5, 1, 1001)
    assert objectives.expected_calibration_error(p, p) == pytest.approx(0, abs=1e-6)
    assert objectives.expected_calibration_error(torch.ones(1001), p) == pytest.approx(0.25, abs=1e-3)
