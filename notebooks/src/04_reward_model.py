# %% [markdown]
# # 04 · The reward model: from comparisons to a number
#
# *Lecture: Reward with human preferences; Putting it together*
#
# > Winning output should score higher than losing output
#
# **You will be able to** collect preferences and say how far people agree, explain when scores are worse than
# comparisons and when they are not, derive and implement the preference loss, read the reward at the right token, tell
# how many labels a reward model needs and what it has learnt from them, check its probabilities, and make it prefer
# nonsense.
#
# | | |
# | --- | --- |
# | time | about 1 minute on two CPU cores, as long on a T4 (estimates, for a filled store) |
# | starts from | `policy_sft`: the base model, fine-tuned on answers as people give them: some good, most not |
# | leaves behind | its answers, a reward model and three studies in the store, if they are not there yet |
#
# Five claims of the lecture are measured: human annotation is expensive, so we learn a reward model (C13), scores are
# noisy and hard to calibrate and pairs are more reliable (C14), the Bradley-Terry model puts winners above losers
# (C15), preferences are collected from people (C16), and a reward model fails on unnatural input (C18).

# %%
from collections import Counter

import torch

from course_lib import annotators, artifacts, plots, preferences, smoke
from course_lib.algorithms import reward_model as rm
from course_lib.checks import check
from course_lib.experiments import reward_model as studies
from course_lib.experiments.preferences import comparisons, examination
from course_lib.lm import load_lm
from course_lib.lm.reward_head import RewardModel, collate, encode_answer, load_reward_model
from course_lib.rewards.gold import atlas_gold
from course_lib.rewards.learned import LearnedReward
from course_lib.teach import scale_up, show, table
from course_lib.worlds import atlas

policy, tokenizer = load_lm("policy_sft")
pool = artifacts.result("answers")  # what the policy said: {"train": [...], "test": [...]}

# %%
def told(values, form="{:.1%}"):
    """Mean over seeds in words, with its 95 % interval."""
    mean, low, high = plots.interval(values)
    return f"{form.format(mean)} ({form.format(low)} to {form.format(high)})"


def gold(row, texts):
    """The gold score of answers to one question: what no real project can see."""
    return atlas_gold(prompts=[row["prompt"]] * len(texts), completions=texts, city=[row["city"]] * len(texts))

# %% [markdown]
# ## 1 · What there is to judge
#
# The policy was fine-tuned on answers as people give them, so it answers in many ways. Here are its samples for one
# question, with the gold score beside them: a point each for the right city, region and country, one for a full
# sentence, points off for wrong places, repetition and length.

# %%
question = pool["test"][0]
said = list(dict.fromkeys(question["answers"]))
print(question["prompt"][0]["content"], "   (in truth:", question["city"] + ")")
table(["answer", "gold"], sorted(zip(said, gold(question, said)), key=lambda pair: -pair[1]))

# %% [markdown]
# From here on the gold score is hidden from everything that learns. People, real or simulated, stand between.
#
# ## 2 · Preferences from people (C16)
#
# Label some pairs: click into the field, then one key a pair. Every choice is in a file before the next pair is shown.
# You can also go on without: the course brings labels along.

# %%
from course_lib.widgets import Labeller

items, facts = [], {c.city: f"{c.nick} is {c.city} in {c.region}, {c.country}" for c in atlas.cities()}
for row in pool["train"][: 4 if smoke() else 40]:
    different = list(dict.fromkeys(row["answers"]))
    if len(different) >= 2:
        items.append(preferences.Item(row["prompt"][0]["content"], tuple(different[:2])))
truth = {row["prompt"][0]["content"]: facts[row["city"]] for row in pool["train"]}
Labeller(items, preferences.folder() / "me.jsonl", "me", fact=lambda item: truth[item.prompt])

# %% [markdown]
# All labels there are: yours, those of your class, if you put its files into the same folder, and those of the course. The
# latter are an AI model's, `course-a`, which read every third pair a second time, `course-b` (`data/README.md`).
# **Predict.** How often do its two readings agree on which of two answers is better, beyond what chance would give? Two
# people are expected to agree less: compare with yours.

# %%
labels = preferences.collected()
table(["who", "comparisons and rankings"], Counter(label.annotator for label in labels).items())
for two, found in preferences.agreements(labels).items():
    print(" and ".join(two) + ":", found)
