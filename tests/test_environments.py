"""One loop for a bandit, a grid and a language model."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from course_lib.environments import (Bandit, Choice, Episodes, Grid, Letters, LMAgent, NetAgent, Questions, TableAgent,
                                     play)
from course_lib.exact import TableLM
from course_lib.lm.enumerate import all_logprobs, letters_lm
from course_lib.objectives import sequence_logprob


def grid_agent(size: int = 3, seed: int = 0) -> NetAgent:
    net = nn.Linear(size * size, 4, bias=False)
    nn.init.normal_(net.weight, std=0.3, generator=torch.Generator().manual_seed(seed))
    return NetAgent(net)


def letters_agent(**options) -> tuple[LMAgent, list[dict]]:
    """A tiny transformer that says up to 4 of 2 letters, and the one prompt that it knows."""
    model, tokenizer = letters_lm(2, seed=1, shape=(8, 1, 2, 16), device="cpu")
    options = {"max_new_tokens": 4, "precision": "fp32"} | options
    return LMAgent(model, tokenizer, **options), [{"prompt": [tokenizer.bos_token_id]}]


def count_a(prompts, completions, **_) -> list[float]:
    """A point for each letter a."""
    return [float(text.count("a")) for text in completions]


@pytest.fixture
def spoken(tiny_lm):
    """Episodes of a language model with prompts and answers of different length, and its agent."""
    model, tokenizer = tiny_lm
    agent = LMAgent(model, tokenizer, max_new_tokens=5, precision="fp32")
    rows = [{"prompt": text, "n": i} for i, text in enumerate(("SF", "Where is it?", "a b"))]
    environment = Questions(rows, lambda prompts, completions, n, finished: [10.0 * i for i in n])
    return agent, play(agent, environment, count=3, samples=2, seed=4)


# ---- bandit and grid -------------------------------------------------------------------------------------------------


def test_a_bandit_pays_its_averages():
    agent = NetAgent(nn.Linear(1, 3))
    episodes = play(agent, Bandit([1.0, -2.0, 5.0], noise=0.1), count=300, samples=2, seed=0)
    arms = episodes.steps[0].action.ids
    for arm, mean in enumerate((1.0, -2.0, 5.0)):
        assert float(episodes.score[arms == arm].mean()) == pytest.approx(mean, abs=0.05)
    assert episodes.group.tolist() == [i // 2 for i in range(600)]


def directions(*moves: int) -> Choice:
    return Choice(torch.tensor(moves), torch.zeros(len(moves), 1), torch.ones(len(moves), 1, dtype=torch.bool))


def test_the_grid_by_hand():
    """Right, right, down, down leads to the corner of a 3 x 3 grid; up and left run into the wall."""
    grid, (up, down, left, right) = Grid(size=3, limit=5), range(4)
    states = grid.reset(2, 1, seed=0)
    assert states.argmax(1).tolist() == [0, 0]
    cells = []
    for first, second in zip((right, right, down, down), (up, left, up, right)):
        outcome = grid.step(directions(first, second))
        cells.append(outcome.states.argmax(1).tolist())
        assert outcome.reward.tolist() == [-1, -1]
    assert cells == [[1, 0], [2, 0], [5, 0], [1]] and outcome.done.tolist() == [True, False]
    assert grid.step(directions(up)).done.tolist() == [True]  # the fifth move is the last that is allowed


def test_episodes_of_different_length():
    agent = grid_agent()
    episodes = play(agent, Grid(size=3, limit=12), count=40, seed=1)
    lengths = episodes.mask.sum(1)
    assert len(lengths.unique()) > 2 and episodes.mask.shape == (40, int(lengths.max()))
    assert torch.equal(episodes.score, -lengths.float())  # one point for every move that was made, and no other
    assert torch.equal(episodes.mask, lengths[:, None] > torch.arange(episodes.mask.shape[1]))
    assert torch.allclose(episodes.logprobs(agent), episodes.sampled)
    assert (episodes.sampled[~episodes.mask] == 0).all()


def test_every_step_draws_afresh():
    """The steps of an episode have seeds of their own: with the same noise a policy would go on in one direction."""
    episodes = play(NetAgent(nn.Linear(9, 4)), Grid(size=3, limit=6), count=50, seed=1)
    moves = [step.action.ids[:20] for step in episodes.steps[:4]]
    assert all(not torch.equal(a, b) for i, a in enumerate(moves) for b in moves[:i])


def test_same_seed_same_episodes(spoken):
    agent = grid_agent()
    runs = [play(agent, Grid(3), count=8, samples=2, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(runs[0].sampled, runs[1].sampled)
    assert runs[0].sampled.shape != runs[2].sampled.shape or not torch.equal(runs[0].sampled, runs[2].sampled)
    agent, first = spoken
    environment = Questions([{"prompt": text} for text in ("SF", "Where is it?", "a b")], count_a)
    again, other = (play(agent, environment, count=3, samples=2, seed=seed) for seed in (4, 5))
    assert again.texts == first.texts and again.texts != other.texts


# ---- parts of a batch ------------------------------------------------------------------------------------------------


def rows_of(episodes: Episodes, agent) -> list[tuple]:
    """What must stay together of each episode, whatever the batch it is in; rounded for products in another order."""
    logprobs = episodes.logprobs(agent).detach()
    return [(float(score), int(group), [round(float(l), 4) for l in row[mask]], [round(float(l), 4) for l in old[mask]])
            for score, group, row, old, mask in zip(episodes.score, episodes.group, logprobs, episodes.sampled,
                                                    episodes.mask)]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=12), st.integers(1, 12))
def test_any_choice_of_episodes_is_those_episodes(chosen, size):
    agent = grid_agent()
    episodes = play(agent, Grid(size=3, limit=9), count=6, samples=2, seed=3)
    whole = rows_of(episodes, agent)
    assert rows_of(episodes.select(torch.tensor(chosen)), agent) == [whole[i] for i in chosen]
    assert [row for part in episodes.split(size) for row in rows_of(part, agent)] == whole


@pytest.mark.parametrize("chosen", [[5, 0, 3], [1], [0, 1, 2, 3, 4, 5], [4, 4]])
def test_pitfall_23_groups_scores_and_texts_stay_with_their_answers(spoken, chosen):
    agent, episodes = spoken
    part, whole = episodes.select(torch.tensor(chosen)), rows_of(episodes, agent)
    assert rows_of(part, agent) == [whole[i] for i in chosen]
    assert part.texts == [episodes.texts[i] for i in chosen]
    assert len(set(zip(episodes.group.tolist(), episodes.score.tolist()))) == 3  # a score tells its prompt


# ---- the language model ----------------------------------------------------------------------------------------------


def test_the_token_view_and_the_bandit_view_are_one():
    """The log-probs of an answer's tokens sum to the log-prob of the answer, in the list of all answers."""
    agent, rows = letters_agent()
    episodes = play(agent, Questions(rows, count_a), count=1, samples=200, seed=0)
    ids, mask, logp = all_logprobs(agent.model, 4)
    number = {tuple(row[real].tolist()): i for i, (row, real) in enumerate(zip(ids, mask))}
    action = episodes.steps[0].action
    said = [number[tuple(row[real].tolist())] for row, real in zip(action.completion_ids, action.mask)]
    torch.testing.assert_close(sequence_logprob(episodes.logprobs(agent), episodes.mask), logp[said], atol=1e-5, rtol=0)


