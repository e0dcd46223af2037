"""A learned reward in the course's convention."""

import pytest
import torch
from torch import nn

from course_lib.lm.reward_head import RewardModel
from course_lib.rewards.learned import LearnedReward

PROMPT = [{"role": "user", "content": "Where is SF?"}]
ANSWERS = ["CA", "SF is in CA", "In the USA"]


def models(lm, count):
    made = [RewardModel.on(lm.cpu(), seed=seed) for seed in range(count)]
    for seed, model in enumerate(made):
        nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
    return made


def test_it_takes_messages_and_strings_and_any_column(tiny_lm):
    reward = LearnedReward(*models(tiny_lm[0], 1), tiny_lm[1])
    plain = reward(prompts=[PROMPT] * 3, completions=ANSWERS, city=["San Francisco"] * 3)
    turns = reward(prompts=[PROMPT] * 3, completions=[[{"role": "assistant", "content": a}] for a in ANSWERS])
    assert plain == turns and len(plain) == 3 and all(isinstance(r, float) for r in plain)


def test_one_answer_costs_no_gradient_and_leaves_the_mode(tiny_lm):
    (model,) = models(tiny_lm[0], 1)
    model.train()
    LearnedReward(model, tiny_lm[1])(prompts=[PROMPT], completions=["CA"])
    assert model.training and all(p.grad is None for p in model.parameters())


def test_pitfall_13_a_truncated_answer_is_not_judged_as_finished(tiny_lm):
    reward = LearnedReward(*models(tiny_lm[0], 1), tiny_lm[1])
    whole, cut = reward(prompts=[PROMPT] * 2, completions=["SF is in"] * 2, finished=[True, False])
    assert whole != cut
    assert len(reward(prompts=[PROMPT], completions=[""], finished=[False])) == 1  # nothing said: judged by its END


def test_answers_may_be_as_long_as_the_shortest_context_of_the_models(tiny_lm):
    members = models(tiny_lm[0], 2)
    assert len(LearnedReward(members, tiny_lm[1])([PROMPT], ["a" * 100])) == 1
    members[0].backbone.config.max_position_embeddings, members[1].backbone.config.max_position_embeddings = 1024, 512
    assert len(LearnedReward(members, tiny_lm[1])([PROMPT], ["a" * 400])) == 1
    with pytest.raises(ValueError, match="more than max_length 512"):
        LearnedReward(members, tiny_lm[1])([PROMPT], ["a" * 600])


def test_an_ensemble_combines_its_members(tiny_lm):
    members = models(tiny_lm[0], 3)
    asked = dict(prompts=[PROMPT] * 3, completions=ANSWERS)
    each = torch.tensor([LearnedReward(m, tiny_lm[1])(**asked) for m in members])
    for combine, expected in {"mean": each.mean(0), "min": each.min(0).values, "mean - std": each.mean(0) - each.std(0)}.items():
        assert LearnedReward(members, tiny_lm[1], combine=combine)(**asked) == pytest.approx(expected.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="combine is one of"):
        LearnedReward(members, tiny_lm[1], combine="max")
    with pytest.raises(ValueError, match="at least one"):
        LearnedReward([], tiny_lm[1])


def test_it_is_the_reward_of_an_environment(tiny_lm):
    from course_lib.environments import LMAgent, Questions, play

    lm, tokenizer = tiny_lm
    environment = Questions([{"prompt": PROMPT, "city": "San Francisco"}], LearnedReward(*models(lm, 1), tokenizer))
    episodes = play(LMAgent(lm, tokenizer, max_new_tokens=4), environment, count=1, samples=3)
    assert episodes.score.shape == (3,) and episodes.score.isfinite().all()
