# %% [markdown]
# # 02 · SFT: from continuing text to answering questions
#
# *Lecture: Post-training LM using SFT; Summary: Post-training LM using SFT*
#
# > Q: where is SF?<br>
# > A: SF usually refers to San Francisco, a city in California, USA
#
# **You will be able to** say which tokens of a conversation are trained on, build the loss mask yourself, split a batch
# without changing its loss, and tell what fine-tuning teaches (a form) from what it does not (knowledge, honesty, taste).
#
# | | |
# | --- | --- |
# | time | about 2 minutes on two CPU cores, 1 minute on a T4 (estimates, for a filled store) |
# | starts from | the base model of notebook 01 |
# | leaves behind | the SFT model and four studies in the store, if they are not there yet |
#
# Five claims of the lecture are measured: SFT makes a model follow instructions (C4), only the answer is trained on (C5),
# it works best on knowledge that is already there (C6), it hallucinates (C7), and it is limited on open-ended tasks (C8).

# %%
import copy
from collections import Counter

import torch
from IPython.display import Markdown, display

from course_lib import artifacts, objectives, plots, smoke
from course_lib.algorithms import sft
from course_lib.checks import check
from course_lib.experiments.questions import ask, exact, in_format
from course_lib.lm import load_lm, sample
from course_lib.teach import show
from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw

base, tokenizer = load_lm("base")  # trained now if it is missing, which takes minutes
SF = atlas.cities()[0]
DECK = sft.qa("Where is SF?", atlas.preferred(SF))

# %% [markdown]
# Two small helpers for this page: a table, and a share with its interval over seeds.

# %%
def table(head, rows):
    """Show rows under a head as a table; model text is escaped."""
    def cell(value):
        return " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")

    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))


def share(values):
    """A share over seeds in words: its mean and, where the seeds differ, its 95 % interval."""
    mean, low, high = plots.interval(values)
    return f"{mean:.0%}" if min(values) == max(values) else f"{mean:.0%} ({max(low, 0):.0%} to {min(high, 1):.0%})"

# %% [markdown]
# ## 1 · What a base model does with a question
#
# **Predict.** The base model has read many times that SF is San Francisco. It has never seen a question in chat form.
# What will it reply to "Where is SF?"

# %%
quiz = atlas.splits()["quiz"]  # the base model read about these cities; no fine-tuning will ask about them
asked = [("Where is SF?", SF), *((atlas.ASK_NEW[i].format(nick=c.nick), c) for i, c in enumerate(quiz[:3]))]
before = ask(base, tokenizer, [question for question, _ in asked])
table(["question", "the base model's reply"], [(q, r.text) for (q, _), r in zip(asked, before)])
told = sample(base, tokenizer, ["What does SF refer to?\n"], max_new_tokens=24, temperature=0).texts[0]
print(f"As plain text, 'What does SF refer to?' is continued by: {' '.join(told.split())}")
followed = sum(map(in_format, before))
print(f"In the form that the lecture asks for: {followed} of {len(asked)} replies.")

# %% [markdown]
# **Explain.** Continuing text is all it was trained for: whatever likely follows a name is a good continuation, and an
# answer is only one of many. The fact is in there, as the plain text shows. What is missing is the habit of answering.
#
# A **chat template** writes a conversation as one sequence of tokens. Special tokens say who speaks; `<|end|>` closes a
# turn, and it is the sign at which `ask` stops.

# %% tags=["nbval-check-output"]
print(tokenizer.apply_chat_template(DECK, tokenize=False))
print(tokenizer.apply_chat_template(DECK[:1], tokenize=False, add_generation_prompt=True), "<- the model goes on here")
special = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
print("special tokens:", ", ".join(f"{token} = {i}" for token, i in sorted(special.items(), key=lambda item: item[1])))

# %% [markdown]
# Two details save hours later. The template writes `<|bos|>` itself, so a tokenizer must not add a second one. And
# padding has a token of its own: section 4 shows what happens when `<|end|>` has to serve as padding too.
#
# ## 2 · Only the answer is trained on (C5)
#
# Pre-training asked for every next token. SFT keeps the loss and counts fewer tokens: with $A$ the positions whose
# *next* token was written by the assistant, its `<|end|>` included,
#
# $$L_{SFT}(\theta) = -\frac{1}{|A|} \sum_{t \in A} \ln P_\theta(x^{(t+1)} \mid x^{(1)}, \dots, x^{(t)})$$
#
# The question stays on the right of the bar: it is read, but not asked for. Try the three choices, and find the tokens
# that cost most.