def test_the_table_as_an_agent_says_what_its_list_says():
    model = TableLM(2, 3, seed=1)
    reward = torch.arange(len(model.ids), dtype=torch.float)
    agent = TableAgent(model)
    episodes = play(agent, Letters(reward), count=5, samples=40, seed=0)
    ids = episodes.steps[0].action.ids
    assert torch.equal(episodes.score, reward[ids])
    assert torch.allclose(sequence_logprob(episodes.logprobs(agent), episodes.mask), model()[ids])


def test_an_empty_string_is_a_prompt(tiny_lm):
    """It is continued from the beginning of a text, and the answer is text."""
    seen = []
    agent = LMAgent(*tiny_lm, max_new_tokens=4, precision="fp32")
    play(agent, Questions([{"prompt": ""}], lambda completions, **_: seen.extend(completions) or [0.0]), count=1)
    assert len(seen) == 1 and isinstance(seen[0], str)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_pitfalls_06_07_08_the_first_ratio_is_1(tiny_lm, temperature):
    """At the sampling temperature, without dropout, in the same precision: log-probs in training are those of sampling."""
    model, tokenizer = tiny_lm
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    agent = LMAgent(model, tokenizer, max_new_tokens=8, temperature=temperature, precision="fp32")
    episodes = play(agent, Questions([{"prompt": "Where is SF?"}, {"prompt": "Hi"}], count_a), count=2, samples=3, seed=1)
    ratio = (episodes.logprobs(agent) - episodes.sampled).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)
    assert model.training


