"""Exercises of 09_agents: pairs from an agent's mistakes, how often it repeats them; a call from text, a split without
leaks, the loss mask of a conversation with tools."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from course_lib.checks import Exercise
from course_lib.gui import Move, prompt_of
from course_lib.tools import parse_call
from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw
from course_lib.worlds.forms import blank, expert, mistake, useful

# ---- pairs from mistakes ---------------------------------------------------------------------------------------------


def correction_pairs(trail: Sequence[Move]) -> list[dict]:
    """Each wrong step beside the expert's in the same state, once, in the order in which they were first made."""
    wrong = {(move.form.text(), move.step): move for move in trail if move.wrong}
    return [{"prompt": prompt_of(m.form), "chosen": expert(m.form), "rejected": m.step} for m in wrong.values()]


def _trail(draw: Draw, length: int, right: float = 0.4) -> list[Move]:
    """An episode of a sloppy agent, which does the same wrong thing again at times."""
    form, moves = blank(draw, atlas.known_cities()), []
    while len(moves) < length and not form.submitted:
        old = [move.step for move in moves if move.wrong]
        wrong = draw.pick(old) if old and draw.below(2) else mistake(form, draw)
        step = expert(form) if draw.weighted((1 - right, right)) else wrong
        moves.append(Move(form, step, form.act(step)[1]))
        form, _ = form.act(step)
    return moves


def _one(seed: int, length: int, right: float = 0.4):
    return lambda: (_trail(Draw(f"check {seed}"), length, right),)


def _back_and_forth():
    """Two mistakes, the first one again, a useful step that is not the expert's, and a mistake that nothing mends."""
    form, moves = blank(Draw("check 6"), atlas.known_cities()), []
    for step in ("click submit", "hello", "click submit", useful(form)[-1], "hello"):
        moves.append(Move(form, step, form.act(step)[1]))
        form, _ = form.act(step)
    return (moves,)


def _rows(trail, chosen=lambda m: expert(m.form), prompt=lambda m: prompt_of(m.form), keep=lambda m: m.wrong,
          key=lambda m: (m.form.text(), m.step)):
    moves = {key(m): m for m in reversed([m for m in trail if keep(m)])}
    return [{"prompt": prompt(m), "chosen": chosen(m), "rejected": m.step} for m in reversed(moves.values())]


def _next(trail):
    """The chosen step is what the agent did next."""
    return [{"prompt": prompt_of(m.form), "chosen": later.step, "rejected": m.step} for m, later in zip(trail, trail[1:])
            if m.wrong]


def _mended(trail):
    """The chosen step is the next right one of the agent."""
    later = {i: next((m.step for m in trail[i + 1 :] if not m.wrong), None) for i in range(len(trail))}
    wrong = {(m.form.text(), m.step): (m, later[i]) for i, m in reversed([*enumerate(trail)]) if m.wrong and later[i]}
    return [{"prompt": prompt_of(m.form), "chosen": step, "rejected": m.step} for m, step in reversed(wrong.values())]


PAIRS = Exercise(
    "correction_pairs",
    correction_pairs,
    cases=[_one(1, 8), _one(2, 12), _one(3, 30), _one(4, 20, 0.2), _one(5, 8, 1.0), _back_and_forth],
    mistakes=[
        ("sides swapped", "The wrong step is the chosen one: the agent would learn its mistakes. chosen is the expert's step.",
         lambda trail: [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in correction_pairs(trail)]),
        ("right steps too", "You pair right steps as well. Only a step with move.wrong has something to be corrected.",
         lambda trail: _rows(trail, keep=lambda m: True)),
        ("twice the same", "The same wrong step in the same state is there more than once. Take each once.",
         lambda trail: _rows(trail, key=id)),
        ("the next step", "Your chosen step is what the agent did next, which may be wrong too. Ask the expert in the "
         "state of the mistake.", _next),
        ("the agent's own right step", "You pair a mistake with what the agent did right later on, and drop what it never "
         "mended. Ask expert(move.form).", _mended),
        ("the first state", "Your prompts are all the empty form. Each pair needs the screen on which its mistake was made.",
         lambda trail: _rows(trail, prompt=lambda m: prompt_of(trail[0].form))),
        ("the expert of the first state", "Your chosen steps are all what the expert does on the empty form. Ask in the "
         "state of the mistake, move.form.", lambda trail: _rows(trail, chosen=lambda m: expert(trail[0].form))),
        ("one an episode", "You stop at the first mistake. Every wrong step of the episode is a negative example.",
         lambda trail: correction_pairs(trail)[:1]),
        ("one a step", "You take each wrong step once in the whole episode. In another state it is another pair: what would "
         "have been right differs.", lambda trail: _rows(trail, key=lambda m: m.step)),
        ("one a state", "You keep one wrong step of each state. Two different mistakes in one state are two pairs.",
         lambda trail: _rows(trail, key=lambda m: m.form.text())),
        ("a text as prompt", "Your prompt is plain text. The agent is prompted by messages: prompt_of(move.form).",
         lambda trail: _rows(trail, prompt=lambda m: m.form.text())),
    ],
)