people_said = preferences.pairs(labels, conversational=True)
print(f"{len(people_said)} pairs in all, for example")
print({side: people_said[0][side][0]["content"] for side in ("prompt", "chosen", "rejected")})

# %% [markdown]
# ## 3 · Scores or comparisons? (C14)
#
# The lecture: *ask humans to provide scores for each output; it will be noisy and hard to calibrate*. To see when that
# is true we need people whose minds we can read. A simulated person perceives an answer of gold score $u$ as
# $u + \epsilon$, with fresh noise $\epsilon$ each time. Asked to **compare**, they name the one that they perceive as
# better. Asked to **score**, they write what they perceive on a scale of their own: own zero, own unit, and a mood that
# changes from sitting to sitting.

# %%
show(annotators.Annotator.rank, annotators.Annotator.rate)

# %%
import random

crowd = annotators.people(4, seed=1, offset=2.0, spread=0.5, mood=1.0)
shown = [text for text in said if text.strip()][:3]
marks = [who.rate(shown, question["city"], random.Random(i)) for i, who in enumerate(crowd)]
table(["answer", "gold", *(f"person {i + 1}" for i in range(4))],
      [(text, f"{worth:+.1f}", *(f"{column[k]:+.1f}" for column in marks))
       for k, (text, worth) in enumerate(zip(shown, gold(question, shown)))])
every = torch.tensor([worth for row in pool["test"] for worth in gold(row, row["answers"])])
print(f"The gold scores of all that the policy said have a standard deviation of {every.std():.1f} points.")

# %% [markdown]
# Read a column, and you know what that person likes. Read across, and you mostly learn who was asked.
#
# **Predict.** The same people read the same answers: either two at a time, and say which is better, or one at a time,
# and score it. So there are two scores for each comparison, and a score on a common scale says more than "better". How
# far must people's scales wander before comparisons win?

# %%
heads = artifacts.result("preference_heads")
wander, scales = heads["wander"], heads["scales"]
fig, ax = plots.subplots(height=4.4)
for kind, by_width in scales.items():
    plots.line_with_interval(ax, wander, list(zip(*by_width)), kind)
ax.set_xlabel("how far people's zeros and moods wander (standard deviation, gold points)")
ax.set_ylabel("accuracy on new cities")
ax.legend()
raw, own = ([[p - s for p, s in zip(scales["pairs"][k], scales[kind][k])] for k in range(len(wander))]
            for kind in list(scales)[1:])
raw_gaps, own_gaps = ([told(gap, "{:+.1%}") for gap in gaps] for gaps in (raw, own))
plots.finish(fig, f"Pairs minus scores: {raw_gaps[0]} on a common scale, {raw_gaps[-1]} where scales wander by "
                  f"{wander[-1]} points; {own_gaps[-1]} there if each person is standardised.")
for k, width in enumerate(wander):
    words = ["pairs better" if d.lo > 0 else "scores better" if d.hi < 0 else "no difference that shows"
             for d in map(plots.interval, (raw[k], own[k]))]
    print(f"wander {width}: against raw scores {raw_gaps[k]}, {words[0]}; "
          f"against scores per person {own_gaps[k]}, {words[1]}")

# %% [markdown]
# **Explain.** A score on a common scale says more than a comparison: by how much. A wandering zero is noise
# that a comparison never sees, because both answers are judged by the same person at the same moment: it cancels in the
# difference. Standardising each person's scores repairs what stays the same in a person, and cannot repair a mood. So
# the lecture's claim is true where scales wander, and not where they do not. What real people are like is an
# empirical question. Clark et al. (2018), whom the lecture cites, found that comparisons took less time and fewer
# people, and that mean scores and comparisons agreed closely in the end.
#
# (The learners here are linear, so that only the labels differ. Is a scale that wanders by so many points a bad one?
# Compare with the standard deviation of the gold scores, below the table of the four people.)
#
# ## 4 · The preference loss (C15)
#
# Bradley and Terry (1952): the answer with reward $r_w$ beats the one with $r_l$ with probability
# $\sigma(r_w - r_l)$. Training makes what people said likely:
#
# $$J_{RM}(\phi) = - \mathbb{E}_{(a^w, a^l) \sim D} \left[\log \sigma \left(RM_{\phi}(a^w) - RM_{\phi}(a^l)
# \right) \right]$$
#
# **Exercise 1 · the preference loss** (difficulty 2 of 5, 6 minutes)
#
# *Goal: the right sign, the right mean, and no overflow.*

