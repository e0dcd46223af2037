"""The optimum of RLHF with KL on a language model whose every sequence can be listed, and how beta moves it."""

import math
from collections.abc import Sequence
from html import escape

import ipywidgets
import numpy as np

from ._html import BLUE, FAINT, GREY, INK, MONO, MUTED, ORANGE, card, number, signed, tag, visible
from ._view import View, row

BETAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, math.inf)


class BetaSliderState:
    """Every sequence's reward and probability under the reference, and the optimum for a beta. No front end needed.

    Args:
        labels: what each of the S sequences is called.
        reference: (S,) probabilities of the reference, all above 0 and of sum 1.
        rewards: (S,) the reward of each sequence.
        beta: from 0 (the reward alone) to infinity (the reference alone).
        trained: (S,) probabilities of a policy that was trained, to compare.
        most: how many rows are drawn, the highest rewards first; the others share a last row.
    """

    def __init__(self, labels: Sequence[str], reference, rewards, beta: float = 1.0, trained=None, most: int = 20) -> None:
        self.labels, self.most = list(labels), most
        self.reference, self.rewards = (np.asarray(values, dtype=np.float64) for values in (reference, rewards))
        self.trained = None if trained is None else np.asarray(trained, dtype=np.float64)
        given = {"reference": self.reference, "rewards": self.rewards, "trained": self.trained}
        for name, values in given.items():
            if values is not None and values.shape != (len(self.labels),):
                raise ValueError(f"{name} must have one number for each of the {len(self.labels)} sequences, "
                                 f"got the shape {values.shape}.")
        for name in ("reference", "trained"):
            if given[name] is not None and abs(given[name].sum() - 1) > 1e-4:
                raise ValueError(f"{name} must sum to 1, got {given[name].sum():.6g}: are all sequences listed?")
        if not (self.reference > 0).all():
            raise ValueError("The reference must give every sequence a chance: no reward brings back what it rules out.")
        if not np.isfinite(self.rewards).all():
            raise ValueError("A reward is not finite.")
        self.move(beta)

    def move(self, beta: float) -> None:
        if not beta >= 0:
            raise ValueError(f"beta must be at least 0, got {beta}.")
        self.beta = beta
        self.optimum = self._optimum()  # (S,)

    def _optimum(self) -> np.ndarray:
        """p*(a) = p_ref(a) exp(R(a) / beta) / Z, and its two limits."""
        if math.isinf(self.beta):
            return self.reference
        if self.beta == 0:  # what p* tends to: the reference on the sequences of the highest reward
            best = np.where(self.rewards == self.rewards.max(), self.reference, 0)
            return best / best.sum()
        import torch

        from course_lib import exact

        logp = exact.optimum(torch.from_numpy(np.log(self.reference)), torch.from_numpy(self.rewards), self.beta)
        return logp.exp().numpy()

    def reward(self, probabilities: np.ndarray) -> float:
        """E_{a~p} R(a)."""
        return float((probabilities * self.rewards).sum())

    def kl(self, probabilities: np.ndarray) -> float:
        """KL(p || p_ref) in nats; what has no probability adds nothing."""
        there = probabilities > 0
        p = probabilities[there]
        return float((p * np.log(p / self.reference[there])).sum())

    def policies(self) -> dict[str, tuple[np.ndarray, str]]:
        """Name -> (probabilities, colour) of what is drawn."""
        drawn = {"reference": (self.reference, GREY), "optimum": (self.optimum, BLUE)}
        return drawn if self.trained is None else drawn | {"trained": (self.trained, ORANGE)}

    def summary(self) -> list[str]:
        """A sentence for each policy: expected reward, KL, objective."""
        said = []
        for name, (p, _) in self.policies().items():
            worth, far = self.reward(p), self.kl(p)
            told = f"{name}: expected reward {signed(worth)}, KL to the reference {signed(abs(far))} nats"
            if math.isfinite(self.beta):
                told += f", reward − beta × KL {signed(worth - self.beta * far)}"
            said.append(told + ".")
        if self.trained is not None:
            distance = float(np.abs(self.trained - self.optimum).sum() / 2)
            said.append(f"Total variation between trained and optimum: {distance:.3f}.")
        return said

    def title(self) -> str:
        if self.beta == 0:
            return "beta = 0: only the reward counts, and the best sequence takes all"
        if math.isinf(self.beta):
            return "beta = ∞: only the KL counts, and the optimum is the reference"
        return f"beta = {self.beta:g}: p*(a) = p_ref(a) exp(R(a) / {self.beta:g}) / Z"

    def rows(self) -> list[tuple[str, str, list[float]]]:
        """(label, reward, probability under each policy), by falling reward; the last row sums up what does not fit."""
        order = np.argsort(-self.rewards, kind="stable")
        kept, rest = order[: self.most], order[self.most :]
        every = [p for p, _ in self.policies().values()]
        told = [(self.labels[i], signed(self.rewards[i]), [float(p[i]) for p in every]) for i in kept]
        if len(rest):
            low, high = self.rewards[rest].min(), self.rewards[rest].max()
            told.append((f"the other {len(rest)}", f"{signed(low)} to {signed(high)}", [float(p[rest].sum()) for p in every]))
        return told

    def text(self) -> str:
        names = list(self.policies())
        lines = [f"{label}: reward {reward}, " + ", ".join(f"{n} {number(p)}" for n, p in zip(names, values, strict=True))
                 for label, reward, values in self.rows()]
        return "\n".join([self.title(), *self.summary(), *lines])

    def html(self) -> str:
        colours = [(name, colour) for name, (_, colour) in self.policies().items()]
        legend = [tag("span", tag("span", display="inline-block", width="12px", height="10px", background=colour,
                                  margin="0 5px 0 0"), name, margin="0 14px 0 0") for name, colour in colours]
        cell = {"padding": "3px 10px 3px 0", "text_align": "left", "vertical_align": "middle"}
        head = tag("tr", *[tag("th", escape(name), color=MUTED, font_size="13px", font_weight="600", **cell)
                           for name in ("sequence", "reward", "probability")])
        body = [tag("tr", tag("td", escape(visible(label)), font_family=MONO, white_space="nowrap", **cell),
                    tag("td", reward, white_space="nowrap", **cell),
                    tag("td", *[self._bar(p, name, colour) for p, (name, colour) in zip(values, colours, strict=True)],
                        width="70%", **cell))
                for label, reward, values in self.rows()]
        return card(tag("b", escape(self.title())), *[tag("div", escape(line)) for line in self.summary()],
                    tag("div", *legend, margin="8px 0 4px 0", font_size="13px"),
                    tag("table", head, *body, width="100%", border_collapse="collapse"))

    def _bar(self, p: float, name: str, colour: str) -> str:
        fill = tag("span", display="inline-block", width=f"{75 * min(p, 1):.2f}%", min_width="1px", height="9px",
                   background=colour, vertical_align="middle", margin="0 6px 0 0")
        told = tag("span", number(p), font_size="11px", color=INK, vertical_align="middle")
        return tag("div", fill, told, title=f"{name}: {number(p)}", line_height="13px", background=FAINT,
                   white_space="nowrap")


class BetaSlider(View):
    """The state as a widget, with a slider from the reward alone to the reference alone. See `BetaSliderState`."""

    def __init__(self, labels, reference, rewards, *, beta: float = 1.0, trained=None, most: int = 20) -> None:
        state = BetaSliderState(labels, reference, rewards, beta, trained, most)
        options = [("∞" if math.isinf(b) else f"{b:g}", b) for b in sorted({*BETAS, beta})]
        self.slider = ipywidgets.SelectionSlider(options=options, value=beta, description="beta", continuous_update=False)
        super().__init__(state, [row(self.slider)])
        self.slider.observe(lambda change: self.act(state.move, change["new"]), names="value")
