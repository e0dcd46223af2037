# %% [markdown]
# # 01 · Pre-training: from noise to language
#
# *Lecture: Language model, LM training, Pre-training LM using self-supervision*
#
# **You will be able to** write the loss that trains every language model, pre-train a small one while you watch, say how
# far a model is from perfect, and sample from it with temperature and top-k.
#
# | | |
# | --- | --- |
# | time | 1 to 3 minutes on two CPU cores, as long on a T4 (estimates, for models that are in the store already) |
# | starts from | nothing |
# | leaves behind | the base model and the scaling study in the store, if they are not there yet |
#
# Three claims of the lecture are measured: what a language model *is* (C1), that self-supervision takes it from random
# weights to the floor that the text itself sets (C2), and that more data and bigger models get better (C3).

# %%
import math

import torch

from course_lib import artifacts, objectives, smoke
from course_lib.checks import check
from course_lib.lm import build_lm, encode_documents, load_lm, sample, token_logprobs
from course_lib.plots import finish, interval, line_with_interval, log_scale, subplots
from course_lib.teach import scale_up, show
from course_lib.worlds import atlas, corpus

base, tokenizer = load_lm("base")  # trained now if it is missing, which takes minutes
V = len(tokenizer)
size = sum(p.numel() for p in base.parameters())
print(f"The base model: {size:,} parameters, a vocabulary of {V:,} tokens.")

# %% [markdown]
# ## 1 · A language model is a distribution (C1)
#
# $$P(x^{(t+1)} \mid x^{(1)}, \dots, x^{(t)}), \qquad x^{(t+1)} \in V = \{w_1, \dots, w_{|V|}\}$$
#
# **Predict:** after `SF usually refers to`, is the model sure? And after `SF`?
#
# Type a context, move the temperature, sample token by token. Under each token of the text stands its probability, given
# all before it.

# %%
from course_lib.widgets import TokenExplorer

TokenExplorer(base, tokenizer, "SF usually refers to")

# %% [markdown]
# **Two exact checks.** Every row of the model's output is a distribution: it sums to 1. And the *chain rule* holds: the
# product of the conditionals is the probability of the text,
#
# $$P(x^{(1)}, \dots, x^{(T)}) = \prod_{t} P(x^{(t)} \mid x^{(1)}, \dots, x^{(t-1)})$$
#
# We compute it twice. Once step by step, where a fresh call reads each prefix; and once from a single call that reads the
# whole text, with this function:

# %%
from course_lib.experiments.pretraining import chain_rule

show(chain_rule)

# %%
import copy

exact = copy.deepcopy(base).cpu().double()  # 64 bits: two ways to add up the same numbers then differ by next to nothing
text = "SF usually refers to San Francisco"
ids = encode_documents(tokenizer, [text])[0]
product, off = 1.0, 0.0
with torch.no_grad():
    for t in range(1, len(ids)):
        p = exact(torch.tensor([ids[:t]])).logits[0, -1].softmax(-1)  # (V,)
        product *= float(p[ids[t]])
        off = max(off, abs(float(p.sum()) - 1))
    _, steps = chain_rule(exact, tokenizer, text)

# %% tags=["nbval-check-output"]
difference = abs(product / math.exp(sum(steps)) - 1)
print("rows sum to 1, to 1e-5:", off < 1e-5)
print("both ways give the same probability, to 1e-5:", difference < 1e-5)

# %%
print(f"P({text!r})")
print(f"  a call for each prefix: {product:.9e}")
print(f"  one call for all:       {math.exp(sum(steps)):.9e}")

# %% [markdown]
# ### Does the product mean anything?
#
# If $P$ is a probability, then it says how *often* a text comes when we sample. We let the model begin thousands of
# documents, and count their first two tokens.
#
# **Predict:** for how many of the 20 most probable beginnings will the 95 % interval of the count miss $P$?

# %%
from collections import Counter

from course_lib.algorithms.training import pad_right