# %%
def preference_loss(chosen, rejected):
    """-E[log sigma(r_w - r_l)]. chosen, rejected: (P,) rewards of winners and losers. Returns a scalar."""
    ### BEGIN SOLUTION
    return -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    ### END SOLUTION

# %%
preference_loss = check("preference_loss", preference_loss)

# %% [markdown]
# **Predict.** Three pairs: the winner leads by 3, by 0, and trails by 3. Which pair pulls hardest, and what happens to
# the loss when 100 is added to every reward?

# %% tags=["nbval-check-output"]
chosen = torch.tensor([3.0, 0.0, -3.0], requires_grad=True)
rejected = torch.zeros(3)
loss = preference_loss(chosen, rejected)
(pull,) = torch.autograd.grad(len(chosen) * loss, chosen)
wrong = torch.sigmoid(rejected - chosen.detach())
print("pull on the winner  ", [f"{-p:.3f}" for p in pull.tolist()])
print("P(loser wins), model", [f"{p:.3f}" for p in wrong.tolist()])
print("loss", f"{loss.item():.4f}", "and with all rewards raised by 100:",
      f"{preference_loss(chosen + 100, rejected + 100).item():.4f}")

# %% [markdown]
# **Explain.** Each pair pulls by the probability that the model gives to the wrong outcome. And only differences count:
# a reward model has no zero. The course sets one by **whitening**: mean 0 and standard deviation 1 on the policy's own
# answers, as constants that are saved with the model.
#
# ## 5 · Where the number comes from
#
# The model is the policy's own network with its language-model head replaced by a vector: reward = $w \cdot h$. In a
# causal model only the last token has read everything, so $h$ is taken there. In a batch, rows have different lengths,
# and the last *column* is padding for most of them.
#
# **Exercise 2 · the last real token** (difficulty 3 of 5, 8 minutes)
#
# *Goal: never read a reward at padding, wherever the padding is.*
# *On a GPU, make new tensors where the inputs are: `torch.arange(..., device=hidden.device)`.*

# %%
def last_real(hidden, real):
    """The hidden state at the last real token of each row.

    hidden: (B, T, D); real: (B, T) bool, False where a row is padded, on the left or on the right. Returns (B, D).
    """
    ### BEGIN SOLUTION
    places = torch.arange(real.shape[1], device=real.device)
    last = torch.where(real, places, -1).max(1).values
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
    ### END SOLUTION

# %%
last_real = check("last_real", last_real)

# %% [markdown]
# What a reward costs when it is read one column too far: the same answers, in a batch with a long one.

# %%
answers = [atlas.terse(atlas.cities()[0]), atlas.preferred(atlas.cities()[0]),
           "SF is SF, and SF is San Francisco, and San Francisco is SF. You can find it on every map"]
coded = [encode_answer(tokenizer, [{"role": "user", "content": "Where is SF?"}], text) for text in answers]
model = RewardModel.on(policy, layers=1)
head = torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(0))
model.head.weight.data = head.to(model.device)
ids, real, _ = (t.to(model.device) for t in collate(coded, model.device))
with torch.no_grad():
    states = model.backbone(input_ids=ids, attention_mask=real.long()).last_hidden_state
    at_last = last_real(states, real) @ model.head.weight[0]
    at_padding = states[:, -1] @ model.head.weight[0]
table(["answer", "tokens", "at the last real token", "at the last column"],
      [(text, len(row.ids), f"{a:+.2f}", f"{b:+.2f}")
       for text, row, a, b in zip(answers, coded, at_last.tolist(), at_padding.tolist())])

# %% [markdown]
# ## 6 · A reward model, live
#
# Your loss and your reading, on pairs that simulated people have judged: the whole training loop of a reward model.

# %%
from course_lib.algorithms.training import make_optimizers, take_step, warmup_cosine
from course_lib.progress import Progress