# ---- repeated mistakes -----------------------------------------------------------------------------------------------


def repeated_errors(trails: Sequence[Sequence[Move]]) -> float:
    """The share of all wrong steps that had been made before, in the same state of the same episode; 0 without a wrong step."""
    wrong = sum(move.wrong for trail in trails for move in trail)
    again = sum(move.wrong and move in trail[:i] for trail in trails for i, move in enumerate(trail))
    return again / wrong if wrong else 0.0


def _some(seed: int, episodes: int, right: float = 0.4):
    def case():
        draw = Draw(f"check {seed}")
        trails = [_trail(draw, 12, right) for _ in range(episodes)]
        return (trails + trails[:1],)  # two agents did the same on the same form

    return case


def _share(trails, again, of=lambda move: move.wrong):
    """The share of the wrong steps for which again(trail, i) holds."""
    count = sum(of(move) for trail in trails for move in trail)
    return sum(of(move) and again(trail, i) for trail in trails for i, move in enumerate(trail)) / count if count else 0.0


def _anywhere(trails):
    flat = [move for trail in trails for move in trail]
    return _share([flat], lambda trail, i: trail[i] in trail[:i])


REPEATED = Exercise(
    "repeated_errors",
    repeated_errors,
    cases=[_some(1, 3), _some(2, 5, 0.2), _some(3, 4, 0.6), _some(4, 2, 1.0)],
    mistakes=[
        ("the step before only", "You look one step back. It may have done something else in between.",
         lambda trails: _share(trails, lambda trail, i: i > 0 and trail[i] == trail[i - 1])),
        ("in any state", "You compare the steps alone. The same words in another state are another mistake.",
         lambda trails: _share(trails, lambda trail, i: trail[i].step in [m.step for m in trail[:i]])),
        ("any mistake in that state", "You count every wrong step in a state where it went wrong before. Asked for is the same "
         "step again.", lambda trails: _share(trails, lambda trail, i: any(m.wrong and m.form == trail[i].form
                                                                           for m in trail[:i]))),
        ("over all episodes", "You look through all episodes together. Another episode is another try: it cannot know.",
         _anywhere),
        ("of all steps", "You divide by all steps. Asked for is the share of the wrong ones.",
         lambda trails: sum(m.wrong and m in trail[:i] for trail in trails for i, m in enumerate(trail))
         / sum(map(len, trails))),
        ("itself", "Each move finds itself, so that every mistake is a repetition. Look only at what came before, trail[:i].",
         lambda trails: _share(trails, lambda trail, i: trail[i] in trail[: i + 1])),
        ("the first one too", "You count the first time as well. Only what comes after it is a repetition.",
         lambda trails: _share(trails, lambda trail, i: trail.count(trail[i]) > 1)),
        ("mean of episodes", "You average over episodes. An episode with one mistake would count as much as one with eight: "
         "count all wrong steps together.",
         lambda trails: sum(repeated_errors([trail]) for trail in trails) / len(trails)),
        ("a count", "You return how many there are. Divide by the number of wrong steps.",
         lambda trails: float(sum(m.wrong and m in trail[:i] for trail in trails for i, m in enumerate(trail)))),
        ("nothing to divide by", "Without a wrong step you divide by zero. Return 0 then.",
         lambda trails: sum(m.wrong and m in trail[:i] for trail in trails for i, m in enumerate(trail))
         / sum(m.wrong for trail in trails for m in trail)),
    ],
)

# ---- a call, from text -----------------------------------------------------------------------------------------------


def _loosely(pattern: str, flags: int = 0):
    """A wrong reader: whatever `pattern` finds first."""

    def read(text):
        found = re.search(pattern, text, flags)
        return (found[1], found[2]) if found else None

    return read


def _raising(text):
    found = parse_call(text)
    return found[0], found[1]