N = 400 if smoke() else 4000
start = [tokenizer.bos_token_id]
rollouts = sample(base, tokenizer, [start], max_new_tokens=2, samples_per_prompt=N, seed=0)
counts = Counter(tuple(row) for row in rollouts.completion_ids.tolist())
rows = pad_right([start + list(pair) for pair in counts], tokenizer.pad_token_id)
rows = rows.to(base.device)
with torch.no_grad():
    logprobs = token_logprobs(base, rows, torch.ones_like(rows, dtype=torch.bool))
product = logprobs.sum(-1).exp().tolist()  # P(first) P(second | first)
pairs = sorted(zip(product, counts.values()), reverse=True)[:20]

# %%
fig, ax = subplots(height=3.8)
holds = 0
for p, count in pairs:
    seen = count / N
    half = 1.96 * math.sqrt(seen * (1 - seen) / N)  # binomial
    holds += seen - half <= p <= seen + half
    ax.errorbar(p, seen, half, marker="o", color="C0", capsize=3)
ends = [min(p for p, _ in pairs), max(p for p, _ in pairs)]
ax.plot(ends, ends, color="black", linestyle=":", marker="", label="as often as predicted")
log_scale(ax)
ax.set_xlabel("P(first token) x P(second token | first token)")
ax.set_ylabel(f"share of {N:,} samples")
ax.legend()
finish(fig, f"The product of conditionals says how often a text is sampled: {holds} of {len(pairs)} "
            f"intervals hold it.")

# %% [markdown]
# ## 2 · What is a token?
#
# A *byte-pair encoding* starts from the 256 bytes and merges the most frequent neighbours of the corpus, again and
# again. Frequent words become one token. Two exceptions are made on purpose: digits, and letters in a run of capitals,
# stay single, so that the model can calculate digit by digit and spell an abbreviation that it has never met.
#
# **Predict:** how many tokens are `San Francisco`, `SF`, `13+8=21`, `東京`?


# %%
def pieces(text):
    """The tokens of a text, as text; a part of a character shows as �."""
    return [tokenizer.decode(i) for i in tokenizer(text)["input_ids"]]


for text in ("San Francisco", "SF is San Francisco", "SF", "13+8=21", "def f(x): return x * 2", "東京"):
    print(f"{len(pieces(text)):3} tokens   {' | '.join(pieces(text))}")

# %% [markdown]
# A token holds the space before its word, so that `San` at the start of a text is not the `San` after a space. Nothing is ever
# *unknown*: in the worst case a text is spelled byte by byte. So every text comes back unchanged.

# %% tags=["nbval-check-output"]
nasty = ["", " ", "\t\n\r\n", "naïve café", "東京 🙂", "a  b   c", "0.1e-7", "<|end|> is text",
         "\x00\x7f", "Ω≈ç√"]
coded = [tokenizer(text, split_special_tokens=True)["input_ids"] for text in nasty]
back = sum(tokenizer.decode(ids) == text for ids, text in zip(coded, nasty))
print(f"{back} of {len(nasty)} texts come back unchanged")

# %%
documents = list(corpus.documents("a look", 500))
encoded = encode_documents(tokenizer, [d.text for d in documents])
tokens, characters = sum(map(len, encoded)), sum(len(d.text) for d in documents)
print(f"{characters / tokens:.1f} characters per token, {tokens / len(encoded):.0f} tokens per document.")
print("The first token of a document is <|bos|>, the last is <|end|>.\n")
for document in documents[:3]:
    print(f"[{document.kind}]\n{document.text}\n")

# %% [markdown]
# This is all the model ever reads: facts about cities, sums, small Python functions, forms, look-ups. No labels, and no
# chat.
#
# ## 3 · Self-supervision: the text is its own label
#
# The lecture's animation. The model reads one word, and the next word is the target; then it reads that one, too.

# %%
from course_lib.widgets import WordByWord

WordByWord("<START> SF usually refers to San Francisco , a city in California , USA")

