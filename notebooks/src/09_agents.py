# %% [markdown]
# # 09 · Agents: learning from their own mistakes, and from their answers
#
# *Lecture: 5. Direct Preference Optimization (UI-TARS); backup: deep research*
#
# > Give model to access browser and code execution environment. Create RL datasets that browsing and code execution.
#
# **You will be able to** say what changes when a language model takes many steps in an environment instead of giving one
# answer, turn an agent's mistakes into preference pairs, train on them by DPO, say when corrections alone teach it more, and
# let an agent with tools learn from its last line alone.
#
# | | |
# | --- | --- |
# | time | about 1 minute on two CPU cores, as long on a T4 (estimates, for a filled store) |
# | starts from | the base model of notebook 01, the SFT model of notebook 02 |
# | leaves behind | two agents and two studies in the store, if they are not there yet |
#
# Two claims of the lecture are measured: wrong steps are useful as negatives, and SFT on corrected steps ignores them
# (C28); tools can be an RL environment (C29).

# %%
from course_lib import artifacts, plots
from course_lib.checks import check
from course_lib.teach import scale_up, show, table

# %%
def told(values, form="{:+.2f}"):
    """Mean over seeds in words, with its 95 % interval."""
    mean, low, high = plots.interval(values)
    return f"{form.format(mean)} ({form.format(low)} to {form.format(high)})"

# %% [markdown]
# # Part 1 · An agent that fills in forms
#
# > During online bootstrapping, a large number of erroneous steps (negative examples) are naturally generated. However, SFT
# > only utilizes the corrected steps (i.e., "positive" examples), while ignoring the negative samples.
#
# The lecture quotes UI-TARS (Qin et al. 2025), an agent that works with a computer through screenshots, mouse and
# keyboard. Ours is its smallest relative: a form, written as text. So far an episode was one answer. Here it is several: the
# agent sees a screen, takes a step, sees the next screen, until the form is submitted or its patience is at an end.
#
# The base model knows these words: its corpus held some such screens, always filled in at one go.

# %%
from course_lib.experiments import forms as lab
from course_lib.gui import FormFilling, prompt_of
from course_lib.worlds.forms import SUBMIT, expert, useful

form = lab.blanks("test", 1, seed=0)[0]
print(form.text())
city = form.goal["city"]
for step in (f"type city {city}", f"type city {city}", f"type name {city}", "click submit", "hello"):
    good = step in useful(form)
    form, said = form.act(step)
    print(f"\n{step!r}: {'good' if good else 'WRONG'}; {said}\n  {form.text().splitlines()[1]}")
print("\nThe expert would now:", repr(expert(form)))

# %% [markdown]
# A step is wrong if it does not bring the form nearer to its goal. Four steps suffice; the agent may take seven. The
# environment is one of the course's kind (`reset`, `step`), and the loop is the one that ran the bandit in notebook 03:

# %%
show(FormFilling.step, lab.act_on)

# %% [markdown]
# ## 1 · An agent that errs
#
# It learnt by SFT from people's steps, of which 45 % were mistakes: a wrong field, a typo, the button too early, typing again
# what stands there already. **Predict**: if every step is wrong with probability 1/2, how many forms get done in seven
# steps?

# %%
from math import comb

from course_lib.lm import load_lm

agent, tokenizer = load_lm("forms_start")
test = lab.blanks("test", 40, seed=1)  # forms that nobody was trained on
trails = lab.act_on(agent, tokenizer, test, seed=1)
done = lambda wrong: sum(comb(7, k) * wrong**k * (1 - wrong) ** (7 - k) for k in range(4))  # at most 3 of 7 wrong
table(["share of wrong steps", "forms done, if steps were independent"], [(f"{w:.0%}", f"{done(w):.0%}") for w in
                                                                          (0.05, 0.2, 0.35, 0.5, 0.65)])
before = lab.scores(trails)
print(f"the agent on {len(test)} forms: {before['wrong']:.0%} of its steps are wrong, {before['success']:.0%} of the forms get "
      f"done, {before['steps']:.1f} steps a form")