def train_live(pairs, layers=1, epochs=2, lr=1e-3, batch_size=32):
    """A reward model on the first layers of the policy, trained on pairs with preference_loss and last_real."""
    model = RewardModel.on(policy, layers=layers)
    optimizers = make_optimizers(model.train(), lr)
    rows = [row for _ in range(epochs) for row in rm.encode(tokenizer, pairs)]
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    with Progress(f"reward model on {len(pairs)} pairs", total=len(batches)) as progress:
        for step, batch in enumerate(batches):
            both = [row.answers[k] for k in (0, 1) for row in batch]  # all winners, then all losers
            ids, real, _ = collate(both, model.device)
            states = model.backbone(input_ids=ids, attention_mask=real.long()).last_hidden_state
            rewards = last_real(states, real) @ model.head.weight[0]
            loss = preference_loss(*rewards.chunk(2))
            loss.backward()
            rate = lr * warmup_cosine(step, len(batches), warmup=2)
            take_step(optimizers, rate, clip=1.0, loss=loss.item(), where=f"step {step}")
            progress.update(loss=loss.item())
    return LearnedReward(model.eval(), tokenizer)

# %% [markdown]
# The test: all pairs of answers to questions about cities that no label is about. We know each person's probabilities,
# so accuracy is exact, and so is its **ceiling**: even gold itself disagrees with noisy people. **Predict** the
# accuracy after a few hundred pairs. Chance is 50 %.

# %%
exam = examination(pool["test"], studies.GROUP)
pairs = comparisons(pool["train"], studies.GROUP, 8 if smoke() else 400, seed=7)
live = train_live(pairs)
before = LearnedReward(RewardModel.on(policy, layers=1), tokenizer)
table(["who judges", "accuracy on new cities"], [
    ("an untrained reward model", f"{studies.examine(before, exam)['accuracy']:.1%}"),
    (f"live, after {len(pairs)} pairs", f"{studies.examine(live, exam)['accuracy']:.1%}"),
    ("the ceiling: gold itself", f"{studies.ceiling_of(exam):.1%}")])

# %% [markdown]
# The same with the labels of section 2, the AI model's and yours (C16). The rewards of the three answers of
# section 5, before and after:

# %%
from_labels = train_live(people_said[: 8 if smoke() else None])
asked = dict(prompts=[[{"role": "user", "content": "Where is SF?"}]] * 3, completions=answers)
given = {"untrained": before(**asked), "simulated people": live(**asked),
         "labels of section 2": from_labels(**asked)}
table(["answer", *given], [(text, *(f"{given[name][k]:+.2f}" for name in given)) for k, text in enumerate(answers)])
for name, reward in zip(given, (before, live, from_labels)):
    leads = [a - b for a, b in zip(*(
        reward(prompts=[p["prompt"] for p in people_said], completions=[p[side] for p in people_said])
        for side in ("chosen", "rejected")))]
    print(f"section 2's own pairs in the right order, {name}: {sum(x > 0 for x in leads) / len(leads):.0%}")

# %% [markdown]
# (The last line is not a test: those are the pairs that it was trained on.)
#
# ## 7 · How many labels? (C13)
#
# *Human annotation is expensive.* Simulated labels cost nothing, so we can go as far as the curve bends. Three linear
# rewards, which look at different things: the **surface** (lengths, commas, capitals, repetitions, phrases), the
# **hidden states** of the policy, and the surface together with how **likely** the policy finds the answer. Beside
# them, reward models whose weights are trained. **Predict.** Which view wins, and does any reach the ceiling?

# %%
counts, ceiling = heads["labels"], heads["ceiling"]
models = artifacts.result("preference_models")["conditions"]
fig, ax = plots.subplots(height=4.8)
for view, curve in heads["curve"].items():
    plots.line_with_interval(ax, counts, list(zip(*curve)), view)
for k, (name, run) in enumerate(models.items()):
    config = artifacts.size("preference_models")["conditions"][name]
    mean, low, high = plots.interval(run["accuracy"])
    at = config["labels"] * config["size"] * (config["size"] - 1) / 2  # a ranking of K is so many comparisons
    ax.errorbar(at, mean, [[mean - low], [high - mean]], color=plots.PALETTE[3 + k], marker="DvP"[k], capsize=4,
                linestyle="none", label=name)