# %% [markdown]
# With $x^{(1)}$ = BOS, the loss is the mean surprise at the tokens that came:
#
# $$\mathcal{L}(\theta) = -\frac{1}{N} \sum_{t} \ln p_\theta\left(x^{(t+1)} \mid x^{(1)}, \dots, x^{(t)}\right)$$
#
# All positions are computed at once: row $t$ of the logits has seen $x^{(1)}, \dots, x^{(t)}$ and nothing later.
#
# **Exercise 1 · shift by one** (difficulty 2 of 5, 10 minutes)
#
# *Goal: the one line in which most home-made training loops go wrong.* `mask[b, t]` says whether the token `ids[b, t]`
# itself is to be predicted. Padding is not, and BOS is not: nothing precedes it. The first token of a row is never a target,
# whatever its mask says.

# %%
import torch.nn.functional as F  # F.cross_entropy(scores, targets) takes (n, V) and (n,)


def next_token_loss(logits, ids, mask):
    """Mean of -ln p(next token) where the mask of that token is True, in nats: a scalar.

    logits: (B, T, V); ids: (B, T); mask: (B, T) bool. At least one token counts.
    """
    ### BEGIN SOLUTION
    counted = mask[:, 1:]
    return F.cross_entropy(logits[:, :-1][counted], ids[:, 1:][counted])
    ### END SOLUTION


# %%
next_token_loss = check("next_token_loss", next_token_loss)

# %% [markdown]
# Which tokens count is decided once, by this function of the course. Your loss, on one sentence:

# %%
from course_lib.algorithms.pretrain import predicted

show(predicted)
ids = torch.tensor(encode_documents(tokenizer, ["SF usually refers to San Francisco"]))
ids = ids.to(base.device)
with torch.no_grad():
    counted = predicted(ids, tokenizer.pad_token_id, tokenizer.bos_token_id)
    loss = next_token_loss(base(ids).logits, ids, counted)
    by_token = -token_logprobs(base, ids, torch.ones_like(ids, dtype=torch.bool))[0]
print(f"your loss: {loss:.4f}     mean of -ln p, token by token: {by_token.mean():.4f}")

# %% [markdown]
# The same sentence with the base model's own probabilities. **Predict** the most surprising target. (The last one is
# the end of the document: does this text end here?)

# %%
WordByWord(ids[0].tolist(), base, tokenizer)

# %% [markdown]
# ## 4 · Packing: no place for padding
#
# Documents have different lengths, and hardware likes rectangles. One document a row wastes most of each row; cutting a
# stream of text into pieces tears documents apart. The middle way is to put whole documents into a row until one does
# not fit.
#
# **Exercise 2 · packing** (difficulty 2 of 5, 10 minutes)
#
# *Goal: a data pipeline that loses nothing.* Go through the documents in order. While one fits into the last row as a
# whole, it goes there; otherwise it opens the next row. Rows are padded on the right.


# %%
def pack_in_order(documents, context, pad):
    """Whole documents in rows of `context` tokens: (rows, context) ids.

    documents: lists of ids, none longer than `context`; pad: the padding token.
    """
    ### BEGIN SOLUTION
    rows = [[]]
    for document in documents:
        if len(rows[-1]) + len(document) > context:
            rows.append([])
        rows[-1] = rows[-1] + list(document)
    return torch.tensor([row + [pad] * (context - len(row)) for row in rows])
    ### END SOLUTION


# %%
pack_in_order = check("pack_in_order", pack_in_order)

# %% [markdown]
# The base model was trained on rows from `pack`, which may change the order. **Predict:** how much padding does each way
# leave?

# %%
from course_lib.algorithms.pretrain import pack

show(pack)

# %%
texts = [d.text for d in corpus.documents("live", 300 if smoke() else 12_000)]
encoded = encode_documents(tokenizer, texts)
PAD, CONTEXT = tokenizer.pad_token_id, max(128, max(map(len, encoded)))
ways = {
    "one document a row": pad_right(encoded, PAD),
    "in order (yours)": pack_in_order(encoded, CONTEXT, PAD),
    "best fit": pack(encoded, CONTEXT, PAD),
}
for name, rows in ways.items():
    empty = (rows == PAD).float().mean()
    print(f"{name:20}{len(rows):7,} rows of {rows.shape[1]:3}   {empty:5.1%} padding")