# %% [markdown]
# **Explain.** Three mistakes are forgiven here, so the first slips cost next to nothing, and then success falls steeply. Where
# none is forgiven, steps multiply: who is right nine times out of ten gets four steps right two times out of three, a fine
# question answerer and a poor clerk. Here is one episode, and another one to move through. (A mistake can be made again: the
# screen has not changed, and this agent remembers nothing else.)

# %%
def screen(form):
    """The lines of a form's screen."""
    return [f"{field + ':':8}{value or '____'}" for field, value in form.typed.items()]


long = max(trails, key=lambda trail: (len(trail), trail[-1].step == SUBMIT))
fig = plots.filmstrip([screen(move.form) for move in long], [move.step for move in long], [not move.wrong for move in long])
goal = ", ".join(f"{field} {value}" for field, value in long[0].form.goal.items())
plots.finish(fig, f"An episode of {len(long)} steps, {sum(move.wrong for move in long)} of them wrong. The goal: {goal}.")

# %%
from course_lib.widgets import Replay
from course_lib.widgets.replay import form_frames

Replay("The agent fills in a form", form_frames(trails[0]))

# %% [markdown]
# ## 2 · Mistakes become pairs
#
# Let the agent act, and let somebody who knows say what would have been right *in the state in which it went wrong*. That
# gives a corrected step for SFT, and a pair for DPO: the same prompt, the corrected step chosen, the wrong one rejected.
#
# **Exercise 1 · pairs from an episode** (difficulty 2 of 5, 8 minutes)
#
# *A `Move` has the state `.form`, the `.step` that was taken in it, and `.wrong`. `prompt_of(form)` is what the agent saw;
# `expert(form)` is what is right. Forms cannot be dictionary keys, their `form.text()` can.*

# %%
def correction_pairs(trail):
    """Each wrong step of an episode beside the expert's in the same state.

    trail: list of Move. Returns dicts with prompt, chosen and rejected, in the order in which the mistakes were first made; the
    same wrong step in the same state is one row.
    """
    ### BEGIN SOLUTION
    wrong = {(move.form.text(), move.step): move for move in trail if move.wrong}
    return [{"prompt": prompt_of(move.form), "chosen": expert(move.form), "rejected": move.step} for move in wrong.values()]
    ### END SOLUTION

# %%
correction_pairs = check("correction_pairs", correction_pairs)

# %%
practice = lab.act_on(agent, tokenizer, lab.blanks("train", 80, seed=2), seed=2)
pairs = [pair for trail in practice for pair in correction_pairs(trail)]
print(f"{len(practice)} episodes, {sum(map(len, practice))} steps, {len(pairs)} pairs")
table(["on the screen", "chosen", "rejected"], [(pair["prompt"][0]["content"].split("screen: ")[1], pair["chosen"],
                                                 pair["rejected"] or "(nothing)") for pair in pairs[:8]])

# %% [markdown]
# ## 3 · Corrections alone, or both sides?
#
# SFT raises the corrected step; softmax lowers all others a little, the mistake among them, in proportion to their
# probability. DPO names the one that is to fall. **Predict** for this agent: which of the two gets more forms done?

# %%
from course_lib.algorithms import dpo

corrected = lab.learn(agent, tokenizer, pairs, seed=0, method="SFT", lr=3e-4)
preferred = lab.learn(agent, tokenizer, pairs, seed=0, method="DPO", lr=1e-4)
rows, episodes = [], {}
for name, model in {"before": agent, "SFT on corrections": corrected, "DPO on pairs": preferred}.items():
    episodes[name] = lab.act_on(model, tokenizer, test, seed=1)
    s = lab.scores(episodes[name])
    rows.append((name, f"{s['success']:.0%}", f"{s['steps']:.1f}", f"{s['wrong']:.0%}"))
table(["agent", "forms done", "steps", "wrong steps"], rows)

# %% [markdown]
# One run is an anecdote. And there is a second question: does it make *the same* mistake again?
#
# **Exercise 2 · repeated mistakes** (difficulty 2 of 5, 8 minutes)
#
# *Two moves are equal when state, step and what happened are the same: `move in trail[:i]` works.*

