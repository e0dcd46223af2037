"""The loss mask, token by token: what supervised fine-tuning trains on in a conversation, and what it does not."""

from html import escape

import ipywidgets

from ._html import MUTED, TRAINED, UNTRAINED, card, chip, signed, tag, token_text
from ._tokens import tokenise
from ._view import View, row, token_losses

CHOICES = {
    "answer and its end": "SFT: the loss counts the assistant's tokens and the end token that closes its turn",
    "answer without its end": "a classic mistake: the model never learns to stop",
    "everything": "as in pre-training: the model also learns to write the questions",
}


class LossMaskState:
    """The tokens of a conversation, which of them are targets, and each one's loss. No front end needed.

    Args:
        tokenizer: with a chat template that marks the assistant's tokens, unless `mask` is given.
        messages: the conversation, `[{"role": "user", "content": ...}, {"role": "assistant", ...}]`, or a text, or ids.
        model: with it, the loss of each token is shown.
        mask: one truth value per token, in place of the template's.
    """

    def __init__(self, tokenizer, messages, model=None, mask=None) -> None:
        self.ids, self.answer = tokenise(messages, tokenizer, mask)
        self.tokens = [token_text(tokenizer, token) for token in self.ids]
        self.losses = token_losses(model, self.ids) if model is not None else [None] * len(self.ids)
        self.end = tokenizer.eos_token_id
        self.choose("answer and its end")

    def choose(self, choice: str) -> None:
        if choice not in CHOICES:
            raise ValueError(f"{choice!r} is not one of {list(CHOICES)}")
        self.choice = choice

    def mask(self) -> list[bool]:
        """Whether each token is a target of the loss. The first never is: nothing comes before it to predict it."""
        if self.choice == "everything":
            return [t > 0 for t in range(len(self.ids))]
        keep_end = self.choice == "answer and its end"
        pairs = enumerate(zip(self.ids, self.answer, strict=True))
        return [t > 0 and answer and (keep_end or token != self.end) for t, (token, answer) in pairs]

    def mean_loss(self) -> float | None:
        """Mean loss over the targets; None without a model, or without a target."""
        losses = [loss for loss, target in zip(self.losses, self.mask(), strict=True) if target and loss is not None]
        return sum(losses) / len(losses) if losses else None

    def summary(self) -> str:
        said = f"{sum(self.mask())} of {len(self.ids)} tokens are trained on ({CHOICES[self.choice]})."
        return said if self.mean_loss() is None else f"{said} Their mean loss is {signed(self.mean_loss())} nats."

    def text(self) -> str:
        marked = [f"[{token}]" if target else token for token, target in zip(self.tokens, self.mask(), strict=True)]
        return f"{' '.join(marked)}\n{self.summary()} Brackets mark the tokens that are trained on."

    def html(self) -> str:
        chips = [self._chip(t, target) for t, target in enumerate(self.mask())]
        note = "" if self.losses[-1] is None else "under each token its loss, −ln P(token | the tokens before it)"
        note = tag("span", escape(note), color=MUTED, font_size="13px", margin="0 0 0 6px")
        return card(
            tag("div", chip("trained on", **TRAINED), chip("not trained on", **UNTRAINED), note),
            tag("div", *chips, margin="10px 0"),
            tag("div", escape(self.summary())),
        )

    def _chip(self, t: int, target: bool) -> str:
        loss = "" if self.losses[t] is None else signed(self.losses[t])
        said = f"token {t}, id {self.ids[t]}, {'trained on' if target else 'not trained on'}"
        said += f", loss {loss}" if loss else ""
        return chip(self.tokens[t], loss, title=said, **(TRAINED if target else UNTRAINED))


class LossMask(View):
    """The view as a widget, with a switch between three masks. See `LossMaskState` for the arguments."""

    def __init__(self, tokenizer, messages, model=None, *, mask=None) -> None:
        state = LossMaskState(tokenizer, messages, model, mask)
        self.choice = ipywidgets.ToggleButtons(
            options=list(CHOICES), description="train on", style={"button_width": "180px"}
        )
        super().__init__(state, [row(self.choice)])
        self.choice.observe(lambda change: self.act(state.choose, change["new"]), names="value")
