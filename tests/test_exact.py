"""The enumerable language model against brute force, closed forms and finite differences; a table and a transformer."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings, strategies as st

from course_lib import exact
from course_lib.lm.enumerate import all_logprobs, letters_lm
from course_lib.lm.sampling import sample

TABLE, TRANSFORMER = "table", "transformer"


@pytest.fixture(params=[TABLE, TRANSFORMER])
def policy(request):
    """(model, a function that gives ln P of all sequences with a gradient): 3 letters, at most 3 of them; float64."""
    if request.param == TABLE:
        model = exact.TableLM(3, 3, seed=1).double()
        return model, model
    model = letters_lm(3, seed=1, shape=(8, 1, 2, 16), device="cpu")[0].double()
    return model, lambda: all_logprobs(model, 3)[2].double()


def reward_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the list of sequences -------------------------------------------------------------------------------------------


def test_sequences_by_hand():
    ids, mask = exact.sequences(2, 2)
    assert ids.tolist() == [[2, 2], [0, 2], [1, 2], [0, 0], [0, 1], [1, 0], [1, 1]]
    assert mask.int().tolist() == [[1, 0], [1, 1], [1, 1], [1, 1], [1, 1], [1, 1], [1, 1]]


@given(st.integers(1, 4), st.integers(1, 4))
def test_sequences_are_all_and_none_twice(letters, length):
    ids, mask = exact.sequences(letters, length)
    rows = {tuple(row) for row in ids.tolist()}
    assert len(rows) == len(ids) == sum(letters**n for n in range(length + 1))
    assert (ids[~mask] == letters).all() and mask[:, 0].all()


def test_probabilities_sum_to_one(policy):
    assert float(policy[1]().exp().sum()) == pytest.approx(1, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_a_table_is_a_distribution(letters, length, seed):
    assert float(exact.TableLM(letters, length, seed)().exp().sum()) == pytest.approx(1, abs=1e-5)


def test_the_chain_rule_of_a_table_by_brute_force():
    """Each sequence's probability as a product over a dictionary that is filled by hand, prefix by prefix."""
    model = exact.TableLM(2, 3, seed=3).double()
    prefixes = [p for n in range(3) for p in product(range(2), repeat=n)]
    step = dict(zip(prefixes, model.logits.softmax(-1).tolist(), strict=True))
    for row, mask, logp in zip(model.ids.tolist(), model.mask.tolist(), model().tolist()):
        p = math.prod(step[tuple(row[:t])][token] for t, (token, real) in enumerate(zip(row, mask)) if real)
        assert logp == pytest.approx(math.log(p), abs=1e-9)


def test_a_table_without_a_seed_is_uniform_over_next_tokens():
    model = exact.TableLM(3, 2)
    first = {text: float(p) for text, p in zip(model.texts(), model().exp())}
    assert first["∎"] == pytest.approx(1 / 4) and first["a∎"] == pytest.approx(1 / 16) and len(first) == 13


def test_the_transformer_s_list_is_its_plain_forward_pass():
    model, tokenizer = letters_lm(3, seed=2, shape=(8, 1, 2, 16), device="cpu")
    ids, mask, logp = all_logprobs(model, 3)
    for row, real, got in zip(ids, mask, logp.tolist()):
        text = torch.cat([torch.tensor([tokenizer.bos_token_id]), row[real]])
        with torch.no_grad():
            steps = model(text[None]).logits[0, :-1].log_softmax(-1)
        assert got == pytest.approx(float(steps.gather(1, text[1:, None]).sum()), abs=1e-5)


def test_pitfall_the_token_that_begins_every_text_learns():
    """END also pads, and an embedding's padding row would be frozen at 0: the gradient would not be the gradient."""
    model, _ = letters_lm(2, shape=(8, 1, 2, 16), device="cpu")
    embedding = model.get_input_embeddings()
    assert embedding.weight[2].abs().max() > 0
    embedding(torch.tensor([2])).sum().backward()
    assert embedding.weight.grad[2].abs().max() > 0


def test_sampling_follows_the_list():
    """Chi-square of 20,000 samples against the exact probabilities. False alarm: 1 in 10,000, for another seed."""
    from scipy import stats

    model, tokenizer = letters_lm(2, seed=2, shape=(8, 1, 2, 16), device="cpu")
    ids, mask, logp = all_logprobs(model, 2)
    out = sample(model, tokenizer, [[tokenizer.bos_token_id]], max_new_tokens=2, samples_per_prompt=20_000)
    drawn = [tuple(i[m].tolist()) for i, m in zip(out.completion_ids, out.completion_mask)]
    seen = [drawn.count(tuple(i[m].tolist())) for i, m in zip(ids, mask)]
    assert sum(seen) == 20_000
    assert stats.chisquare(seen, (logp.detach().double().softmax(0) * 20_000).numpy()).pvalue > 1e-4