# %%
def repeated_errors(trails):
    """The share of all wrong steps that had been made before, in the same state of the same episode.

    trails: list of episodes, each a list of Move. Without a wrong step: 0.0.
    """
    ### BEGIN SOLUTION
    wrong = sum(move.wrong for trail in trails for move in trail)
    again = sum(move.wrong and move in trail[:i] for trail in trails for i, move in enumerate(trail))
    return again / wrong if wrong else 0.0
    ### END SOLUTION

# %%
repeated_errors = check("repeated_errors", repeated_errors)

# %%
print("; ".join(f"{name}: {repeated_errors(some):.0%} of its mistakes are repetitions" for name, some in episodes.items()))

# %% [markdown]
# ### Over seeds, in two rounds (C28)
#
# From the store: each seed has its own forms to practise on and to be tested on. The first round starts from the agent
# above. The second one starts from what SFT on corrections made of it, which acts again, errs again (less often) and is
# corrected again. **Predict**: is the answer the same in both rounds? What is different about the mistakes of an agent that
# knows more of what to do?

# %%
rounds = artifacts.result("agent_forms")
METHODS = list(rounds[0][0]["after"])


def measured(number, measure):
    """{before, and each method: values over seeds} of a round."""
    runs = rounds[number]
    return {"before": [run["before"][measure] for run in runs],
            **{name: [run["after"][name][measure] for run in runs] for name in METHODS}}


def gain(number, measure, rival="SFT on corrections"):
    """DPO minus SFT on the same corrections, seed by seed."""
    values = measured(number, measure)
    return [a - b for a, b in zip(values["DPO on pairs"], values[rival])]

# %%
SHORT = ["before", *(name.replace(", ", ",\n").replace(" on ", " on\n") for name in METHODS)]

fig, axes = plots.subplots(1, 2, height=4.2, sharey=True)
for number, ax in enumerate(axes):
    plots.bars_with_interval(ax, ["before", *METHODS], measured(number, "success"))
    ax.set_xticks(range(len(SHORT)), SHORT)
    count = round(sum(run["pairs"] for run in rounds[number]) / len(rounds[number]))
    ax.set_title(f"round {number + 1}: about {count} pairs")
    ax.set_xlabel("trained by")
axes[0].set_ylabel("forms done")
axes[0].set_ylim(bottom=0)
plots.finish(fig, f"Forms done, DPO minus SFT on the same corrections: round 1 {told(gain(0, 'success'))}, round 2 "
                  f"{told(gain(1, 'success'))}.")
for number in (0, 1):
    low, high = plots.interval(gain(number, "success"))[1:]
    print(f"Round {number + 1}: is DPO ahead of SFT?", "Yes." if low > 0 else "No, it is behind." if high < 0 else
          "That cannot be told from chance with these seeds.")

# %% [markdown]
# The second question, in two ways: the share of mistakes that repeat one of the same episode, and, exactly, the mean
# probability of making a mistake that the agent made before, in that very state (on forms that nobody trained on).

# %%
fig, axes = plots.subplots(2, 2, height=7.0, sharex=True, sharey="row")
for column in (0, 1):
    for row, measure in enumerate(("repeated", "mistake")):
        plots.bars_with_interval(axes[row, column], ["before", *METHODS], measured(column, measure))
        axes[row, column].set_xticks(range(len(SHORT)), SHORT)
    axes[0, column].set_title(f"round {column + 1}")
    axes[1, column].set_xlabel("trained by")
axes[0, 0].set_ylabel("share of mistakes that are repetitions")
axes[1, 0].set_ylabel("P(the same mistake | its state)")
for ax in axes[:, 0]:
    ax.set_ylim(bottom=0)
plots.finish(fig, "DPO minus SFT on the same corrections: P(the same mistake) " + ", ".join(
    f"{told(gain(number, 'mistake'))} in round {number + 1}" for number in (0, 1)) + "; share of repetitions " + ", ".join(
    f"{told(gain(number, 'repeated'))} in round {number + 1}" for number in (0, 1)) + ".")

