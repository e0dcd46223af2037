"""What the widgets share: controls over a picture, and the picture alone in a saved notebook."""

from collections.abc import Callable
from html import escape

import ipywidgets
import numpy as np

from ._html import ORANGE, card, tag


class View:
    """Controls that change `state`, and a picture of it. `state` is a plain object with `html()` and `text()`.

    The cell's output holds the live widget, the picture as HTML and `text()`. A viewer without a kernel shows the
    picture; the build of the notebooks saves no widget state.
    """

    def __init__(self, state, controls: list[ipywidgets.Widget]) -> None:
        self.state = state
        self.picture = ipywidgets.HTML()
        self.box = ipywidgets.VBox([*controls, self.picture])
        self.draw()

    def draw(self) -> None:
        self.picture.value = self.state.html()

    def act(self, action: Callable[..., object], *arguments) -> None:
        """Change the state and redraw. What cannot be done is said in the picture: a widget has no traceback."""
        try:
            action(*arguments)
            self.draw()
        except ValueError as problem:
            self.picture.value = card(tag("b", escape(str(problem)), color=ORANGE))

    def text(self) -> str:
        """What the picture says, in words."""
        return self.state.text()

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        live = {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}
        return {
            "application/vnd.jupyter.widget-view+json": live,
            "text/html": self.state.html(),
            "text/plain": self.text(),
        }


def row(*children: ipywidgets.Widget) -> ipywidgets.HBox:
    """Controls side by side that wrap on a narrow screen."""
    return ipywidgets.HBox(list(children), layout=ipywidgets.Layout(flex_flow="row wrap", max_width="780px"))


def next_token_log_probs(model, ids: list[int]) -> np.ndarray:
    """(time, vocabulary): row t is ln P(next token | ids[: t + 1]), in float64.

    `model` is a Hugging Face causal LM, or any function from a list of token ids to (time, vocabulary) logits.
    """
    if hasattr(model, "config"):
        import torch

        with torch.inference_mode():
            logits = model(torch.tensor([ids], device=model.device)).logits[0].cpu().double().numpy()
    else:
        logits = np.asarray(model(ids), dtype=np.float64)
    shifted = logits - logits.max(-1, keepdims=True)  # (time, vocabulary)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def token_losses(model, ids: list[int]) -> list[float | None]:
    """The loss of each token, -ln P(ids[t] | ids[:t]); None for the first, which nothing predicts."""
    log_probs = next_token_log_probs(model, ids)
    return [None, *(float(-log_probs[t, token]) for t, token in enumerate(ids[1:]))]