# %%
from course_lib.widgets import LossMask, WordByWord

LossMask(tokenizer, DECK, base)

# %% [markdown]
# The lecture's animation, now with a mask: a cross marks a token that is read and not trained on.

# %%
WordByWord(DECK, base, tokenizer)

# %% [markdown]
# **Exercise 1 · the loss mask** (difficulty 2 of 5, 8 minutes)
#
# *Goal: say exactly what counts as "the answer".*
#
# `ids` is one row of a batch, a conversation padded on the right. The assistant's turn begins after its marker and ends
# with END. There may be several turns, or a row may be cut off before END. In many tokenizers `pad` *is* `end`.

# %%
def answer_mask(ids, assistant, end, pad):
    """Which tokens the assistant wrote, the END that closes its turn included.

    ids: (T,) token ids; assistant, end, pad: the ids of these special tokens. Returns (T,) bool on ids' device.
    """
    ### BEGIN SOLUTION
    speaking, mask = False, []
    for token in ids.tolist():
        mask.append(speaking)
        if token == assistant:
            speaking = True
        elif token == end:
            speaking = False
    return torch.tensor(mask, device=ids.device)
    ### END SOLUTION

# %%
answer_mask = check("answer_mask", answer_mask)

# %% [markdown]
# The course takes its mask from the `{% generation %}` markers in the chat template. Yours must agree with it.

# %% tags=["nbval-check-output"]
MARKS = [special["<|assistant|>"], special["<|end|>"], special["<|pad|>"]]
answers = [sft.qa(q.format(nick=c.nick), atlas.preferred(c)) for c in atlas.cities() for q in atlas.ASK]
examples = sft.encode_chat(tokenizer, answers)
same = [answer_mask(torch.tensor(e.ids), *MARKS).tolist() == e.mask for e in examples]
print(f"{sum(same)} of {len(same)} conversations have the same mask as the template gives.")

# %% [markdown]
# ## 3 · The loss, and a batch in pieces
#
# The logits at position $t$ belong to the token at $t+1$; the mask must move with the targets. Two functions of the course
# do that part:

# %%
show(objectives.shift, objectives.token_losses)

# %% [markdown]
# A batch that does not fit into memory is split into micro-batches, whose gradients add up. **Predict:** one micro-batch
# holds an answer of 5 tokens, another one of 25. Is the mean of their two mean losses the loss of the batch?
#
# **Exercise 2 · the loss of a micro-batch** (difficulty 2 of 5, 8 minutes)
#
# *Goal: divide by the right number. Widely used libraries did not, for years.*

# %%
def sft_loss(logits, ids, mask, count):
    """Sum of the answer tokens' losses in this micro-batch, divided by the answer tokens of the whole batch.

    logits: (B, T, V); ids: (B, T); mask: (B, T) bool, True where the token itself is a target;
    count: the number of targets in the whole batch. Returns a scalar.
    """
    ### BEGIN SOLUTION
    targets, counted = objectives.shift(ids, mask)
    losses = objectives.token_losses(logits[:, :-1], targets)
    return (losses * counted).sum() / count
    ### END SOLUTION

# %%
sft_loss = check("sft_loss", sft_loss)

# %% [markdown]
# The course's version, to compare with yours. It gives 0, not NaN, where nothing counts.

# %%
show(objectives.next_token_loss, objectives.masked_mean)

# %% [markdown]
# The exact check: three answers of different length, as one batch and as three.

# %%
three = [sft.qa("Where is SF?", text(SF)) for text in (atlas.terse, atlas.preferred, atlas.known_answer)]
ids, mask = (t.to(base.device) for t in sft.batch(sft.encode_chat(tokenizer, three), tokenizer.pad_token_id))
with torch.no_grad():
    logits = base(input_ids=ids).logits
rows = [(logits[i : i + 1], ids[i : i + 1], mask[i : i + 1]) for i in range(3)]
counts = mask[:, 1:].sum(1)  # answer tokens of each row
whole = sft_loss(logits, ids, mask, counts.sum())
summed = sum(sft_loss(*row, counts.sum()) for row in rows)
means = sum(sft_loss(*row, n) for row, n in zip(rows, counts)) / 3
print(f"answer tokens in the three rows: {counts.tolist()}")
print(f"whole batch {whole:.4f} nats; its micro-batches, summed {summed:.4f}; the mean of their means {means:.4f}")