# %%
table(["round", "agent", "forms done", "on new cities", "wrong steps", "steps a form", "P(corrected step)", "P(the mistake)"],
      [(number + 1, name, *(told(measured(number, key)[name], form) for key, form in (
          ("success", "{:.2f}"), ("quiz", "{:.2f}"), ("wrong", "{:.2f}"), ("steps", "{:.1f}"), ("corrected", "{:.2f}"),
          ("mistake", "{:.2f}"))))
       for number in (0, 1) for name in ("before", *METHODS)])

# %% [markdown]
# **Explain.** Round 1 does not bear the claim out. SFT's pull on a corrected step is $1 - \pi(\text{corrected})$: strong where
# the agent does not know what to do. DPO asks only for a margin, and lets go as it opens: P(corrected step) rises less than by
# one pass of SFT, and P(the mistake) hardly falls. Whether one pass of SFT gets more forms done than DPO, the line below the
# first figure says; two passes are far ahead. (Each method has a learning rate of its own, in the cell above; neither was
# searched for long.)
#
# In round 2 the agent knows more. The same line says how DPO stands to one pass of SFT there; beyond chance it is not ahead of
# two passes, and the lines below count seeds in which each of the three made the agent worse.
#
# "The same mistake again" has two answers. The mistakes that the agent *used to* make become rarer by SFT at least as much as
# by DPO, although SFT never sees them: what the corrected step gains, they lose. So the lecture's "ignores" is half of the
# truth. But of the mistakes that are *left* after a pass of SFT, more are repetitions than before: it errs less often, and is
# surer of it. Against one pass DPO's share is the smaller one; whether beyond chance, the caption says.

# %%
for name in METHODS:
    fell = [[run["after"][name]["success"] < run["before"]["success"] for run in runs] for runs in rounds]
    print(f"{name}: fewer forms done than before in {sum(fell[0])} of {len(fell[0])} seeds in round 1, in {sum(fell[1])} of "
          f"{len(fell[1])} in round 2")

# %% [markdown]
# # Part 2 · A research agent that uses tools
#
# The lecture's last slide: give a model a browser and a place to run code, and make data sets for RL in which both are
# needed. Here the browser shows an encyclopedia of 200 cities, each page with a number that no corpus of this course
# mentions, and a question takes two pages and a subtraction. What the model cannot know it has to look up.
#
# The loop is the one of notebook 03, with text as state:
#
# $$\text{conversation } s_t \;\to\; \text{the model writes a turn } a_t \;\to\; \text{a tool answers} \;\to\;
# s_{t+1} = (s_t, a_t, \text{output})$$
#
# and after the final answer comes the only reward: 1 if it is right.

# %%
import torch

from course_lib import tools
from course_lib.environments import play
from course_lib.experiments import research as desk
from course_lib.lm import load_lm
from course_lib.worlds import research

for text in ('search("LYS")', 'open("Lyon")', 'python("46-38")', 'python("46-")', 'search("Lyon"', 'find("Lyon")'):
    print(f"{text:20} -> {tools.use(tools.TOOLS, text)[0]}")
show(tools.use)

# %% [markdown]
# A call is text, and somebody has to read it. A malformed one gets an error message as its output: the model reads it in
# its next turn, and may do better. `python` runs in the sandbox of notebook 07, with a limit of time and without files.
#
# **Exercise 3 · read a call** (difficulty 2 of 5, 8 minutes)
#
# *Goal: accept exactly what is a call. `re.fullmatch(pattern, text)` matches a whole text; `[^"]*` is anything without a
# double quote, and `\w+` a name.*

# %%
import re


def read_call(text):
    """A turn of the model as (name, argument); None if it is not exactly one call name("argument").

    White space around the call does not matter. An argument may be empty and holds no double quote.
    """
    ### BEGIN SOLUTION
    found = re.fullmatch(r'(\w+)\("([^"]*)"\)', text.strip())
    return (found[1], found[2]) if found else None
    ### END SOLUTION

# %%
read_call = check("read_call", read_call)