# ---- expected reward and its gradient --------------------------------------------------------------------------------


def test_expected_reward_by_hand():
    assert float(exact.expected_reward(torch.tensor([0.25, 0.75]).log(), torch.tensor([4.0, -2.0]))) == pytest.approx(-0.5)


def test_the_gradient_is_what_finite_differences_give(policy):
    model, logp = policy
    parameters = list(model.parameters())
    reward = reward_of(len(logp()))
    gradient = exact.policy_gradient(logp, reward, parameters)
    direction = reward_of(len(gradient), seed=1)
    direction /= direction.norm()

    def at(step: float) -> float:
        pieces = direction.split([p.numel() for p in parameters])
        with torch.no_grad():
            for p, piece in zip(parameters, pieces):
                p += step * piece.view_as(p)
            value = float(exact.expected_reward(logp(), reward))
            for p, piece in zip(parameters, pieces):
                p -= step * piece.view_as(p)
        return value

    h = 1e-2  # the transformer's norms and softmax are taken in float32, which limits how small the step may be
    assert (at(h) - at(-h)) / (2 * h) == pytest.approx(float(gradient @ direction), rel=0.01, abs=1e-5)


def test_the_log_derivative_trick(policy):
    """sum_a R p grad log p is the gradient of sum_a p R, and sum_a p grad log p is 0."""
    model, logp = policy
    parameters = list(model.parameters())
    scores, p = exact.score_functions(logp(), parameters), logp().exp().detach()
    reward = reward_of(len(p))
    assert torch.allclose((p * reward) @ scores, exact.policy_gradient(logp, reward, parameters), atol=1e-6)
    assert torch.allclose(p @ scores, torch.zeros(scores.shape[1], dtype=scores.dtype), atol=1e-6)


def test_a_constant_reward_has_no_gradient(policy):
    model, logp = policy
    gradient = exact.policy_gradient(logp, torch.full((len(logp()),), 3.0), list(model.parameters()))
    assert gradient.abs().max() < 1e-6


# ---- entropy, KL, the regularised optimum ----------------------------------------------------------------------------


def test_entropy_and_kl_by_hand():
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.9, 0.1]).log()
    assert float(exact.entropy(p)) == pytest.approx(math.log(2))
    assert float(exact.kl(p, q)) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert float(exact.kl(q, p)) == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))
    assert float(exact.total_variation(p, q)) == pytest.approx(0.4)


distributions = st.integers(2, 12).flatmap(lambda n: st.tuples(
    *[st.lists(st.floats(-5, 5), min_size=n, max_size=n) for _ in range(3)]))


@given(distributions)
def test_kl_is_never_negative_and_bounds_total_variation(lists):
    p, q = (torch.tensor(values, dtype=torch.float64).log_softmax(0) for values in lists[:2])
    divergence, variation = float(exact.kl(p, q)), float(exact.total_variation(p, q))
    assert divergence >= -1e-12 and variation <= math.sqrt(max(divergence, 0) / 2) + 1e-9  # Pinsker's inequality
    assert float(exact.kl(p, p)) == 0


@given(distributions, st.floats(0.1, 5))
def test_the_optimum_is_the_optimum(lists, beta):
    """Its objective is beta ln Z, and every other policy lies lower by exactly beta KL(p || p*)."""
    p, ref = (torch.tensor(values, dtype=torch.float64).log_softmax(0) for values in lists[:2])
    reward = torch.tensor(lists[2], dtype=torch.float64)
    best = exact.optimum(ref, reward, beta)
    top = beta * float((ref + reward / beta).logsumexp(0))
    assert float(exact.objective(best, reward, ref, beta)) == pytest.approx(top, abs=1e-9)
    lower = top - beta * float(exact.kl(p, best))
    assert float(exact.objective(p, reward, ref, beta)) == pytest.approx(lower, abs=1e-9)


def test_gradient_ascent_on_the_exact_objective_reaches_the_optimum():
    model, reference = exact.TableLM(2, 3, seed=1), exact.TableLM(2, 3, seed=2)().detach()
    reward = reward_of(len(reference)).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(1000):
        (-exact.objective(model(), reward, reference, beta=0.5)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(exact.total_variation(model(), exact.optimum(reference, reward, 0.5))) < 1e-3


def test_pitfall_without_kl_there_is_no_regularised_optimum():
    with pytest.raises(ValueError, match="best sequence alone"):
        exact.optimum(torch.zeros(2), torch.zeros(2), 0)