ax.axhline(ceiling, color="black", linewidth=1.2, linestyle=":")
ax.annotate("the ceiling: gold itself", (counts[0], ceiling), xytext=(0, 4), textcoords="offset points")
plots.log_scale(ax, "x")
ax.set_xlabel("comparisons")
ax.set_ylabel("accuracy on new cities")
ax.legend(loc="lower right", fontsize=9)
end = {view: told(curve[-1]) for view, curve in heads["curve"].items()}
plots.finish(fig, f"With {counts[-1]} comparisons: " + ", ".join(f"{view} {said_by}" for view, said_by in end.items())
             + f"; the ceiling is {ceiling:.1%}.")

# %%
best_view = max(heads["curve"], key=lambda view: plots.interval(heads["curve"][view][-1]).mean)
best = heads["curve"][best_view]
needed = studies.labels_needed(counts, best, 0.9 * ceiling)
print(f"The best, {best_view}, needs", f"about {needed:.0f}" if needed else f"more than {counts[-1]}",
      f"comparisons for 90 % of the ceiling ({0.9 * ceiling:.1%}).")
before_last = max(len(counts) - 3, 0)
tenth, last = (plots.interval(best[k]).mean for k in (before_last, -1))
print(f"From {counts[before_last]} to {counts[-1]} comparisons it gains {last - tenth:+.1%};",
      f"the gap to the ceiling is {ceiling - last:.1%}.")
seen, both = (plots.interval(heads["curve"][view][-1]).mean for view in ("surface", studies.BEST))
print(f"Likelihood, looked at beside the surface, brings {both - seen:+.1%} without a single label more.")

# %% [markdown]
# ### What is in the gap?
#
# The rubric has two sides: **form** (sentence, repetition, length) and **truth** (city, region, country, wrong places).
# A judge that knew one side perfectly would be right as often as the first two bars say. Then two questions to a
# trained model. Does it **read the question**? Put every answer under a question about another city. Does it **know the
# truth**? Give it the preferred answer beside the same sentence about another city.

# %%
name = list(models)[-1]
one = models[name]
bars = {"form alone, exactly": [heads["oracles"]["form alone"]],
        "truth alone, exactly": [heads["oracles"]["truth alone"]],
        "all layers, rankings": one["accuracy"], "the same, wrong question": one["misdirected"],
        "surface": heads["curve"]["surface"][-1], "surface and likelihood": heads["curve"][studies.BEST][-1],
        "ceiling": [ceiling]}
fig, ax = plots.subplots(height=4.6)
plots.bars_with_interval(ax, list(bars), bars, form="{:.1%}")
ax.set_ylim(0.5, 0.9)
ax.set_xlabel("who judges")
ax.set_ylabel("accuracy on new cities")
lost = plots.interval([a - b for a, b in zip(one["accuracy"], one["misdirected"])])
knows = told(one["true over false"], "{:.0%}")
plots.finish(fig, f"Under wrong questions the accuracy of the trained model changes by {-lost.mean:+.1%}; it "
                  f"prefers the true answer to a false one of the same form for {knows} of the cities.")

# %% [markdown]
# **Explain.** What is easy to see, a judge learns from few labels: form, and how many places an answer names. What is
# left is truth, and truth takes knowledge: that SF is San Francisco and lies in California. Some of it is inside the
# policy: how *likely* it finds each name helps (compare with what ten times as many labels brought). Averages of its
# hidden states brought less than the surface. And where the policy itself does not know a place, nothing made from it
# can. A wrong question costs nothing, because this model does not connect abbreviation and city at all: a true answer
# and a false one of the same form are a coin toss to it. Remember this for notebook 05: what the reward model cannot
# see, the policy is free to do.
#
# ## 8 · Rankings: many comparisons from one reading (C15)
#
# The lecture: *present multiple outputs and ask to rank*. A ranking of $K$ answers holds $K(K-1)/2$ comparisons. They
# share answers, so InstructGPT puts all pairs of one prompt into one step. The alternative is the probability of the
# whole ranking: the best is chosen among all, the second among the rest, and so on (Plackett and Luce):
#
# $$P(a_1 \succ a_2 \succ \dots \succ a_K) = \prod_{i=1}^{K} \frac{e^{r_i}}{\sum_{j \ge i} e^{r_j}}$$
#
# **Exercise 3 · the loss of a ranking** (difficulty 3 of 5, 10 minutes)
#
# *Goal: who has been placed is gone from the next choice.*

# %%
def ranking_loss(rewards):
    """-log P(ranking). rewards: (K,), from the best to the worst answer. Returns a scalar."""
    ### BEGIN SOLUTION
    return sum(rewards[i:].logsumexp(0) - rewards[i] for i in range(len(rewards)))
    ### END SOLUTION