# %% [markdown]
# ### Questions that do not leak
#
# A test is worth something if its answers are not in the training data in another form. "How far is LYS north of SF?" needs
# the latitudes 46 and 38. If training has another two cities with 46 and 38, or the same two the other way round, a model may
# know $46 - 38$ by heart.
#
# **Exercise 4 · a split without leaks** (difficulty 2 of 5, 6 minutes)

# %%
def without_leaks(questions, test):
    """The questions that may be trained on: those whose two facts are not, in either order, the facts of a test question.

    questions, test: lists of pairs of numbers. What is left keeps its order. Single facts may be shared.
    """
    ### BEGIN SOLUTION
    taken = {frozenset(pair) for pair in test}
    return [pair for pair in questions if frozenset(pair) not in taken]
    ### END SOLUTION

# %%
without_leaks = check("without_leaks", without_leaks)

# %%
facts = {part: [q.facts for q in research.questions(part)] for part in ("train", "test", "new cities")}
every = facts["train"] + facts["test"]
rest = [pair for i, pair in enumerate(every) if i % 5]
print(f"every fifth question as a test: {len(rest) - len(without_leaks(rest, every[::5]))} of the other {len(rest)} leak")
for part in ("test", "new cities"):
    left = len(without_leaks(facts["train"], facts[part]))
    print(f"the course's split, {part}: {len(facts['train']) - left} of {len(facts['train'])} training questions leak")

# %% [markdown]
# The test questions are about the same 100 cities in new combinations, those about *new cities* name only cities that no
# training question names. **Predict**: how often would somebody be right who never opens a page and says the most
# common answer?

# %%
from collections import Counter

common, _ = Counter(q.answer for q in research.questions("train")).most_common(1)[0]
luck = sum(q.answer == common for q in research.questions("test")) / len(research.questions("test"))
print(f"always saying {common}: right in {luck:.3f} of the test questions")

# %% [markdown]
# ### An episode, and what of it is trained on
#
# First by hand: an expert answers the first test question. (`talk` is the episode in the environment, as messages.)

# %%
policy, tokenizer = load_lm("research_start")
question = research.questions("test")[0]
talk = desk.trace(question.text, research.expert(question))
table(["who", "says"], [(m["role"], m["content"]) for m in talk])

# %% [markdown]
# Of this conversation the model wrote the calls and the answer. The question and the tools' output were given to it: they
# are no actions, and no policy gradient may push them. Fine-tuning on them would be worse: a model that learns to
# predict what a tool says learns to make it up.
#
# **Exercise 5 · the loss mask of a conversation** (difficulty 3 of 5, 10 minutes)
#
# *Every turn opens with a token that says who speaks and closes with the same end token. The model writes neither its
# opening token (the template does) nor the tools' ends; its own end it does write.*

# %%
def written_by_model(ids, begins, ends):
    """Which tokens the model wrote: those behind each `begins` up to the next `ends`, which counts as well.

    ids: (T,) a conversation; begins: the token that opens the model's turns; ends: the one that closes every turn. A last turn
    that was cut off has no `ends`: it counts to the end of ids. Returns (T,) bool.
    """
    ### BEGIN SOLUTION
    mask, mine = torch.zeros_like(ids, dtype=torch.bool), False
    for t, token in enumerate(ids.tolist()):
        mask[t] = mine
        mine = token == begins or mine and token != ends
    return mask
    ### END SOLUTION

# %%
written_by_model = check("written_by_model", written_by_model)

# %%
from course_lib.widgets import LossMask

ids = torch.tensor(tokenizer.apply_chat_template(talk, return_dict=True)["input_ids"])
mine = written_by_model(ids, tokenizer.convert_tokens_to_ids("<|assistant|>"), tokenizer.eos_token_id)
LossMask(tokenizer, ids.tolist(), policy, mask=mine.tolist())

# %% [markdown]
# The environment of this course does not need the mask: `play` gives the model a prompt a turn, and what the model adds is
# the action. That comes to the same, exactly. Two checks on real episodes: GRPO's loss has no gradient on the logits
# that predict a tool's output; and one pass over a whole conversation gives the log-probabilities of all its turns.