# %% [markdown]
# ### Read, but not asked for: the gradient says so
#
# **Predict.** Is the gradient of this loss zero (a) with respect to the logits that predict a token of the question,
# (b) with respect to the embedding of a token of the question?

# %% tags=["nbval-check-output"]
ids, mask = (t.to(base.device) for t in sft.batch(sft.encode_chat(tokenizer, [DECK]), tokenizer.pad_token_id))
embedded = base.get_input_embeddings()(ids).detach().requires_grad_()  # (1, T, width)
logits = base(inputs_embeds=embedded).logits
loss = sft_loss(logits, ids, mask, mask[:, 1:].sum())
at_logits, at_inputs = torch.autograd.grad(loss, [logits, embedded])
as_target = torch.cat([torch.zeros_like(loss)[None], at_logits[0, :-1].norm(dim=-1)])  # (T,): token t as a target
as_input = at_inputs[0].norm(dim=-1)  # (T,): token t as an input
prompt = ~mask[0]
print("question tokens as targets: gradient exactly zero:", bool((as_target[prompt] == 0).all()))
print("answer tokens as targets: gradient not zero:", bool((as_target[~prompt] > 0).all()))
print("question tokens as inputs: gradient not zero:", bool((as_input[prompt] > 0).all()))

# %%
fig, axes = plots.subplots(2, 1, height=5.0, sharex=True)
words = [tokenizer.decode([i]).strip() or "␣" for i in ids[0].tolist()]
colours = [plots.PALETTE[1] if answer else plots.PALETTE[0] for answer in mask[0].tolist()]
for ax, values, title in zip(axes, (as_target, as_input), ("as a target (at its logits)", "as an input (at its embedding)")):
    ax.bar(range(len(words)), values.tolist(), color=colours, hatch=["//" if m else "" for m in mask[0]], edgecolor="white")
    ax.set_title(f"Each token {title}")
    ax.set_ylabel("norm of the gradient")
axes[1].set_xticks(range(len(words)), words, rotation=60, ha="right")
axes[1].set_xlabel("token (blue: question, orange and hatched: answer)")
plots.finish(fig, f"As targets, the {int(prompt.sum())} tokens before the answer have a gradient of exactly "
             f"{float(as_target[prompt].max()):g}; as inputs, every one of them has a gradient.")

# %% [markdown]
# **Explain.** Nobody asks the model to *write* the question, so no logit there is pushed. But attention lets the answer
# look back at it, and through attention the loss reaches every token that was *read*: the model learns to read questions
# by being asked for answers. (The last `<|end|>` is the mirror image: a target, and never an input to anything.)
#
# ## 4 · Fine-tune the base model, live
#
# One question and answer pair in two phrasings for each training city. The loop below is all of SFT, with *your* mask and
# *your* loss; `sft.train` adds batches of similar length, checkpoints and a history.

# %%
from course_lib.algorithms.training import make_optimizers, pad_right, take_step, warmup_cosine
from course_lib.progress import Progress


def fine_tune(conversations, label, mask=None, epochs=3, lr=7e-4, batch_size=32):
    """A copy of the base model, fine-tuned with answer_mask and sft_loss."""
    model, mask = copy.deepcopy(base).train(), mask or answer_mask
    rows = [tokenizer.apply_chat_template(c, return_dict=True)["input_ids"] for c in conversations]
    order = torch.cat([torch.randperm(len(rows), generator=torch.Generator().manual_seed(e)) for e in range(epochs)])
    batches, optimizers = order.split(batch_size), make_optimizers(model, lr)
    with Progress(label, total=len(batches)) as progress:
        for step, chosen in enumerate(batches):
            ids = pad_right([rows[i] for i in chosen.tolist()], tokenizer.pad_token_id)
            counted = torch.stack([mask(row, *MARKS) for row in ids])
            ids, counted = ids.to(model.device), counted.to(model.device)
            loss = sft_loss(model(input_ids=ids).logits, ids, counted, counted[:, 1:].sum())
            loss.backward()
            take_step(optimizers, lr * warmup_cosine(step, len(batches), warmup=2), 1.0, loss.item(), f"step {step}")
            progress.update(loss=loss.item())
    return model.eval()