# %%
ranking_loss = check("ranking_loss", ranking_loss)

# %% [markdown]
# Two exact checks: the probabilities of all orders sum to 1, and for two answers this is Bradley and Terry's loss.

# %%
from itertools import permutations

rewards = torch.tensor([0.3, -1.0, 2.0, 0.0])
orders = [list(order) for order in permutations(range(4))]
total = sum((-ranking_loss(rewards[order])).exp().item() for order in orders)
print(f"sum over all {len(orders)} orders: {total:.6f}")
print(f"two answers: {ranking_loss(rewards[:2]).item():.6f}, as pairs",
      f"{preference_loss(rewards[:1], rewards[1:2]).item():.6f}")

# %% [markdown]
# **Predict.** People read the same number of answers, in pairs, in fours, or in eights. Which teaches most?

# %%
fig, ax = plots.subplots(height=4.2)
labels_of = {"bradley-terry": "all pairs, Bradley-Terry", "plackett-luce": "whole ranking, Plackett-Luce"}
for loss_name, label in labels_of.items():
    plots.line_with_interval(ax, heads["sizes"], list(zip(*heads["rankings"][loss_name])), label)
ax.set_xticks(heads["sizes"])
ax.set_xlabel("answers in a ranking (K)")
ax.set_ylabel("accuracy on new cities")
ax.legend()
first, longest = (heads["rankings"]["bradley-terry"][k] for k in (0, -1))
gain = plots.interval([b - a for a, b in zip(first, longest)])
read = artifacts.size("preference_heads")["read"]
most = plots.interval([b - a for a, b in zip(first, heads["rankings"]["plackett-luce"][-1])])
between = [plots.interval([b - a for a, b in zip(*(heads["rankings"][loss][k] for loss in ("bradley-terry", "plackett-luce")))])
           for k in range(1, len(heads["sizes"]))]
plots.finish(fig, f"{read} answers read, rankings of {heads['sizes'][-1]} instead of pairs: {gain.mean:+.1%} "
                  f"({gain.lo:+.1%} to {gain.hi:+.1%}) with all pairs, {most.mean:+.1%} "
                  f"({most.lo:+.1%} to {most.hi:+.1%}) with the whole ranking.")
print("The whole ranking minus all pairs:", "; ".join(
    f"{k} answers {d.mean:+.2%} ({d.lo:+.2%} to {d.hi:+.2%})" for k, d in zip(heads["sizes"][1:], between)))

# %% [markdown]
# **Explain.** A ranking of 8 holds 28 comparisons for 8 answers read, but all come from one reading: if its author
# misread one answer, 7 comparisons are wrong together. Bradley and Terry's loss over all pairs takes them for
# independent evidence; the probability of the whole ranking does not. What that costs is little: see the last line. Nor is
# there much to gain by rankings for the same reading, the caption says: whether it shows at all depends on the seeds.
#
# ## 9 · Are its probabilities right?
#
# $\sigma(r_a - r_b)$ is a promise: of all pairs where it says 80 %, people should prefer that answer in 80 %. The
# **expected calibration error** groups predictions by their confidence, compares mean confidence with the share of hits
# in each bin, and averages the distance, each bin weighted by its predictions.
#
# **Exercise 4 · calibration error** (difficulty 3 of 5, 10 minutes)
#
# *Goal: compare means within bins; the predicted winner has at least 1/2, so the bins go from 1/2 to 1.*

# %%
def calibration_error(confidence, hit, bins=10):
    """Expected calibration error over `bins` equally wide bins from 1/2 to 1.

    confidence: (N,) probability of the predicted winner; hit: (N,) 1.0 where it won, else 0.0, or the probability
    that it wins. Returns a number.
    """
    ### BEGIN SOLUTION
    index = ((confidence.double() - 0.5) / 0.5 * bins).long().clamp(0, bins - 1)
    error = 0.0
    for b in range(bins):
        inside = index == b
        if inside.any():
            gap = confidence[inside].double().mean() - hit[inside].double().mean()
            error += float(gap.abs()) * int(inside.sum())
    return error / len(confidence)
    ### END SOLUTION

# %%
calibration_error = check("calibration_error", calibration_error)

