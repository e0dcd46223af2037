"""Tools for a language model: calls as text, and the environment in which a conversation with tools is an episode.

    the model writes `search("SF")` -> the tool answers `open("San Francisco")`, a link -> the model reads both, and writes on

State = the conversation so far, action = the model's next turn (one call, or the answer), reward = 1 for a right answer.
Only what the model wrote is an action, so that what a tool said is never trained on.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from course_lib.environments import LMAgent, Outcome, Step
from course_lib.lm.device import autocast
from course_lib.lm.logprobs import eval_mode, token_logprobs
from course_lib.lm.sampling import Rollouts, encode_prompt
from course_lib.lm.turns import Reader, sample_turn
from course_lib.rewards.sandbox import Limits, execute
from course_lib.worlds import research
from course_lib.worlds.draw import Draw

Tool = Callable[[str], str]
Parser = Callable[[str], tuple[str, str] | None]
CALL = re.compile(r'(\w+)\("([^"]*)"\)')
ANSWER = re.compile(r"answer: (.+)")
LONGEST = 100  # characters of a tool's output that are shown


def parse_call(text: str) -> tuple[str, str] | None:
    """`search("SF")` -> ("search", "SF"); None for anything else. An argument holds no double quote."""
    found = CALL.fullmatch(text.strip())
    return found and (found[1], found[2])


def python(code: str) -> str:
    """Run code in the sandbox: what it prints, its last value, its error."""
    return execute(code, limits=Limits(cpu=0.2, wall=3.0)).text or "error: nothing was printed"


TOOLS: dict[str, Tool] = {"search": research.search, "open": research.open_page, "python": python}


def use(tools: Mapping[str, Tool], text: str, parse: Parser = parse_call) -> tuple[str, bool]:
    """What the tools answer to a turn of the model, and whether it was a valid call of one of them.

    A mistake is answered by a message that says what is expected, so that the model can try again.
    """
    call = parse(text)
    if call is None:
        return 'error: write one call, tool("argument"), or answer: ...', False
    name, argument = call
    if name not in tools:
        return f"error: no tool {name}, there are {', '.join(tools)}", False
    output = " ".join(tools[name](argument).split())
    return (output if len(output) <= LONGEST else output[:LONGEST] + " ..."), True


ENDS = ("answered", "turns", "context", "cut off")


@dataclass
class Talk:
    """One episode: the conversation as messages for people, and as tokens for the model."""

    row: dict                # the question's columns: prompt, answer
    messages: list[dict]
    ids: list[int]           # as sampled, never decoded and encoded again
    valid: int = 0           # calls that a tool could carry out
    turns: int = 0
    end: str = ""            # one of ENDS when it is over
    score: float = 0.0


class ToolUse:
    """Questions that are answered with tools: an environment for a language model, over several turns.

    rows: dicts with `prompt`, a text, and `answer`, what must stand behind "answer:".
    turns: the most that the model may write. context: tokens a conversation may have; `reserve` of them stay free for the
        next turn, and the episode ends when they do not ("context"). A turn that does not end itself ends it too ("cut off").
    The reward is 1 with a right answer, 0 otherwise.
    `talks` holds the episodes of the last `reset`, to be read.
    """

    def __init__(self, rows: Sequence[dict], tools: Mapping[str, Tool], tokenizer: PreTrainedTokenizerBase, *,
                 turns: int = 8, context: int = 256, reserve: int = 32, parse: Parser = parse_call):
        self.rows, self.tools, self.tokenizer, self.parse = rows, tools, tokenizer, parse
        self.turns, self.context, self.reserve = turns, context, reserve
        self.talks: list[Talk] = []

    def reset(self, count: int, samples: int, seed: int) -> list[list[int]]:
        draw, picked = Draw(f"questions {seed}"), []
        while len(picked) < count:
            picked += draw.ordered(range(len(self.rows)), min(count - len(picked), len(self.rows)))
        self.talks = [self._begin(self.rows[i]) for i in picked for _ in range(samples)]
        self.live = self.talks
        return [talk.ids for talk in self.live]

    def _begin(self, row: dict) -> Talk:
        messages = [{"role": "user", "content": row["prompt"]}]
        return Talk(row, messages, encode_prompt(self.tokenizer, messages))

    def step(self, action: Rollouts) -> Outcome:
        ids = [row[mask].tolist() for row, mask in zip(action.completion_ids.cpu(), action.completion_mask.cpu())]
        for talk, text, written, finished in zip(self.live, action.texts, ids, action.finished.tolist()):
            self.turn(talk, text, written, finished)
        reward = torch.tensor([talk.score for talk in self.live])
        done = torch.tensor([bool(talk.end) for talk in self.live])
        self.live = [talk for talk in self.live if not talk.end]
        return Outcome(reward, done, [talk.ids for talk in self.live])

    def turn(self, talk: Talk, text: str, written: list[int], finished: bool) -> None:
        """The model wrote `text`, as the tokens `written`: answer with a tool's output, or end the episode."""
        talk.messages.append({"role": "assistant", "content": text})
        talk.turns += 1
        if not finished:
            talk.end = "cut off"
        elif answer := ANSWER.fullmatch(text.strip()):
            talk.end, talk.score = "answered", float(answer[1] == str(talk.row["answer"]))
        else:
            output, valid = use(self.tools, text, self.parse)
            talk.valid += valid
            talk.messages.append({"role": "tool", "content": output})
            talk.ids = talk.ids + written + tool_turn(self.tokenizer, output)
            if talk.turns >= self.turns:
                talk.end = "turns"
            elif len(talk.ids) + self.reserve > self.context:
                talk.end = "context"