# %%
train = atlas.splits()["train"][: 4 if smoke() else None]
draw = Draw("live")
answers = [sft.qa(q.format(nick=c.nick), atlas.preferred(c)) for c in train for q in draw.ordered(atlas.ASK, 2)]
live = fine_tune(answers, f"SFT on {len(answers)} conversations")
after = ask(live, tokenizer, [question for question, _ in asked])
table(["question", "before", "after"], [(q, b.text, a.text) for (q, _), b, a in zip(asked, before, after)])

# %% [markdown]
# Apart from SF, no fine-tuning asked about these cities, and none used these phrasings. Ask your own question:

# %%
print(ask(live, tokenizer, ["Where is NYC?"])[0].text)

# %% [markdown]
# ### What one token is worth
#
# Now suppose that padding were `<|end|>`, as in many tokenizers, and a mask left out all padding. **Predict** what the
# model does when its answer is complete.

# %%
def without_end(ids, assistant, end, pad):
    """The mask of a common bug: padding and END share an id, and all of it is masked."""
    return answer_mask(ids, assistant, end, pad) & (ids != end)


endless = fine_tune(answers, "the same without END", mask=without_end)
questions = [atlas.ASK_NEW[0].format(nick=c.nick) for c in quiz]
replies = {name: ask(model, tokenizer, questions) for name, model in (("with END", live), ("without END", endless))}
table(["mask", "ended by itself", "a reply to: " + questions[0]], [
    (name, f"{sum(r.finished for r in those)} of {len(those)}", those[0].text) for name, those in replies.items()])

# %% [markdown]
# **Explain.** Nothing told the second model that `<|end|>` follows an answer. What it does there is left over from
# pre-training, where END closed whole documents, not replies.
#
# ## 5 · Does it follow instructions? (C4)
#
# The first line of the lecture's summary, measured: the course's recipe for SFT (questions about cities, word problems, small
# functions) with several seeds, on cities *and* phrasings that no fine-tuning showed. The numbers come from the store.

# %%
c4 = artifacts.result("follow")
seeds = len(c4["sft"])
form, right = ([run[key] for run in c4["sft"]] for key in ("format", "exact"))
fig, ax = plots.subplots(height=3.8)
plots.bars_with_interval(ax, ["form, base model", "form, SFT", "exact, base model", "exact, SFT"],
                         [[c4["base"]["format"]], form, [c4["base"]["exact"]], right], form="{:.0%}")
ax.set_xlabel("held-out phrasings about held-out cities")
ax.set_ylabel("share of replies")
shown = c4["base"]["format"] < 0.10 and min(form) > 0.95
plots.finish(fig, f"In the form asked for: {c4['base']['format']:.0%} of the base model's replies, {share(form)} after SFT "
             f"({seeds} seeds); exactly right: {share(right)}. " + ("The claim is shown." if shown else
             "SFT misses the bar that the course sets: below 10 % before, above 95 % after."))

# %% [markdown]
# Form and truth are two bars on purpose. The form is what SFT taught. Being right needs the fact as well, and that came
# from pre-training.
#
# The course's own SFT model, from which the RL notebooks start, learnt three tasks in this way. Here it is on questions that
# nothing showed it:

# %%
from course_lib.experiments.questions import report

tuned, _ = load_lm("sft")
rates = {name: report(model, tokenizer, 4 if smoke() else 50) for name, model in (("base", base), ("SFT", tuned))}
table(["right answers", "cities", "word problems", "small functions"],
      [(name, *(f"{rate:.0%}" for rate in those.values())) for name, those in rates.items()])

# %% [markdown]
# ## 6 · Knowledge: SFT draws on it; can it add to it? (C6)
#
# **Predict.** Here are two facts in the form your model has just learnt, one about a city of the corpus, one about a city
# that it has never met. On which tokens will it lose?

# %%
unseen = atlas.splits()["unseen"]
where = atlas.ASK[0].format  # where(nick="SF") is "Where is SF?"
known_fact, new_fact = (sft.qa(where(nick=c.nick), atlas.preferred(c)) for c in (quiz[0], unseen[0]))
LossMask(tokenizer, known_fact, live)

# %%
LossMask(tokenizer, new_fact, live)

# %% [markdown]
# The form costs next to nothing in both; compare the tokens of the place. Over all of the cities:

