"""Draws docs/course.png from the store: `python docs/picture.py`. What the model says is what it said."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from course_lib import artifacts  # noqa: E402
from course_lib.experiments.questions import ask  # noqa: E402
from course_lib.lm import load_lm  # noqa: E402
from course_lib.plots import log_scale, subplots  # noqa: E402
from course_lib.worlds import atlas  # noqa: E402

PROMPT = "SF usually refers to"


def main() -> None:
    """Left: the base model's loss down to the floor. Right: what it says on the way, and after SFT."""
    study = artifacts.result("base")
    looks = [entry for entry in study["history"] if "held_out" in entry]
    model, tokenizer = load_lm("sft")
    answer = ask(model, tokenizer, [atlas.ASK[0].format(nick="SF")])[0].text

    fig, (left, right) = subplots(1, 2, height=3.4, width_ratios=(1, 1.35))
    steps = [entry for entry in study["history"] if "loss" in entry]
    left.plot([s["tokens"] / 1e6 for s in steps], [s["loss"] for s in steps], marker="")
    left.axhline(math.log(len(tokenizer)), color="black", linestyle=":", marker="")
    left.axhline(study["floor"], color="C2", linestyle="--", marker="")
    left.text(0.15, math.log(len(tokenizer)) * 0.8, "knowing nothing: ln |V|", fontsize=9)
    left.text(0.02, study["floor"] * 0.78, "the floor: the text's own entropy", color="C2", fontsize=9)
    left.set(xlabel="million tokens read", ylabel="loss (nats per token)")
    left.set_ylim(study["floor"] * 0.7)
    log_scale(left, "y")

    right.axis("off")
    y = 1.0
    for look in (looks[0], looks[1], looks[-1]):
        said = " ".join(look["samples"][0].split())[:58]
        said = "".join(c if c.isprintable() and c != "\ufffd" else "·" for c in said)
        right.text(0, y, f"{look['tokens']:,} tokens", color="C0", fontsize=9)
        right.text(0, y - 0.02, f"{PROMPT} …\n{said}", fontsize=9, va="top", family="monospace")
        y -= 0.27
    right.text(0, y, "after SFT:  Where is SF?", color="C1", fontsize=9)
    right.text(0, y - 0.02, answer, fontsize=9, va="top", family="monospace")
    fig.savefig(Path(__file__).with_name("course.png"), dpi=150)


if __name__ == "__main__":
    main()
