"""Solutions as students write them, not as a declared mistake words them: right ones pass, wrong ones get the right hint."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from course_lib.checks import find, grade

NOTEBOOKS = Path(__file__).parents[2] / "notebooks" / "src"

# ---- right ones ------------------------------------------------------------------------------------------------------


def ranks(values) -> list[float]:
    return [sum(x < y for x in values) + (sum(x == y for x in values) - 1) / 2 for y in values]


def numpy_correlation(a, b):
    if len(set(a)) == 1 or len(set(b)) == 1:
        return 0
    return np.corrcoef(ranks(a), ranks(b))[0, 1]


def calibration_in_numpy(confidence, hit, bins=10):
    c, h = confidence.numpy(), hit.numpy()
    index = np.clip(np.digitize(c, np.linspace(0.5, 1, bins + 1)) - 1, 0, bins - 1)
    gaps = [abs(c[index == b].mean() - h[index == b].mean()) * (index == b).mean() for b in range(bins) if (index == b).any()]
    return np.float32(sum(gaps))


def reward_with_whole_numbers(text, answer, finished):
    number = re.search(r"#(-?\d+)$", text)
    if not finished or not number:
        return 0
    return 1.1 if int(number[1]) == answer else 0.1


def row_by_row(chosen, rejected, ref_chosen, ref_rejected, beta):
    pairs = zip(chosen, rejected, ref_chosen, ref_rejected)
    return torch.stack([-F.logsigmoid(beta * ((w - a) - (l - b))) for w, l, a, b in pairs])


RIGHT = [("rank_correlation", numpy_correlation), ("calibration_error", calibration_in_numpy),
         ("sum_reward", reward_with_whole_numbers), ("dpo_loss", row_by_row)]


@pytest.mark.parametrize(("exercise", "solution"), RIGHT, ids=lambda value: getattr(value, "__name__", value))
def test_right_solutions_pass(exercise, solution):
    report = grade(find(exercise), solution)
    assert report.passed, report.message


# ---- wrong ones ------------------------------------------------------------------------------------------------------


def rewards(*, last, mask=None, sign=-1):
    """Rewards of tokens that carry a gradient; `last(mask)`: where the score stands; `mask(mask)`: which tokens pay."""
    return lambda scores, p, ref, m, beta: (
        torch.where(m if mask is None else mask(m), sign * beta * (p - ref), 0.0) + last(m) * scores[:, None])


def in_last_column(mask):
    return F.pad(torch.ones(len(mask), 1), (mask.shape[1] - 1, 0))


def at_the_end(mask):
    return torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1


def written_past_the_end(scores, p, ref, mask, beta):
    out = -beta * (p - ref) * mask
    out[torch.arange(len(scores)), mask.sum(1)] += scores
    return out


def backwards(rewards, values, mask, lam):
    values, out, advantage, following = values.detach(), torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        advantage = rewards[:, t] + following - values[:, t] + lam * advantage
        out[:, t], following = advantage, values[:, t]
    return out


def answers_mean(p, old, a, mask, eps):
    ratio = (p - old).exp()
    gain = torch.min(ratio * a, ratio.clamp(1 - eps, 1 + eps) * a)
    return -torch.stack([row[real].mean() for row, real in zip(gain, mask)]).mean()


def open_below(confidence, hit, bins=10):
    edges, error = torch.linspace(0.5, 1, bins + 1), 0.0
    for low, high in zip(edges, edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += float((confidence[inside].mean() - hit[inside].mean()).abs() * inside.float().mean())
    return error


def empty_bins(confidence, hit, bins=10):
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    gaps = [(confidence[index == b].mean() - hit[index == b].mean()).abs() * (index == b).sum() for b in range(bins)]
    return float(sum(gaps) / len(hit))


def behind_the_mark(text, answer, finished):
    number = text.split("#")[-1]
    return 0.1 + (int(number) == answer) if finished and number.removeprefix("-").isdigit() else 0.0


def any_minus(text, answer, finished):
    number = text.split("#")[-1]
    return 0.1 + (int(number) == answer) if finished and "#" in text and number.lstrip("-").isdigit() else 0.0


def any_minus_without_mark(text, answer, finished):
    number = text.split("#")[-1]
    return 0.1 + (int(number) == answer) if finished and number.lstrip("-").isdigit() else 0.0


def first_list_looked_at(a, b):
    if len(set(a)) == 1:
        return 0.0
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def ranks_like_the_values(a, b):
    def places(values):
        v = np.array(values)
        out = np.zeros_like(v)
        for x in v:
            out[v == x] = np.flatnonzero(np.sort(v) == x).mean()
        return out

    x, y = places(a), places(b)
    return float(np.corrcoef(x, y)[0, 1]) if x.std() * y.std() > 0 else 0.0


def ratio_of_logs(p, ref):
    ratio = ref / p
    return ratio - 1 - ratio.log()


WRONG = [
    # a forgotten detach does not hide the rest
    ("reinforce_loss", "climbs the wrong way", lambda p, m, a: (a * (p * m).sum(1)).mean()),
    ("reinforce_loss", "padding counted", lambda p, m, a: -(a * p.sum(1)).mean()),
    ("reinforce_loss", "sum over answers", lambda p, m, a: -(a * (p * m).sum(1)).sum()),
    ("penalised_reward", "padding counts", lambda s, p, q, m, b: s - b * (p - q).sum(1)),
    ("penalised_reward", "wrong sign", lambda s, p, q, m, b: s + b * ((p - q) * m).sum(1)),
    ("token_rewards", "score at the last column", rewards(last=in_last_column)),
    ("token_rewards", "wrong sign of the KL", rewards(last=at_the_end, sign=1)),
    ("token_rewards", "KL over padding", rewards(last=at_the_end, mask=torch.ones_like)),
    ("token_rewards", "crashes one token late", written_past_the_end),
    # naive, or right on paper
    ("token_rewards", "no mask", rewards(last=in_last_column, mask=torch.ones_like)),
    ("rlhf_optimum", "Z overflows", lambda ref, r, beta: ref + r / beta - (ref.exp() * (r / beta).exp()).sum().log()),
    ("rlhf_optimum", "log of a rounded softmax", lambda ref, r, beta: torch.log(torch.softmax(ref + r / beta, -1))),
    ("ranking_loss", "exponentials in a fraction",
     lambda r: -torch.log(torch.stack([r[i].exp() / r[i:].exp().sum() for i in range(len(r))]).prod())),
    ("preference_loss", "exponentials in a fraction", lambda w, l: -torch.log(w.exp() / (w.exp() + l.exp())).mean()),
    ("calibration_error", "1/2 falls out", open_below),
    ("calibration_error", "NaN of an empty bin", empty_bins),
    ("gae", "no mask", backwards),
    ("whiten", "unbiased deviation, NaN for equal values", lambda x, m: ((x - x[m].mean()) / x[m].std()).masked_fill(~m, 0)),
    ("whiten", "unbiased deviation, NaN, padding is not 0", lambda x, m: (x - x[m].mean()) / x[m].std()),
    ("whiten", "unbiased deviation, padding is not 0", lambda x, m: (x - x[m].mean()) / (1e-8 + x[m].std())),
    ("whiten", "1e-8 beside the root", lambda x, m: (x - x[m].mean()) / (x[m].var(correction=0).sqrt() + 1e-8) * m),
    ("whiten", "1e-8 beside the root, padding is not 0", lambda x, m: (x - x[m].mean()) / (x[m].std(correction=0) + 1e-8)),
    ("clipped_loss", "mean of answers", answers_mean),
    ("answer_mask", "never stops, marker included", lambda ids, assistant, end, pad: (ids == assistant).cumsum(0).bool()),
    ("written_by_model", "everything from the first opening token on",
     lambda ids, begins, ends: (ids == begins).cumsum(0).bool()),
    ("kl_estimate", "probabilities", ratio_of_logs),
    ("last_real", "crashes at the first padding", lambda hidden, real: hidden[range(len(hidden)), real.sum(1)]),
    # wrong on few inputs
    ("sum_reward", "no # needed", behind_the_mark),
    ("sum_reward", "crashes for two minus signs", any_minus),
    ("sum_reward", "crashes for two minus signs, no # needed", any_minus_without_mark),
    ("without_leaks", "one fact of two",
     lambda questions, test: [q for q in questions if not any(q[0] in t and q[1] in t for t in test)]),
    ("rank_correlation", "NaN where the second list has no order", first_list_looked_at),
    ("rank_correlation", "ranks cut to whole numbers", ranks_like_the_values),
]


@pytest.mark.parametrize(("exercise", "mistake", "solution"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_wrong_solutions_get_the_right_hint(exercise, mistake, solution):
    report = grade(find(exercise), solution)
    assert not report.passed
    assert report.mistake == mistake, report.message


# ---- how the notebooks call them -------------------------------------------------------------------------------------


def nodes(notebook: str, kind: type) -> list:
    text = re.sub(r"(?m)^[%!].*$", "", (NOTEBOOKS / f"{notebook}.py").read_text(encoding="utf-8"))
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, kind)]


def test_the_mean_of_one_answer_is_that_of_a_batch():
    def two_dimensions(values, mask):
        return torch.where(mask, values, 0).sum((0, 1)) / mask.sum((0, 1)).clamp(min=1)

    calls = [ast.unparse(node) for node in nodes("00_start_here", ast.Call) if ast.unparse(node).startswith("masked_mean(-row")]
    names = {"masked_mean": two_dimensions, "row": torch.tensor([-1.0, -3.0, -9.0]), "own": torch.tensor([True, True, False])}
    assert [float(eval(call, names)) for call in calls] == [2]


def test_the_exact_loss_of_dpo_hands_over_one_shape():
    (function,) = [node for node in nodes("08_dpo", ast.FunctionDef) if node.name == "exact_loss"]
    logp, logref, heard = torch.randn(4), torch.randn(4), torch.rand(4, 4)
    names = {"torch": torch, "dpo_loss": row_by_row, "logref": logref, "BETA": 0.5}
    exec(ast.unparse(function), names)
    margin = (logp - logref)[:, None] - (logp - logref)
    torch.testing.assert_close(names["exact_loss"](logp, heard), -(heard * F.logsigmoid(0.5 * margin)).sum())


@pytest.mark.parametrize("notebook", ["03_reinforce", "07_grpo"])
def test_advantages_need_not_be_contiguous(notebook):
    calls = [node for node in nodes(notebook, ast.Call) if isinstance(node.func, ast.Attribute) and node.func.attr == "view"]
    assert not [call for call in calls if re.match("(rloo|group)_advantage", ast.unparse(call.func.value))]


def test_an_answer_that_is_no_call_does_not_look_like_a_missing_return():
    assert "`return`" not in grade(find("read_call"), lambda text: None).message


def test_hits_may_be_probabilities_and_dpo_pairs_a_table():
    """Their notebooks call both so: who takes hits for truth values, or rows for numbers, must read it here."""
    right = find("calibration_error").reference
    assert not grade(find("calibration_error"), lambda c, h, bins=10: right(c, h.bool().float(), bins)).passed
    numbers = lambda w, l, a, b, beta: torch.stack([-F.logsigmoid(beta * ((x - p) - (y - q)))  # noqa: E731
                                                    for x, y, p, q in zip(w, l, a, b)]).view(len(w))
    assert not grade(find("dpo_loss"), numbers).passed