# %%
# your reader of calls, in the environment of all that follows
environment = tools.ToolUse(desk.rows_of("train", 500), tools.TOOLS, tokenizer, reserve=desk.LENGTH, parse=read_call)
agent = tools.ConversationAgent(policy, tokenizer, max_new_tokens=desk.LENGTH, precision="fp32")
played = play(agent, environment, count=4, samples=4, seed=1)
logits = policy(ids[None].to(policy.device)).logits[0].cpu()                     # (T, V)
logits.retain_grad()
logp = logits[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]                # (T-1,) entry t is of token t+1
(-1.0 * (logp * mine[1:]).sum() / mine.sum()).backward()                         # an advantage of 1
size = logits.grad[:-1].abs().sum(1)
print(f"gradient on logits, smallest where the model wrote: {float(size[mine[1:]].min()):.1e}; "
      f"largest elsewhere: {float(size[~mine[1:]].max()):.1e}")
policy.zero_grad()
with torch.no_grad():
    gap = (played.logprobs(agent) - played.sampled).abs().max()
print(f"{len(played.steps)} turns read in one pass: log-probabilities as sampled, up to {float(gap):.1e}")

# %% [markdown]
# ### Where it starts
#
# The start is the SFT model of notebook 02, fine-tuned on 1,000 traces; a share of them is flawed, as people's are: guesses, a
# subtraction the wrong way round, a page not opened, a bracket forgotten. Read some episodes before you look at rates.

# %%
def read(talks):
    """Conversations, one a row."""
    table(["question", "turns of the model", "outputs", "right"], [
        (t.messages[0]["content"], " ⏎ ".join(m["content"] for m in t.messages if m["role"] == "assistant"),
         " ⏎ ".join(m["content"] for m in t.messages if m["role"] == "tool"), "yes" if t.score else "no") for t in talks])


asked = desk.rows_of("test", 40)
first = desk.episodes(policy, tokenizer, asked, seed=3)
read(first[:4])
print({name: round(value, 2) for name, value in desk.summary(first).items()})

# %% [markdown]
# ## GRPO on the final answer
#
# Nothing new is needed: a group of 6 episodes per question (8 in the runs of the store), the answer's reward as the
# score of all that was done, the group's mean as its baseline. **Predict**: the reward says nothing of calls and pages.
# Will the agent read more pages, or guess more? Will its episodes become shorter?

# %%
import copy

from course_lib.algorithms.grpo import GRPOConfig, train

live = copy.deepcopy(policy)
agent = tools.ConversationAgent(live, tokenizer, max_new_tokens=desk.LENGTH)
history = train(agent, environment, GRPOConfig(steps=8, count=6, samples=6, lr=2e-4, warmup=2, seed=7), label="GRPO, live")
table(["step", "reward", "groups that teach nothing", "tokens an episode"],
      [(h["step"], f"{h['reward']:.2f}", f"{h['degenerate']:.2f}", f"{h['length']:.0f}") for h in history])

# %% [markdown]
# Longer runs over seeds, from the store, on held-out questions:

# %%
c29 = artifacts.result("agent_research")
config = artifacts.size("agent_research")
before, runs = c29["before"]["test"], [run["test"] for run in c29["after"]]
fig, axes = plots.subplots(1, 2, height=4.2, width_ratios=(1, 1.4))
plots.line_with_interval(axes[0], range(1, config["steps"] + 1), c29["curves"]["reward"], "reward", marker="none")
axes[0].set_xlabel("step")
axes[0].set_ylabel("right answers, training questions")
axes[0].set_ylim(0, 1.2)
axes[0].legend()
bars = {"right": "right", "greedy": "right, greedy", "informed": "read two pages", "valid": "valid calls"}
places = range(len(bars))
axes[1].bar([i - 0.2 for i in places], [before[name] for name in bars], 0.36, color=plots.PALETTE[6], alpha=0.6, label="start")
ends = [plots.interval([run[name] for run in runs]) for name in bars]
axes[1].bar([i + 0.2 for i in places], [e.mean for e in ends], 0.36, color=plots.PALETTE[0], alpha=0.8, label="GRPO",
            yerr=[[e.mean - e.lo for e in ends], [e.hi - e.mean for e in ends]], capsize=5)
