# %% [markdown]
# # 02 · SFT: from continuing text to answering questions
#
# *Lecture: Post-training LM using SFT; Summary: Post-training LM using SFT*
#
# > Q: where is SF?<br>
# > A: SF usually refers to San Francisco, a city in California, USA
#
# **You will be able to** say which tokens of a conversation are trained on, build the loss mask yourself, split a
# batch without changing its loss, and tell what fine-tuning teaches (a form) from what it does not (knowledge,
# honesty, taste).
#
# | | |
# | --- | --- |
# | time | 1 to 3 minutes on two CPU cores, as long on a T4 (estimates, for a filled store) |
# | starts from | the base model of notebook 01 |
# | leaves behind | the SFT model and four studies in the store, if they are not there yet |
#
# Five claims of the lecture are measured: SFT makes a model follow instructions (C4), only the answer is trained on
# (C5), it works best on knowledge that is already there (C6), it hallucinates (C7), and it is limited on open-ended
# tasks (C8).

# %%
import copy
from collections import Counter

import torch

from course_lib import artifacts, objectives, plots, smoke
from course_lib.algorithms import sft
from course_lib.checks import check
from course_lib.experiments.questions import ask, exact, in_format
from course_lib.lm import load_lm, sample
from course_lib.teach import scale_up, show, table
from course_lib.worlds import atlas
from course_lib.worlds.draw import Draw

base, tokenizer = load_lm("base")  # trained now if it is missing, which takes minutes
SF = atlas.cities()[0]
DECK = sft.qa("Where is SF?", atlas.preferred(SF))

# %% [markdown]
# A small helper for this page: a share with its interval over seeds.

# %%
def share(values):
    """A share over seeds in words: its mean and, where the seeds differ, its 95 % interval."""
    mean, low, high = plots.interval(values)
    if min(values) == max(values):
        return f"{mean:.0%}"
    return f"{mean:.0%} ({max(low, 0):.0%} to {min(high, 1):.0%})"

# %% [markdown]
# ## 1 · What a base model does with a question
#
# **Predict.** The base model has read many times that SF is San Francisco. It has never seen a question in chat form.
# What will it reply to "Where is SF?"

# %%
quiz = atlas.splits()["quiz"]  # cities of the corpus that no fine-tuning will ask for
asked = ["Where is SF?"] + [atlas.ASK_NEW[i].format(nick=c.nick) for i, c in enumerate(quiz[:3])]
before = ask(base, tokenizer, asked)
table(["question", "the base model's reply"], [(q, r.text) for q, r in zip(asked, before)])
print(f"In the lecture's form: {sum(map(in_format, before))} of {len(before)} replies.")

text = "What does SF refer to?\n"
told = sample(base, tokenizer, [text], max_new_tokens=24, temperature=0).texts[0]
print("As plain text, 'What does SF refer to?' goes on with\n ", " ".join(told.split()))

# %% [markdown]
# **Explain.** Continuing text is all it was trained for: whatever likely follows a name is a good continuation, and
# an answer is only one of many. The fact is in there, as the plain text shows. What is missing is the habit of
# answering.
#
# A **chat template** writes a conversation as one sequence of tokens. Special tokens say who speaks; `<|end|>` closes
# a turn, and it is the sign at which `ask` stops. To get an answer, the template opens the assistant's turn, and the
# model goes on from there.

# %% tags=["nbval-check-output"]
print(tokenizer.apply_chat_template(DECK, tokenize=False))
print(tokenizer.apply_chat_template(DECK[:1], tokenize=False, add_generation_prompt=True), "...")
special = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens}
print({token: special[token] for token in sorted(special, key=special.get)})

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
# The question stays on the right of the bar: it is read, but not asked for. Try the three choices, and find the
# tokens that cost most.

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
# `ids` is one row of a batch, a conversation padded on the right. The assistant's turn begins after its marker and
# ends with END. There may be several turns, or a row may be cut off before END. In many tokenizers `pad` *is* `end`.