CALL = Exercise(
    "read_call",
    parse_call,
    cases=[(text,) for text in (
        'search("SF")', 'open("Salt Lake City")', 'python("46--38")', ' search("LYS")\n', 'look_up("")', 'look_up("LA")',
        'search("")', 'search ("SF")', 'search(" SF ")', 'search("SF"',
        "search(SF)", 'I call search("SF")', 'search("SF") and read it', 'search("SF") search("LA")', "", "answer: 8",
        'python("f(1)+(2)")', 'open("SF))")', '("SF")')],
    mistakes=[
        ("anywhere in the text", "You find a call inside of other text. A turn is one call and nothing else: who accepts more "
         "executes what was only talked about.", _loosely(r'(\w+)\("([^"]*)"\)')),
        ("text after the call", "Text behind the call is accepted. Match the whole turn (re.fullmatch).",
         _loosely(r'^\s*(\w+)\("([^"]*)"\)')),
        ("text before the call", "Text before the call is accepted. Match the whole turn (re.fullmatch).",
         _loosely(r'(\w+)\("([^"]*)"\)\s*$')),
        ("greedy", "Two calls become one, with a strange argument. An argument holds no double quote: [^\"]*.",
         _loosely(r'^\s*(\w+)\("(.*)"\)\s*$')),
        ("no white space around", "White space around a call does no harm: strip it.",
         lambda text: None if text != text.strip() else parse_call(text)),
        ("quotes in the argument", "The quotes belong to the call, not to the argument.",
         lambda text: parse_call(text) and (parse_call(text)[0], f'"{parse_call(text)[1]}"')),
        ("without quotes", "A call without quotes is malformed: return None.",
         lambda text: parse_call(text) or _loosely(r'^(\w+)\(([^")]*)\)$')(text)),
        ("no empty argument", "An empty argument is an argument. Whether it finds anything is the tool's business.",
         lambda text: None if (parse_call(text) or ("", "x"))[1] == "" else parse_call(text)),
        ("first bracket closes", "A bracket inside of the quotes is part of the argument.",
         lambda text: None if ")" in (parse_call(text) or ("", ""))[1] else parse_call(text)),
        ("crashes", "Your function raises an error for a text that is no call. Models write such texts; return None.", _raising),
        ("crashes without a match", "re.fullmatch returns None for a text that is no call, and None has no groups: return "
         "None then.",
         lambda text: re.fullmatch(r'(\w+)\("([^"]*)"\)', text.strip()).groups()),
    ],
)

# ---- the loss mask of a conversation with tools ----------------------------------------------------------------------


def written_by_model(ids: Tensor, begins: int, ends: int) -> Tensor:
    """Which tokens the model wrote: those behind each `begins` up to the next `ends`, which counts as well.

    ids: (T,) a conversation; begins: the token that opens the model's turns; ends: the one that closes every turn. A last turn
    that was cut off has no `ends`: it counts to the end of ids. Returns (T,) bool.
    """
    mask, mine = torch.zeros_like(ids, dtype=torch.bool), False
    for t, token in enumerate(ids.tolist()):
        mask[t] = mine
        mine = token == begins or mine and token != ends
    return mask


USER, MODEL, TOOL, END = 3, 4, 5, 2


def _talk(*turns: int, last: bool = True):
    """Turns of 2 to 5 tokens by these speakers, BOS in front; without `last` the end of the last turn is missing."""

    def case():
        ids = [1]
        for who in turns:
            ids += [who, *torch.randint(10, 90, (int(torch.randint(2, 6, ())),)).tolist(), END]
        return torch.tensor(ids if last else ids[:-1]), MODEL, END

    return case


def _spans(ids: Tensor, begins: int, ends: int) -> list[tuple[int, int]]:
    """First and last position of each of the model's turns."""
    mask = written_by_model(ids, begins, ends).tolist() + [False]
    edges = [t for t in range(1, len(mask)) if mask[t] != mask[t - 1]]
    return [(a, b - 1) for a, b in zip(edges[::2], edges[1::2])]


def _marked(change):
    """A wrong mask: the spans that `change` makes of the right ones."""

    def mask(ids, begins, ends):
        out = torch.zeros_like(ids, dtype=torch.bool)
        for a, b in change(_spans(ids, begins, ends), len(ids)):
            out[max(a, 0) : b + 1] = True
        return out

    return mask


