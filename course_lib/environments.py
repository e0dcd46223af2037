"""Agent and environment: the loop of reinforcement learning, one for a bandit, a grid and a language model.

    state s_t -> agent, its policy p_theta -> action a_t -> environment -> reward r_t and state s_{t+1}

A batch of N episodes runs side by side. An action consists of K elementary choices, one for a bandit, one a token for a
language model: the state is then the prompt and the action the completion (a bandit's view of a language model), and inside
of the action stands the token view, in which the state is the text so far and each token is an action of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.exact import TableLM
from course_lib.lm.device import autocast
from course_lib.lm.logprobs import completion_logprobs, eval_mode
from course_lib.lm.sampling import Rollouts, draw_tokens, encode_prompt, sample, uniforms
from course_lib.objectives import last_token
from course_lib.rewards import Reward, text_of
from course_lib.worlds.draw import Draw


class Action(Protocol):
    """What n episodes did in one step: K choices each. `Rollouts` is the action of a language model."""

    logprobs: Tensor  # (n, K) ln p of each choice under the policy that took it
    mask: Tensor      # (n, K) bool: which choices were made

    def select(self, rows: Tensor) -> "Action": ...


class Agent(Protocol):
    """A policy: it takes actions in states, and says how likely they are."""

    model: nn.Module

    def act(self, states: Any, seed: int) -> Action: ...

    def logprobs(self, states: Any, action: Action) -> Tensor:
        """ln p_theta of each choice, with gradients: (n, K), 0 where masked."""
        ...

    def features(self, states: Any) -> Tensor:
        """What a learned baseline may look at: (n, D), no gradient."""
        ...


@dataclass
class Outcome:
    """What an environment answers to an action of n episodes."""

    reward: Tensor       # (n,)
    done: Tensor         # (n,) bool: the episode is over
    states: Any = None   # of the episodes that go on


class Environment(Protocol):
    def reset(self, count: int, samples: int, seed: int) -> Any:
        """Begin count * samples episodes: `count` start states, each of them `samples` times in a row."""
        ...

    def step(self, action: Action) -> Outcome:
        """Take an action in every episode that is not over yet."""
        ...


@dataclass
class Step:
    rows: Tensor     # (n,) long: the episodes that were not over yet
    states: Any
    action: Action
    reward: Tensor   # (n,)


@dataclass
class Episodes:
    """What N episodes saw, did and earned."""

    steps: list[Step]
    score: Tensor    # (N,) the sum of an episode's rewards: one number an answer, as in the lecture
    group: Tensor    # (N,) long: episodes with the same number began in the same state

    @property
    def mask(self) -> Tensor:
        """Which choices were made: (N, K) bool, K counts the choices of all steps, side by side."""
        return self._joined([step.action.mask for step in self.steps])

    @property
    def sampled(self) -> Tensor:
        """ln p of each choice under the policy that took it: (N, K)."""
        return self._joined([step.action.logprobs for step in self.steps])

    def logprobs(self, agent: Agent) -> Tensor:
        """ln p of each choice under the policy of `agent`, with gradients: (N, K), 0 where masked."""
        if hasattr(agent, "episode_logprobs"):  # it reads an episode's steps as one text
            return self._joined(agent.episode_logprobs(self.steps))
        return self._joined([agent.logprobs(step.states, step.action) if len(step.rows) else step.action.logprobs
                             for step in self.steps])

    def values(self, critic) -> Tensor:
        """V of the state before each choice by PPO's critic, with gradients: (N, K), 0 where masked."""
        return self._joined([critic.values(step.states, step.action) if len(step.rows) else step.action.logprobs
                             for step in self.steps])

    def both(self, agent: "LMAgent", critic) -> tuple[Tensor, Tensor]:
        """`logprobs` and `values` of a critic that shares the agent's trunk, in one forward pass a step."""
        pairs = [critic.logprobs_and_values(step.action, agent.temperature) if len(step.rows) else
                 (step.action.logprobs, step.action.logprobs) for step in self.steps]
        logprobs, values = zip(*pairs)
        return self._joined(list(logprobs)), self._joined(list(values))

    def rewards(self, missing_end: float = 0.0) -> Tensor:
        """Each step's reward on the last choice made in it, (N, K), less `missing_end` for an answer that was cut off."""
        parts = []
        for step in self.steps:
            finished = getattr(step.action, "finished", torch.ones_like(step.reward, dtype=torch.bool))
            reward = step.reward - missing_end * (~finished).to(step.reward)
            parts.append(torch.where(last_token(step.action.mask), reward[:, None], 0))
        return self._joined(parts)

    @property
    def texts(self) -> list[str]:
        """What a language model said, in the last step of each episode."""
        texts = [""] * len(self.score)
        for step in self.steps:
            for row, text in zip(step.rows.tolist(), step.action.texts):
                texts[row] = text
        return texts

    def select(self, rows: Tensor) -> "Episodes":
        """The episodes `rows` (n,), in this order."""
        steps = []
        for step in self.steps:
            new, old = (rows[:, None] == step.rows[None]).nonzero(as_tuple=True)  # (n,) each; none is fine
            steps.append(Step(new, _pick(step.states, old), step.action.select(old), step.reward[old]))
        return Episodes(steps, self.score[rows], self.group[rows])

    def split(self, size: int) -> Iterator["Episodes"]:
        """Parts of at most `size` episodes."""
        if size >= len(self.score):
            yield self
        else:
            yield from (self.select(rows) for rows in torch.arange(len(self.score), device=self.score.device).split(size))

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Per-step tensors (n, K_t), each at its own episodes, side by side: (N, sum of K_t)."""
        if len(parts) == 1 and len(parts[0]) == len(self.score):
            return parts[0]
        wide = [p.new_zeros(len(self.score), p.shape[1]).index_copy(0, s.rows, p) for p, s in zip(parts, self.steps)]
        return torch.cat(wide, 1)


def _pick(states: Any, rows: Tensor) -> Any:
    return states[rows] if isinstance(states, Tensor) else [states[i] for i in rows.tolist()]


def _on(device: torch.device, states: Any) -> Any:
    return states.to(device) if isinstance(states, Tensor) else states


@torch.no_grad()
def play(agent: Agent, environment: Environment, *, count: int, samples: int = 1, seed: int = 0) -> Episodes:
    """Run `samples` episodes from each of `count` start states to their end."""
    device = next(agent.model.parameters()).device
    states = _on(device, environment.reset(count, samples, seed))
    rows = torch.arange(count * samples, device=device)
    score, steps = torch.zeros(len(rows), device=device), []
    while len(rows):
        action = agent.act(states, seed + len(steps) * 2**32)
        outcome = environment.step(action)
        reward, done = outcome.reward.to(score), outcome.done.to(device)
        steps.append(Step(rows, states, action, reward))
        score = score.index_add(0, rows, reward)
        rows, states = rows[~done], _on(device, outcome.states)
    return Episodes(steps, score, torch.arange(count, device=device).repeat_interleave(samples))


# ---- agents ----------------------------------------------------------------------------------------------------------


@dataclass
class Choice:
    """One choice among few: a bandit's arm, a step on a grid, a whole sequence of the enumerable language model."""

    ids: Tensor       # (n,)
    logprobs: Tensor  # (n, K)
    mask: Tensor      # (n, K) bool

    def select(self, rows: Tensor) -> "Choice":
        return Choice(self.ids[rows], self.logprobs[rows], self.mask[rows])


