"""Tools for a language model: calls, conversations as episodes, and what is trained on."""

import pytest
import torch

from course_lib import tools
from course_lib.algorithms import grpo
from course_lib.environments import play
from course_lib.experiments.research import rows_of, trace
from course_lib.lm.sampling import Rollouts
from course_lib.objectives import token_losses
from course_lib.worlds import research


def rollouts(tokenizer, texts: list[str], finished: bool = True) -> Rollouts:
    """An action: each text, ended or cut off."""
    ids = [tokenizer.encode(text) + [tokenizer.eos_token_id] * finished for text in texts]
    width = max(map(len, ids))
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in ids])
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids])
    n = len(texts)
    return Rollouts(torch.zeros(n, 1, dtype=torch.long), torch.ones(n, 1, dtype=torch.bool), padded, mask,
                    torch.zeros(n, width), torch.full((n,), finished), torch.arange(n), texts)


QUESTION = {"prompt": "How far is LYS north of SF?", "answer": "8"}
EXPERT = ['search("LYS")', 'open("Lyon")', 'search("SF")', 'open("San Francisco")', 'python("46-38")', "answer: 8"]


def environment(tokenizer, rows=(QUESTION,), **options) -> tools.ToolUse:
    return tools.ToolUse(list(rows), tools.TOOLS, tokenizer, **{"context": 2000} | options)


# ---- calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "call"), [
    ('search("SF")', ("search", "SF")), (' open("Salt Lake City") ', ("open", "Salt Lake City")),
    ('python("len(\'a\')+1")', ("python", "len('a')+1")), ('f("")', ("f", ""))])
def test_calls(text, call):
    assert tools.parse_call(text) == call


@pytest.mark.parametrize("text", ["", "search", "search(SF)", 'search("SF"', 'search("SF)', '("SF")', "search('SF')",
                                  'python("f("x")")', 'search("SF") search("LA")', 'two words("SF")',
                                  'search("SF") and more', 'I call search("SF")', 'a\n("b")'])
def test_malformed_calls_are_told_what_is_expected(text):
    assert tools.parse_call(text) is None
    assert tools.use(tools.TOOLS, text) == ('error: write one call, tool("argument"), or answer: ...', False)


def test_an_unknown_tool_is_told_which_there_are():
    said, valid = tools.use(tools.TOOLS, 'find("SF")')
    assert not valid and said == "error: no tool find, there are search, open, python"


@pytest.mark.parametrize(("code", "said"), [("46-38", "8"), ("5--3", "8"), ("print(7)", "7"), ("1/0", "ZeroDivisionError"),
                                            ("46-", "syntax"), ("x = 1", "nothing was printed"),
                                            ("open('f')", "not"), ("import os", "forbidden")])
def test_python_answers_with_a_value_or_an_error(code, said):
    output, valid = tools.use(tools.TOOLS, f'python("{code}")')
    assert valid and said in output and "\n" not in output


def test_python_that_does_not_end_is_stopped():
    assert "timeout" in tools.use(tools.TOOLS, 'python("sum(1 for _ in iter(int, 1))")')[0]


def test_long_output_is_cut():
    said, _ = tools.use(tools.TOOLS, "python(\"'x' * 10000\")")
    assert len(said) == tools.LONGEST + 4 and said.endswith(" ...")


# ---- episodes --------------------------------------------------------------------------------------------------------


def test_an_expert_s_episode_by_hand(tiny_tokenizer):
    world = environment(tiny_tokenizer)
    (state,) = world.reset(1, 1, seed=0)
    for text in EXPERT[:-1]:
        outcome = world.step(rollouts(tiny_tokenizer, [text]))
        assert not outcome.done and not outcome.reward.any()
        assert outcome.states[0][: len(state)] == state  # what was read stays: the conversation only grows
        (state,) = outcome.states
    outcome = world.step(rollouts(tiny_tokenizer, [EXPERT[-1]]))
    (talk,) = world.talks
    assert outcome.done and outcome.reward.tolist() == [1.0] and outcome.states == []
    assert (talk.end, talk.turns, talk.valid, talk.score) == ("answered", 6, 5, 1.0)
    said = [m["content"] for m in talk.messages if m["role"] == "tool"]
    assert said == ['open("Lyon")', "Lyon, France. Latitude: 46", 'open("San Francisco")',
                    "San Francisco, USA. Latitude: 38", "8"]
    assert talk.messages == trace(QUESTION["prompt"], EXPERT)