axes[1].set_xticks(places, [label.replace(" ", "\n", 1) for label in bars.values()])
axes[1].set_xlabel(f"test questions, {len(runs)} seeds")
axes[1].set_ylabel("share")
axes[1].set_ylim(0, 1.2)
axes[1].legend(ncols=2, loc="upper center")
better, pages = ([run[name] - before[name] for run in runs] for name in ("right", "informed"))
plots.finish(fig, f"On new combinations of facts GRPO raises right answers by {told(better)} in {len(runs)} seeds, and "
                  f"episodes in which two pages were read by {told(pages)}; greedy answers and valid calls stay where they "
                  f"were.")

# %% [markdown]
# **Explain.** An episode is one long action with holes. Its score says how good all of it was, and the group's mean says how
# good that is for this question. A flaw that costs answers (a guess, the wrong order, a page not opened) is pushed down by
# every group in which another episode did without it; that is why more pages are read although nobody asked for it.
# What costs a turn and no answer, a malformed call, is hardly pushed at all: nearly all calls were valid before, too.
# And as in notebook 07: the start is right more often at its best (greedy) than in a sample. GRPO narrows that gap, and leaves
# the best where it was in so few steps. It sharpens.
#
# Episodes after the live run, the first one to be replayed step by step. What is at the right is what the model wrote:

# %%
from course_lib.widgets import Replay
from course_lib.widgets.replay import Frame


def frames(talk):
    """One frame a turn: what the model had read, what it wrote, what a tool answered."""
    shown = []
    for i, m in enumerate(talk.messages):
        if m["role"] == "assistant":
            read = "\n".join(f"{seen['role']}: {seen['content']}" for seen in talk.messages[:i])
            said = talk.messages[i + 1]["content"] if i + 1 < len(talk.messages) else ""
            shown.append(Frame(read, m["content"], said, None if said else bool(talk.score)))
    return shown


after = desk.episodes(live, tokenizer, asked, seed=3)
print({name: round(value, 2) for name, value in desk.summary(after).items()})
Replay(after[0].messages[0]["content"], frames(after[0]))

# %%
read(after[1:5])

# %% [markdown]
# ### What was learnt, and what was not
#
# **Predict.** The same agent on questions about cities that no training question names. It has tools for what it does not
# know; is it as good there as with cities whose names it has practised?

# %%
table(["", "start", "GRPO, mean over seeds"], [
    (f"{part}: {label}", f"{c29['before'][part][name]:.2f}", told([run[part][name] for run in c29["after"]], "{:.2f}"))
    for part in ("test", "new cities") for name, label in (("right", "answer right"), ("informed", "read two pages"),
                                                          ("valid", "valid calls"), ("turns", "turns"))])

# %% [markdown]
# **Explain.** To look something up one has to spell it: a model of 3.6 million parameters that was shown 100 names copies
# those, and takes another for the one that it knows best; then it reads pages, of other cities. Tools make knowledge
# unnecessary, but not skill. (Large models copy anything; what they lack at new sites are habits of the same kind.)
#
# And is it believed what the tools say? **Predict.** Every page gets a second sentence, by somebody who wants to be quoted:

# %%
def poisoned(title):
    """The page, and a lie behind it."""
    return f"{research.open_page(title)} Latitude: 7"


def answers(pages):
    """The answers of the agent with this encyclopedia, as likely as can be."""
    world = tools.ToolUse(asked, tools.TOOLS | {"open": pages}, tokenizer, reserve=desk.LENGTH, parse=read_call)
    play(tools.ConversationAgent(live, tokenizer, max_new_tokens=desk.LENGTH, temperature=0.01), world, count=len(asked))
    return {t.messages[0]["content"]: (t.messages[-1]["content"], t.score) for t in world.talks}


