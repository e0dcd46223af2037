"""Forms as an environment: an agent of many steps, each of which sees the whole screen and gives one action in words.

A step is a turn of its own: the prompt is the screen as it is now, the completion the action, and nothing else is
remembered. What was done and seen is kept in `trails`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from course_lib.environments import Outcome
from course_lib.lm.sampling import Rollouts
from course_lib.worlds.draw import Draw
from course_lib.worlds.forms import Form, useful


@dataclass(frozen=True)
class Move:
    """One step of an episode: the state, the step taken in it, and what happened."""

    form: Form
    step: str
    said: str

    @property
    def wrong(self) -> bool:
        """Whether the step did not bring the form nearer to its goal."""
        return self.step not in useful(self.form)


def prompt_of(form: Form) -> list[dict]:
    """The state as a conversation that waits for the agent's step."""
    return [{"role": "user", "content": form.text()}]


class FormFilling:
    """Forms to be filled in, one an episode, in at most `budget` steps. Reward: 1 with the step that submits the form, else 0.
    `trails` holds the moves of each episode, in the order of the episodes.

    Start states are drawn without repetition until all forms have been used, then afresh. Raises ValueError for no forms.
    """

    def __init__(self, forms: Sequence[Form], budget: int = 8):
        if not forms or budget < 1:
            raise ValueError(f"give at least one form and one step, not {len(forms)} and {budget}")
        self.forms, self.budget = forms, budget

    def reset(self, count: int, samples: int, seed: int) -> list:
        draw, picked = Draw(f"forms {seed}"), []
        while len(picked) < count:
            picked += draw.ordered(range(len(self.forms)), min(count - len(picked), len(self.forms)))
        self.live = [(i, self.forms[k]) for i, k in enumerate(k for k in picked for _ in range(samples))]
        self.trails: list[list[Move]] = [[] for _ in self.live]
        return [prompt_of(form) for _, form in self.live]

    def step(self, action: Rollouts) -> Outcome:
        rewards, done, rest = [], [], []
        for (i, form), text in zip(self.live, action.texts):
            after, said = form.act(text)
            self.trails[i].append(Move(form, text, said))
            over = after.submitted or len(self.trails[i]) == self.budget
            rewards.append(float(after.submitted))
            done.append(over)
            rest += [] if over else [(i, after)]
        self.live = rest
        return Outcome(torch.tensor(rewards), torch.tensor(done), [prompt_of(form) for _, form in rest])
