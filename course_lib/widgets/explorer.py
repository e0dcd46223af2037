"""The next-token explorer: a language model is P(next token | the tokens so far), a text is a product of such."""

from html import escape

import ipywidgets
import numpy as np

from ._html import BLUE, FAINT, GREY, INK, MONO, MUTED, PAPER, TRAINED, card, chip, from_log, heading, number, signed
from ._html import tag, token_text
from ._view import View, next_token_log_probs, row

SHOWN_FACTORS = 24


class ExplorerState:
    """A text, the distribution of its next token, and the ways to extend it. No front end needed.

    Args:
        model: a Hugging Face causal LM, or a function from a list of ids to (time, vocabulary) logits.
        tokenizer: its tokenizer. The text starts with the tokenizer's BOS, where it has one.
        context: the text to begin with; special tokens such as `<|user|>` may be typed.
        temperature: logits are divided by it, 0 takes the most likely token.
        top_k: keep only the k most likely tokens; 0 keeps all.
    """

    def __init__(self, model, tokenizer, context: str, temperature=1.0, top_k=0, seed=0, bars=10) -> None:
        self.model, self.tokenizer, self.bars = model, tokenizer, bars
        self.temperature, self.top_k = temperature, top_k
        self.random = np.random.default_rng(seed)
        self.type(context)

    def type(self, context: str) -> None:
        """Start again from `context`. Raises ValueError when there is nothing to condition on, or too much."""
        bos = self.tokenizer.bos_token_id
        ids = [] if bos is None else [bos]
        self._set(ids + self.tokenizer.encode(context, add_special_tokens=False), typed=True)

    def _set(self, ids: list[int], typed: bool = False) -> None:
        if not ids:
            raise ValueError("The context is empty and this tokenizer has no BOS token: type at least one character.")
        limit = getattr(getattr(self.model, "config", None), "max_position_embeddings", None)
        if limit and len(ids) > limit:
            raise ValueError(f"{len(ids)} tokens, but the model's context holds {limit}: type a shorter text.")
        self.log_probs = next_token_log_probs(self.model, ids)  # (time, vocabulary)
        self.ids = ids
        self.typed = len(ids) if typed else self.typed

    def distribution(self) -> np.ndarray:
        """(vocabulary,): the distribution that `sample` draws from, after temperature and top-k."""
        scores = self.log_probs[-1]
        if self.temperature == 0:
            return np.eye(len(scores))[scores.argmax()]
        if 0 < self.top_k < len(scores):
            kept = np.full_like(scores, -np.inf)
            best = np.argsort(-scores, kind="stable")[: self.top_k]
            kept[best] = scores[best]
            scores = kept
        weights = np.exp((scores - scores.max()) / self.temperature)
        return weights / weights.sum()

    def sample(self) -> None:
        """Append a token drawn from `distribution()`."""
        probabilities = self.distribution()
        self._set([*self.ids, int(self.random.choice(len(probabilities), p=probabilities))])

    def greedy(self) -> None:
        """Append the most likely token."""
        self._set([*self.ids, int(self.log_probs[-1].argmax())])

    def undo(self) -> None:
        """Take back the last appended token; what was typed stays."""
        if len(self.ids) > self.typed:
            self._set(self.ids[:-1])

    def factors(self) -> list[tuple[str, float]]:
        """(token, ln P(token | the tokens before it)) for each token after the first, at temperature 1."""
        steps = zip(self.ids[1:], self.log_probs[:-1], strict=True)
        return [(token_text(self.tokenizer, token), float(scores[token])) for token, scores in steps]

    def log_probability(self) -> float:
        """ln P(text): the sum of the conditionals' logs."""
        return sum(log_p for _, log_p in self.factors())

    def top(self) -> list[tuple[str, float, float]]:
        """(token, probability after temperature and top-k, the model's own) of the likeliest, then of the rest."""
        drawn, own = self.distribution(), np.exp(self.log_probs[-1])
        order = np.argsort(-own, kind="stable")
        rows = [(token_text(self.tokenizer, i), float(drawn[i]), float(own[i])) for i in order[: self.bars]]
        rest = order[self.bars :]
        return rows + ([(f"{len(rest)} others", float(drawn[rest].sum()), float(own[rest].sum()))] if len(rest) else [])

    def _adjusted(self) -> bool:
        return self.temperature != 1 or 0 < self.top_k < self.log_probs.shape[-1]

    def _rule(self) -> str:
        kept = f"the {self.top_k} likeliest" if 0 < self.top_k < self.log_probs.shape[-1] else "all"
        return f"temperature {self.temperature:g}, {kept} of {self.log_probs.shape[-1]} tokens"

    def text(self) -> str:
        first = token_text(self.tokenizer, self.ids[0])
        tokens = " | ".join([first, *(token for token, _ in self.factors())])
        bars = ", ".join(f"{token} {number(p)}" for token, p, _ in self.top())
        product = f"ln P(text) = {signed(self.log_probability())}, P(text) = {from_log(self.log_probability())}"
        lines = f"Tokens: {tokens}", f"Next token ({self._rule()}): {bars}", f"Chain rule: {product}"
        return "\n".join(lines)

    def html(self) -> str:
        own = "thin grey: the model's own, at temperature 1 with all tokens" if self._adjusted() else ""
        return card(
            heading("The text so far; under each token P(token | the tokens before it)"),
            self._text_html(),
            heading(f"P(next token | the text so far), {self._rule()}"),
            tag("div", own, color=MUTED, font_size="12px") if own else "",
            self._bars_html(),
            heading("Chain rule: the probability of the text is the product of the conditionals"),
            self._chain_html(),
        )

    def _text_html(self) -> str:
        factors = self.factors()
        hidden = max(0, len(factors) - SHOWN_FACTORS)
        chips = [chip(token_text(self.tokenizer, self.ids[0]), "given", fill=FAINT)]
        chips += [tag("span", f"… {hidden} more … ", color=MUTED)] if hidden else []
        for i, (token, log_p) in enumerate(factors[hidden:], start=hidden + 1):
            frame = TRAINED if i >= self.typed else {}
            chips.append(chip(token, number(np.exp(log_p)), title=f"ln P = {signed(log_p)}", **frame))
        return tag("div", *chips)

    def _chain_html(self) -> str:
        logs = [log_p for _, log_p in self.factors()]
        shown = [number(np.exp(log_p)) for log_p in logs]
        terms = [signed(log_p) if i == 0 else f" − {signed(-log_p)}" for i, log_p in enumerate(logs)]
        if len(logs) > 7:
            shown, terms = [*shown[:3], "…", *shown[-2:]], [*terms[:3], " − …", *terms[-2:]]
        total = self.log_probability()
        product = f"   P(text) = {' × '.join(shown) or '1'} = {from_log(total)}"
        logsum = f"ln P(text) = {''.join(terms) or '0'} = {signed(total)}"
        return tag("pre", escape(product), "\n", escape(logsum), font_family=MONO, font_size="13px", margin="0",
                   white_space="pre-wrap", color=INK, background=PAPER)

    def _bars_html(self) -> str:
        rows = self.top()
        colours = [BLUE] * min(self.bars, len(rows)) + [MUTED]
        bars = (self._bar(*entry, colour) for entry, colour in zip(rows, colours, strict=False))
        return tag("table", *bars, border_collapse="collapse", width="100%")

    def _bar(self, token: str, drawn: float, own: float, colour: str) -> str:
        """A row: the token, its bar on a scale from 0 to 1, its probability."""
        def strip(p: float, height: int, fill: str) -> str:
            return tag("div", background=fill, height=f"{height}px", width=f"{100 * p:.1f}%", margin="1px 0")

        cell = {"padding": "1px 8px", "background": PAPER, "color": INK, "font_family": MONO, "font_size": "13px"}
        bars = strip(drawn, 12, colour) + (strip(own, 4, GREY) if self._adjusted() else "")
        return tag(
            "tr",
            tag("td", escape(token), width="120px", text_align="right", **cell),
            tag("td", tag("div", bars, background=FAINT, padding="1px 0"), text_align="left", **cell),
            tag("td", number(drawn), width="80px", text_align="left", **cell),
        )