# %%
def answer_mask(ids, assistant, end, pad):
    """Which tokens the assistant wrote, the END that closes its turn included.

    ids: (T,) token ids; assistant, end, pad: the ids of these special tokens.
    Returns (T,) bool, on the device of ids.
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
chats = [sft.qa(question.format(nick=c.nick), atlas.preferred(c))
         for c in atlas.cities() for question in atlas.ASK]
examples = sft.encode_chat(tokenizer, chats)
same = [answer_mask(torch.tensor(e.ids), *MARKS).tolist() == e.mask for e in examples]
print(f"{sum(same)} of {len(same)} conversations have the same mask as the template gives.")

# %% [markdown]
# ## 3 · The loss, and a batch in pieces
#
# The logits at position $t$ belong to the token at $t+1$; the mask must move with the targets. Two functions of the
# course do that part:

# %%
show(objectives.shift, objectives.token_losses)

# %% [markdown]
# A batch that does not fit into memory is split into micro-batches, whose gradients add up. **Predict:** one
# micro-batch holds an answer of 5 tokens, another one of 25. Is the mean of their two mean losses the loss of the
# batch?
#
# **Exercise 2 · the loss of a micro-batch** (difficulty 2 of 5, 8 minutes)
#
# *Goal: divide by the right number. Widely used libraries did not, for years.*

# %%
def sft_loss(logits, ids, mask, count):
    """Sum of the answer tokens' losses here, divided by the answer tokens of the whole batch.

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
def as_batch(conversations):
    """Token ids and loss mask of some conversations, (B, T) each, by the chat template."""
    examples = sft.encode_chat(tokenizer, conversations)
    return [t.to(base.device) for t in sft.batch(examples, tokenizer.pad_token_id)]


texts = [form(SF) for form in (atlas.terse, atlas.preferred, atlas.known_answer)]
ids, mask = as_batch([sft.qa("Where is SF?", text) for text in texts])
with torch.no_grad():
    logits = base(input_ids=ids).logits
rows = [(logits[i : i + 1], ids[i : i + 1], mask[i : i + 1]) for i in range(len(ids))]
counts = mask[:, 1:].sum(1)  # answer tokens of each row
whole = sft_loss(logits, ids, mask, counts.sum())
summed = sum(sft_loss(*row, counts.sum()) for row in rows)
means = sum(sft_loss(*row, n) for row, n in zip(rows, counts)) / len(rows)
print(f"answer tokens in the three rows: {counts.tolist()}")
print(f"whole batch                    {whole:.4f} nats per token")
print(f"its micro-batches, summed      {summed:.4f}")
print(f"the mean of their means        {means:.4f}")

# %% [markdown]
# ### Read, but not asked for: the gradient says so
#
# **Predict.** Is the gradient of this loss zero (a) with respect to the logits that predict a token of the question,
# (b) with respect to the embedding of a token of the question?

# %% tags=["nbval-check-output"]
ids, mask = as_batch([DECK])
embedded = base.get_input_embeddings()(ids).detach().requires_grad_()  # (1, T, width)
logits = base(inputs_embeds=embedded).logits
loss = sft_loss(logits, ids, mask, mask[:, 1:].sum())
at_logits, at_inputs = torch.autograd.grad(loss, [logits, embedded])
as_input = at_inputs[0].norm(dim=-1)  # (T,): entry t is token t as an input
as_target = torch.zeros_like(as_input)  # (T,): entry t is token t as a target; the first is none
as_target[1:] = at_logits[0, :-1].norm(dim=-1)
prompt = ~mask[0]
print("prompt tokens as targets: all exactly zero?", bool((as_target[prompt] == 0).all()))
print("answer tokens as targets: all above zero?", bool((as_target[~prompt] > 0).all()))
print("prompt tokens as inputs: all above zero?", bool((as_input[prompt] > 0).all()))

# %%
fig, axes = plots.subplots(2, 1, height=5.0, sharex=True)
words = [tokenizer.decode([i]).strip() or "␣" for i in ids[0].tolist()]
colours = [plots.PALETTE[1] if answer else plots.PALETTE[0] for answer in mask[0].tolist()]
hatches = ["//" if answer else "" for answer in mask[0].tolist()]
titles = ("Each token as a target (at its logits)", "Each token as an input (at its embedding)")
for ax, values, title in zip(axes, (as_target, as_input), titles):
    ax.bar(range(len(words)), values.tolist(), color=colours, hatch=hatches, edgecolor="white")
    ax.set_title(title)
    ax.set_ylabel("norm of the gradient")