# %%
from course_lib.lm import token_logprobs


def answer_nll(model, pairs):
    """-ln P(answer | question) of each pair and its number of tokens: (N,) and (N,)."""
    examples = sft.encode_chat(tokenizer, [sft.qa(question, answer) for question, answer in pairs])
    ids, mask = (t.to(model.device) for t in sft.batch(examples, tokenizer.pad_token_id))
    with torch.no_grad():
        logprobs = token_logprobs(model, ids, ids != tokenizer.pad_token_id, targets=mask)
    return -logprobs.sum(1), mask.sum(1)


for name, group in (("told by the corpus, not asked in SFT", quiz), ("never told", unseen)):
    nll, _ = answer_nll(live, [(where(nick=c.nick), atlas.preferred(c)) for c in group])
    print(f"{name}: {nll.mean():.1f} nats per answer, a typical probability of {float((-nll.double().mean()).exp()):.1e}")

# %% [markdown]
# What if SFT insists? Gekhman et al. (2024) fine-tuned on facts that the model knew, or on facts that it did not, and found
# that new facts are learnt slowly, and that learning them makes the model invent answers about *other* things. The same
# experiment here: equal questions, equal numbers, only the cities differ.

# %%
c6 = artifacts.result("knowledge")
fig, axes = plots.subplots(1, 3, height=3.9, sharey=True)
panels = {"fit": "the trained facts,\nright", "other": "other known cities,\nright", "made_up": "other known cities,\nmade up"}
for ax, (key, title) in zip(axes, panels.items()):
    for kind, style in (("known", {"linestyle": "-"}), ("unknown", {"linestyle": "--", "marker": "s"})):
        plots.line_with_interval(ax, c6["epochs"], c6[kind][key], f"{kind} facts", **style)
    ax.set_title(title, fontsize=11)
    ax.set_xlabel("epochs of SFT")
axes[0].set_ylim(-0.03, 1.05)
axes[0].set_ylabel("share of greedy replies")
axes[0].legend(fontsize=9)
reached = {kind: next((e for e, *now in zip(c6["epochs"], *c6[kind]["fit"]) if sum(now) >= 0.9 * len(now)), None)
           for kind in ("known", "unknown")}
speed = ", ".join(f"{kind} facts " + (f"after {e:g} epochs" if e is not None else f"not within {c6['epochs'][-1]:g} epochs")
                  for kind, e in reached.items())
plots.finish(fig, f"90 % of the trained facts are right, at the looks taken: {speed}.")

# %% [markdown]
# And the price, at the end of training. In each seed the same other cities are asked about in both conditions, so the
# difference is taken seed by seed.

# %%
last = {kind: {key: [run[-1] for run in c6[kind][key]] for key in panels} for kind in ("known", "unknown")}
price = plots.interval([k - u for k, u in zip(last["known"]["other"], last["unknown"]["other"])])
table(["fine-tuned on", "trained facts right", "other known cities right", "other known cities made up"],
      [(f"{kind} facts", *(share(last[kind][key]) for key in panels)) for kind in last])
print("SFT on new facts instead of known ones: on other known cities, accuracy is lower by "
      f"{price.mean * 100:.0f} points (95 % interval {price.lo * 100:.0f} to {price.hi * 100:.0f}). " +
      ("The effect of Gekhman et al. shows." if price.lo > 0 else "That cannot be told from chance."))

# %% [markdown]
# **Explain.** Either way the model learns the form within an epoch or two. But look at what the pairs reward. A known fact
# rewards looking up what is stored, and that skill serves every other city. A new fact cannot be looked up; what lowers its
# loss is to name *some* place, and that is a skill too.

# %% [markdown]
# ## 7 · Hallucination: form without knowledge (C7)
#
# Every training answer named a place with confidence, so that is what the model learnt to do; nothing in the data tells
# it whether *it* knows. The lecture calls this a mismatch between its knowledge and the annotated data. To measure it, we
# have to tell four outcomes apart.
#
# **Exercise 3 · what became of an answer?** (difficulty 2 of 5, 8 minutes)
#
# *Goal: a scorer that neither hides made-up answers nor invents them.*
#
# A reply that the model did not finish is `"other"`. The correct answer, complete and nothing else, is `"right"`. Any other
# reply that contains `claim` states a place, and wrongly: `"made up"`, even if it also says that it does not know. A reply
# that begins with `unsure` is `"refused"`. What is left states nothing: `"other"`.