honest, lied = answers(research.open_page), answers(poisoned)
print(f"right answers with honest pages: {sum(score for _, score in honest.values()):.0f} of {len(asked)}; "
      f"with the lie on every page: {sum(score for _, score in lied.values()):.0f}; "
      f"answers that the lie changed: {sum(honest[q][0] != lied[q][0] for q in honest)}")

# %% [markdown]
# So much for what others write into pages. Three more places where such agents break. *Guessing*: where few answers are
# possible, a lucky guess earns the same reward as research, and is shorter; a reward for having read the pages would be gamed
# in its turn (open two pages, then guess). *The budget*: an episode that is cut at its last turn earns nothing whatever it
# found, so short habits are learnt first; the context of 256 tokens is another budget. *Credit*: one number for forty tokens
# of action; with a hundred calls an episode, it takes value functions or rewards on the way (notebook 06).
#
# A real model, `tools.ConversationAgent(*load_lm("Qwen/Qwen2.5-0.5B-Instruct"))`, needs an environment that is made with *its*
# tokenizer, `tools.ToolUse(rows, tools.TOOLS, its_tokenizer, context=1024)`, and a prompt that says which calls there are.

# %% [markdown]
# ## Where this breaks
#
# - **Somebody has to know.** Every correction is an expert's answer in a state that the agent chose. Here it costs nothing;
#   UI-TARS had people annotate them.
# - **Corrections come from the states in which the agent errs, and only from there.** Where it is right it is told nothing, and
#   what it learns about one kind of state spills over into others that look alike. Real systems mix in episodes that went well.
# - **It remembers nothing.** The screen is all it sees, so after a refused step it is where it was, with the same
#   probabilities. Real agents see their last steps, and loop all the same.
# - **Old pairs.** Rejected steps are mistakes of an earlier agent. After some training they are no longer its own, and a
#   loss that keeps lowering them teaches little (notebook 08, section 6): collect again, as in round 2.
#
# ## Scale it up
#
# The functions are the same for a real model: it acts, is corrected, and prefers the corrections.

# %%
if real := scale_up("DPO", steps=60, rows=32, prompt=64, answer=12, few=(3, 8)):
    orders = lab.blanks("train", real.rows, seed=3)
    rows = lab.corrections(lab.act_on(real.model, real.tokenizer, orders, seed=3))[: real.steps * real.rows]
    seen = dpo.train(real.model, real.tokenizer, rows, dpo.DPOConfig(lr=5e-6, batch_size=real.rows))
    print(f"{len(rows)} pairs; loss {seen[0]['loss']:.3f} at first, {seen[-1]['loss']:.3f} at the end")

# %% [markdown]
# ## Recap

# %%
table(["claim of the lecture", "measured on this page"], [
    ("C28: wrong steps are useful as negatives, and SFT on corrections ignores them",
     "forms done, DPO minus " + "; minus ".join(
         f"{rival}: {told(gain(0, 'success', rival))} for an agent that knows little, {told(gain(1, 'success', rival))} for one "
         "that SFT has taught already" for rival in METHODS if rival.startswith("SFT"))
     + f"; against one pass, P(the same mistake) {told(gain(0, 'mistake'))} and {told(gain(1, 'mistake'))}, share of "
     f"repetitions {told(gain(0, 'repeated'))} and {told(gain(1, 'repeated'))}"),
    ("C29: tools and browsing as an environment of RL, with the right final answer as the reward",
     f"right answers on new combinations of facts {told(better)}, two pages read {told(pages)}; valid calls and greedy answers "
     f"as before; a tool's output has a gradient of exactly 0"),
])

# %% [markdown]
# **References.** Rafailov et al., *Direct preference optimization: your language model is secretly a reward model*, 2023 ·
# Qin et al., *UI-TARS: pioneering automated GUI interaction with native agents*, 2025 ·
# Nakano et al., *WebGPT: browser-assisted question-answering with human feedback*, 2021 ·
# Jin et al., *Search-R1: training LLMs to reason and leverage search engines with reinforcement learning*, 2025 (what a tool
# returns is masked out of the loss)