axes[1].set_xticks(range(len(words)), words, rotation=60, ha="right")
axes[1].set_xlabel("token (blue: prompt, orange and hatched: answer)")
plots.finish(fig, f"As targets, the largest gradient of the {int(prompt.sum())} prompt tokens is "
                  f"{float(as_target[prompt].max()):g}; as inputs, the smallest is "
                  f"{float(as_input[prompt].min()):.2g}.")

# %% [markdown]
# **Explain.** Nobody asks the model to *write* the question, so no logit there is pushed. But attention lets the
# answer look back at it, and through attention the loss reaches every token that was *read*: the model learns to read
# questions by being asked for answers. (The last `<|end|>` is the mirror image: a target, and never an input to
# anything.)
#
# ## 4 · Fine-tune the base model, live
#
# One question and answer pair in two phrasings for each training city. The loop below is all of SFT, with *your* mask
# and *your* loss; `sft.train` adds batches of similar length, checkpoints and a history.

# %%
from course_lib.algorithms.training import make_optimizers, pad_right, take_step, warmup_cosine
from course_lib.progress import Progress


def fine_tune(conversations, label, mask=None, epochs=4, lr=5e-4, batch_size=32):
    """A copy of the base model, fine-tuned with answer_mask and sft_loss."""
    model, mask = copy.deepcopy(base).train(), mask or answer_mask
    rows = [tokenizer.apply_chat_template(c, return_dict=True)["input_ids"] for c in conversations]
    shuffles = [torch.Generator().manual_seed(epoch) for epoch in range(epochs)]
    order = torch.cat([torch.randperm(len(rows), generator=shuffle) for shuffle in shuffles])
    batches, optimizers = order.split(batch_size), make_optimizers(model, lr)
    with Progress(label, total=len(batches)) as progress:
        for step, chosen in enumerate(batches):
            ids = pad_right([rows[i] for i in chosen.tolist()], tokenizer.pad_token_id)
            counted = torch.stack([mask(row, *MARKS) for row in ids])
            ids, counted = ids.to(model.device), counted.to(model.device)
            loss = sft_loss(model(input_ids=ids).logits, ids, counted, counted[:, 1:].sum())
            loss.backward()
            rate = lr * warmup_cosine(step, len(batches), warmup=2)
            take_step(optimizers, rate, clip=1.0, loss=loss.item(), where=f"step {step}")
            progress.update(loss=loss.item())
    return model.eval()

# %%
train = atlas.splits()["train"][: 4 if smoke() else None]
draw = Draw("live")
answers = [sft.qa(question.format(nick=c.nick), atlas.preferred(c))
           for c in train for question in draw.ordered(atlas.ASK, 2)]
live = fine_tune(answers, f"SFT on {len(answers)} conversations")
after = ask(live, tokenizer, asked)
table(["question", "before", "after"],
      [(q, b.text, a.text) for q, b, a in zip(asked, before, after)])

# %% [markdown]
# Apart from SF, no fine-tuning asked about these cities, and none used these phrasings. All of the held-out cities,
# in a new phrasing:

# %%
questions = [atlas.ASK_NEW[3].format(nick=c.nick) for c in quiz]
replies = ask(live, tokenizer, questions)
told_right = sum(exact(r, atlas.preferred(c)) for r, c in zip(replies, quiz))
print(f"{questions[0]!r} and so on, for {len(quiz)} cities:")
print(f"{sum(map(in_format, replies))} replies in the lecture's form, {told_right} of them right")

# %% [markdown]
# Ask your own question:

# %%
print(ask(live, tokenizer, ["Where is NYC?"])[0].text)

# %% [markdown]
# ### What one token is worth
#
# Now suppose that padding were `<|end|>`, as in many tokenizers, and a mask left out all padding. **Predict** what
# the model does when its answer is complete.

# %%
def without_end(ids, assistant, end, pad):
    """The mask of a common bug: padding and END share an id, and all of it is masked."""
    return answer_mask(ids, assistant, end, pad) & (ids != end)


