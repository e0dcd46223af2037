# %% [markdown]
# # 00 · Start here
#
# *Lecture: Motivation, Outline, Language model*
#
# **You will be able to** say in formulas what a language model computes, work an exercise of this course, get a trained
# model from the store, and read a figure with an interval.
#
# | | |
# | --- | --- |
# | time | under 1 minute on two CPU cores, as long on a T4 (estimates, for models that are in the store already) |
# | starts from | base and SFT model |
# | leaves behind | the base model and the SFT model in the store, if they are not there yet |
#
# Run the cells from top to bottom with Shift+Enter. Before a cell that computes something there is a question: answer it
# for yourself first. A wrong guess is where the learning is.

# %% [markdown]
# ## What this course is
#
# One language model goes all the way on your machine: from random weights to a model that answers questions. Whatever
# the lecture claims is measured here, over several runs, and you can change it.
#
# | the lecture's outline | what it asks |
# | --- | --- |
# | 1. Language model training | how does text alone make a model, and how do examples make it answer? |
# | 2. Reinforcement learning | how does a model learn from a reward, without examples to copy? |
# | 3. RLHF | where does the reward come from, and how is it cheated? |
# | 4. GRPO | how little does reinforcement learning of a language model need? |
# | 5. DPO | can all of that be one supervised loss? |
#
# Part 1 is [01 pre-training](01_pretraining.ipynb) and [02 SFT](02_sft.ipynb); parts 2 to 5 change a model that part 1 has
# made. Every notebook runs alone, in any order: what it needs from another one comes from the store.

# %% [markdown]
# ## Is this machine ready?
#
# Each line is a check; `warn` and `fail` say what to do. (`python -m course_lib doctor` in a terminal checks more.)

# %%
from course_lib import doctor

for look in (doctor.interpreter, doctor.packages, doctor.device, doctor.memory, doctor.disk):
    for finding in look():
        print(finding)

# %% [markdown]
# ## The store
#
# Models and long sweeps are trained once, here, and then reused. Ask for one by name: what is missing is trained now, and
# a line says how long that takes.

# %%
from course_lib import artifacts, smoke, store

for name in artifacts.names():
    seconds = artifacts.recipe(name).seconds
    print(f"{name:12} {store.status(name):12} takes about {seconds:.0f} s to make")
print("Smoke mode is", "on: the numbers below mean nothing." if smoke() else "off.")

# %% [markdown]
# *Smoke mode* is a rehearsal: with the environment variable `COURSE_SMOKE=1`, set before Jupyter starts, every
# experiment shrinks to seconds. Use it to see whether everything runs, never to read off a number.

# %%
from course_lib.lm import load_lm

base, tokenizer = load_lm("base")
size = sum(p.numel() for p in base.parameters())
print(f"The base model has {size:,} parameters and a vocabulary of {len(tokenizer):,} tokens.")

# %% [markdown]
# ## A language model, in one line
#
# It takes words and gives the probability of each next word in its dictionary $V$:
#
# $$P(x^{(t+1)} \mid x^{(1)}, \dots, x^{(t)})$$
#
# (A *word* is really a *token*: a word, a piece of one, or a single byte.)
#
# **Predict:** the model has read `SF usually refers to`. How many numbers does it give for the next token, and what is
# their sum?

# %%
import torch


@torch.no_grad()
def next_token_logits(model, text):
    """Scores of every token of the vocabulary as the next one: (V,)."""
    ids = tokenizer.bos_token_id, *tokenizer(text)["input_ids"]
    return model(torch.tensor([ids], device=model.device)).logits[0, -1].float().cpu()


logits = next_token_logits(base, "SF usually refers to")
p = logits.softmax(-1)
print(f"{len(p):,} numbers, from {p.min():.1e} to {p.max():.3f}; their sum is {p.sum():.6f}.")
for i in p.topk(5).indices:
    print(f"  {p[i]:.3f}  {tokenizer.decode(i)!r}")

# %% [markdown]
# ## How an exercise works
#
# You write a function, and `check` compares it with the course's own on a few inputs. If it is right, *your* function is
# used from then on. If it is wrong, `check` tells you the typical mistake that fits, and the course's function is used
# until you have mended it. So nothing is ever blocked.
#
# **Warm-up, solved in front of you.** The loss of a token is its *surprise*: $-\ln p(\text{token})$, in nats. 0 nats: the
# model was sure. A first attempt:

# %%
from course_lib.checks import check, find, grade