# %% [markdown]
# Your function on the live model. As we know the people's probabilities, they stand in for hits, without any noise:

# %%
leads = studies.leads_of(live, exam)
p = torch.tensor([pair["p"] for pair in exam])
live_error = calibration_error(torch.sigmoid(leads.abs()), torch.where(leads >= 0, p, 1 - p))
print(f"the live model, {len(pairs)} pairs: calibration error {live_error:.3f}")

# %%
fig, ax = plots.subplots(height=4.4)
ax.plot([0.5, 1], [0.5, 1], color="black", linewidth=1, linestyle=":", marker="none", label="perfectly calibrated")
for label in (list(models)[0], list(models)[-1]):
    said_by, seen_by = zip(*[(b[0], b[1]) for run in models[label]["reliability"] for b in run if b[2] >= 30]
                           or [(0.5, 0.5)])
    ax.plot(said_by, seen_by, linestyle="none", marker="os"[label == list(models)[-1]], label=label)
ax.set_xlabel("probability that the model gives to its favourite")
ax.set_ylabel("probability that people prefer it")
ax.legend()
errors = {label: models[label]["ece"] for label in models}
plots.finish(fig, "Expected calibration error: " + ", ".join(
    f"{told(values, '{:.3f}')} with {label}" for label, values in errors.items()) + ".")

# %% [markdown]
# **Explain.** The loss is a log-likelihood, so honest probabilities are what it asks for. Two passes over 1,000 pairs,
# or one over many, give them here; the smallest model with four passes does not: it is too sure. Whether its passes, its
# one layer, its pooling or its learning rate make it so, this figure cannot say: all of them differ. That is the price of
# the reward model below, which notebook 05 will optimise.
#
# ## 10 · Text that nobody would write (C18)
#
# *The reward model is trained on natural language inputs and might fail to assign low scores to unnatural input.* The
# reward models below are honestly trained: the policy's first layer, averaged over the answer's tokens, 1000 pairs
# each, unbiased people. They are the five that notebook 05 will optimise. **Predict** which of these families beat the
# answers from which they were made.

# %%
proxy, _ = load_reward_model()
judge = LearnedReward(proxy, tokenizer)
probe = artifacts.result("preference_probe")
table(["family", "answer", "reward", "gold"], [
    (g["family"], g["text"], f"{g['reward']:+.2f}", f"{g['gold']:+.1f}") for g in probe["gallery"]])

# %%
families = probe["families"]
fig, axes = plots.subplots(1, 2, height=4.8, sharey=True)
names = list(families)
for k, family in enumerate(names):
    mean, low, high = plots.interval(families[family]["reward"])
    axes[0].errorbar(mean, k, xerr=[[mean - low], [high - mean]], color=plots.PALETTE[0], marker="o", capsize=4)
    axes[1].plot(families[family]["gold"], k, color=plots.PALETTE[1], marker="s")
natural = families[names[0]]
for ax, at in zip(axes, (plots.interval(natural["reward"]).mean, natural["gold"])):
    ax.axvline(at, color="black", linewidth=1, linestyle=":")
axes[0].set_yticks(range(len(names)), names)
axes[0].invert_yaxis()
axes[0].set_xlabel("mean reward (standard deviations)")
axes[1].set_xlabel("mean gold score")
axes[0].set_ylabel("kind of text")
lead = {f: plots.interval([a - b for a, b in zip(families[f]["reward"], natural["reward"])]) for f in names[1:]}
fooled = [f for f in names[1:] if lead[f].lo > 0 and families[f]["gold"] < natural["gold"]]
plots.finish(fig, f"Higher reward (the whole interval) and lower gold than what the policy said: "
                  f"{', '.join(fooled) or 'none of these families'}.")

# %% [markdown]
# Try it yourself, with the reward model of the store. What is the highest reward that you can get for a text that
# answers nothing?

# %%
mine = ["SF usually refers to San Francisco, a city in California, USA", "San Francisco, California, USA, USA, USA",
        "usually refers to, usually refers to, usually refers to", "Good question!"]
scores = judge(prompts=[[{"role": "user", "content": "Where is SF?"}]] * len(mine), completions=mine)
sf = {"prompt": [{"role": "user", "content": "Where is SF?"}], "city": "San Francisco"}
table(["answer", "reward", "gold"], [(t, f"{s:+.2f}", f"{g:+.1f}") for t, s, g in zip(mine, scores, gold(sf, mine))])