endless = fine_tune(answers, "the same without END", mask=without_end)
on_and_on = ask(endless, tokenizer, questions)
rows = []
for name, those in (("with END", replies), ("without END", on_and_on)):
    alone = sum(exact(r, atlas.preferred(c)) for r, c in zip(those, quiz))
    rows.append((name, f"{alone} of {len(quiz)}", those[0].text))
table(["mask", "right, and nothing after it", f"reply to: {questions[0]}"], rows)

# %% [markdown]
# **Explain.** Nothing told the second model that `<|end|>` follows an answer. So it goes on as the corpus does, where
# another sentence follows, and stops where a document would.
#
# ## 5 · Does it follow instructions? (C4)
#
# The first line of the lecture's summary, measured: a smaller portion of the course's recipe for SFT (questions about
# cities, word problems, small functions) with several seeds, on cities *and* phrasings that no fine-tuning showed. The
# numbers come from the store.

# %%
c4 = artifacts.result("follow")
base_form, base_exact = c4["base"]["format"], c4["base"]["exact"]
form, right = ([run[key] for run in c4["sft"]] for key in ("format", "exact"))
fig, ax = plots.subplots(height=3.8)
names = ["form, base model", "form, SFT", "exact, base model", "exact, SFT"]
plots.bars_with_interval(ax, names, [[base_form], form, [base_exact], right], form="{:.0%}")
ax.set_xlabel("held-out phrasings about held-out cities")
ax.set_ylabel("share of replies")
shown = base_form < 0.10 and min(form) > 0.95
verdict = "The claim is shown" if shown else "That misses the course's bar"
plots.finish(fig, f"In the form asked for: {base_form:.0%} of the base model's replies, {share(form)} "
                  f"after SFT ({len(form)} seeds); exactly right: {share(right)}. "
                  f"{verdict} (below 10 % before, above 95 % in every seed after).")

# %% [markdown]
# Form and truth are two bars on purpose: the form is what SFT taught, the fact came from pre-training. Most of what is missing
# here is not the fact but the *phrasing*: below, other cities are asked about in words that SFT did show ("Where is ...?").
#
# The course's own SFT model, from which the RL notebooks start, learnt three tasks in this way. Here it is on cities, problems
# and functions that nothing showed it:

# %%
from course_lib.experiments.questions import report

tuned, _ = load_lm("sft")
n = 4 if smoke() else 50
rates = {"base": report(base, tokenizer, n), "SFT": report(tuned, tokenizer, n)}
table(["right answers", "cities", "word problems", "small functions"],
      [(name, *(f"{rate:.0%}" for rate in those.values())) for name, those in rates.items()])

# %% [markdown]
# ## 6 · Knowledge: SFT draws on it; can it add to it? (C6)
#
# **Predict.** Here are two facts in the form your model has just learnt, one about a city of the corpus, one about a
# city that it has never met. On which tokens will it lose?

# %%
unseen = atlas.splits()["unseen"]
where = atlas.ASK[0].format  # where(nick="SF") is "Where is SF?"
known_fact = sft.qa(where(nick=quiz[0].nick), atlas.preferred(quiz[0]))
LossMask(tokenizer, known_fact, live)

# %%
new_fact = sft.qa(where(nick=unseen[0].nick), atlas.preferred(unseen[0]))
LossMask(tokenizer, new_fact, live)

# %% [markdown]
# The words of the form (`usually refers to`, `city in`) come cheap in both. What is dear is what the model cannot know:
# the place. Even to copy an abbreviation that it has never met can cost it something. Over all of the cities:

# %%
from course_lib.lm import token_logprobs


def answer_nll(model, pairs):
    """-ln P(answer | question) of each pair and its number of tokens: (N,) and (N,)."""
    ids, mask = as_batch([sft.qa(question, answer) for question, answer in pairs])
    with torch.no_grad():
        logprobs = token_logprobs(model, ids, ids != tokenizer.pad_token_id, targets=mask)
    return -logprobs.sum(1), mask.sum(1)


for name, group in (("told by the corpus, not asked in SFT", quiz), ("never told", unseen)):
    nll, _ = answer_nll(live, [(where(nick=c.nick), atlas.preferred(c)) for c in group])
    typical = float((-nll.cpu().double().mean()).exp())
    print(f"{name}: {nll.mean():.1f} nats per answer, a typical probability of {typical:.1e}")