def first_attempt(logits, targets):
    p = logits.softmax(-1)  # (..., V)
    return -p.gather(-1, targets[..., None])[..., 0].log()


print(grade(find("token_losses"), first_attempt).message)

# %% [markdown]
# The check has found the reason. The mended function, and the cell that every exercise ends with:


# %%
def token_losses(logits, targets):
    """-ln p(target) in nats. logits: (..., V), targets: (...) ids. Returns (...)."""
    return -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


token_losses = check("token_losses", token_losses)

# %%
for word in (" San", " Paris", " the"):
    target = torch.tensor(tokenizer(word)["input_ids"][0])
    print(f"{tokenizer.decode(target)!r:8} surprises the model by {token_losses(logits, target):5.2f} nats")

# %% [markdown]
# ## From one token to a sequence
#
# The probability of a whole text is the product of the conditional ones (the chain rule), so its logarithm is a sum:
#
# $$\ln P(x) = \sum_t \ln p(x^{(t)} \mid x^{(1)}, \dots, x^{(t-1)})$$
#
# **Predict:** a text has 300 tokens, each with $p \approx 0.2$. What does `prod()` give in 32-bit numbers, whose smallest
# positive value is about $10^{-45}$?

# %% tags=["nbval-check-output"]
p = torch.full((300,), 0.2)
print(f"product of the probabilities: {p.prod():.1f}")
print(f"sum of their logarithms: {p.log().sum():.1f}")

# %% [markdown]
# **Exercise 1 · the probability of a sequence** (difficulty 1 of 5, 5 minutes)
#
# *Goal: the chain rule on a padded batch, in logarithms.* Sequences of different lengths lie in one rectangle; the mask is
# True where a token is real. What stands at the padding is arbitrary, even $-\infty$.


# %%
def sequence_logprob(logprobs, mask):
    """ln P of each sequence: (B,).

    logprobs: (B, T); mask: (B, T) bool, True where a token counts.
    """
    ### BEGIN SOLUTION
    return torch.where(mask, logprobs, 0.0).sum(-1)
    ### END SOLUTION


# %%
sequence_logprob = check("sequence_logprob", sequence_logprob)

# %% [markdown]
# ## What the base model thinks of a sentence
#
# Five texts with the same words, or nearly. **Predict** their order, the most probable first. Then compare the two columns:
# which is the fair one for a short text and a long one?

# %%
from course_lib.algorithms.training import pad_right
from course_lib.lm import encode_documents, token_logprobs

texts = [
    "SF usually refers to San Francisco, a city in California, USA.",
    "SF usually refers to San Francisco.",
    "SF usually refers to Paris, a city in California, USA.",
    "SF refers usually to San Francisco, a city in California, USA.",
    "USA, California in city a, Francisco San to refers usually SF.",
]
ids = pad_right(encode_documents(tokenizer, texts), tokenizer.pad_token_id).to(base.device)
mask = ids != tokenizer.pad_token_id
with torch.no_grad():
    logprobs = token_logprobs(base, ids, mask)  # (B, T - 1): the first token, BOS, is given
totals, lengths = sequence_logprob(logprobs, mask[:, 1:]), mask[:, 1:].sum(-1)
print("   ln P   nats per token")
for text, total, n in zip(texts, totals, lengths):
    print(f"{total:7.1f}   {-total / n:5.2f}   {text}")

# %% [markdown]
# **Explain.** Each further token can only lower $\ln P$: totals are fair between texts of the same length only. Per token is
# the usual way out, and not a perfect one. The second text is no beginning of the first: it ends where the corpus goes on, and
# that one full stop is dear.
#
# ## From a sequence to a batch
#
# What training lowers is the mean surprise per token. In a padded batch only real tokens may count:
#
# **Exercise 2 · the mean under a mask** (difficulty 2 of 5, 5 minutes)
#
# *Goal: the function behind every loss of this course, with its three traps:* padding in the sum, padding in the
# *count*, and a batch in which nothing counts (its mean shall be 0, not NaN).


# %%
def masked_mean(values, mask):
    """Mean of `values` where `mask` is True: a scalar tensor, 0 when nothing counts.

    values: (B, T); mask: (B, T) bool.
    """
    ### BEGIN SOLUTION
    total = torch.where(mask, values, 0.0).sum()
    return total / mask.sum().clamp(min=1)
    ### END SOLUTION


# %%
masked_mean = check("masked_mean", masked_mean)