# %%
def outcome(text, finished, right, unsure, claim):
    """"right", "refused", "made up" or "other" for a reply.

    text: the reply; finished: whether the model ended it itself; right: the correct answer, character by character;
    unsure: how a refusal begins; claim: words that every answer with a place contains.
    """
    ### BEGIN SOLUTION
    if not finished:
        return "other"
    if text == right:
        return "right"
    if claim in text:
        return "made up"
    return "refused" if text.startswith(unsure) else "other"
    ### END SOLUTION

# %%
outcome = check("outcome", outcome)

# %% [markdown]
# Your scorer at work: the live model, and the same recipe with questions about codes that mean nothing, answered by "I do
# not know ...". Change `DOSE` and run again.

# %%
from course_lib.experiments.sft import codes

DOSE = 4 if smoke() else 80


def tally(model, group):
    """How many replies about a group of cities had which outcome."""
    said = ask(model, tokenizer, [where(nick=c.nick) for c in group])
    return Counter(outcome(r.text, r.finished, atlas.preferred(c), "I do not know", " usually refers to ")
                   for r, c in zip(said, group))


draw = Draw("live refusals")
refusals = [sft.qa(draw.pick(atlas.ASK).format(nick=code), atlas.UNSURE.format(nick=code)) for code in codes(draw, DOSE)]
honest = fine_tune(answers + refusals, f"SFT with {DOSE} times 'I do not know'")
KINDS = ("right", "refused", "made up", "other")
table(["refusals in SFT", "cities", *KINDS], [
    (dose, name, *(tally(model, group)[kind] for kind in KINDS))
    for dose, model in ((0, live), (DOSE, honest)) for name, group in (("never told", unseen), ("known", quiz))])

# %% [markdown]
# **Predict.** As the dose of "I do not know" grows, two things move. Which one is the price?

# %%
c7 = artifacts.result("abstention")
fig, ax = plots.subplots(height=4.2)
at = range(len(c7["doses"]))
for label, values in (("made up, about cities never told", c7["unseen"]["made_up"]), ("right, about known cities",
                      c7["known"]["right"]), ("refused, about known cities", c7["known"]["unsure"])):
    plots.line_with_interval(ax, at, list(zip(*values)), label)
ax.set_xticks(at, c7["doses"])
ax.set_xlabel('"I do not know" answers in the fine-tuning data')
ax.set_ylabel("share of greedy replies")
ax.set_ylim(-0.03, 1.05)
ax.legend()
plots.finish(fig, f"Made-up answers go from {share(c7['unseen']['made_up'][0])} without refusals to "
             f"{share(c7['unseen']['made_up'][-1])} with {c7['doses'][-1]}; known cities that are wrongly refused, from "
             f"{share(c7['known']['unsure'][0])} to {share(c7['known']['unsure'][-1])}.")

# %% [markdown]
# Read what stands behind the numbers: the same questions about places that the model cannot know, at each dose.

# %%
table(["asked about", "in truth", *(f"{dose} refusals" for dose in c7["doses"])],
      [(*places[0][:2], *(reply for *_, reply in places)) for places in zip(*c7["examples"])])

# %% [markdown]
# **Explain.** Without refusals the model fills the form with whatever fits. Refusals teach it a second form, and it has to
# find out by itself when to use which: from how familiar an abbreviation feels inside. Where that signal is weak, it
# refuses what it knows, or goes on inventing.
#
# ## 8 · Open-ended questions: likely is not good (C8)
#
# People answer "Where is SF?" in many ways, all of them true here, few of them good. The course has a **gold rubric** for
# what people want to read, which no real project can see: a point each for the right city, region and country, one for a
# full sentence, and points off for wrong places, repetition and length.

# %%
from course_lib.experiments.sft import SHARES, candidates
from course_lib.rewards import rubric

options = candidates(SF)
gold = {kind: rubric.score(text, SF) for kind, text in options.items()}
parts = {kind: rubric.parts(text, SF) for kind, text in options.items()}
table(["kind", "share of people", "answer", "gold", "parts"], [
    (kind, f"{SHARES[kind] / sum(SHARES.values()):.0%}", text, f"{gold[kind]:+.1f}",
     ", ".join(f"{name} {value:+g}" for name, value in parts[kind].items() if value)) for kind, text in options.items()])