# %% [markdown]
# What if SFT insists? Gekhman et al. (2024) fine-tuned on facts that the model knew, or on facts that it did not, and
# found that new facts are learnt slowly, and that learning them makes the model invent answers about *other* things.
# The same experiment here: equal questions, equal numbers, only the cities differ.

# %%
c6 = artifacts.result("knowledge")
fig, axes = plots.subplots(1, 3, height=4.2, sharey=True)
panels = {"fit": "the trained facts:\nright", "other": "other known cities:\nright",
          "made_up": "other known cities:\nmade up"}
for ax, (key, title) in zip(axes, panels.items()):
    for kind in ("known", "unknown"):
        plots.line_with_interval(ax, c6["epochs"], c6[kind][key], f"SFT on {kind} facts")
    ax.set_title(title, fontsize=11)
    ax.set_xticks(c6["epochs"])
    ax.set_xlabel("epochs of SFT")
axes[0].set_ylim(-0.03, 1.05)
axes[0].set_ylabel("share of greedy replies")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
speed = {}
for kind in ("known", "unknown"):
    means = torch.tensor(c6[kind]["fit"]).mean(0).tolist()  # at each look
    first = next((epoch for epoch, fit in zip(c6["epochs"], means) if fit >= 0.9), None)
    end = c6["epochs"][-1]
    speed[kind] = f"not within {end:g} epochs" if first is None else f"after {first:g} epochs"
plots.finish(fig, f"90 % of the trained facts are right {speed['known']} if the base model "
                  f"knows them, and {speed['unknown']} if it does not.")

# %% [markdown]
# And the price, at the end of training. In each seed the same other cities are asked about in both conditions, so the
# difference is taken seed by seed.

# %%
last = {kind: {key: [run[-1] for run in c6[kind][key]] for key in panels} for kind in speed}
table(["SFT on", "trained facts right", "other cities right", "other cities made up"],
      [(f"{kind} facts", *map(share, last[kind].values())) for kind in last])
lost = plots.interval([k - u for k, u in zip(last["known"]["other"], last["unknown"]["other"])])
print("With new facts in place of known ones, accuracy on other known cities is lower by",
      f"{100 * lost.mean:.0f} points,\n95 % interval {100 * lost.lo:.0f} to {100 * lost.hi:.0f}:",
      "more than chance." if lost.lo > 0 else "that cannot be told from chance.")

# %% [markdown]
# **Explain.** The form is the same either way, and both kinds of pairs teach it. But look at what the pairs reward. A
# known fact rewards looking up what is stored, and that skill serves every other city. A new fact cannot be looked
# up; what lowers its loss is to name *some* place, and that is a skill too.
#
# Mind what was *not* seen. Gekhman et al. found the harm to come as new facts get *fitted*, and little of it before. Here
# the harm is there although no new fact was learnt in all epochs (left panel): it comes from what such pairs reward, and
# this study cannot say what fitting them would add.

# %% [markdown]
# ## 7 · Hallucination: form without knowledge (C7)
#
# Every training answer named a place with confidence, so that is what the model learnt to do; nothing in the data
# tells it whether *it* knows. The lecture calls this a mismatch between its knowledge and the annotated data. To
# measure it, we have to tell four outcomes apart.
#
# **Exercise 3 · what became of an answer?** (difficulty 2 of 5, 8 minutes)
#
# *Goal: a scorer that neither hides made-up answers nor invents them.*
#
# A reply that the model did not finish is `"other"`. The correct answer, complete and nothing else, is `"right"`. Any
# other reply that contains `claim` states a place, and wrongly: `"made up"`, even if it also says that it does not
# know. A reply that begins with `unsure` is `"refused"`. What is left states nothing: `"other"`.