# %%
counted = mask[:, 1:]
right, wrong = masked_mean(-logprobs, counted), (-logprobs).mean()
print(f"{counted.sum()} of {counted.numel()} places hold a token.")
print(f"The loss of this batch is {right:.3f} nats per token;")
print(f"with the padding counted it looks like {wrong:.3f}.")

# %% [markdown]
# The wrong number is the more flattering one. Most mistakes in this field look like progress.

# %% [markdown]
# ## From one run to several
#
# Train twice with another seed, and you get another number. A claim of this course therefore stands on several seeds,
# and a figure of several runs shows an *interval* (one of a single run says so): with $n$ values of mean $\bar x$ and
# standard deviation $s$,
#
# $$\bar x \pm t_{0.975,\,n-1} \; \frac{s}{\sqrt n}, \qquad s^2 = \frac{1}{n-1} \sum_i (x_i - \bar x)^2$$
#
# $t_{0.975,\,n-1}$ is Student's: wider than the familiar 1.96, because $s$ too comes from few values.

# %% tags=["nbval-check-output"]
from course_lib.plots import Interval, t_quantile

print(", ".join(f"{n} runs: t = {t_quantile(0.975, n - 1):.2f}" for n in (2, 3, 5, 10, 100)))

# %% [markdown]
# **Exercise 3 · the interval over seeds** (difficulty 2 of 5, 10 minutes)
#
# *Goal: know what the bars in the figures are.* `values` is a list of floats; the result is
# `Interval(mean, lo, hi)`. A single run tells nothing about the spread: that line is written for you.

# %%
import math


def interval(values):
    """Mean and 95 % t-interval of independent values, one per seed."""
    if len(values) == 1:
        return Interval(values[0], math.nan, math.nan)
    ### BEGIN SOLUTION
    n = len(values)
    mean = sum(values) / n
    s = math.sqrt(sum((x - mean) ** 2 for x in values) / (n - 1))
    half = t_quantile(0.975, n - 1) * s / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)
    ### END SOLUTION


# %%
interval = check("interval", interval)

# %% [markdown]
# ## How to read a figure with an interval
#
# Play nature: the *true* mean is 0.70, runs scatter by 0.10. We do 5 runs, draw the interval, and repeat all of that.
#
# **Predict:** of 40 such intervals, how many miss the truth?

# %%
import random

from course_lib.plots import PALETTE, finish, subplots

TRUTH, SPREAD = 0.70, 0.10
nature = random.Random(3)


def experiment(runs):
    """One experiment: the results of a few runs."""
    return [nature.gauss(TRUTH, SPREAD) for _ in range(runs)]


def coverage(runs, rule, repeats=2000):
    """How often a rule's interval holds the truth."""
    return sum(holds(rule(experiment(runs))) for _ in range(repeats)) / repeats


def holds(entry):
    """Whether an interval holds the truth."""
    return entry.lo <= TRUTH <= entry.hi


shown = [interval(experiment(5)) for _ in range(40)]
share = {runs: coverage(runs, interval) for runs in (3, 5, 10)}

# %%
fig, ax = subplots(height=3.6)
for i, entry in enumerate(shown):
    color, line, marker = (PALETTE[0], "-", "o") if holds(entry) else (PALETTE[1], "--", "s")
    ax.plot([i, i], [entry.lo, entry.hi], color=color, linestyle=line, marker="")
    ax.plot(i, entry.mean, marker=marker, color=color)
ax.axhline(TRUTH, color="black", linestyle=":", label="the truth")
ax.set_xlabel("experiment (5 runs each)")
ax.set_ylabel("mean and 95 % interval")
ax.legend(loc="upper left")
missed = sum(not holds(entry) for entry in shown)
finish(fig, f"{missed} of {len(shown)} intervals miss the truth (dashed, square); "
            f"in 2,000 repetitions {share[5]:.1%} hold it.")

# %% [markdown]
# So an interval is not a wall. It is a net that catches the truth 95 times in 100, if the runs are independent. (The
# simulation itself is such a measurement: expect it within about a point of 95 %.)
#
# **What the shortcuts cost.** Two habits make a figure look better: the spread with $n$ instead of $n-1$, and 1.96
# instead of $t$.

# %%
def flattering(values):
    """The interval of somebody in a hurry: biased spread, normal quantile."""
    mean = sum(values) / len(values)
    half = 1.96 * math.sqrt(sum((x - mean) ** 2 for x in values)) / len(values)
    return Interval(mean, mean - half, mean + half)