# %% [markdown]
# ## 5 · Live: a model learns from nothing
#
# A small model with random weights, one pass over these documents, with *your* rows and *your* loss. The loop is the
# whole of it: forward, loss, backward, step.
#
# **Predict:** the loss before the first step. (A model that knows nothing gives each of the $|V|$ tokens the same
# probability.)

# %%
from course_lib.algorithms.training import warmup_cosine
from course_lib.progress import Progress


def learn(model, rows, watch, lr=4e-3, batch_size=16):
    """One pass over the rows, in place. Returns the loss of every step."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    batches = rows[order].split(batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.0)
    losses, steps = [], len(batches)
    with Progress("pre-training a small model, live", total=steps) as progress:
        for step, ids in enumerate(batches):
            watch(step, steps)
            rate = lr * warmup_cosine(step, steps, warmup=1 + steps // 20)
            optimizer.param_groups[0]["lr"] = rate
            ids = ids.to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits  # (batch, time, vocab)
            loss = next_token_loss(logits, ids, predicted(ids, PAD, tokenizer.bos_token_id))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            progress.update(loss=losses[-1])
    return losses


# %%
from course_lib.experiments.pretraining import PROMPTS, continuations

small = build_lm(tokenizer, "tiny" if smoke() else "small")
said = {}


def listen(step, steps):
    """Keep what the model says at the start, a tenth of the way, and half-way."""
    if step in (0, steps // 10, steps // 2):
        said[step] = continuations(small, tokenizer)


live = learn(small, ways["in order (yours)"], listen)
said[len(live)] = continuations(small, tokenizer)

# %%
fig, ax = subplots(height=3.6)
ax.plot(range(1, len(live) + 1), live, marker="", label="this run (1 run, no interval)")
ax.axhline(math.log(V), color="black", linestyle=":", label="knowing nothing: ln |V|")
ax.set_xlabel("step")
ax.set_ylabel("loss (nats per token)")
ax.set_ylim(0)
ax.legend()
finish(fig, f"The loss starts at {live[0]:.2f}, where ln {V:,} = {math.log(V):.2f}, and is "
            f"{live[-1]:.2f} after {len(live)} steps.")

# %%
for i, prompt in enumerate(PROMPTS):
    print(f"{prompt} ...")
    for step, spoken in said.items():
        print(f"  step {step:4}: {' '.join(spoken[i].split())[:76]}")

# %% [markdown]
# Does your loss jump near the start? That is no bug: while the learning rate climbs, a step can be too long for where the
# model stands. Clipping and the next steps bring it back. (Try half the `lr`: calmer, and slower.)
#
# Read the samples from top to bottom: any token at all, then the frequent ones, then form: sentences about cities,
# equations, lines of Python. What is *true* comes last. A model of this size, with this little text, may never get
# there.
#
# ## 6 · How good can it get? The floor (C2)
#
# No model predicts a coin. What is left of the loss when everything learnable is learnt is the *entropy* of the text, and
# for ordinary text nobody knows it. Here we do: the corpus is written by a program that adds up the surprise of each
# choice it makes.

# %%
from course_lib.worlds.draw import Draw

show(Draw.below, corpus.document)
one = documents[0]
print(f"{one.text}\n\n[{one.kind}] -ln P = {one.nats:.2f} nats: one in {math.exp(one.nats):,.0f}")

# %% [markdown]
# No two ways of choosing give the same text, so this is exactly $-\ln P(\text{text})$. Its expectation is the entropy
# $H$, which is a plain sum over the kinds of document. **Predict:** does the mean over many documents agree?

# %%
nats = [d.nats for d in corpus.documents("entropy", 5000)]
mean = interval(nats)
print(f"H = {corpus.entropy():.3f} nats per document, exactly")
print(f"mean of {len(nats):,} documents: {mean.mean:.3f} [{mean.lo:.3f}, {mean.hi:.3f}]")

# %% [markdown]
# Now the base model's own training, from the store: its loss on documents that it never saw, and the floor for the very
# same documents. **Predict:** how close does it come?

# %%
study = artifacts.result("base")
floor = study["floor"]
looks = [entry for entry in study["history"] if "held_out" in entry]
steps = [entry for entry in study["history"] if "loss" in entry]
gap = looks[-1]["held_out"] - floor

fig, (left, right) = subplots(1, 2, height=3.8)
trained, seen = [s["tokens"] / 1e6 for s in steps], [s["tokens"] / 1e6 for s in looks]
left.plot(trained, [s["loss"] for s in steps], marker="", label="training")
left.plot(seen, [s["held_out"] for s in looks], label="held out")
left.axhline(math.log(V), color="black", linestyle=":", label="ln |V|")
left.axhline(floor, color="C2", linestyle="--", label="floor")
left.set_ylabel("loss (nats per token)")
left.legend()
right.plot(seen, [s["held_out"] - floor for s in looks], color="C1", marker="s")
right.set_ylabel("held-out loss above the floor")
log_scale(right, "y")
fig.supxlabel("million tokens read (1 run, no interval)")
finish(fig, f"From {looks[0]['held_out']:.2f} (ln |V| = {math.log(V):.2f}) the held-out loss falls "
            f"to {looks[-1]['held_out']:.3f}. The floor is {floor:.3f}: {gap:.3f} nats per token are left, "
            f"{gap / floor:.1%} of the floor, {gap / (looks[0]['held_out'] - floor):.1%} of the way.")

# %%
for i, prompt in enumerate(PROMPTS):
    print(f"{prompt} ...")
    for look in (looks[0], looks[1], looks[-1]):
        said_then = " ".join(look["samples"][i].split())[:70]
        print(f"  {look['tokens']:9,} tokens: {said_then}")

# %% [markdown]
# ### The gap has a name
#
# Loss minus floor, in expectation, is the *Kullback-Leibler divergence* from the corpus to the model: how much the model
# still has to learn. It is one run, but it can be measured on many documents:
#
# $$\mathrm{KL}(P \,\|\, p_\theta) = \mathbb{E}_{x \sim P}\left[\ln P(x) - \ln p_\theta(x)\right] \ge 0$$


# %%
@torch.no_grad()
def excess(documents):
    """ln P(x) - ln p(x), in nats, of each document."""
    ids = pad_right(encode_documents(tokenizer, [d.text for d in documents]), PAD)
    mask = (ids != PAD).to(base.device)
    logprobs = token_logprobs(base, ids.to(base.device), mask)
    own = objectives.sequence_logprob(logprobs, mask[:, 1:]).tolist()
    return [-d.nats - ln_p for d, ln_p in zip(documents, own)]


fresh = list(corpus.documents("fresh", 20 if smoke() else 300))
kl = interval([x for i in range(0, len(fresh), 50) for x in excess(fresh[i:i + 50])])
print(f"KL = {kl.mean:.2f} [{kl.lo:.2f}, {kl.hi:.2f}] nats per document ({len(fresh)} documents),")
print(f"on top of the {corpus.entropy():.2f} nats that nobody can predict.")

# %% [markdown]
# **Predict:** in which kind of document is most left to learn: facts (`about`, `questions`), sums (`equations`, `chains`,
# `stories`), functions, forms (`screens`) or look-ups?

# %%
from course_lib.plots import bars_with_interval

total, by_kind = sum(corpus.MIXTURE.values()), {}
for kind, weight in corpus.MIXTURE.items():
    drawn = list(corpus.documents("of a kind", 8 if smoke() else 32, {kind: 1}))
    choice = -math.log(weight / total)  # in the mixture, the kind is a choice, too
    by_kind[kind] = [x - choice for x in excess(drawn)]
order = sorted(by_kind, key=lambda kind: -interval(by_kind[kind]).mean)
fig, ax = subplots(height=4.0)
bars_with_interval(ax, order, by_kind, form="{:.1f}")
ax.set_xticks(range(len(order)), order, rotation=35, ha="right")
ax.set_xlabel("kind of document (dots: documents)")
ax.set_ylabel("still to learn (nats per document)")
first, last = interval(by_kind[order[0]]), interval(by_kind[order[-1]])
finish(fig, f"Most is left to learn in {order[0]}: {first.mean:.1f} [{first.lo:.1f}, {first.hi:.1f}] "
            f"nats per document; least in {order[-1]}: {last.mean:.1f} [{last.lo:.1f}, {last.hi:.1f}].")

# %% [markdown]
# A bar below 0, should there be one, is no magic: there the model expects the kind more often than it comes, and pays for
# that with the other kinds. Only the mean over the whole mixture, the divergence, can never be negative.
#
# ## 7 · More data, bigger models (C3)
#
# The scaling study trains models of several sizes on corpora of several sizes, each with several seeds, one pass each;
# it comes from the store. The lecture says: both help. In numbers: above the floor, loss falls like a power of the data,
#
# $$\mathcal{L}(D) - H \approx a \cdot D^{-\alpha}$$
#
# which is a straight line on logarithmic axes (Kaplan et al. 2020; Hoffmann et al. 2022). In real text $H$ is a fitted
# guess; here it is known.
#
# **Predict:** with the smallest corpus, does the biggest model win?

# %%
from course_lib.plots import loglog_fit

scaling = artifacts.result("scaling")
above = torch.tensor(scaling["loss"]) - scaling["floor"]  # (sizes, seeds, corpora)
read, sizes = scaling["tokens"], scaling["parameters"]
fits = [loglog_fit(read, runs.tolist()) for runs in above]

fig, ax = subplots(height=4.2)
for n, runs, fit in zip(sizes, above, fits):
    line = line_with_interval(ax, read, runs.tolist(), f"{n:,} parameters")
    ax.plot(read, fit(read), color=line.get_color(), linestyle=":", linewidth=1, marker="")
log_scale(ax)
ax.set_xlabel("tokens of training text, read once")
ax.set_ylabel("held-out loss above the floor")
ax.legend(title="thin dots: fitted power law")
change = above.diff(dim=-1)  # from each corpus to the next larger one
slopes = [f.slope for f in fits]
alphas = ", ".join(f"{-s.mean:.2f} [{-s.hi:.2f}, {-s.lo:.2f}]" for s in slopes)
finish(fig, f"Loss falls in {(change < 0).sum()} of {change.numel()} steps to the next larger corpus; "
            f"the exponents, smallest model first, are {alphas}.")

# %% [markdown]
# Is it *one* straight line? Compare the exponent between the first two corpora with that between the last two. If they
# differ, a single exponent is only a summary: more data is here also more steps, and so early in training a model is still
# picking up speed.


# %%
def local(runs, i):
    """The exponent between corpus i and the next one, over seeds."""
    ratio = runs[:, i] / runs[:, i + 1]
    return interval((ratio.log() / math.log(read[i + 1] / read[i])).tolist())


for n, runs in zip(sizes, above):
    a, b = local(runs, 0), local(runs, len(read) - 2)
    print(f"{n:9,} parameters: first {a.mean:.2f} [{a.lo:.2f}, {a.hi:.2f}], "
          f"last {b.mean:.2f} [{b.lo:.2f}, {b.hi:.2f}]")

# %% [markdown]
# Does *size* help? Compare the biggest model with the smallest one, seed by seed, at each amount of data.


# %%
def verdict(difference):
    """In words what an interval for (biggest - smallest) says."""
    if difference.hi < 0:
        return "the biggest is better"
    return "the biggest is worse" if difference.lo > 0 else "too close for these seeds"


print(f"loss of {sizes[-1]:,} parameters minus loss of {sizes[0]:,}, in nats per token")
for i, tokens in enumerate(read):
    d = interval((above[-1, :, i] - above[0, :, i]).tolist())
    print(f"{tokens:10,} tokens: {d.mean:+.3f} [{d.lo:+.3f}, {d.hi:+.3f}]   {verdict(d)}")

# %% [markdown]
# Read the lines, not the slogan: size helps where the table says so, and only there. The smallest corpus is a few steps of
# training: what is compared there is how fast a model sets off, not how much it can hold.
#
# ## 8 · Sampling: temperature and top-k
#
# The model gives a distribution; *what it says* is a choice of ours. Divide the logits by a temperature $T$ before the
# softmax, and keep only the $k$ likeliest tokens:
#
# $$P_T(w) \propto \exp(z_w / T), \qquad w \in \text{top-}k$$
#
# **Exercise 3 · temperature and top-k** (difficulty 3 of 5, 10 minutes)
#
# *Goal: change a distribution without breaking it.* The logits may have leading axes. `top_k = 0` keeps everything; what is
# cut gets $-\infty$, whose softmax is exactly 0. Tokens that share the $k$-th place all stay.


# %%
def adjust_logits(logits, temperature=1.0, top_k=0):
    """Logits of the distribution that is sampled from. logits: (..., V). Returns (..., V)."""
    ### BEGIN SOLUTION
    logits = logits / temperature
    if top_k:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits
    ### END SOLUTION


# %%
adjust_logits = check("adjust_logits", adjust_logits)

# %% [markdown]
# With your function, a sampler is a few lines. (The course's `sample` does the same, many rows at once and with a cache.)


# %%
@torch.no_grad()
def speak(model, text, temperature, top_k=0, tokens=24, seed=0):
    """A continuation of the text, token by token."""
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]])
    draw, start = torch.Generator().manual_seed(seed), ids.shape[1]
    while ids.shape[1] < start + tokens and ids[0, -1] != tokenizer.eos_token_id:
        logits = model(ids.to(model.device)).logits[:, -1].float().cpu()
        p = adjust_logits(logits, temperature, top_k).softmax(-1)
        ids = torch.cat([ids, torch.multinomial(p, 1, generator=draw)], 1)
    return " ".join(tokenizer.decode(ids[0, start:], skip_special_tokens=True).split())


for prompt in PROMPTS[:2]:
    print(f"{prompt} ...")
    for temperature, top_k in ((0.3, 0), (1.0, 0), (1.5, 0), (2.5, 0), (2.5, 3)):
        rule = f"T = {temperature}" + (f", top-k {top_k}" if top_k else "")
        print(f"  {rule:16} {speak(base, prompt, temperature, top_k)[:74]}")

# %% [markdown]
# **An exact check.** The course's sampler notes the log-probability of each token *under the distribution it was drawn
# from*. Later parts of the course stand on that number. Do your logits agree with it?

# %%
rollouts = sample(base, tokenizer, list(PROMPTS), max_new_tokens=12, temperature=0.7, top_k=5)
ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids], 1)  # (N, P + T)
mask = torch.cat([rollouts.prompt_mask, rollouts.completion_mask], 1)
positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
with torch.no_grad():
    out = base(input_ids=ids, attention_mask=mask.long(), position_ids=positions)
start = rollouts.prompt_ids.shape[1]
logprobs = adjust_logits(out.logits[:, start - 1:-1], 0.7, 5).log_softmax(-1)
mine = logprobs.gather(-1, rollouts.completion_ids[..., None])[..., 0]
difference = (mine - rollouts.logprobs)[rollouts.completion_mask].abs().max()
assert difference < 1e-3, difference
print(f"{rollouts.completion_mask.sum()} tokens, largest difference {difference:.1e} nats")

# %% [markdown]
# ### What a temperature costs
#
# Two things are measured on the base model: how many facts it gets right (`XX usually refers to ...`, for cities of its
# corpus), and how many different next sentences it finds for the same story.
#
# **Predict** both curves from $T = 0.5$ to $2$. What will top-k change?

# %%
asked = atlas.known_cities()[:8 if smoke() else 40]
told = [f" {c.city}, a city in {c.region}, {c.country}" for c in asked]
prompts = [f"{c.nick} usually refers to" for c in asked] + [PROMPTS[1]] * len(asked)
temperatures, seeds = ([0.5, 2.0], [0, 1]) if smoke() else ([0.5, 1.0, 1.5, 2.0], [0, 1, 2])


def measure(temperature, top_k, seed):
    """Share of right facts, and share of different stories among the samples."""
    drawn = {"temperature": temperature, "top_k": top_k, "seed": seed}
    texts = sample(base, tokenizer, prompts, max_new_tokens=20, **drawn).texts
    right = sum(text.startswith(fact) for text, fact in zip(texts, told)) / len(told)
    return right, len({text.split(".")[0] for text in texts[len(told):]}) / len(told)


curves = {k: torch.tensor([[measure(t, k, s) for t in temperatures] for s in seeds])
          for k in (0, 5)}  # (seeds, temperatures, 2)

# %%
fig, axes = subplots(1, 2, height=3.8)
for k, runs in curves.items():
    for ax, i, name in zip(axes, (0, 1), ("facts that are right", "different stories")):
        label = f"top-k {k}" if k else "all tokens"
        line_with_interval(ax, temperatures, runs[..., i].tolist(), label)
        ax.set_ylabel(f"share of {name}")
        ax.set_ylim(0, 1.05)
axes[0].legend()
fig.supxlabel("temperature")
cold, hot = curves[0][:, 0].mean(0), curves[0][:, -1].mean(0)
kept = curves[5][:, -1].mean(0)
finish(fig, f"From T = {temperatures[0]} to {temperatures[-1]}, right facts go from {cold[0]:.0%} to "
            f"{hot[0]:.0%} and different stories from {cold[1]:.0%} to {hot[1]:.0%}; "
            f"with top-k 5 the hot end has {kept[0]:.0%} and {kept[1]:.0%}.")

# %% [markdown]
# ## Where this breaks
#
# - **The floor is known because the text is synthetic.** For real text, "floor" means a fitted constant. And a corpus
#   drawn from a program has no typing errors, no opinions, no long range.
# - **Near the floor is not useful.** A perfect model of this corpus continues text. It does not answer, and it does not
#   stop when it should: that is notebook 02.
# - **One run is one run.** The base model's curve has no interval over seeds, only its gap has one over documents. The
#   scaling study has seeds, for smaller models.
# - **A narrow range.** The study spans a narrow range of data, with one schedule and one learning rate for all sizes.
#   Exponents of large models are not to be read from it.
# - **Temperature is not creativity.** It trades errors for variety, token by token; it adds nothing that the model has not
#   learnt.
#
# ## Scale it up
#
# The same calls take any causal language model of Hugging Face. Here `pretrain.train` goes on with a real model on this
# page's text; `data_sets.texts("tinystories", limit=10_000)` would be text that people read.

# %%
from course_lib import data_sets
from course_lib.algorithms import pretrain

if real := scale_up("pre-training", steps=200, rows=16, prompt=0, answer=128, few=(3, 8)):
    told = data_sets.documents(real.tokenizer, texts[: 4 * real.steps * real.rows])  # some 4 texts fill a row
    config = pretrain.PretrainConfig(optimizer="adamw", lr=1e-4, context=128, batch_size=real.rows, log_every=1)
    seen = pretrain.train(real.model, told, config)
    print(f"Loss {seen[0]['loss']:.2f} nats a token at first, {seen[-1]['loss']:.2f} at the end.")
    raw = real.tokenizer(list(PROMPTS))["input_ids"]  # token ids are continued as they are, without a chat template
    for text in sample(real.model, real.tokenizer, raw, max_new_tokens=24).texts:
        print(" >>", " ".join(text.split()))

# %% [markdown]
# ## Recap
#
# | claim of the lecture | what you measured |
# | --- | --- |
# | C1: a language model is $P(x^{(t+1)} \mid x^{(1)}, \dots, x^{(t)})$ | rows sum to 1; their products are how often texts come |
# | C2: random weights, unlabeled text, the input is the label | from $\ln V$ towards the exact floor |
# | C3: more data and bigger models get better | loss above the floor against data, three sizes, with exponents |
#
# Next: [02 supervised fine-tuning](02_sft.ipynb), where the base model learns to answer.
#
# **References.** Shannon, *A mathematical theory of communication*, 1948 · Ackley, Hinton, Sejnowski, *A learning algorithm
# for Boltzmann machines*, 1985 · Sennrich et al., *Neural machine translation of rare words with subword units*, 2016 ·
# Fan et al., *Hierarchical neural story generation*, 2018 · Radford et al., *Improving language understanding by generative
# pre-training*, 2018 · Kaplan et al., *Scaling laws for neural language models*, 2020 · Hoffmann et al., *Training
# compute-optimal large language models*, 2022