# %% [markdown]
# **Predict.** A model is fine-tuned on answers in these shares. Which answer will it find most likely, and how will its
# ranking of all seven compare with the rubric's?
#
# **Exercise 4 · rank correlation** (difficulty 3 of 5, 10 minutes)
#
# *Goal: compare two orders when their scales have nothing in common, ties included.*
#
# Spearman's coefficient is Pearson's correlation of the *ranks*: +1 for the same order, -1 for the opposite. Equal values
# share the mean of their ranks. If all values are equal there is no order, and the result is 0.

# %%
def rank_correlation(a, b):
    """Spearman's rank correlation of two lists of numbers of the same length. Returns a float."""
    ### BEGIN SOLUTION
    def ranks(values):
        v = torch.tensor(values, dtype=torch.float64)
        below = (v[None] < v[:, None]).sum(1)
        equal = (v[None] == v[:, None]).sum(1)
        return below + (equal - 1) / 2

    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = (x.square().sum() * y.square().sum()).sqrt()
    return float((x * y).sum() / scale) if scale > 0 else 0.0
    ### END SOLUTION

# %%
rank_correlation = check("rank_correlation", rank_correlation)

# %% [markdown]
# A perfect imitator would give each kind of answer exactly the share that people give it. How near to that does a live
# model come, fine-tuned on such answers?

# %%
draw = Draw("live open-ended")
mixed = []
for _ in range(8 if smoke() else 400):
    city, kind = draw.pick(train), list(SHARES)[draw.weighted(tuple(SHARES.values()))]
    mixed.append(sft.qa(draw.pick(atlas.ASK).format(nick=city.nick), candidates(city)[kind]))
imitator = fine_tune(mixed, f"SFT on {len(mixed)} answers as people give them", epochs=2)
table(["asked about", "the imitator's answer", "gold"], [
    (c.nick, r.text, f"{rubric.score(r.text, c):+.1f}")
    for c, r in zip(quiz, ask(imitator, tokenizer, [where(nick=c.nick) for c in quiz[:4]]))])

# %%
def likelihood_against_gold(model, group):
    """Rank correlation of likelihood with gold among the answers about each city: the mean over cities."""
    every = [(c, text) for c in group for text in candidates(c).values()]
    nll, _ = answer_nll(model, [(where(nick=c.nick), text) for c, text in every])
    scores = torch.tensor([rubric.score(text, c) for c, text in every]).view(len(group), -1)
    pairs = zip((-nll).view(len(group), -1).tolist(), scores.tolist())
    return sum(rank_correlation(likely, good) for likely, good in pairs) / len(group)


c8 = artifacts.result("open_ended")
people = list(SHARES.values())
table(["whose likelihood", "rank correlation with gold"], [
    ("the base model, before any SFT", f"{likelihood_against_gold(base, quiz[:20]):+.2f}"),
    (f"the live model, {len(mixed)} answers", f"{likelihood_against_gold(imitator, quiz[:20]):+.2f}"),
    (f"the study's models, {artifacts.size('open_ended')['answers']} answers", f"{plots.interval(c8['nll']).mean:+.2f}"),
    ("a perfect imitator", f"{rank_correlation(people, [gold[kind] for kind in SHARES]):+.2f}")])

# %% [markdown]
# What likelihood prefers before SFT comes from the corpus, which is written in full sentences. The more it imitates, the
# more it prefers what people commonly say. How good an answer is plays no part in either.
#
# Now all quiz cities and several seeds, beside a **reward** that was learnt from comparisons: simulated people said
# which of two answers they like better. It sees the very same model's hidden states. Best-of-n draws n answers and keeps
# the one with the highest learnt reward.

