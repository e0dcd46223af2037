"""Where a trained model has left its reference: the log-ratio of every token of an answer, as a colour and a number."""

from collections.abc import Sequence
from html import escape

import ipywidgets
import numpy as np

from ._html import BLUE, FAINT, INK, LINE, MUTED, ORANGE, PAPER, card, chip, signed, tag, token_text
from ._tokens import tokenise
from ._view import View, next_token_log_probs, row

# Blue and orange differ for every kind of colour blindness; the sign stands under each token as well. From weak to strong.
MORE = ((PAPER, INK), ("#dcebf8", INK), ("#9cc8ea", INK), (BLUE, PAPER))
LESS = ((PAPER, INK), ("#fdeadb", INK), ("#f5bd8c", INK), (ORANGE, PAPER))
STEPS = (0.1, 0.5, 1.5)  # nats: where the next colour begins


class KLMapState:
    """An answer's tokens and ln p_RL(token) - ln p_PT(token) of each. No front end needed.

    Args:
        tokens: the answer's tokens as text.
        policy, reference: ln of the probability that each model gives to each token after those before it, in nats.
        beta: the weight of the penalty in the reward, R - beta ln(p_RL / p_PT).
        context: the prompt's tokens, shown before the answer; they carry no penalty.
    """

    def __init__(self, tokens: Sequence[str], policy: Sequence[float], reference: Sequence[float], beta: float = 0.1,
                 context: Sequence[str] = ()) -> None:
        self.tokens, self.context = list(tokens), list(context)
        self.policy, self.reference = (np.asarray(values, dtype=np.float64) for values in (policy, reference))
        if not len(self.tokens) or {len(self.policy), len(self.reference)} != {len(self.tokens)}:
            raise ValueError(f"One log-probability per token and model is needed: {len(self.tokens)} tokens, "
                             f"{len(self.policy)} of the policy, {len(self.reference)} of the reference.")
        if not (np.isfinite(self.policy).all() and np.isfinite(self.reference).all()):
            raise ValueError("A log-probability is not finite: a model gives a token of this answer no chance at all.")
        self.ratios = self.policy - self.reference  # (tokens,)
        self.weigh(beta)

    @classmethod
    def of(cls, policy, reference, tokenizer, messages, beta: float = 0.1) -> "KLMapState":
        """The map of a conversation's assistant tokens (or of a whole text) under two models with one tokenizer."""
        ids, answer = tokenise(messages, tokenizer)
        at = [t for t in range(1, len(ids)) if answer[t]]  # nothing predicts the first token
        both = [next_token_log_probs(model, ids) for model in (policy, reference)]  # (time, vocabulary) each
        told = [[float(logp[t - 1, ids[t]]) for t in at] for logp in both]
        names = [token_text(tokenizer, token) for token in ids]
        return cls([names[t] for t in at], *told, beta, [name for t, name in enumerate(names) if t not in at])

    def weigh(self, beta: float) -> None:
        if not beta >= 0:
            raise ValueError(f"beta is a weight of at least 0, got {beta}.")
        self.beta = beta

    def total(self) -> float:
        """ln p_RL(answer) - ln p_PT(answer): the sum over the tokens, in nats."""
        return float(self.ratios.sum())

    def penalty(self) -> list[float]:
        """beta times each token's log-ratio: what is taken from the reward (added, where it is negative)."""
        return [self.beta * float(ratio) for ratio in self.ratios]

    def summary(self) -> str:
        up, down = int((self.ratios > 0).sum()), int((self.ratios < 0).sum())
        far = int(np.abs(self.ratios).argmax())
        change = "less" if self.ratios[far] < 0 else "more"
        return (f"ln p_RL(answer) − ln p_PT(answer) = {plus(self.total())} nats; times beta = {self.beta:g} the reward "
                f"loses {signed(self.beta * self.total())}. {up} of {len(self.tokens)} tokens became more likely, {down} "
                f"less. The furthest is {self.tokens[far]}, {np.exp(abs(self.ratios[far])):.3g} times {change} likely.")

    def text(self) -> str:
        told = " ".join(f"{token}({plus(ratio)})" for token, ratio in zip(self.tokens, self.ratios, strict=True))
        return f"{told}\n{self.summary()}"

    def html(self) -> str:
        examples = ((f"{'−' if sign < 0 else '+'}{size}", sign * size) for sign, size in
                    ((-1, 2), (-1, 1), (-1, 0.3), (1, 0.3), (1, 1), (1, 2)))
        legend = [chip(name, **frame(ratio)) for name, ratio in examples]
        note = tag("span", "orange: less likely than under the reference · blue: more likely", color=MUTED,
                   font_size="13px")
        context = [chip(token, ink=MUTED, fill=FAINT, line="dashed", title="prompt: no penalty") for token in self.context]
        answer = [chip(token, plus(ratio), title=self._title(t), **frame(ratio))
                  for t, (token, ratio) in enumerate(zip(self.tokens, self.ratios, strict=True))]
        return card(tag("div", *legend, note), tag("div", *context, *answer, margin="10px 0"),
                    tag("div", escape(self.summary())))

    def _title(self, t: int) -> str:
        return (f"{self.tokens[t]}: ln p_RL {signed(self.policy[t])}, ln p_PT {signed(self.reference[t])}, "
                f"penalty {plus(self.beta * self.ratios[t], 3)}")


def plus(x: float, digits: int = 2) -> str:
    """A number with its sign, also where that is plus; no sign for what rounds to nothing."""
    told = f"{x:+.{digits}f}".replace("-", "−")
    return told[1:] if float(f"{x:.{digits}f}") == 0 else told


def frame(ratio: float) -> dict[str, str]:
    """The colours of a token with this log-ratio, as arguments of `chip`."""
    fill, ink = (LESS if ratio < 0 else MORE)[sum(abs(ratio) >= step for step in STEPS)]
    return {"fill": fill, "ink": ink, "edge": LINE if fill == PAPER else ORANGE if ratio < 0 else BLUE}


class KLMap(View):
    """The map as a widget, with a slider for beta.

    `KLMap(policy, reference, tokenizer, messages)` computes the numbers; `KLMap(state=KLMapState(...))` takes them.
    """

    BETAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

    def __init__(self, policy=None, reference=None, tokenizer=None, messages=None, *, beta: float = 0.1,
                 state: KLMapState | None = None) -> None:
        state = KLMapState.of(policy, reference, tokenizer, messages, beta) if state is None else state
        options = sorted({*self.BETAS, state.beta})
        self.slider = ipywidgets.SelectionSlider(options=[(f"{b:g}", b) for b in options], value=state.beta,
                                                 description="beta", continuous_update=False)
        super().__init__(state, [row(self.slider)])
        self.slider.observe(lambda change: self.act(state.weigh, change["new"]), names="value")
