"""GAE over the tokens of one answer: what the critic expected, what came, and how lambda shares out the difference."""

from collections.abc import Sequence
from html import escape

import ipywidgets

from ._html import BLUE, INK, MONO, MUTED, ORANGE, PAPER, card, heading, signed, tag, visible
from ._view import View, row


class GaeState:
    """An answer's tokens with their rewards and values, and lambda. No front end needed.

    Args:
        tokens: the T tokens of the answer as text.
        rewards: (T,) the reward of each token; of most tasks all 0 but the last.
        values: (T,) the critic's V of the text before each token.
        lam, gamma: see `objectives.gae`.
    """

    def __init__(self, tokens: Sequence[str], rewards: Sequence[float], values: Sequence[float], lam: float = 0.95,
                 gamma: float = 1.0) -> None:
        self.tokens, self.rewards, self.values = list(tokens), [float(r) for r in rewards], [float(v) for v in values]
        if not len(self.tokens) == len(self.rewards) == len(self.values) > 0:
            raise ValueError(f"Each token needs a reward and a value: got {len(self.tokens)} tokens, {len(self.rewards)} "
                             f"rewards and {len(self.values)} values.")
        self.gamma = gamma
        self.move(lam)

    def move(self, lam: float) -> None:
        if not 0 <= lam <= 1:
            raise ValueError(f"lambda is from 0 to 1, got {lam}.")
        self.lam = lam
        self.advantages, self.returns = self._gae(lam)
        self.deltas = self._gae(0.0)[0]  # lambda = 0 leaves the errors of one step

    def _gae(self, lam: float) -> tuple[list[float], list[float]]:
        import torch

        from course_lib.objectives import gae

        rewards, values = torch.tensor([[self.rewards], [self.values]], dtype=torch.float64)
        mask = torch.ones_like(values, dtype=torch.bool)
        advantages, returns = gae(rewards, values, mask, self.gamma, lam)
        return advantages[0].tolist(), returns[0].tolist()

    def summary(self) -> str:
        meaning = {0.0: "each token is judged by the critic's change of mind alone",
                   1.0: "each token is judged by all that came after it"}.get(self.lam, "nearer surprises count more")
        most = max(range(len(self.tokens)), key=lambda t: abs(self.advantages[t]))
        return (f"lambda = {self.lam:g}: {meaning}. The largest advantage is {signed(self.advantages[most])}, of token "
                f"{most} ({self.tokens[most]!r}); all rewards sum to {signed(sum(self.rewards))}.")

    def text(self) -> str:
        columns = zip(self.tokens, self.values, self.rewards, self.deltas, self.advantages, strict=True)
        lines = [f"{visible(token)}: V {signed(v)}, reward {signed(r)}, delta {signed(d)}, advantage {signed(a)}"
                 for token, v, r, d, a in columns]
        return "\n".join([self.summary(), *lines])

    def html(self) -> str:
        cell = {"padding": "1px 10px", "background": PAPER, "color": INK, "font_family": MONO, "font_size": "13px"}
        names = ("token", "V before it", "reward", "delta", "advantage")
        head = tag("tr", *(tag("td", name, color=MUTED, font_size="12px", padding="1px 10px", background=PAPER,
                               text_align="left" if name in ("token", "advantage") else "right") for name in names))
        widest = max(map(abs, [*self.advantages, *self.deltas])) or 1.0
        body = []
        for token, *numbers, advantage in zip(self.tokens, self.values, self.rewards, self.deltas, self.advantages):
            colour = BLUE if advantage >= 0 else ORANGE
            bar = tag("span", display="inline-block", width=f"{160 * abs(advantage) / widest:.0f}px", height="9px",
                      background=colour, margin="0 6px 0 0")
            body.append(tag("tr", tag("td", escape(visible(token)), text_align="left", **cell),
                            *(tag("td", signed(x), text_align="right", **cell) for x in numbers),
                            tag("td", bar, signed(advantage), text_align="left", **{**cell, "color": colour})))
        return card(tag("div", escape(self.summary())), heading("delta = reward + V of the next text − V; advantage = delta + "
                    "lambda × the next token's advantage"), tag("table", head, *body, border_collapse="collapse"))


class GaeSlider(View):
    """The state as a widget with a slider for lambda. See `GaeState`."""

    def __init__(self, tokens, rewards, values, *, lam: float = 0.95, gamma: float = 1.0) -> None:
        state = GaeState(tokens, rewards, values, lam, gamma)
        self.slider = ipywidgets.FloatSlider(lam, min=0, max=1, step=0.05, description="lambda", continuous_update=False)
        super().__init__(state, [row(self.slider)])
        self.slider.observe(lambda change: self.act(state.move, change["new"]), names="value")
