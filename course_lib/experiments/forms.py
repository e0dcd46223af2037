"""The experiment of C28: an agent that learns from its own wrong steps, by their corrections alone or by both."""

import copy
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms import dpo, sft
from course_lib.environments import LMAgent, play
from course_lib.gui import FormFilling, Move, prompt_of
from course_lib.progress import Progress
from course_lib.worlds import atlas, forms
from course_lib.worlds.draw import Draw, held_out

TOKENS = 24  # the most tokens of a step
BUDGET = 7   # the most steps on a form; four suffice


def blanks(part: str, count: int, seed: int | str) -> list[forms.Form]:
    """Empty forms. "train" and "test" have the cities of fine-tuning, and goals of which a fifth is kept for "test"; "quiz" has
    cities that no fine-tuning shows."""
    if part not in ("train", "test", "quiz"):
        raise ValueError(f"part is 'train', 'test' or 'quiz', not {part!r}")
    draw, found = Draw(f"blanks {part} {seed}"), []
    while len(found) < count:
        form = forms.blank(draw, atlas.splits()["quiz" if part == "quiz" else "train"])
        if part == "quiz" or held_out("form", *form.goal.values()) == (part == "test"):
            found.append(form)
    return found


def demonstrations(states: int, wrong: float, seed: int) -> list[sft.Conversation]:
    """What people did with forms, one state and step each: a share `wrong` of the steps is a mistake, as people make them."""
    draw, data = Draw(f"demonstrations {seed}"), []
    for form in blanks("train", states // 4 + 1, f"demonstrations {seed}"):  # four steps at least
        for _ in range(BUDGET):
            step = forms.mistake(form, draw) if draw.weighted((1 - wrong, wrong)) else forms.expert(form)
            data.append(lesson(form, step))
            form, _ = form.act(step)
            if form.submitted:
                break
    return data[:states]


def lesson(form: forms.Form, step: str) -> sft.Conversation:
    """A step to be imitated in this state."""
    return [*prompt_of(form), {"role": "assistant", "content": step}]


def start(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, states: int, wrong: float, epochs: int, lr: float,
          seed: int) -> list[dict]:
    """Fine-tune `model` in place on `demonstrations`; returns the history."""
    return sft.train(model, tokenizer, demonstrations(states, wrong, seed),
                     sft.SFTConfig(epochs=epochs, lr=lr, seed=seed), label="an agent for forms")


def act_on(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, these: Sequence[forms.Form], seed: int,
           temperature: float = 1.0) -> list[list[Move]]:
    """One episode on each form: its moves."""
    world = FormFilling(these, BUDGET)
    play(LMAgent(model, tokenizer, max_new_tokens=TOKENS, temperature=temperature), world, count=len(these), seed=seed)
    return world.trails


def scores(trails: Sequence[Sequence[Move]]) -> dict[str, float]:
    """Of episodes: share that ended with a submitted form, mean steps, share of the steps that were wrong, and share of
    the wrong steps that had been made in the same state of the same episode before."""
    moves = [move for trail in trails for move in trail]
    wrong = sum(move.wrong for move in moves)
    again = sum(move.wrong and move in trail[:i] for trail in trails for i, move in enumerate(trail))
    won = sum(trail[-1].form.act(trail[-1].step)[0].submitted for trail in trails)
    return {"success": won / len(trails), "steps": len(moves) / len(trails), "wrong": wrong / len(moves),
            "repeated": again / max(wrong, 1)}


def corrections(trails: Sequence[Sequence[Move]]) -> list[dict]:
    """Every wrong step beside the expert's in the same state, as rows with `prompt`, `chosen` and `rejected`; a wrong step that
    was made twice in a state is one row."""
    wrong = {(m.form.text(), m.step): m for trail in trails for m in trail if m.wrong}
    return [{"prompt": prompt_of(m.form), "chosen": forms.expert(m.form), "rejected": m.step} for m in wrong.values()]


def habits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[dict]) -> dict[str, float]:
    """How probable the steps of `corrections` are, on average: {corrected, mistake}. The second is the chance that a mistake is
    made again in its state, exactly."""
    coded = dpo.encode_pairs(tokenizer, pairs)
    corrected, again = dpo.all_logprobs(model, coded, tokenizer.pad_token_id).exp().mean(0).tolist()
    return {"corrected": corrected, "mistake": again}


def learn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[dict], seed: int, method: str,
          epochs: int = 1, lr: float = 3e-4, beta: float = 0.1, batch_size: int = 32) -> PreTrainedModel:
    """A copy of `model` that has learnt from `corrections`: "SFT" from the corrected steps alone, "DPO" from the pairs."""
    model = copy.deepcopy(model)
    if method == "SFT":
        steps = [[*row["prompt"], {"role": "assistant", "content": row["chosen"]}] for row in pairs]
        sft.train(model, tokenizer, steps, sft.SFTConfig(epochs=epochs, lr=lr, seed=seed, batch_size=batch_size, evaluations=1))
    else:
        dpo.train(model, tokenizer, pairs, dpo.DPOConfig(epochs=epochs, lr=lr, beta=beta, seed=seed, batch_size=batch_size))
    return model


def study(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seeds: Sequence[int], episodes: int, test: int,
          conditions: dict[str, dict], go_on: str) -> list[list[dict]]:
    """C28 in two rounds. In each the agent fills in `episodes` forms, and what it did wrong is corrected; it then learns from
    that in different ways. conditions: name -> of `learn`. The second round begins with the agent that `go_on` made.

    Returns [round][seed]: {pairs: how many, before: measures, after: {name: measures}}. Measures: `scores` on `test` forms that
    nobody trained on, `quiz`, the success on as many with cities that no fine-tuning showed, and `habits` in the states in
    which the agent before this round errs on the test forms.
    """
    rounds: list[list[dict]] = [[], []]
    with Progress("agents that learn from mistakes", total=2 * len(seeds) * len(conditions), unit="run") as progress:
        for seed in seeds:
            others, strange = (blanks(part, test, seed) for part in ("test", "quiz"))

            def perform(who: PreTrainedModel) -> dict[str, float]:
                quiz = scores(act_on(who, tokenizer, strange, seed))["success"]
                return scores(act_on(who, tokenizer, others, seed)) | {"quiz": quiz}

            agent, performed = model, perform(model)
            for number, told in enumerate(rounds):
                pairs = corrections(act_on(agent, tokenizer, blanks("train", episodes, f"{seed} {number}"), seed))
                mistakes = corrections(act_on(agent, tokenizer, others, 100 + seed))
                after, learnt = {}, {}
                told.append({"pairs": len(pairs), "before": performed | habits(agent, tokenizer, mistakes), "after": after})
                for name, condition in conditions.items():
                    learnt[name] = learn(agent, tokenizer, pairs, seed, **condition)
                    after[name] = perform(learnt[name]) | habits(learnt[name], tokenizer, mistakes)
                    progress.update()
                agent, performed = learnt[go_on], after[go_on]
    return rounds