# %%
def outcome(text, finished, right, unsure, claim):
    """"right", "refused", "made up" or "other" for a reply.

    text: the reply; finished: whether the model ended it itself; right: the correct answer;
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
# Your scorer at work: the live model, and the same recipe with questions about codes that mean nothing, answered by
# "I do not know ...". Change `DOSE` and run again.

# %%
from course_lib.experiments.sft import codes

DOSE = 4 if smoke() else 80


def tally(model, group):
    """How many replies about a group of cities had which outcome."""
    said = ask(model, tokenizer, [where(nick=c.nick) for c in group])
    words = "I do not know", " usually refers to "  # how a refusal begins, what a claim contains
    return Counter(outcome(r.text, r.finished, atlas.preferred(c), *words)
                   for r, c in zip(said, group))


draw = Draw("live refusals")
refusals = [sft.qa(draw.pick(atlas.ASK).format(nick=code), atlas.UNSURE.format(nick=code))
            for code in codes(draw, DOSE)]
honest = fine_tune(answers + refusals, f"SFT with {DOSE} times 'I do not know'")
KINDS = ("right", "refused", "made up", "other")
table(["refusals in SFT", "cities", *KINDS], [
    (dose, name, *(tally(model, group)[kind] for kind in KINDS))
    for dose, model in ((0, live), (DOSE, honest))
    for name, group in (("never told", unseen), ("known", quiz))])

# %% [markdown]
# **Predict.** As the dose of "I do not know" grows, the model should make up less. What might be the price?

# %%
c7 = artifacts.result("abstention")
never, known = c7["unseen"], c7["known"]  # each: what -> [dose][seed]
lines = {"made up, cities never told": never["made_up"], "right, known cities": known["right"],
         "refused, known cities": known["unsure"]}
fig, ax = plots.subplots(height=4.2)
at = range(len(c7["doses"]))
for label, values in lines.items():
    plots.line_with_interval(ax, at, list(zip(*values)), label)
ax.set_xticks(at, c7["doses"])
ax.set_xlabel('"I do not know" answers in the fine-tuning data')
ax.set_ylabel("share of greedy replies")
ax.set_ylim(-0.03, 1.05)
ax.legend()
made_up, right_known = ([share(those[i]) for i in (0, -1)]
                        for those in (never["made_up"], known["right"]))
plots.finish(fig, f"With {c7['doses'][-1]} refusals in the data, made-up answers go from {made_up[0]} "
                  f"to {made_up[1]}, and right answers about known cities from {right_known[0]} "
                  f"to {right_known[1]}.")
more = plots.interval([n - k for n, k in zip(never["unsure"][-1], known["unsure"][-1])])
print(f"At that dose it refuses {share(never['unsure'][-1])} of the cities it cannot know and "
      f"{share(known['unsure'][-1])} of those it knows:\nit", "tells them apart, a little."
      if more.lo > 0 else "cannot be said to tell them apart.")

# %% [markdown]
# Read what stands behind the numbers: the same questions about places that the model cannot know, at each dose.

# %%
table(["asked about", "in truth", *(f"{dose} refusals" for dose in c7["doses"])],
      [(*places[0][:2], *(reply for *_, reply in places)) for places in zip(*c7["examples"])])

# %% [markdown]
# **Explain.** Without refusals the model fills the form with whatever fits. Refusals teach it a second form, and it has to find
# out by itself when to use which. The line above the table says whether it could: if it refuses known cities as often as
# unknown ones, it has learnt to refuse, and not to know what it knows.
#
# ## 8 · Open-ended questions: likely is not good (C8)
#
# People answer "Where is SF?" in many ways, all of them true here, few of them good. The course has a **gold rubric**
# for what people want to read, which no real project can see: a point each for the right city, region and country,
# one for a full sentence, and points off for wrong places, repetition and length.

# %%
from course_lib.experiments.sft import SHARES, candidates
from course_lib.rewards import rubric

options = candidates(SF)
gold = {kind: rubric.score(text, SF) for kind, text in options.items()}
parts = {kind: rubric.parts(text, SF) for kind, text in options.items()}
table(["kind", "share of people", "answer", "gold", "parts"], [
    (kind, f"{SHARES[kind] / sum(SHARES.values()):.0%}", text, f"{gold[kind]:+.1f}",
     ", ".join(f"{name} {value:+g}" for name, value in parts[kind].items() if value))
    for kind, text in options.items()])

# %% [markdown]
# **Predict.** A model is fine-tuned on answers in these shares. Which answer will it find most likely, and how will
# its ranking of all seven compare with the rubric's?
#
# **Exercise 4 · rank correlation** (difficulty 3 of 5, 10 minutes)
#
# *Goal: compare two orders when their scales have nothing in common, ties included.*
#
# Spearman's coefficient is Pearson's correlation of the *ranks*: +1 for the same order, -1 for the opposite. Equal
# values share the mean of their ranks. If all values are equal there is no order, and the result is 0.

# %%
def rank_correlation(a, b):
    """Spearman's rank correlation of two equally long lists of ints or floats. Returns a float."""
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
# A perfect imitator would give each kind of answer exactly the share that people give it. How near to that does a
# live model come, fine-tuned on such answers?