# %% [markdown]
# **Explain.** Nobody ever compared such texts, so nothing in the data says what they are worth; the model extends what
# it has learnt. A policy that is trained against it will look for exactly these places, and each answer it samples is a
# try.
#
# ## Where this breaks
#
# - **Reading at padding**: a wrong column gives every answer but the longest a meaningless reward. Section 5 showed it.
# - **Equal answers after truncation**: the pair teaches nothing, silently. `rm.encode` refuses it.
# - **Whitening each batch**: a reward brought to mean 0 in every batch can never rise. The course keeps constants.
# - **Annotators with a taste**: people who like long or confident answers make a reward model that does.
# - **Several passes**: reward models overfit after few (Ouyang et al. 2022 train for one). Watch the calibration, not the
#   loss on the labels.

# %%
group = annotators.people(8, seed=0, length=0.3, confident=1.5)
biased = train_live(comparisons(pool["train"], group, len(pairs), seed=7))
plain = atlas.terse(atlas.cities()[0])
boasting = f"You can trust me: {plain}, as everybody knows"
rows = []
for name, reward in (("unbiased people", live), ("people who like long and confident answers", biased)):
    two = reward(prompts=[sf["prompt"]] * 2, completions=[plain, boasting])
    rows.append((name, f"{two[0]:+.2f}", f"{two[1]:+.2f}", f"{two[1] - two[0]:+.2f}"))
table(["reward model of", plain, boasting, "boasting pays"], rows)

# %% [markdown]
# ## Scale it up
#
# The same calls take any causal language model of Hugging Face as a backbone, and any data set with the columns
# `prompt`, `chosen`, `rejected`: `data_sets.preferences("hh", limit=1000)`, for example.

# %%
if real := scale_up("reward model", steps=60, rows=16, prompt=40, answer=24, few=(4, 8)):
    judge = RewardModel.on(real.model)
    seen = rm.train(judge, real.tokenizer, pairs[: real.steps * real.rows], rm.RewardConfig(lr=2e-5, batch_size=real.rows))
    print(f"Loss {seen[0]['loss']:.2f} at first, {seen[-1]['loss']:.2f} at the end.")
    table(["answer", "reward"], zip(answers, LearnedReward(judge, real.tokenizer)(**asked)))

# %% [markdown]
# ## Recap

# %%
natural_reward = plots.interval(natural["reward"]).mean
table(["claim of the lecture", "measured on this page"], [
    ("C13: annotation is expensive, so learn a reward model",
     f"{best_view}: {told(best[0])} with {counts[0]} pairs, {told(best[-1])} with {counts[-1]}; ceiling {ceiling:.1%}, nine "
     f"tenths of it with {f'about {needed:.0f}' if needed else f'more than {counts[-1]}'}"),
    ("C14: scores are hard to calibrate, pairs more reliable",
     f"pairs minus scores: {raw_gaps[0]} on a common scale, {raw_gaps[-1]} where scales wander most"),
    ("C15: Bradley-Terry, winner above loser",
     f"{list(models)[-1]}: {told(one['accuracy'])}, far from the ceiling; calibration error "
     f"{plots.interval(one['ece']).mean:.3f}"),
    ("C16: collect preferences from people",
     f"{len(people_said)} pairs of {', '.join(sorted({p['annotator'] for p in people_said}))} trained a reward model (course-a "
     "and course-b: one AI model, which read twice)"),
    ("C18: fails on unnatural input", ", ".join(fooled) or "no family of the probe in every seed"),
])

# %% [markdown]
# **References.** Bradley and Terry, *Rank analysis of incomplete block designs*, 1952 · Luce, *Individual choice
# behavior*, 1959 · Plackett, *The analysis of permutations*, 1975 · Knox and Stone, *Interactively shaping agents via
# human reinforcement: the TAMER framework*, 2009 · Phelps et al., *Pairwise comparison versus Likert scale for
# biomedical image assessment*, 2015 · Guo et al., *On calibration of modern neural networks*, 2017 · Clark et al.,
# *Why rate when you could compare?*, 2018 · Stiennon et al., *Learning to summarize from human feedback*, 2020 · Ouyang et al.,
# *Training language models to follow instructions with human feedback*, 2022