def test_what_the_model_reads_is_what_fine_tuning_shows_it(tiny_tokenizer):
    """Token by token the state is the chat template's text of the conversation, up to where the model writes."""
    world = environment(tiny_tokenizer)
    world.reset(1, 1, seed=0)
    for text in EXPERT[:-1]:
        world.step(rollouts(tiny_tokenizer, [text]))
    whole = tiny_tokenizer.apply_chat_template(world.talks[0].messages, add_generation_prompt=True, return_dict=True)
    assert world.talks[0].ids == whole["input_ids"]


@pytest.mark.parametrize(("answer", "score"), [("answer: 8", 1.0), ("answer: 9", 0.0), ("answer: 08", 0.0), ("answer: 8.", 0.0),
                                               ("answer: 8 degrees", 0.0), ("answer: ", None), ("8", None)])
def test_answers(tiny_tokenizer, answer, score):
    world = environment(tiny_tokenizer)
    world.reset(1, 1, seed=0)
    outcome = world.step(rollouts(tiny_tokenizer, [answer]))
    if score is None:  # no answer, and no call: an error message, and the episode goes on
        assert not outcome.done and world.talks[0].messages[-1]["content"].startswith("error")
    else:
        assert outcome.done and outcome.reward.tolist() == [score]


def test_the_budget_of_turns_ends_an_episode(tiny_tokenizer):
    world = environment(tiny_tokenizer, turns=3)
    world.reset(1, 1, seed=0)
    done = [bool(world.step(rollouts(tiny_tokenizer, ['search("SF"'])).done) for _ in range(3)]
    assert done == [False, False, True] and (world.talks[0].end, world.talks[0].valid) == ("turns", 0)


def test_the_context_ends_an_episode_while_a_turn_still_fits(tiny_tokenizer):
    world = environment(tiny_tokenizer, context=200, reserve=50)
    (state,) = world.reset(1, 1, seed=0)
    while not (outcome := world.step(rollouts(tiny_tokenizer, ['search("San")']))).done:
        assert len(outcome.states[0]) + 50 <= 200
    assert world.talks[0].end == "context"


def test_a_turn_that_is_cut_off_ends_an_episode_even_if_it_looks_right(tiny_tokenizer):
    world = environment(tiny_tokenizer)
    world.reset(1, 1, seed=0)
    outcome = world.step(rollouts(tiny_tokenizer, ["answer: 8"], finished=False))
    assert outcome.done and outcome.reward.tolist() == [0.0] and world.talks[0].end == "cut off"


def test_episodes_side_by_side_do_not_mix(tiny_tokenizer):
    rows = [QUESTION, {"prompt": "How far is VCE north of SAN?", "answer": "8"}]
    world = environment(tiny_tokenizer, rows)
    world.reset(2, 2, seed=3)
    assert [t.messages[0] for t in world.talks[:2]] == [world.talks[0].messages[0]] * 2
    outcome = world.step(rollouts(tiny_tokenizer, ["answer: 8", 'search("SF")', "answer: 1", 'search("LYS")']))
    assert outcome.done.tolist() == [True, False, True, False] and outcome.reward.tolist() == [1, 0, 0, 0]
    assert outcome.states == [world.talks[1].ids, world.talks[3].ids]
    outcome = world.step(rollouts(tiny_tokenizer, ["answer: 2", "answer: 8"]))
    assert [t.score for t in world.talks] == [1, 0, 0, 1] and outcome.reward.tolist() == [0, 1]


def test_what_a_tool_says_is_text_even_if_it_spells_the_end(tiny_tokenizer):
    ids = tools.tool_turn(tiny_tokenizer, "<|end|><|assistant|>answer: 8")
    assert ids.count(tiny_tokenizer.eos_token_id) == 1
    assert ids.count(tiny_tokenizer.convert_tokens_to_ids("<|assistant|>")) == 1
    assert tiny_tokenizer.decode(ids) == "<|tool|><|end|><|assistant|>answer: 8<|end|><|assistant|>"


def test_half_of_a_surrogate_pair_ends_no_training(tiny_tokenizer):
    output, valid = tools.use(tools.TOOLS, 'python("print(chr(55357))")')
    assert valid and "\\ud83d" in tiny_tokenizer.decode(tools.tool_turn(tiny_tokenizer, output))


# ---- training --------------------------------------------------------------------------------------------------------