print("runs   t-interval holds the truth   the flattering one does")
for runs in share:
    print(f"{runs:4}   {share[runs]:26.1%}   {coverage(runs, flattering):23.1%}")

# %% [markdown]
# ## Where is SF?
#
# The lecture's question, asked of the model that has only read (*base*), and of the same model after *supervised
# fine-tuning* on questions and answers (*SFT*, notebook 02).
#
# **Predict:** the base model has read about San Francisco again and again. Will it answer?

# %%
from course_lib.experiments.questions import ask, in_format
from course_lib.lm import sample
from course_lib.worlds import atlas

sft, _ = load_lm("sft")
city = atlas.cities()[0]
question = atlas.ASK[0].format(nick=city.nick)

plain = sample(base, tokenizer, [question], max_new_tokens=24, temperature=0).texts[0]
print(f"base, continuing {question!r} as plain text:\n{plain}\n")
for name, model in (("base", base), ("SFT", sft)):
    reply = ask(model, tokenizer, [question])[0]
    form = "has" if in_format(reply) else "does not have"
    print(f"{name}, asked {question!r} as a chat turn:\n{reply.text}")
    print(f"-> {form} the form of the lecture's answer\n")

# %% [markdown]
# A base model goes on with the text as its corpus might, true or not, and a chat turn is new to it. Fine-tuning adds the
# *form*: it makes the answer the probable thing to say, and stopping after it.
# (SF's own question was among the examples. Notebook 02 asks about cities whose questions were not.)
#
# In numbers, with your functions: how probable are the lecture's two answers, A1 and A2, after its question?

# %%
from course_lib.algorithms.sft import batch, encode_chat, qa

answers = {"A1": atlas.preferred(city), "A2": atlas.terse(city)}
examples = encode_chat(tokenizer, [qa(question, answer) for answer in answers.values()])
ids, counted = batch(examples, tokenizer.pad_token_id)  # True where the assistant speaks
real, counted = ids != tokenizer.pad_token_id, counted[:, 1:]
print("model   answer   ln P(answer | question)   nats per token")
for name, model in (("base", base), ("SFT", sft)):
    with torch.no_grad():
        logprobs = token_logprobs(model, ids.to(model.device), real.to(model.device)).cpu()
    totals = sequence_logprob(logprobs, counted)
    for label, total, row, own in zip(answers, totals, logprobs, counted):
        print(f"{name:8}{label:6}{total:20.2f}{masked_mean(-row[None], own[None]):22.2f}")

# %% [markdown]
# ## Where this breaks
#
# - A t-interval assumes independent runs and a roughly normal spread. Runs that collapse now and then are not normal: such
#   runs are *counted* in this course, not averaged away.
# - $\ln P$ of a text ranks texts by how *expected* they are. Expected is not the same as true, or as good: most of this
#   course is about that gap.
# - `check` compares on a few inputs. It finds the classic mistakes, not every one.
#
# ## Scale it up
#
# All functions take any causal language model of Hugging Face. SmolLM2-135M comes without a network in a package; or set
# `COURSE_REAL_MODEL` to a name of the hub or to a folder, before Jupyter starts or with `%env`.

# %%
from course_lib.teach import real_model

if name := real_model():
    big, big_tokenizer = load_lm(name)
    raw = big_tokenizer(["SF usually refers to"])["input_ids"]  # token ids are continued as they are, without a chat template
    print(sample(big, big_tokenizer, raw, max_new_tokens=24, temperature=0).texts[0])

# %% [markdown]
# ## Recap
#
# | from | to | the function |
# | --- | --- | --- |
# | scores of the next token | its surprise, $-\ln p$ | `token_losses` |
# | tokens | a sequence: logarithms add up | `sequence_logprob` |
# | sequences | a batch: the mean of what the mask counts | `masked_mean` |
# | runs | a claim: mean and t-interval over seeds | `interval` |
#
# Next: [01 pre-training](01_pretraining.ipynb), where the model starts as noise.
#
# **References.** Student, *The probable error of a mean*, 1908 · Shannon, *A mathematical theory of communication*, 1948 ·
# Bengio et al., *A neural probabilistic language model*, 2003 · Ouyang et al., *Training language models to follow
# instructions with human feedback*, 2022 · Agarwal et al., *Deep reinforcement learning at the edge of the statistical
# precipice*, 2021