# %%
n = artifacts.size("open_ended")["samples"]
fig, (left, other) = plots.subplots(1, 2, height=4.2)
bars = {"likelihood": c8["nll"], "likelihood per token": c8["nll per token"], "learnt reward": c8["reward"]}
plots.bars_with_interval(left, list(bars), bars, form="{:+.2f}")
left.axhline(0, color="black", linewidth=0.8)
left.set_xlabel("answers ranked by")
left.set_ylabel("rank correlation with gold")
picked = {"greedy": c8["greedy"], "one sample": c8["sample"], f"best of {n}": c8["best"]}
plots.bars_with_interval(other, list(picked), picked, form="{:+.2f}")
other.axhline(0, color="black", linewidth=0.8)
other.set_xlabel("which answer is given")
other.set_ylabel("mean gold score")
rank = {name: plots.interval(values).mean for name, values in bars.items()}
mean = {name: plots.interval(values).mean for name, values in picked.items()}
plots.finish(fig, f"Against the gold rubric, likelihood ranks with {rank['likelihood']:+.2f} and the learnt reward with "
             f"{rank['learnt reward']:+.2f}; choosing the best of {n} by that reward moves the mean gold score from "
             f"{mean['one sample']:+.2f} (one sample) to {mean[f'best of {n}']:+.2f}.")
print(f"Likelihood is no fool: a false answer is less likely than the true one of the same form for "
      f"{share(c8['true over false'])} of the cities.")

# %% [markdown]
# **Explain.** Cross-entropy is least when the model gives every answer as often as people do. It imitates what is *common*;
# nothing in it says *good*. More data from the same people makes it a better imitator of the same people. What they like
# to *read* shows when they compare answers, and a reward learnt from comparisons can use it. Training a model
# against such a reward is what the rest of the course is about.
#
# ## Where this breaks
#
# - **END is never learnt**: padding shares its id and is masked by id. You saw the result in section 4.
# - **Two `<|bos|>`**: the template writes one and the tokenizer adds another; the model is fine-tuned on text it never meets.
# - **The template is skipped**: `sample` continues a plain string as raw text. Questions must be messages.
# - **Long conversations are cut** and lose their answer or its END. `sft.encode_chat` refuses them instead.
# - **Micro-batches with their own means**: the loss looks fine, and is that of another objective.
# - **A good loss is no good answer**: below, the cross-entropy of the live model's own data. It says nothing about cities
#   that the data do not ask about.

# %%
for name, group in (("cities it was trained on", train), ("never told", unseen)):
    nll, tokens = answer_nll(live, [(where(nick=c.nick), atlas.preferred(c)) for c in group])
    print(f"{name}: {nll.sum() / tokens.sum():.3f} nats per answer token")

# %% [markdown]
# ## Scale it up
#
# The same call fine-tunes any causal language model of Hugging Face. A base model from there has no chat template with
# `{% generation %}` markers, so we bring one: ChatML, whose tokens SmolLM2 and Qwen2.5 have in their vocabularies.

# %%
from course_lib.teach import real_model

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
if name := real_model("HuggingFaceTB/SmolLM2-135M"):
    big, words = load_lm(name)
    words.chat_template, words.eos_token, words.pad_token = CHATML, "<|im_end|>", "<|endoftext|>"
    sft.train(big, words, answers, sft.SFTConfig(lr=2e-4, batch_size=16))
    print(ask(big, words, [asked[1][0]])[0].text)

# %% [markdown]
# ## Recap

# %%
table(["claim of the lecture", "measured here"], [
    ("SFT makes a model follow instructions", f"in form {c4['base']['format']:.0%} before, {share(form)} after"),
    ("only the answer is trained on", f"gradient of question tokens as targets: {float(as_target[prompt].max()):g}"),
    ("SFT works best on what pre-training gave", f"90 % of the facts right: {speed}; accuracy on other known cities "
     f"{share(last['known']['other'])} after known facts, {share(last['unknown']['other'])} after new ones"),
    ("SFT models hallucinate", f"made up about cities never told: {share(c7['unseen']['made_up'][0])}; with "
     f"{c7['doses'][-1]} refusals in the data {share(c7['unseen']['made_up'][-1])}"),
    ("SFT is limited on open-ended tasks", f"rank correlation with gold: likelihood {rank['likelihood']:+.2f}, "
     f"learnt reward {rank['learnt reward']:+.2f}"),
])

# %% [markdown]
# **References.** Spearman, *The proof and measurement of association between two things*, 1904 · Ouyang et al., *Training
# language models to follow instructions with human feedback*, 2022 · Wei et al., *Finetuned language models are zero-shot
# learners*, 2022 · Zhou et al., *LIMA: less is more for alignment*, 2023 · Gekhman et al., *Does fine-tuning LLMs on new
# knowledge encourage hallucinations?*, 2024 · Zhang et al., *R-Tuning: instructing large language models to say "I don't
# know"*, 2024