def _choose(logits: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """One choice in each row, (n, actions) -> its number and its log-probability, (n,) each."""
    u = uniforms(seed, torch.arange(len(logits), device=logits.device), 1)[:, 0]
    return draw_tokens(logits, u, temperature=1.0, top_k=0, top_p=1.0)


class NetAgent:
    """A small network from a state's numbers to one logit for each action."""

    def __init__(self, model: nn.Module):
        self.model = model  # (n, D) -> (n, actions)

    def act(self, states: Tensor, seed: int) -> Choice:
        ids, logp = _choose(self.model(states), seed)
        return Choice(ids, logp[:, None], torch.ones_like(ids[:, None], dtype=torch.bool))

    def logprobs(self, states: Tensor, action: Choice) -> Tensor:
        return self.model(states).log_softmax(-1).gather(1, action.ids[:, None])

    def features(self, states: Tensor) -> Tensor:
        return states


class NetCritic:
    """A small network from a state's numbers to its value, beside a `NetAgent`."""

    shared = False

    def __init__(self, model: nn.Module):
        self.model = model  # (n, D) -> (n, 1)

    def values(self, states: Tensor, action: Choice) -> Tensor:
        return self.model(states)


class TableAgent:
    """The enumerable language model as an agent: an action is a whole sequence, its choices are the tokens."""

    def __init__(self, model: TableLM):
        self.model = model

    def act(self, states: Tensor, seed: int) -> Choice:
        logp = self.model.token_logprobs()  # (S, length)
        ids, _ = _choose(logp.sum(-1).expand(len(states), -1), seed)
        return Choice(ids, logp[ids], self.model.mask[ids])

    def logprobs(self, states: Tensor, action: Choice) -> Tensor:
        return self.model.token_logprobs()[action.ids]

    def features(self, states: Tensor) -> Tensor:
        return states


class LMAgent:
    """A language model as an agent: state = prompt, action = completion.

    temperature: of sampling, and of the log-probs that belong to it. precision: see `lm.autocast`; log-probs are float32.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int = 48,
                 temperature: float = 1.0, stop: Sequence[str] = (), precision: str = "auto"):
        if not temperature > 0:
            raise ValueError(f"a policy that is trained must sample: temperature {temperature} is not above 0")
        self.model, self.tokenizer, self.precision = model, tokenizer, precision
        self.max_new_tokens, self.temperature, self.stop = max_new_tokens, temperature, stop

    def act(self, states: Sequence, seed: int) -> Rollouts:
        """One completion for each prompt; equal prompts side by side are read once."""
        runs = [(prompt, len(list(same))) for prompt, same in groupby(states)]
        samples = runs[0][1]
        if any(n != samples for _, n in runs):
            runs, samples = [(prompt, 1) for prompt in states], 1
        with autocast(self.model.device, self.precision):
            return sample(self.model, self.tokenizer, [prompt for prompt, _ in runs], max_new_tokens=self.max_new_tokens,
                          temperature=self.temperature, samples_per_prompt=samples, stop=self.stop, seed=seed)

    def logprobs(self, states: Sequence, action: Rollouts) -> Tensor:
        with autocast(self.model.device, self.precision):
            return completion_logprobs(self.model, action, self.temperature)

    @torch.no_grad()
    def features(self, states: Sequence) -> Tensor:
        """The last hidden state at the end of each prompt: (n, width)."""
        runs = [(encode_prompt(self.tokenizer, prompt), len(list(same))) for prompt, same in groupby(states)]
        ids = pad_sequence([torch.tensor(row) for row, _ in runs], batch_first=True).to(self.model.device)  # (prompts, P)
        last = torch.tensor([len(row) - 1 for row, _ in runs], device=ids.device)
        with autocast(ids.device, self.precision), eval_mode(self.model):  # causal: padding behind a prompt is not seen
            hidden = self.model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # (prompts, P, width)
        hidden = hidden[torch.arange(len(ids), device=ids.device), last].float()
        return hidden.repeat_interleave(torch.tensor([n for _, n in runs], device=ids.device), 0)


# ---- environments ----------------------------------------------------------------------------------------------------


class Bandit:
    """Arms with an average payout each and normal noise; one pull is an episode. The state is the number 1."""

    def __init__(self, means: Sequence[float], noise: float = 1.0):
        self.means, self.noise = torch.tensor(means, dtype=torch.float), noise

    def reset(self, count: int, samples: int, seed: int) -> Tensor:
        self.generator = torch.Generator().manual_seed(seed % 2**63)
        return torch.ones(count * samples, 1)

    def step(self, action: Choice) -> Outcome:
        arms = action.ids.cpu()
        noise = torch.randn(len(arms), generator=self.generator)
        return Outcome(self.means[arms] + self.noise * noise, torch.ones(len(arms), dtype=torch.bool))


class Grid:
    """A square of size * size cells: from the upper left to the lower right corner, -1 a move, at most `limit` moves.

    The state is one-hot over the cells; the actions are up, down, left and right; a wall leaves the agent where it is.
    The best score is -2 (size - 1).
    """

    MOVES = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])

    def __init__(self, size: int = 4, limit: int = 30):
        self.size, self.limit = size, limit

    def reset(self, count: int, samples: int, seed: int) -> Tensor:
        self.at, self.moves = torch.zeros(count * samples, 2, dtype=torch.long), 0  # row and column
        return self._states()

    def step(self, action: Choice) -> Outcome:
        self.at = (self.at + self.MOVES[action.ids.cpu()]).clamp(0, self.size - 1)
        self.moves += 1
        done = (self.at == self.size - 1).all(1) | (self.moves >= self.limit)
        self.at = self.at[~done]
        return Outcome(torch.full((len(done),), -1.0), done, self._states())

    def _states(self) -> Tensor:
        cells = self.at[:, 0] * self.size + self.at[:, 1]
        return torch.nn.functional.one_hot(cells, self.size**2).float()


class Letters:
    """Any reward over the sequences of the enumerable language model. The state is the number 1."""

    def __init__(self, reward: Tensor):
        self.reward = reward  # (S,)

    def reset(self, count: int, samples: int, seed: int) -> Tensor:
        return torch.ones(count * samples, 1, device=self.reward.device)

    def step(self, action: Choice) -> Outcome:
        return Outcome(self.reward[action.ids.to(self.reward.device)], torch.ones(len(action.ids), dtype=torch.bool))


class Questions:
    """Prompts with a reward on the completion: the language model's environment. Every episode has one step.

    rows: dicts with a `prompt` (a string, messages or token ids) and whatever columns the reward reads, as in a data set.
    reward: in the course's convention, see `course_lib.rewards`.
    unfinished: the reward of an answer that was cut off before its end; None leaves it to `reward`.
    Start states are drawn without repetition until all rows have been used, then afresh.
    Raises ValueError for no rows, for a row without a prompt, or with a column that the environment itself gives to the reward.
    """

    def __init__(self, rows: Sequence[dict], reward: Reward, unfinished: float | None = None):
        if not rows:
            raise ValueError("there are no rows: give at least one dict with a prompt")
        for i, row in enumerate(rows):
            if "prompt" not in row or row.keys() != rows[0].keys():
                raise ValueError(f"row {i} has the columns {sorted(row)}; all rows need 'prompt' and the same columns")
            if taken := sorted({"prompts", "completions", "finished"} & row.keys()):
                raise ValueError(f"row {i} has a column {taken[0]!r}: the environment gives the reward one of that name; "
                                 f"call yours otherwise")
        self.rows, self.reward, self.unfinished = rows, reward, unfinished

    def reset(self, count: int, samples: int, seed: int) -> list:
        draw, picked = Draw(f"questions {seed}"), []
        while len(picked) < count:
            picked += draw.ordered(range(len(self.rows)), min(count - len(picked), len(self.rows)))
        self.current = [self.rows[i] for i in picked for _ in range(samples)]
        return [row["prompt"] for row in self.current]

    def step(self, action: Rollouts) -> Outcome:
        prompts = [row["prompt"] for row in self.current]
        finished = action.finished.tolist()
        said = [[{"role": "assistant", "content": text}] if prompt and isinstance(prompt[0], dict) else text
                for prompt, text in zip(prompts, action.texts)]
        columns = {name: [row[name] for row in self.current] for name in self.rows[0] if name != "prompt"}
        rewards = self.reward(prompts=prompts, completions=said, **columns, finished=finished)
        if len(rewards) != len(said):
            raise ValueError(f"the reward returned {len(rewards)} numbers for {len(said)} completions: it must return one "
                             f"number for each")
        if self.unfinished is not None:
            rewards = [r if done else self.unfinished for r, done in zip(rewards, finished)]
        rewards = torch.tensor([float("nan") if r is None else float(r) for r in rewards])
        if not rewards.isfinite().all():
            i = int((~rewards.isfinite()).nonzero()[0])
            raise ValueError(f"the reward of {text_of(said[i])!r} is {float(rewards[i])}: a reward must be a finite number")
        return Outcome(rewards, torch.ones(len(rewards), dtype=torch.bool))