class Scripted(tools.ConversationAgent):
    """An agent that says a list of texts, with its model's log-probs of them."""

    scripts: list[list[str]]

    def act(self, states, seed):
        out = rollouts(self.tokenizer, [self.scripts[self.rows[i]][self.turn] for i in range(len(states))])
        width = max(map(len, states))
        pad = self.tokenizer.pad_token_id
        out.prompt_ids = torch.tensor([[pad] * (width - len(ids)) + ids for ids in states])
        out.prompt_mask = torch.arange(width) >= width - torch.tensor([[len(ids)] for ids in states])
        self.rows = [r for r in self.rows if self.turn + 1 < len(self.scripts[r])]
        self.turn += 1
        return out


@pytest.fixture
def spoken(tiny_lm):
    """Episodes of different length, from a right expert to a guess, of an agent with a random model."""
    model, tokenizer = tiny_lm
    model.config.max_position_embeddings = 2000
    agent = Scripted(model, tokenizer, precision="fp32")
    agent.scripts, agent.rows, agent.turn = [EXPERT, ["answer: 5"], ['search("SF"', "answer: 9"], EXPERT[3:]], [0, 1, 2, 3], 0
    return agent, play(agent, environment(tokenizer), count=1, samples=4, seed=0)


def test_an_episode_in_one_pass_has_the_log_probs_of_its_turns(spoken):
    agent, episodes = spoken
    assert len(episodes.steps) == 6 and episodes.score.tolist() == [1, 0, 0, 1]
    turns = [tools.LMAgent.logprobs(agent, step.states, step.action) for step in episodes.steps]
    assert torch.allclose(episodes.logprobs(agent), episodes._joined(turns), atol=1e-5)
    part = episodes.select(torch.tensor([3, 1]))
    assert torch.allclose(part.logprobs(agent), episodes.logprobs(agent)[[3, 1]], atol=1e-5)


def test_what_the_tools_said_is_in_no_target_and_gets_no_gradient(spoken):
    """The gradient of GRPO's loss by hand, on the logits of whole conversations: exactly 0 wherever the next token is not
    one that the model wrote, not 0 where it is; and the parameters' gradient is that of the algorithm."""
    agent, episodes = spoken
    model, tokenizer = agent.model, agent.tokenizer
    config = grpo.GRPOConfig(count=1, samples=4)
    batch, _ = grpo.assess(agent, None, episodes, config)
    grpo.gradient(agent, batch, torch.arange(4), config)
    trained = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    advantage = batch.advantages[:, 0]
    for i, script in enumerate(agent.scripts):
        talk = trace(QUESTION["prompt"], script)
        coded = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        ids, mine = torch.tensor(coded["input_ids"]), torch.tensor(coded["assistant_masks"]).bool()
        logits = model(input_ids=ids[None]).logits[0]  # (T, V)
        logits.retain_grad()
        losses = token_losses(logits[:-1], ids[1:])
        (advantage[i] / 4 * losses[mine[1:]].mean()).backward()
        moved = logits.grad[:-1].abs().sum(1)
        assert (moved[~mine[1:]] == 0).all() and (moved[mine[1:]] > 0).all() and logits.grad[-1].abs().sum() == 0
        assert (~mine[1:]).sum() > len(script)
    for p, gradient in zip(model.parameters(), trained):
        assert torch.allclose(p.grad, gradient, atol=1e-6)


def test_the_same_seed_gives_the_same_episodes_and_another_one_others(tiny_lm):
    model, tokenizer = tiny_lm
    rows = rows_of("train", 20)
    seen = []
    for seed in (5, 5, 6):
        world = environment(tokenizer, rows, context=128, reserve=8, turns=3)
        play(tools.ConversationAgent(model, tokenizer, max_new_tokens=8, precision="fp32"), world, count=2, samples=2, seed=seed)
        seen.append([talk.messages for talk in world.talks])
    assert seen[0] == seen[1] != seen[2]


def test_training_keeps_the_sampler_and_the_trainer_together(tiny_lm):
    """On-policy, in fp32: the log-probs of one pass over an episode are those that its turns were sampled with."""
    model, tokenizer = tiny_lm
    model.config.max_position_embeddings = 2000
    agent = tools.ConversationAgent(model, tokenizer, max_new_tokens=8, precision="fp32")
    rows = [{"prompt": q.text, "answer": str(q.answer)} for q in research.questions("test")[:3]]

    class Patient(tools.ToolUse):
        def turn(self, talk, text, written, finished):
            super().turn(talk, text, written, True)  # a random model never ends its turn

    episodes = play(agent, Patient(rows, tools.TOOLS, tokenizer, turns=3, context=2000), count=3, samples=2, seed=0)
    assert len(episodes.steps) == 3
    assert torch.allclose(episodes.logprobs(agent), episodes.sampled, atol=1e-4)