# %%
draw = Draw("live open-ended")
mixed = []
for _ in range(8 if smoke() else 400):
    city, question = draw.pick(train), draw.pick(atlas.ASK)
    kind = list(SHARES)[draw.weighted(tuple(SHARES.values()))]
    mixed.append(sft.qa(question.format(nick=city.nick), candidates(city)[kind]))
imitator = fine_tune(mixed, f"SFT on {len(mixed)} answers as people give them", epochs=2)
table(["asked about", "the imitator's answer", "gold"], [
    (c.nick, r.text, f"{rubric.score(r.text, c):+.1f}")
    for c, r in zip(quiz, ask(imitator, tokenizer, [where(nick=c.nick) for c in quiz[:4]]))])

# %%
def likelihood_against_gold(model, group):
    """Rank correlation of likelihood with gold among the answers about a city: mean over cities."""
    every = [(c, text) for c in group for text in candidates(c).values()]
    nll, _ = answer_nll(model, [(where(nick=c.nick), text) for c, text in every])
    scores = torch.tensor([rubric.score(text, c) for c, text in every]).view(len(group), -1)
    pairs = zip((-nll).view(len(group), -1).tolist(), scores.tolist())
    return sum(rank_correlation(likely, good) for likely, good in pairs) / len(group)


c8 = artifacts.result("open_ended")
size = artifacts.size("open_ended")
imitation = rank_correlation(list(SHARES.values()), [gold[kind] for kind in SHARES])
table(["whose likelihood", "rank correlation with gold"], [
    ("the base model, before any SFT", f"{likelihood_against_gold(base, quiz[:20]):+.2f}"),
    (f"live, {len(mixed)} answers", f"{likelihood_against_gold(imitator, quiz[:20]):+.2f}"),
    (f"the study below, {size['answers']} answers", f"{plots.interval(c8['nll']).mean:+.2f}"),
    ("a perfect imitator", f"{imitation:+.2f}")])

# %% [markdown]
# What likelihood prefers before SFT comes from the corpus, which is written in full sentences. The better it imitates,
# the more it prefers what people commonly say. How good an answer is plays no part in either.
#
# Now all quiz cities and several seeds, beside a **reward** that was learnt from comparisons: simulated people said
# which of two answers they like better. It sees the very same model's hidden states. Best-of-n draws n answers and
# keeps the one with the highest learnt reward.

# %%
best = f"best of {size['samples']}"
bars = {"likelihood": c8["nll"], "likelihood per token": c8["nll per token"],
        "learnt reward": c8["reward"]}
given = {"greedy": c8["greedy"], "one sample": c8["sample"], best: c8["best"]}
fig, axes = plots.subplots(1, 2, height=4.2)
for ax, groups in zip(axes, (bars, given)):
    plots.bars_with_interval(ax, list(groups), groups, form="{:+.2f}")
    ax.axhline(0, color="black", linewidth=0.8)
axes[0].set_xlabel("answers ranked by")
axes[0].set_ylabel("rank correlation with gold")
axes[1].set_xlabel("which answer is given")
axes[1].set_ylabel("mean gold score")
mean = {name: plots.interval(values).mean for name, values in (bars | given).items()}
plots.finish(fig, f"Rank correlation with the gold rubric: {mean['likelihood']:+.2f} for likelihood, "
                  f"{mean['likelihood per token']:+.2f} per token, {mean['learnt reward']:+.2f} for the learnt reward. "
                  f"Mean gold score: "
                  f"{mean['one sample']:+.2f} for one sample, {mean[best]:+.2f} for the {best}.")
