"""C23 to C25, on the artifacts that the notebook shows."""

import pytest
import torch

from course_lib import artifacts, memory
from course_lib.experiments import grpo as experiments
from course_lib.objectives import group_advantages
from course_lib.plots import interval

pytestmark = [pytest.mark.claims, pytest.mark.slow]


@pytest.mark.parametrize("shape", [memory.LLAMA_7B, memory.LLAMA_70B])
def test_c23_grpo_drops_the_value_model(shape):
    """PPO holds four language models, GRPO three, and the one that is gone was in training."""
    batch = dict(rows=64, prompt_tokens=512, new_tokens=512, micro_batch=4, group=8, checkpointing=True)
    ppo, grpo = (memory.estimate(name, shape, **batch) for name in ("PPO", "GRPO"))
    assert len(ppo) == 4 and len(grpo) == 3 and set(ppo) - set(grpo) == {"value"}
    held = {name: sum(role.total for role in usage.values()) for name, usage in (("PPO", ppo), ("GRPO", grpo))}
    assert 0.5 < held["GRPO"] / held["PPO"] < 0.65
    rule = memory.estimate("GRPO", shape, without=["reward", "reference"], **batch)
    assert sum(role.total for role in rule.values()) / held["PPO"] < 0.6


def test_c24_groups_of_equals_have_exactly_no_advantage():
    for score in (0.0, 0.1, 1.0, 1.1):
        assert (group_advantages(torch.full((1, 8), score)) == 0).all()


def test_c24_dividing_by_the_length_makes_wrong_answers_long_and_right_ones_short():
    """Exactly, where nothing rewards or punishes length; and with a constant in its place nothing moves."""
    flow = experiments.length_flow("sequence")
    assert flow[-1]["length of wrong"] > flow[0]["length of wrong"] + 0.7
    assert flow[-1]["length of right"] < flow[0]["length of right"] - 0.4
    still = experiments.length_flow("constant")
    for kind in ("length of wrong", "length of right"):
        assert still[-1][kind] == pytest.approx(still[0][kind], abs=1e-4)


def test_c24_and_so_do_sampled_groups():
    runs = experiments.length_runs(range(5))
    wrong = {name: interval([run["length of wrong"] for run in ends]) for name, ends in runs.items()}
    right = {name: interval([run["length of right"] for run in ends]) for name, ends in runs.items()}
    start = experiments.lengths(*experiments.first_letter_lm())
    assert wrong["GRPO"].lo > start["length of wrong"] + 0.2 and right["GRPO"].hi < start["length of right"] - 0.4
    assert wrong["Dr. GRPO"].hi < wrong["GRPO"].lo and right["Dr. GRPO"].lo > right["GRPO"].hi
    assert right["Dr. GRPO"].lo <= start["length of right"] <= right["Dr. GRPO"].hi


def rises(study: dict, name: str) -> list[float]:
    return [run[name] - study["before"][name] for run in study["after"]]


@pytest.mark.parametrize("name, points", [("grpo_sums", 0.30), ("grpo_weak", 0.10), ("grpo_functions", 0.30)])
def test_c25_a_rule_raises_pass_at_1_on_held_out_problems_in_every_seed(name, points):
    study = artifacts.result(name)
    assert len(study["after"]) >= 3
    assert min(rises(study, "pass@1")) >= points


def test_c25_it_sharpens_where_greedy_was_right_and_teaches_where_it_was_not():
    noisy, weak = artifacts.result("grpo_sums"), artifacts.result("grpo_weak")
    for study in (noisy, weak):  # what the start could sample at all bounds what is reinforced
        assert study["before"]["pass@8"] > study["before"]["greedy"] > study["before"]["pass@1"]
        gain = interval([a - b for a, b in zip(rises(study, "pass@1"), rises(study, "pass@8"))])
        assert gain.lo > 0  # by how much differs between trainings of the start
    assert noisy["before"]["greedy"] > max(0.5, 2 * noisy["before"]["pass@1"])  # right at its best, seldom in a sample
    assert min(rises(weak, "greedy")) >= 0.10
    assert interval([a - b for a, b in zip(rises(weak, "greedy"), rises(noisy, "greedy"))]).lo > 0
