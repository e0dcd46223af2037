"""One prompt, its group of answers, their rewards, and what GRPO and its successors make of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import ipywidgets

from ._html import BLUE, GREY, LINE, MONO, MUTED, ORANGE, card, signed, tag, visible
from ._view import View, row

SCHEMES = {  # name: (divided by the deviation?, average of the tokens, in words)
    "GRPO": (True, "sequence", "(r − mean) / std, and 1/|o|: a token of a long answer counts less"),
    "mean only": (False, "sequence", "r − mean, and 1/|o|: groups of any spread count by their spread"),
    "Dr. GRPO": (False, "constant", "r − mean, and 1/L: every token of every answer counts the same"),
}


@dataclass(frozen=True)
class Group:
    prompt: str
    answers: Sequence[str]
    rewards: Sequence[float]
    lengths: Sequence[int]  # tokens of each answer


class GroupState:
    """Groups of answers, of which one is looked at. No front end needed.

    Args:
        groups: at least one, each of at least two answers.
        longest: L, the most tokens that an answer may have.
    """

    def __init__(self, groups: Sequence[Group], longest: int = 32) -> None:
        if not groups:
            raise ValueError("There is no group to look at.")
        for group in groups:
            if len(group.answers) < 2 or not len(group.answers) == len(group.rewards) == len(group.lengths):
                raise ValueError(f"A group needs at least two answers, with a reward and a length each: {group.prompt!r}")
            if max(group.lengths) > longest:
                raise ValueError(f"An answer of {max(group.lengths)} tokens is longer than the longest, {longest}.")
        self.groups, self.longest = list(groups), longest
        self.scheme = "GRPO"
        self.choose(0)

    def choose(self, index: int) -> None:
        """Look at another group, with the rewards that it came with."""
        self.index, self.group = index, self.groups[index]
        self.rewards = [float(r) for r in self.group.rewards]

    def use(self, scheme: str) -> None:
        if scheme not in SCHEMES:
            raise ValueError(f"{scheme!r} is not one of {list(SCHEMES)}")
        self.scheme = scheme

    def flip(self, answer: int) -> None:
        """Give answer number `answer`, counted from 1, the other verdict: 1 for less than 1, and 0 for 1 or more."""
        if not 1 <= answer <= len(self.rewards):
            raise ValueError(f"This group has {len(self.rewards)} answers, and no number {answer}.")
        self.rewards[answer - 1] = 0.0 if self.rewards[answer - 1] >= 1 else 1.0

    def numbers(self, scheme: str | None = None) -> list[tuple[float, float]]:
        """Of each answer its advantage, and how hard each of its tokens is pushed: advantage times weight, times 100."""
        import torch

        from course_lib.objectives import group_advantages, token_weights

        scale, average, _ = SCHEMES[scheme or self.scheme]
        advantages = group_advantages(torch.tensor([self.rewards]), scale)[0]
        mask = torch.arange(self.longest) < torch.tensor(self.group.lengths)[:, None]
        weights = token_weights(mask, average, self.longest)[:, 0]
        return [(float(a), float(100 * a * w)) for a, w in zip(advantages, weights)]

    def summary(self) -> str:
        mean = sum(self.rewards) / len(self.rewards)
        if min(self.rewards) == max(self.rewards):
            return (f"All {len(self.rewards)} answers have the reward {signed(mean)}: every advantage is 0, and the group "
                    "teaches nothing.")
        return f"Mean reward {signed(mean)}. {self.scheme}: {SCHEMES[self.scheme][2]}."

    def text(self) -> str:
        lines = [f"{i}. {answer!r}: {tokens} tokens, reward {signed(r)}, advantage {signed(a)}, push on a token {signed(p)}"
                 for i, (answer, tokens, r, (a, p)) in enumerate(
                     zip(self.group.answers, self.group.lengths, self.rewards, self.numbers()), 1)]
        return "\n".join([self.group.prompt, *lines, self.summary()])

    def html(self) -> str:
        numbers = self.numbers()
        cell = dict(padding="3px 8px", text_align="left", border_bottom=f"1px solid {LINE}")
        right = dict(cell, text_align="right", font_family=MONO, white_space="nowrap")
        heads = ("", "answer", "tokens", "reward", "advantage", "", "push on a token × 100")
        head = tag("tr", *(tag("th", escape(h), color=MUTED, font_size="12px", font_weight="600", **(right if i > 1 else cell))
                           for i, h in enumerate(heads)))
        most = max((abs(a) for a, _ in numbers), default=0) or 1
        rows = []
        for i, (answer, tokens, r, (a, p)) in enumerate(zip(self.group.answers, self.group.lengths, self.rewards, numbers), 1):
            rows.append(tag(
                "tr", tag("td", str(i), color=MUTED, **cell),
                tag("td", escape(visible(answer) if not answer.strip() else answer), font_family=MONO, **cell),
                tag("td", str(tokens), **right), tag("td", signed(r), **right), tag("td", signed(a), **right),
                tag("td", _bar(a / most), **cell), tag("td", signed(p), **right)))
        return card(
            tag("div", tag("b", "prompt "), escape(self.group.prompt), margin="0 0 8px 0"),
            tag("table", head, *rows, border_collapse="collapse", font_size="13px"),
            tag("div", escape(self.summary()), margin="8px 0 0 0"),
        )


def _bar(share: float) -> str:
    """A bar to the right (made more likely) or to the left (less likely) of a line in the middle."""
    half = 44
    width, colour = round(abs(share) * half), BLUE if share > 0 else ORANGE
    left = half if share >= 0 else half - width
    inner = tag("span", display="inline-block", width=f"{width}px", height="12px", background=colour, margin=f"0 0 0 {left}px")
    return tag("span", inner, display="inline-block", width=f"{2 * half}px",
               background=f"linear-gradient({GREY},{GREY}) center/1px 100% no-repeat")


def groups_of(episodes, samples: int) -> list[Group]:
    """The groups of a language model's episodes, as `environments.play` returns them."""
    from course_lib.rewards import text_of

    (step,) = episodes.steps
    lengths = step.action.mask.sum(1).tolist()
    cut = range(0, len(step.action.texts), samples)
    return [Group(text_of(step.states[i]), step.action.texts[i : i + samples], episodes.score[i : i + samples].tolist(),
                  lengths[i : i + samples]) for i in cut]


class GroupViewer(View):
    """The view as a widget: another prompt, another scheme, and a button for each answer that turns its reward over.

    See `GroupState` for the arguments.
    """

    def __init__(self, groups: Sequence[Group], longest: int = 32) -> None:
        state = GroupState(groups, longest)
        self.prompt = ipywidgets.Dropdown(options=[(f"{i + 1}: {g.prompt[:60]}", i) for i, g in enumerate(groups)],
                                          description="prompt")
        self.scheme = ipywidgets.ToggleButtons(options=list(SCHEMES), description="scheme", style={"button_width": "110px"})
        self.flips = [ipywidgets.Button(description=str(i + 1), tooltip=f"turn the reward of answer {i + 1} over",
                                        layout=ipywidgets.Layout(width="38px")) for i in range(len(groups[0].answers))]
        label = ipywidgets.Label("turn a reward over:")
        super().__init__(state, [self.prompt, self.scheme, row(label, *self.flips)])
        self.prompt.observe(lambda change: self.act(state.choose, change["new"]), names="value")
        self.scheme.observe(lambda change: self.act(state.use, change["new"]), names="value")
        for i, button in enumerate(self.flips):
            button.on_click(lambda _, i=i: self.act(state.flip, i + 1))