def tool_turn(tokenizer: PreTrainedTokenizerBase, output: str) -> list[int]:
    """The tokens by which a tool's output goes on after the model's turn, up to where the model writes again.

    The output is text whatever it says: a page that spells "<|end|>" ends nothing. What a template puts behind the end token
    of a turn (Qwen's has a line break there) the model did not write: it comes first.
    """
    before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    said = tokenizer.apply_chat_template(before, tokenize=False)
    whole = tokenizer.apply_chat_template([*before, {"role": "tool", "content": "\0"}], tokenize=False,
                                          add_generation_prompt=True)
    behind = said.rfind(tokenizer.eos_token) + len(tokenizer.eos_token) if tokenizer.eos_token in said else len(said)
    head, tail = whole[behind:].split("\0")
    ids = [tokenizer(part, add_special_tokens=False, split_special_tokens=part is output)["input_ids"]
           for part in (head, output, tail)]
    return [token for part in ids for token in part]


class ConversationAgent(LMAgent):
    """A language model in an environment whose states grow: each is the one before, what the model wrote, and what came back.

    A turn reads what is new (see `lm.turns`), and training reads an episode in one forward pass, in place of one a turn.
    """

    def act(self, states: Sequence[list[int]], seed: int) -> Rollouts:
        """One turn for each conversation; equal ones side by side are read once."""
        runs = [(list(prompt), len(list(same))) for prompt, same in groupby(states)]
        samples = runs[0][1]
        if any(n != samples for _, n in runs):
            runs, samples = [(prompt, 1) for prompt in states], 1
        if getattr(self, "reader", None) is None or self.reader.model is not self.model:
            self.reader = Reader(self.model)
        with autocast(self.model.device, self.precision):
            return sample_turn(self.reader, self.tokenizer, [prompt for prompt, _ in runs], seed=seed,
                               max_new_tokens=self.max_new_tokens, temperature=self.temperature,
                               samples_per_prompt=samples)

    def episode_logprobs(self, steps: Sequence[Step]) -> list[Tensor]:
        """ln p of every token that the model wrote, with gradients: (n_t, K_t) for each step, 0 where masked."""
        count = 1 + max(int(step.rows.max()) for step in steps if len(step.rows))
        device, pad = self.model.device, self.tokenizer.pad_token_id
        starts = [step.action.prompt_mask.sum(1) for step in steps]                          # (n_t,) each
        width = max(int((start + step.action.mask.sum(1)).max()) for start, step in zip(starts, steps) if len(step.rows))
        ids = torch.full((count, width + max(step.action.mask.shape[1] for step in steps)), pad, device=device)
        real, written = (torch.zeros_like(ids, dtype=torch.bool) for _ in range(2))
        spots = []
        for step, start in zip(steps, starts):
            action, rows = step.action, step.rows[:, None]
            prompt = action.prompt_mask.long().cumsum(1) - 1                                 # (n_t, P) from 0 on
            row, column = (x[action.prompt_mask] for x in (rows.expand_as(prompt), prompt))
            ids[row, column], real[row, column] = action.prompt_ids[action.prompt_mask], True
            spot = start[:, None] + torch.arange(action.mask.shape[1], device=device)        # (n_t, K_t)
            row, column = (x[action.mask] for x in (rows.expand_as(spot), spot))
            ids[row, column], real[row, column], written[row, column] = action.completion_ids[action.mask], True, True
            spots.append(spot)
        ids, real, written = (x[:, :width] for x in (ids, real, written))
        with autocast(device, self.precision), eval_mode(self.model):
            logprobs = token_logprobs(self.model, ids, real, temperature=self.temperature, targets=written)  # (N, L-1)
        logprobs = torch.nn.functional.pad(logprobs, (1, ids.shape[1]))                      # entry t belongs to token t
        return [logprobs[step.rows[:, None], spot] * step.action.mask for step, spot in zip(steps, spots)]