print("Does likelihood tell true from false? For", share(c8["true over false"]), "of the cities it prefers")
print("the true answer to a false one of the same form.")

# %% [markdown]
# **Explain.** Cross-entropy is least when the model gives every answer as often as people do. It imitates what is
# *common*; nothing in it says *good*. Dividing by the length takes away the bonus for being short. Here that helps,
# because the better answers happen to be longer; it still does not ask how good an answer is. More data from the same
# people make a better imitator of the same people. What they like to *read* shows when they compare answers, and a
# reward learnt from comparisons can use it. Training a model against such a reward is what the rest of the course is
# about.
#
# ## Where this breaks
#
# - **END is never learnt**: padding shares its id and is masked by id. You saw the result in section 4.
# - **Two `<|bos|>`**: the template writes one and the tokenizer adds another; the model is fine-tuned on text it
#   never meets.
# - **The template is skipped**: `sample` continues a plain string as raw text. Questions must be messages.
# - **Long conversations are cut** and lose their answer or its END. `sft.encode_chat` refuses them instead.
# - **Micro-batches with their own means**: the loss looks fine, and is that of another objective.
# - **A good loss is no good answer**: below, the cross-entropy of the live model's own data. It says nothing about
#   cities that the data do not ask about.

# %%
for name, group in (("cities it was trained on", train), ("never told", unseen)):
    nll, tokens = answer_nll(live, [(where(nick=c.nick), atlas.preferred(c)) for c in group])
    print(f"{name}: {nll.sum() / tokens.sum():.3f} nats per answer token")

# %% [markdown]
# ## Scale it up
#
# The same call fine-tunes any causal language model of Hugging Face. Templates of the hub do not mark what the assistant says,
# so the mask is found by comparing the conversation up to the answer with the one that has it.

# %%
if real := scale_up("SFT", steps=100, rows=16, prompt=40, answer=24, few=(8, 8)):
    said = [ask(real.model, real.tokenizer, asked[:1])[0].text]
    some = Draw("real").ordered(answers, len(answers))[: real.steps * real.rows]
    seen = sft.train(real.model, real.tokenizer, some, sft.SFTConfig(lr=5e-5, batch_size=real.rows, epochs=1, log_every=1))
    print(f"Loss {seen[0]['loss']:.2f} nats a token at first, {seen[-1]['loss']:.2f} at the end.")
    said.append(ask(real.model, real.tokenizer, asked[:1])[0].text)
    table([asked[0], "reply"], zip(("before", "after"), said))

# %% [markdown]
# ## Recap

# %%
table(["claim of the lecture", "measured on this page"], [
    ("C4: SFT makes a model follow instructions",
     f"in form {base_form:.0%} before, {share(form)} after; right {share(right)}"),
    ("C5: only the answer is trained on",
     f"largest gradient of a prompt token as a target: {float(as_target[prompt].max()):g}"),
    ("C6: SFT works best on what pre-training gave",
     f"known facts fitted {speed['known']}, new ones {speed['unknown']}; other known cities right: "
     f"{share(last['known']['other'])} and {share(last['unknown']['other'])}"),
    ("C7: SFT models hallucinate",
     f"made up about cities never told: {share(never['made_up'][0])}; "
     f"with {c7['doses'][-1]} refusals in the data: {share(never['made_up'][-1])} (known cities right: {right_known[0]} and "
     f"{right_known[1]})"),
    ("C8: SFT is limited on open-ended tasks",
     f"rank correlation with gold: likelihood {mean['likelihood']:+.2f}, per token {mean['likelihood per token']:+.2f}, "
     f"reward {mean['learnt reward']:+.2f}"),
])

# %% [markdown]
# **References.** Spearman, *The proof and measurement of association between two things*, 1904 · Ouyang et al.,
# *Training language models to follow instructions with human feedback*, 2022 · Wei et al., *Finetuned language models
# are zero-shot learners*, 2022 · Zhou et al., *LIMA: less is more for alignment*, 2023 · Gekhman et al., *Does
# fine-tuning LLMs on new knowledge encourage hallucinations?*, 2024 · Zhang et al., *R-Tuning: instructing large
# language models to say "I don't know"*, 2024
