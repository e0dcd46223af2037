"""DPO's losses by hand, and what each of them is for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from course_lib import objectives as o
from course_lib.objectives import PairLogprobs

numbers = st.floats(-4, 4, allow_nan=False)


def pair(chosen, rejected, ref_chosen=0.0, ref_rejected=0.0, lengths=(2, 4), drift=0.0):
    values = [torch.tensor([float(x)], dtype=torch.float64) for x in (chosen, rejected, ref_chosen, ref_rejected, *lengths)]
    return PairLogprobs(*values, drift)


def sigma(x):
    return 1 / (1 + math.exp(-x))


BY_HAND = pair(-3, -4, -5, -2)  # margin (-3 + 5) - (-4 + 2) = 4


@pytest.mark.parametrize(("name", "expected"), [
    ("sigmoid", -math.log(sigma(2.0))),
    ("smoothed", -0.9 * math.log(sigma(2.0)) - 0.1 * math.log(sigma(-2.0))),
    ("robust", (-0.9 * math.log(sigma(2.0)) + 0.1 * math.log(sigma(-2.0))) / 0.8),
    ("ipo", (4 - 1) ** 2),
    ("hinge", 0.0),
    ("simpo", -math.log(sigma(0.5 * (-1.5 + 1.0) - 1.0))),
    ("orpo", 1.5 - 0.5 * math.log(sigma((-1.5 - math.log(1 - math.exp(-1.5))) - (-1 - math.log(1 - math.exp(-1)))))),
    ("kto", 2 - sigma(0.5 * 2) - sigma(0.5 * 2)),
])
def test_losses_by_hand(name, expected):
    assert float(o.DPO_LOSSES[name](BY_HAND, 0.5)) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_hinge_is_open_below_a_margin_of_one_over_beta():
    assert float(o.dpo_hinge(pair(-3, -4), 0.5)) == pytest.approx(0.5)


def test_kto_measures_both_answers_from_the_drift_which_is_never_negative():
    assert float(o.dpo_kto(pair(-3, -4, -5, -2, drift=1.0), 0.5)) == pytest.approx(2 - sigma(0.5) - sigma(1.5))
    assert float(o.dpo_kto(pair(-3, -4, -5, -2, drift=-1.0), 0.5)) == float(o.dpo_kto(BY_HAND, 0.5))


@settings(deadline=None)
@given(c=numbers, r=numbers, rc=numbers, rr=numbers, beta=st.floats(0.01, 2))
def test_gradient_is_the_papers_which_weighs_a_pair_by_how_wrong_it_is(c, r, rc, rr, beta):
    """Rafailov et al. 2023, section 4: -beta sigma(r_l - r_w) (grad ln pi(y_w) - grad ln pi(y_l))."""
    p = pair(c, r, rc, rr)
    chosen, rejected = p.chosen.requires_grad_(), p.rejected.requires_grad_()
    o.dpo_sigmoid(p, beta).sum().backward()
    weight = beta * sigma(-beta * ((c - rc) - (r - rr)))
    assert float(chosen.grad) == pytest.approx(-weight, rel=1e-6) and float(rejected.grad) == pytest.approx(weight, rel=1e-6)


@settings(deadline=None)
@given(h=numbers, e=st.floats(0.01, 0.45))
def test_robust_loss_is_unbiased_for_flipped_labels(h, e):
    clean = float(o.dpo_sigmoid(pair(h, 0), 1.0))
    as_seen = (1 - e) * o.dpo_robust(pair(h, 0), 1.0, e) + e * o.dpo_robust(pair(0, h), 1.0, e)
    assert float(as_seen) == pytest.approx(clean, abs=1e-6)


def test_pitfall_30_label_smoothing_is_really_applied():
    for loss in (o.dpo_smoothed, o.dpo_robust):
        assert float(loss(BY_HAND, 0.5, 0.0)) == pytest.approx(float(o.dpo_sigmoid(BY_HAND, 0.5)))
        assert float(loss(BY_HAND, 0.5, 0.3)) != pytest.approx(float(o.dpo_sigmoid(BY_HAND, 0.5)), abs=1e-3)


def test_smoothing_and_ipo_have_a_finite_best_margin_and_the_plain_loss_has_none():
    margins = torch.linspace(-40, 40, 4001, dtype=torch.float64)
    zero, one = torch.zeros_like(margins), torch.ones_like(margins)

    def best(loss, beta):
        return float(margins[loss(PairLogprobs(margins, zero, zero, zero, one, one), beta).argmin()])

    assert best(o.dpo_sigmoid, 0.5) == 40.0
    assert best(o.dpo_smoothed, 0.5) == pytest.approx(math.log(0.9 / 0.1) / 0.5, abs=0.03)
    assert best(o.dpo_ipo, 0.5) == pytest.approx(1.0, abs=0.03)


def test_pitfall_12_dpo_sums_log_probs_and_only_simpo_and_orpo_average_them():
    longer = BY_HAND._replace(chosen_length=BY_HAND.chosen_length * 10)
    for name, loss in o.DPO_LOSSES.items():
        same = float(loss(longer, 0.5)) == float(loss(BY_HAND, 0.5))
        assert same == (name not in o.REFERENCE_FREE), name