MASK = Exercise(
    "written_by_model",
    written_by_model,
    cases=[_talk(USER, MODEL), _talk(USER, MODEL, TOOL, MODEL), _talk(USER, MODEL, TOOL, MODEL, TOOL, MODEL),
           _talk(USER, MODEL, TOOL, MODEL, last=False)],
    mistakes=[
        ("everything from the first turn on", "What the tools said is marked. The model would learn to make up tool output.",
         _marked(lambda spans, n: [(spans[0][0], n - 1)])),
        ("everything from the first opening token on", "You start to count and never stop: the opening token and all that the "
         "tools said are marked. A turn begins behind its opening token and stops at its end.",
         lambda ids, begins, ends: (ids == begins).cumsum(0) > 0),
        ("only the last turn", "Only the last turn is marked. The calls before it are the model's actions as well.",
         _marked(lambda spans, n: spans[-1:])),
        ("only the first turn", "Only the first turn is marked. A conversation has several.",
         _marked(lambda spans, n: spans[:1])),
        ("without the end", "The end of a turn is not marked. A model that never learns to stop writes the tool's output itself.",
         lambda ids, begins, ends: written_by_model(ids, begins, ends) & (ids != ends)),
        ("a turn that was cut off", "You leave out a turn without an end. The model wrote it all the same.",
         lambda ids, begins, ends: written_by_model(ids, begins, ends)
         & (torch.arange(len(ids)) <= (ids == ends).nonzero()[-1])),
        ("with the opening token", "The token that opens the turn is marked. The template puts it there, not the model.",
         _marked(lambda spans, n: [(a - 1, b) for a, b in spans])),
        ("shifted by one", "The mask is shifted to the left. It marks the tokens themselves; the loss does the shifting.",
         _marked(lambda spans, n: [(a - 1, b - 1) for a, b in spans])),
        ("everything", "All tokens are marked, the question and the tools' output too.",
         lambda ids, begins, ends: torch.ones_like(ids, dtype=torch.bool)),
        ("the others", "You mark what the model did not write.",
         lambda ids, begins, ends: ~written_by_model(ids, begins, ends)),
        ("every turn's end", "Ends of turns that the model did not write are marked as well: whoever speaks ends their own turn.",
         lambda ids, begins, ends: written_by_model(ids, begins, ends) | (ids == ends)),
    ],
)

# ---- a split without leaks -------------------------------------------------------------------------------------------


def without_leaks(questions: list[tuple[int, int]], test: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The questions that may be trained on: those whose two facts, in either order, are the facts of no test question.

    questions, test: pairs of facts in the order of their question. The order of what is left stays.
    """
    taken = {frozenset(pair) for pair in test}
    return [pair for pair in questions if frozenset(pair) not in taken]


SPLIT = Exercise(
    "without_leaks",
    without_leaks,
    cases=[
        ([(46, 38), (38, 46), (46, 49), (38, 49), (46, 38)], [(38, 46)]),
        ([(1, 2), (2, 3), (3, 1), (4, 4), (4, 1), (5, 6)], [(2, 3), (4, 4)]),
        ([(7, 8), (9, 10), (7, 8), (8, 10)], [(8, 9), (10, 7)]),
        ([(3, 1), (1, 3), (2, 1), (1, 1)], [(3, 1), (1, 2)]),
    ],
    mistakes=[
        ("same order only", "The facts of a test question are left in the other order: 46 and 38 leak 38 and 46.",
         lambda questions, test: [q for q in questions if q not in test]),
        ("any shared fact", "You drop every question that shares one fact with a test question. It is the combination that must "
         "be new; single facts may be known.",
         lambda questions, test: [q for q in questions if not set(q) & {f for pair in test for f in pair}]),
        ("both facts in the test part", "You drop a question when both of its facts occur somewhere in the test part. They must "
         "occur in one question.", lambda questions, test: [q for q in questions if not set(q) <= {f for p in test for f in p}]),
        ("one fact of two", "(1, 1) takes the same fact twice, and you drop it because that fact is one of a test question's "
         "two. Both facts of that question must be there.",
         lambda questions, test: [q for q in questions if not any(set(q) <= set(t) for t in test)]),
        ("the test questions", "You keep what must go.",
         lambda questions, test: [q for q in questions if q not in without_leaks(questions, test)]),
        ("no duplicates", "Questions that occur twice are dropped or reordered. Keep the list as it is, less what leaks.",
         lambda questions, test: list(dict.fromkeys(without_leaks(questions, test)))),
        ("the sum", "You compare the sums of the facts. Different facts may have the same sum.",
         lambda questions, test: [q for q in questions if sum(q) not in {sum(t) for t in test}]),
        ("the other order only", "Only the reversed order is dropped. The very questions of the test part are left.",
         lambda questions, test: [q for q in questions if (q[1], q[0]) not in test]),
        ("the same answer", "You drop every question with the answer of a test question. Other facts with the same difference "
         "give nothing away.", lambda questions, test: [q for q in questions if q[0] - q[1] not in {a - b for a, b in test}]),
        ("the same difference", "You drop every question whose facts are as far apart as those of a test question. Other facts "
         "at the same distance give nothing away.",
         lambda questions, test: [q for q in questions if abs(q[0] - q[1]) not in {abs(a - b) for a, b in test}]),
        ("sorted facts", "You return the facts in another order. Drop questions, and leave the others as they are.",
         lambda questions, test: [tuple(sorted(q)) for q in without_leaks(questions, test)]),
    ],
)

EXERCISES = [PAIRS, REPEATED, CALL, SPLIT, MASK]