def test_pitfall_04_what_follows_the_end_counts_nowhere():
    agent, rows = letters_agent()
    episodes = play(agent, Questions(rows, count_a), count=1, samples=50, seed=0)
    action, mask = episodes.steps[0].action, episodes.mask
    assert not mask.all() and (episodes.sampled[~mask] == 0).all()
    before = episodes.logprobs(agent)
    assert (before[~mask] == 0).all()
    action.completion_ids[~mask] = 0  # other letters where nothing was said
    assert torch.equal(episodes.logprobs(agent), before)


def test_features_are_the_prompt_s_last_hidden_state(tiny_lm):
    model, tokenizer = tiny_lm
    agent = LMAgent(model, tokenizer, precision="fp32")
    states = ["SF", "SF", "Where is it?"]
    features = agent.features(states)
    assert features.shape == (3, 32) and not features.requires_grad and torch.equal(features[0], features[1])
    for text, row in zip(states, features):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            torch.testing.assert_close(row, model.model(ids).last_hidden_state[0, -1], atol=1e-5, rtol=0)


def test_a_policy_must_sample(tiny_lm):
    with pytest.raises(ValueError, match="must sample: temperature 0"):
        LMAgent(*tiny_lm, temperature=0)


# ---- questions and their rewards -------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["prompts", "completions", "finished"])
def test_a_column_that_the_environment_itself_gives_to_the_reward_is_refused(column):
    with pytest.raises(ValueError, match=f"row 0 has a column '{column}'"):
        Questions([{"prompt": "a", column: "b"}] * 2, count_a)


def test_every_question_is_asked_before_one_is_asked_again():
    environment = Questions([{"prompt": f"q{i}"} for i in range(5)], count_a)
    states = environment.reset(7, 2, seed=0)
    assert states[::2] == states[1::2] and len(states) == 14
    assert sorted(states[:10:2]) == [f"q{i}" for i in range(5)]


def test_the_reward_sees_columns_prompts_and_completions_in_one_order(tiny_lm):
    seen = {}

    def reward(prompts, completions, city, finished):
        seen.update(prompts=prompts, completions=completions, city=city, finished=finished)
        return [0.0] * len(prompts)

    rows = [{"prompt": [{"role": "user", "content": f"Where is {c}?"}], "city": c} for c in "ABC"]
    episodes = play(LMAgent(*tiny_lm, max_new_tokens=3), Questions(rows, reward), count=2, samples=2, seed=0)
    assert [p[0]["content"] for p in seen["prompts"]] == [f"Where is {c}?" for c in seen["city"]]
    assert [c[0]["content"] for c in seen["completions"]] == episodes.texts
    assert seen["completions"][0][0]["role"] == "assistant" and len(seen["finished"]) == 4


def test_pitfalls_13_26_an_answer_that_was_cut_off_is_not_paid_as_finished():
    agent, rows = letters_agent(max_new_tokens=2)
    paid = play(agent, Questions(rows, lambda prompts, completions, **_: [1.0] * len(prompts), unfinished=-3.0),
                count=1, samples=100, seed=0)
    finished = paid.steps[0].action.finished
    assert 0 < finished.sum() < 100
    assert torch.equal(paid.score, torch.where(finished, 1.0, -3.0))
    as_it_is = play(agent, Questions(rows, count_a), count=1, samples=100, seed=0)
    assert as_it_is.score.tolist() == [text.count("a") for text in as_it_is.texts]


@pytest.mark.parametrize(("value", "says"), [(None, "is nan"), (float("nan"), "is nan"), (float("inf"), "is inf")])
def test_a_reward_that_is_no_number_is_an_error_that_names_the_answer(value, says):
    agent, rows = letters_agent()
    with pytest.raises(ValueError, match=f"the reward of '.*' {says}: a reward must be a finite number"):
        play(agent, Questions(rows, lambda prompts, completions, **_: [value] * len(prompts)), count=1)


def test_a_reward_with_the_wrong_number_of_numbers_is_an_error():
    agent, rows = letters_agent()
    with pytest.raises(ValueError, match="returned 1 numbers for 3 completions"):
        play(agent, Questions(rows, lambda **_: [1.0]), count=1, samples=3)


@pytest.mark.parametrize(("rows", "says"), [
    ([], "no rows"), ([{"question": "a"}], "row 0"), ([{"prompt": "a", "city": "b"}, {"prompt": "a"}], "row 1")])
def test_bad_rows_are_named(rows, says):
    with pytest.raises(ValueError, match=says):
        Questions(rows, count_a)