class TokenExplorer(View):
    """The explorer as a widget: `TokenExplorer(model, tokenizer, "SF usually refers to")`. See `ExplorerState`."""

    def __init__(self, model, tokenizer, context: str = "SF usually refers to", **options) -> None:
        state = ExplorerState(model, tokenizer, context, **options)
        wide = ipywidgets.Layout(width="98%", max_width="780px")
        self.context = ipywidgets.Text(context, description="context", continuous_update=False, layout=wide)
        shared = {"continuous_update": False, "style": {"description_width": "initial"}}
        self.temperature = ipywidgets.FloatSlider(
            state.temperature, min=0, max=2, step=0.1, description="temperature", **shared
        )
        self.top_k = ipywidgets.IntSlider(state.top_k, min=0, max=50, description="top-k (0: all)", **shared)
        self.buttons = {name: ipywidgets.Button(description=name) for name in ("sample next", "greedy", "undo")}
        super().__init__(state, [self.context, row(self.temperature, self.top_k), row(*self.buttons.values())])
        self.context.observe(lambda change: self.act(state.type, change["new"]), names="value")
        for name, slider in (("temperature", self.temperature), ("top_k", self.top_k)):
            slider.observe(lambda change, name=name: self.act(setattr, state, name, change["new"]), names="value")
        for name, action in (("sample next", state.sample), ("greedy", state.greedy), ("undo", state.undo)):
            self.buttons[name].on_click(lambda _, action=action: self.act(action))
