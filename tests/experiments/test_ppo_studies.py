"""The studies of PPO on their smallest sizes, and the exact parts by hand."""

import pytest
import torch

from course_lib import exact
from course_lib.environments import LMAgent, Questions, play
from course_lib.experiments import ppo
from course_lib.lm.enumerate import letters_lm
from course_lib.lm.heads import LMCritic, ValueModel


@pytest.fixture(scope="module")
def start():
    return ppo.backwards_start(steps=3, wrong=0.5)


def test_the_chance_of_a_right_answer_is_exact():
    """A model that knows nothing: every token one of six, five of them to write."""
    model, _ = letters_lm(ppo.LETTERS, shape=(16, 1, 2, 16), device="cpu")
    torch.nn.init.zeros_(model.model.norm.weight)
    assert ppo.chance_right(model) == pytest.approx(6.0**-5, rel=1e-4)


def test_the_task_rewards_the_word_written_backwards():
    row = ppo.backwards()[1]
    assert row == {"prompt": [5, 0, 0, 0, 1, 5], "right": "baaa"}
    assert ppo.is_right(None, ["baaa", "aaab", "baaaa"], [row["right"]] * 3) == [1.0, 0.0, 0.0]


def test_the_true_value_of_a_text(start):
    """Before the first letter the chance of the whole answer; 0 behind a wrong letter; on average what is earned."""
    model, tokenizer = start
    agent = LMAgent(model, tokenizer, max_new_tokens=ppo.LENGTH + 1, precision="fp32")
    episodes = play(agent, Questions(ppo.backwards(), ppo.is_right), count=625, seed=0)
    action = episodes.steps[0].action
    values = ppo.true_values(model, action)
    assert float(values[:, 0].mean()) == pytest.approx(ppo.chance_right(model), rel=1e-4)  # every word once
    word, said = action.prompt_ids[:, 1:5], action.completion_ids
    assert (values[:, 1] > 0).equal(action.completion_mask[:, 1] & (said[:, 0] == word[:, 3]))
    assert (values[~action.completion_mask] == 0).all() and (values <= 1).all()


def test_a_run_keeps_what_the_figure_needs(start):
    history = ppo.learn_backwards(start, seed=0, steps=2, lr=1e-3, looks=2)
    kept = ppo._summary(history)
    assert len(kept["right"]) == 3 and set(kept) == {"right", "entropy", "approx_kl", "clipfrac", "explained_variance", "updates"}
    other = ppo._summary(ppo.learn_backwards(start, seed=0, steps=2, lr=1e-3, looks=2, algorithm="reinforce"))
    assert other["right"][0] == kept["right"][0] and set(other) == {"right", "entropy"}


def test_with_one_step_a_batch_the_clip_changes_nothing(start):
    """Why the study runs one epoch once: both runs are the same run."""
    runs = [ppo.learn_backwards(start, seed=1, steps=2, lr=1e-2, epochs=1, clip_range=clip) for clip in (0.2, 1e9)]
    assert runs[0][-1]["right"] == runs[1][-1]["right"]


@pytest.mark.parametrize("arm", [*ppo.ARMS, *ppo.DETAILS])
def test_every_arm_runs_and_differs(start, arm, monkeypatch):
    monkeypatch.setattr(ppo, "is_right", lambda prompts, completions, **_: [c.count("a") / 5 for c in completions])
    changes = (ppo.ARMS | ppo.DETAILS)[arm]
    end = ppo.learn_backwards(start, seed=0, steps=1, lr=1e-2, **changes)[-1]
    assert end["updates"] == 1 if arm == "PPO, 1 epoch" else 1 < end["updates"] <= 4
    if changes:
        assert end["right"] != ppo.learn_backwards(start, seed=0, steps=1, lr=1e-2)[-1]["right"] or arm == "no value clip"


def test_values_of_a_state_by_hand():
    """One letter, at most two of them: END, a END, aa, each next token equally likely."""
    model = exact.TableLM(1, 2)
    values = exact.state_values(model, torch.tensor([1.0, 2.0, 4.0]))
    assert model.texts() == ["∎", "a∎", "aa"]
    assert values.tolist() == [[2.0, 0.0], [2.0, 3.0], [2.0, 3.0]]  # 1/2 * 1 + 1/4 * 2 + 1/4 * 4, and (2 + 4) / 2


def test_a_learnt_critic_comes_near_the_true_values():
    model = exact.TableLM(2, 3, seed=0).double()
    reward = torch.arange(len(model.ids), dtype=torch.float64)
    true = exact.state_values(model, reward)
    few, many = ((ppo.learnt_values(model, reward, n, 0) - true)[model.mask].square().mean() for n in (20, 20_000))
    assert many < 0.05 < few


def test_gradients_of_gae_are_those_of_autograd():
    model = exact.TableLM(2, 2, seed=3).double()
    reward = torch.arange(len(model.ids), dtype=torch.float64)
    values = exact.state_values(model, reward) * 0.5
    gradients = ppo.gae_gradients(model, reward, values, lam=0.7)
    ends = model.mask & (model.mask.cumsum(1) == model.mask.sum(1, keepdim=True))
    advantages, _ = ppo.gae(torch.where(ends, reward[:, None], 0), values, model.mask, lam=0.7)
    for i in range(len(reward)):
        (by_autograd,) = torch.autograd.grad((advantages[i] * model.token_logprobs()[i]).sum(), model.logits)
        assert torch.allclose(gradients[i], by_autograd.flatten())


def test_fitting_a_critic():
    """Scores that the first token decides: from the second token on they can be known."""
    model, tokenizer = letters_lm(3, device="cpu")
    agent = LMAgent(model, tokenizer, max_new_tokens=4, precision="fp32")
    begins = Questions([{"prompt": [3]}], lambda completions, **_: [float(c.startswith("a")) for c in completions])
    found = ppo.fit_critic(agent, LMCritic(ValueModel(model), "fp32"), begins, count=400, epochs=4, lr=1e-2)
    assert abs(found["by_part"][0]) < 0.3 and found["by_part"][1] > 0.9 and found["explained_variance"] > 0.4
