# %% [markdown]
# # 08 · DPO: your policy is the reward model
#
# *Lecture: 5. Direct Preference Optimization (DPO): motivation, objectives, summary*
#
# > Is there a way to simplify this pipeline? For example, by using a single language model.
#
# **You will be able to** derive DPO's loss from the objective of RLHF and check every step with numbers, train with it on
# people's comparisons, use the trained policy as a reward model, say why chosen *and* rejected answers become less
# likely while everything goes well, and name what is lost when nobody samples.
#
# | | |
# | --- | --- |
# | time | about 1 minute on two CPU cores, as long on a T4 (estimates, for a filled store) |
# | starts from | the policy of notebook 05, and the comparisons that trained its reward models |
# | leaves behind | three studies in the store, if they are not there yet |
#
# Two claims of the lecture are measured: one model and a supervised loss reach what reward model and RL reach (C26),
# and the loss maximises a margin while it stays near the base (C27).

# %%
import copy

import torch

from course_lib import artifacts, exact, objectives, plots
from course_lib.algorithms import dpo
from course_lib.algorithms.reinforce import adam
from course_lib.algorithms.training import take_step
from course_lib.checks import check
from course_lib.experiments import dpo as lab
from course_lib.experiments.preferences import answers, comparisons, prompts
from course_lib.experiments.reward_model import GROUP
from course_lib.experiments.rlhf import smooth, turnover
from course_lib.teach import scale_up, show, table

# %%
def told(values, form="{:+.2f}"):
    """Mean over seeds in words, with its 95 % interval."""
    mean, low, high = plots.interval(values)
    return f"{form.format(mean)} ({form.format(low)} to {form.format(high)})"

# %% [markdown]
# ## 1 · What RLHF costs, and a way round it
#
# Notebook 05 needed a reward model, trained on comparisons; then a policy, sampled from in every step of training; and a
# reference, to price what was sampled. Three language models, two losses, and sampling inside the loop. But the optimum of
# all that work was known in closed form. DPO starts there. Six lines, and each of them is checked below:
#
# 1. $\max_\pi \; \mathbb{E}_{y \sim \pi}[R(y)] - \beta\, \mathrm{KL}(\pi \,\|\, \pi_{ref})$: the policy objective of RLHF
# 2. $\pi^*(y) = \frac{1}{Z} \pi_{ref}(y)\, e^{R(y)/\beta}$: its optimum (notebook 05)
# 3. $R(y) = \beta \log \frac{\pi^*(y)}{\pi_{ref}(y)} + \beta \log Z$: solved for the reward
# 4. $R(y_w) - R(y_l) = \beta \log \frac{\pi^*(y_w)}{\pi_{ref}(y_w)} - \beta \log \frac{\pi^*(y_l)}{\pi_{ref}(y_l)}$:
#    in a difference $Z$ cancels
# 5. $P(y_w \succ y_l) = \sigma(R(y_w) - R(y_l))$: Bradley and Terry's model (notebook 04), now in terms of $\pi^*$ alone
# 6. put $\pi_\theta$ where $\pi^*$ stands, and maximise the likelihood of what people said:
#
# $$\mathcal{L}_{DPO} = - \mathbb{E}_{(x, y_w, y_l)} \left[\log \sigma \left(\beta \log \frac{\pi_\theta(y_w | x)}
# {\pi_{ref}(y_w | x)} - \beta \log \frac{\pi_\theta(y_l | x)}{\pi_{ref}(y_l | x)} \right) \right]$$
#
# (Every $\pi$, $R$ and $Z$ is for one prompt $x$; only answers to the same prompt are ever compared.)
#
# The model that can be listed again: 40 answers, a reference, rewards, and people who compare by these rewards.

# %%
BETA = 0.5
small = exact.TableLM(letters=3, length=3, seed=0)
logref = small().detach()                                                        # (40,)
rewards = torch.randn(40, generator=torch.Generator().manual_seed(1000))
wins = lab.win_rates(rewards)                                                    # (40, 40) P(a beats b)

# %%
best = exact.optimum(logref, rewards, BETA)
noise = 0.1 * torch.randn(1000, 40, generator=torch.Generator().manual_seed(0))
nearby = (best + noise).log_softmax(1)                                           # (1000, 40)
value = float(exact.objective(best, rewards, logref, BETA))
others = max(float(exact.objective(p, rewards, logref, BETA)) for p in nearby)
print(f"lines 1, 2: the objective is {value:.4f} at the optimum, and at most {others:.4f} at 1000 policies around it")

ratio = BETA * (best - logref)
logz = float((logref + rewards / BETA).logsumexp(0))
print(f"line 3: beta log(pi*/pi_ref) + beta log Z is R, up to {float((ratio + BETA * logz - rewards).abs().max()):.1e}")
print(f"        beta log(pi*/pi_ref) alone is off, by {float(rewards[0] - ratio[0]):.4f} for the first answer, "
      f"by {float(rewards[39] - ratio[39]):.4f} for the last; beta log Z = {BETA * logz:.4f}")

lead = ratio[:, None] - ratio[None]
print(f"line 4: the differences agree for all 1600 pairs, up to "
      f"{float((lead - (rewards[:, None] - rewards[None])).abs().max()):.1e}")
print(f"line 5: sigma of them is what people say, up to {float((torch.sigmoid(lead) - wins).abs().max()):.1e}")

# %% [markdown]
# So the best policy is contained in the preferences: no reward was ever seen, and none is needed.
#
# **Exercise 1 · the best policy, straight from preferences** (difficulty 2 of 5, 8 minutes)
#
# *Goal: use lines 2 and 5. Rewards count only up to a constant, so you may measure all of them from answer 0.*
# *`torch.logit` undoes the sigmoid.*

# %%
def policy_from_preferences(logref, wins, beta):
    """log pi*(y), the optimum of RLHF, from preferences alone.

    logref: (S,) log pi_ref of all answers; wins: (S, S), wins[a, b] = P(a beats b) by Bradley and Terry's model.
    Returns (S,).
    """
    ### BEGIN SOLUTION
    reward = torch.logit(wins[:, 0])
    return (logref + reward / beta).log_softmax(0)
    ### END SOLUTION

# %%
policy_from_preferences = check("policy_from_preferences", policy_from_preferences)

# %%
mine = policy_from_preferences(logref, wins, BETA)
print(f"total variation from the optimum of RLHF: {exact.total_variation(mine, best):.6f}")

# %% [markdown]
# ## 2 · The loss (line 6)
#
# People do not hand out a table of probabilities. They say which of two answers they prefer, so the policy has to be
# fitted to what they say, by maximum likelihood: the loss is the reward model's, with $\beta \log (\pi / \pi_{ref})$ in
# the place of the reward.
#
# **Exercise 2 · DPO's loss** (difficulty 2 of 5, 10 minutes)
#
# *`torch.nn.functional.logsigmoid(z)` is $\log \sigma(z)$, also where $\sigma(z)$ rounds to 0.*

# %%
def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """DPO's loss of each pair.

    chosen, rejected: log pi(y | x) of whole answers, of any one shape; ref_chosen, ref_rejected: log pi_ref of the same.
    Returns the same shape.
    """
    ### BEGIN SOLUTION
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    return -torch.nn.functional.logsigmoid(beta * margin)
    ### END SOLUTION

# %%
dpo_loss = check("dpo_loss", dpo_loss)

# %% [markdown]
# Train with it, exactly: all pairs that the reference would draw, each weighted by how often people would prefer the one
# to the other. That is what infinitely many labels would say. **Predict**: does the loss go to 0? Where does the policy go?

# %%
def exact_loss(logp, heard):
    """Your loss, its mean over all ordered pairs; heard: (S, S), how often the row was preferred to the column."""
    pairs = torch.broadcast_tensors(logp[:, None], logp[None], logref[:, None], logref[None])  # each (S, S)
    return (heard * dpo_loss(*pairs, BETA)).sum()


heard = lab.judged(logref, wins)  # sums to 1
trained = copy.deepcopy(small)
lab.descend(list(trained.parameters()), lambda: exact_loss(trained(), heard), steps=100, look=lambda: 0.0, every=100)
with torch.no_grad():
    logp = trained()
print(f"loss {exact_loss(logref, heard):.4f} at the reference, {exact_loss(logp, heard):.4f} after training, "
      f"{exact_loss(best, heard):.4f} at the optimum of RLHF")
print(f"total variation from the optimum of RLHF: {exact.total_variation(logref, best):.3f} before, "
      f"{exact.total_variation(logp, best):.5f} after")

# %% [markdown]
# **Explain.** The loss cannot reach 0: people disagree with themselves, and the best model of a coin is a coin. What is
# left is the entropy of their answers. At this minimum the margins are the true ones, and lines 2 to 5 say which policy
# has them. The same over seeds, each with its own reference and rewards, beside RLHF's objective, also by exact gradients:

# %%
c26 = artifacts.result("dpo_optimum")
fig, ax = plots.subplots(height=3.9)
for i, (name, runs) in enumerate(c26["infinite"].items()):
    for seed, run in enumerate(runs):
        ax.plot(c26["steps"], run, color=plots.PALETTE[i], linestyle=("-", "--")[i], marker="none", alpha=0.8,
                label=None if seed else f"{name} (every line a seed)")
ax.axhline(0.02, color="black", linewidth=0.8)
ax.annotate("0.02", (c26["steps"][-1], 0.02), xytext=(0, 3), textcoords="offset points", ha="right")
ax.set_yscale("log")
ax.set_xlabel("steps of L-BFGS")
ax.set_ylabel("total variation from $\\pi^*$")
ax.legend()
exact_ends = {name: max(run[-1] for run in runs) for name, runs in c26["infinite"].items()}
plots.finish(fig, f"With all preferences known, DPO ends at most {exact_ends['DPO']:.4f} (total variation) from RLHF's "
                  f"optimum in {len(c26['infinite']['DPO'])} seeds; RLHF itself at most {exact_ends['RLHF']:.4f}.")

# %% [markdown]
# ### And with finitely many labels?
#
# **Predict.** Now 100, 1,000, ... comparisons of two answers of the reference. Which is nearer to $\pi^*$: DPO, or a
# reward table fitted to the same labels and then the closed form of RLHF?

# %%
finite = c26["finite"]
fig, ax = plots.subplots(height=3.9)
for shift, name in ((0.93, "DPO"), (1.07, "reward model, then RLHF")):
    at = [count * shift for count, values in zip(c26["labels"], finite[name]) for _ in values]
    ax.plot(at, [v for values in finite[name] for v in values], linestyle="none", markersize=7, alpha=0.8, label=name)
plots.log_scale(ax, "x")
ax.set_xlabel("labels (every dot a seed)")
ax.set_ylabel("total variation from $\\pi^*$")
ax.legend()
sane = [a for gaps, mass in zip(finite["apart"], finite["unbeaten"]) for a, m in zip(gaps, mass) if m < 0.01]
lost = [m for mass in finite["unbeaten"] for m in mass if m >= 0.01]
wide, low, high = max(sane, default=0), min(lost, default=0), max(lost, default=0)
plots.finish(fig, f"The two end at the same place: at most {wide:.3f} apart in the {len(sane)} runs in which no answer was "
                  f"unbeaten. In the {len(lost)} others DPO gives a probability of {low:.2f} to {high:.2f} to answers that "
                  f"never lost a comparison.")

# %% [markdown]
# **Explain.** Line 6 is the reward model's loss in other letters, so DPO inherits its errors. An answer that was seen
# once and won is, by maximum likelihood, infinitely good: its reward grows without bound, and no $\beta$ makes up for an
# infinite reward. A reward model generalises and stops early, so it seldom goes that far; a table does at once. "Where this
# breaks" comes back to it.
#
# ## 3 · On a language model
#
# The policy of notebook 05, and 1,000 comparisons of its answers by (simulated, unbiased, noisy) people: the very ones
# that trained the first reward model there. No reward model, no sampling: the loop is that of SFT, on two answers at once.

# %%
from course_lib.lm import load_lm

policy, tokenizer = load_lm("policy_sft")
pool = artifacts.result("answers")
setting = artifacts.size("dpo_beta")
labels = comparisons(pool["train"], GROUP, setting["labels"], seed=0)
print(len(labels), "pairs; the first:", *(f"\n  {k}: {labels[0][k]}" for k in ("chosen", "rejected")))
pairs = dpo.encode_pairs(tokenizer, labels)
unseen = dpo.encode_pairs(tokenizer, comparisons(pool["test"], GROUP, 4 * setting["watched"], seed=0))
pad = tokenizer.pad_token_id
known, known_unseen = (dpo.all_logprobs(policy, some, pad) for some in (pairs, unseen))  # (n, 2) once, and kept

# %%
def prefer(model, pairs, reference, beta, lr):
    """One pass of your loss over the pairs; returns [loss, chosen, rejected] of each step, log-ratios to the reference."""
    optimizers, history = adam(model), []
    plan = dpo.batches(pairs, 32, seed=0)
    for step, rows in enumerate(plan):
        logp = dpo.pair_logprobs(model, [pairs[i] for i in rows], pad)       # (B, 2) one forward pass for both
        ref = reference[rows.to(reference.device)]
        loss = dpo_loss(logp[:, 0], logp[:, 1], ref[:, 0], ref[:, 1], beta).mean()
        loss.backward()
        rate = lr * min(1, (step + 1) / 4) * (1 - 0.9 * step / len(plan))
        take_step(optimizers, rate, clip=1.0, loss=loss.item(), where=f"step {step}")
        history.append([loss.item(), *(logp - ref).detach().mean(0).tolist()])
    return history

# %% [markdown]
# **Predict**, before you run it: the loss at the first step, to four digits. And which way the log-probabilities of the
# chosen answers will go.

# %%
LR = 2e-4
aligned = copy.deepcopy(policy)
live = prefer(aligned, pairs, known, beta=0.1, lr=LR)
table(["step", "loss", "chosen: log(pi / pi_ref)", "rejected: log(pi / pi_ref)"],
      [(i + 1, f"{loss:.4f}", f"{w:+.2f}", f"{l:+.2f}") for i, (loss, w, l) in enumerate(live)
       if i % 6 == 0 or i + 1 == len(live)])

# %% [markdown]
# **Explain.** At the first step the policy *is* the reference, all margins are 0, and the loss is $\log 2 = 0.6931$,
# whatever the data. If your first loss is another number, the reference is not the model you started from. Section 5 is
# about the two right columns.
#
# How good is the policy as a judge? **Exercise 3 · the implicit reward's accuracy** (difficulty 2 of 5, 6 minutes)

# %%
def implicit_accuracy(logprobs, reference, beta):
    """Share of the pairs whose implicit reward beta log(pi / pi_ref) is higher for the chosen answer; a tie counts half.

    logprobs, reference: (N, 2) log pi and log pi_ref of the chosen (first) and the rejected answer. Returns a float.
    """
    ### BEGIN SOLUTION
    reward = beta * (logprobs - reference)
    lead = reward[:, 0] - reward[:, 1]
    return float(((lead > 0).float() + 0.5 * (lead == 0).float()).mean())
    ### END SOLUTION

# %%
implicit_accuracy = check("implicit_accuracy", implicit_accuracy)

# %%
after, after_unseen = (dpo.all_logprobs(aligned, some, pad) for some in (pairs, unseen))
print(f"pairs it was trained on: {implicit_accuracy(known, known, 0.1):.3f} before, "
      f"{implicit_accuracy(after, known, 0.1):.3f} after")
print(f"people's verdicts about other cities: {implicit_accuracy(after_unseen, known_unseen, 0.1):.3f}")
print(f"the same by log pi alone: {implicit_accuracy(after_unseen, 0 * after_unseen, 1.0):.3f}; by log pi_ref alone, before any "
      f"DPO: {implicit_accuracy(known_unseen, 0 * known_unseen, 1.0):.3f}")

# %% [markdown]
# **Explain.** Compare the last line with the one above it. The reference, which nobody has told anything, may judge as
# well as the implicit reward, or better: people here happen to like what it says often, and dislike its rare slips. The
# implicit reward divides that habit out: it holds only what the labels have *added*. $\log \pi$ has both. Ask which of
# them you want to know.
#
# And as a policy? The same questions, before and after, side by side:

# %%
from course_lib.rewards.gold import atlas_gold

asked = prompts("read", lab.atlas.known_cities(), 60)
said, says = (["".join(one) for one in answers(m, tokenizer, asked, each=1, seed=8)] for m in (policy, aligned))
before, now = (lab.ask(m, policy, tokenizer, asked) for m in (policy, aligned))
cities = [row["city"] for row in asked]
points = [atlas_gold(prompts=cities, completions=texts, city=cities) for texts in (said, says)]
table(["question", "before", "gold", "after DPO", "gold"],
      [(asked[i]["prompt"][-1]["content"], said[i], f"{points[0][i]:+.1f}", says[i], f"{points[1][i]:+.1f}")
       for i in range(8)])
print(f"mean gold of {len(asked)} answers: {before['gold']:+.2f} before, {now['gold']:+.2f} after; "
      f"KL {now['kl']:.2f} nats; words {before['words']:.1f} and {now['words']:.1f}")

# %% [markdown]
# ## 4 · Against the reward model, and against RLHF (C26)
#
# Over seeds now, each with its own 1,000 comparisons. The reward models are those that RLHF optimised in notebook 05:
# **the same labels, seed by seed**. The question to both: who wins these pairs of answers about cities that no label was
# about? An accuracy of 1 is impossible, since people disagree; the dashed line is what a perfect judge reaches. The dotted
# one is what $\log \pi_{ref}$ reaches, which has read no label. **Predict**: how much of the way from the dotted line to the
# dashed one do a thousand labels go?

# %%
study, judges = artifacts.result("dpo_beta"), artifacts.result("rlhf_rewards")
conditions = study["conditions"]
seeds = len(next(iter(conditions.values())))
accuracies = {"reward model": judges["accuracy"][:seeds]}
accuracies |= {f"DPO, {name}": [run["accuracy"] for run in runs] for name, runs in conditions.items()}
fig, ax = plots.subplots(height=3.9)
plots.bars_with_interval(ax, list(accuracies), accuracies, form="{:.3f}")
ax.axhline(study["ceiling"], color="black", linewidth=1, linestyle="--")
ax.axhline(study["reference"], color="black", linewidth=1, linestyle=":")
ax.set_ylim(0.5, study["ceiling"] + 0.02)
ax.set_xlabel("judge")
ax.set_ylabel("accuracy on held-out pairs")
gaps = {name: [a - b for a, b in zip(values, accuracies["reward model"])] for name, values in accuracies.items()}
plots.finish(fig, "Accuracy against the reward model of the same labels, in points: " + "; ".join(
    f"{name} {told([100 * g for g in gap], '{:+.1f}')}" for name, gap in gaps.items() if name != "reward model")
    + f". A perfect judge: {study['ceiling']:.3f}; log pi_ref, told nothing: {study['reference']:.3f}.")
told_nothing = {name: [100 * (a - study["reference"]) for a in values] for name, values in accuracies.items()}
print("Above log pi_ref, in points:", "; ".join(f"{name} {told(over, '{:+.1f}')}" for name, over in told_nothing.items()))

# %% [markdown]
# **Explain.** The two judges are nearly alike; where an interval in the caption lies below 0, the reward model is the
# better one. Neither is good: both are far from a perfect judge, and of a judge whose interval holds 0 in the last line,
# these seeds cannot say that it learnt anything that the reference did not have. A thousand noisy verdicts are few.
#
# Now the policies. RLHF's curves come from notebook 05 (its reward models); DPO's from one pass over the labels.
# Gold is what people had in mind; neither method ever sees it. **Predict**: who ends higher, with the same $\beta$?

# %%
rl = artifacts.result("rlhf_beta")
start = [runs[0]["gold"][0] for runs in conditions.values()][0]
fig, ax = plots.subplots(height=4.4)
for i, (name, runs) in enumerate(conditions.items()):
    for run in runs:
        ax.plot(run["kl"], run["gold"], color=plots.PALETTE[i], linestyle="-", marker="os^"[i % 3], markersize=4, alpha=0.8,
                label=f"DPO, {name}" if run is runs[0] else None)
for i, (name, runs) in enumerate(rl.items()):
    for run in runs[:seeds]:
        ax.plot(smooth(run["kl"]), smooth(run["gold"]), color="black", linestyle=("--", ":")[i % 2], marker="none", alpha=0.7,
                label=f"RLHF, {name}" if run is runs[0] else None)
ax.axhline(start, color="grey", linewidth=0.8)
ax.set_xlabel("KL from the reference (nats)")
ax.set_ylabel("gold reward")
ax.legend(fontsize=9)
ends = {f"DPO, {name}": [run["gold"][-1] for run in runs] for name, runs in conditions.items()}
ends |= {f"RLHF, {name}": [turnover(run)["end"] for run in runs[:seeds]] for name, runs in rl.items()}
plots.finish(fig, f"Gold at the end, from {start:.2f} at the start: " + ", ".join(
    f"{name} {told(values)}" for name, values in ends.items()) + ".")

# %%
far = {f"DPO, {name}": [run["kl"][-1] for run in runs] for name, runs in conditions.items()}
far |= {f"RLHF, {name}": [smooth(run["kl"])[-1] for run in runs[:seeds]] for name, runs in rl.items()}
best_gold = {f"DPO, {name}": [max(run["gold"]) for run in runs] for name, runs in conditions.items()}
best_gold |= {f"RLHF, {name}": [turnover(run)["peak"] for run in runs[:seeds]] for name, runs in rl.items()}
fell = {name: sum(top - end > 0.2 for top, end in zip(best_gold[name], ends[name])) for name in ends}
table(["method", "gold at the end", "best gold on the way", "runs that ended 0.2 or more below it", "KL at the end (nats)"],
      [(name, told(ends[name]), told(best_gold[name]), f"{fell[name]} of {len(ends[name])}", told(far[name], "{:.1f}"))
       for name in ends])
for name in [name for name in conditions if name in rl]:
    lead = [a - b for a, b in zip(ends[f"RLHF, {name}"], ends[f"DPO, {name}"])]
    print(f"Gold at the end, RLHF minus DPO of the same labels, {name}: {told(lead, '{:+.2f}')}")
print("Words an answer:", ", ".join(f"{name} {told([run['words'][-1] for run in runs], '{:.1f}')}"
                                    for name, runs in conditions.items()), f"; before {before['words']:.1f}")
print(f"Your live run: gold {now['gold']:+.2f} at a KL of {now['kl']:.1f}, with beta 0.1 and the learning rate {LR:g}; the sweep "
      f"has {setting['conditions']['beta 0.1']['lr']:g}.")

# %% [markdown]
# **Explain.** Two ways of spending the same labels. On the listed model, with all preferences known, they meet in one
# point; here they do not have to. RLHF asks its reward model about answers that nobody has compared, thousands of them,
# and can exploit every error it finds. DPO never looks beyond the labels; what it believes about any other answer is
# whatever the network generalises. That is a proxy too, and it can be over-optimised just the same: look for a gold
# that falls while the KL grows (Rafailov et al. 2024 measured it at scale). Seeds differ in their labels, in
# the order of the pairs, and for RLHF in what was sampled: how far apart they end shows how little a thousand noisy verdicts
# fix. The learning rate counts as well as $\beta$: one pass
# ends wherever it has carried the policy, and going far on few labels may cost gold (your live run took smaller steps).
# Compare the ends: the best on the way is a maximum over small batches for RLHF, which flatters it. Whether RLHF
# ends higher than DPO, the printed differences say; an interval that holds 0 leaves it open. A reason why it might is in
# section 6: it always learns from what the policy says now.
#
# ## 5 · Both fall (C27)
#
# The loss sees the margin alone: chosen up and rejected down, both up, both down, it is all the same to it. **Predict**
# what happened above to the log-probabilities of the chosen answers, and of chosen answers that were never trained on.

# %%
shown = "beta 0.1"
runs = conditions[shown]
at = runs[0]["step"]
fig, axes = plots.subplots(1, 2, height=4.0, sharey=True)
for ax, part, title in zip(axes, ("seen", "unseen"), ("pairs it is trained on", "pairs it never sees")):
    for side in ("chosen", "rejected"):
        plots.line_with_interval(ax, at, [[v - run[part][side][0] for v in run[part][side]] for run in runs], side)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_title(title)
    ax.set_xlabel("steps")
axes[0].set_ylabel("log π(y|x) minus its start (nats)")
axes[0].legend()
moved = {(part, side): [run[part][side][-1] - run[part][side][0] for run in runs]
         for part in ("seen", "unseen") for side in ("chosen", "rejected")}
plots.finish(fig, "Change of the log-probability, in nats: " + "; ".join(
    f"{part} {side} {told(values)}" for (part, side), values in moved.items()) + f" ({shown}).")

# %% [markdown]
# **Explain.** It looks like a bug and is arithmetic. The answers in the pairs were *drawn from the reference*. Whatever
# $\pi$ has become, the mean of its log-ratio over such answers is
#
# $$\mathbb{E}_{y \sim \pi_{ref}} \left[\log \frac{\pi(y)}{\pi_{ref}(y)}\right] = -\mathrm{KL}(\pi_{ref} \,\|\, \pi) \le 0$$
#
# On new pairs, chosen and rejected *together* must fall as soon as the policy moves at all. With $h$ the mean margin, the
# chosen ones change by $\frac{h}{2} - \mathrm{KL}$ and the rejected ones by $-\frac{h}{2} - \mathrm{KL}$: the chosen ones
# fall too when the KL outgrows half the margin. Even the *optimum* does that. Exactly, on the listed model:

# %%
ref, chosen = logref.exp(), lab.judged(logref, wins)
rows = []
for beta in (0.1, 0.3, 1.0, 3.0):
    change = exact.optimum(logref, rewards, beta) - logref                        # (40,) log(pi* / pi_ref)
    up, down = float((chosen.sum(1) * change).sum()), float((chosen.sum(0) * change).sum())
    rows.append((beta, f"{up:+.2f}", f"{down:+.2f}", f"{(up + down) / 2:+.2f}",
                 f"{-exact.kl(logref, logref + change):+.2f}", f"{(ref * change).sum():+.2f}"))
table(["beta", "chosen", "rejected", "their mean (pairs of different answers)", "-KL(pi_ref ‖ pi*)",
       "mean log-ratio of all answers"], rows)

# %% [markdown]
# So where has the probability gone? To answers that are in no pair, and the loss does not say to which ones. Often they
# are good ones: what the policy says scores more gold than before. But nothing in the loss makes sure of it, and Razin et
# al. (2024) train a model to prefer `No` over `Never`, and see the probability of `Yes` rise sharply. Pal et al. (2024) saw the
# fall on real models, and add a term that stops it. To watch, beside the margin: the KL, and samples.
#
# ## 6 · Beta, and whose answers are compared
#
# $\beta$ says how dear a nat of KL is, in units of the people's reward. It sets where training would *end*; the learning rate
# sets how large the steps are, and one pass is not the end. **Predict** the order of the KLs for 0.03, 0.1 and 0.3, with
# the same labels, learning rate and number of steps.

# %%
fig, axes = plots.subplots(1, 3, height=3.9, width_ratios=[1, 1, 1])
series = (("kl", "KL from the reference (nats)", lambda run: run["kl"]),
          ("margin", "margin h, pairs never seen (nats)", None), ("gold", "gold reward", lambda run: run["gold"]))
for ax, (key, label, read) in zip(axes, series):
    for name, runs in conditions.items():
        weight = float(name.split()[-1])
        curves = [read(run) if read else [m / weight for m in run["unseen"]["margin"]] for run in runs]
        plots.line_with_interval(ax, runs[0]["step"], curves, name)
    ax.set_xlabel("steps")
    ax.set_ylabel(label)
axes[0].legend(fontsize=8)
plots.finish(fig, "KL at the end: " + ", ".join(
    f"{name} {told([run['kl'][-1] for run in runs], '{:.1f}')}" for name, runs in conditions.items())
    + "; gold: " + ", ".join(f"{name} {told([run['gold'][-1] for run in runs])}" for name, runs in conditions.items()) + ".")

# %% [markdown]
# **Explain.** One pass is not the end, and yet $\beta$ shows. What a pair still weighs is $\sigma(-\beta h)$: with a large
# $\beta$ it stops pulling at a small margin $h$, with a small one it pulls on.
#
# ### On-policy against offline
#
# All pairs so far are answers of the policy *before* training. As it moves, they tell it less and less about what it says
# now. The remedy takes sampling back in: rounds, in each of which people compare what the policy says *then*. Beside it
# the same rounds, with as many labels, on the old answers. The first round is the same for both.

# %%
turns = artifacts.result("dpo_rounds")
fig, axes = plots.subplots(1, 2, height=3.9)
for key, ax, label in (("gold", axes[0], "gold reward"), ("kl", axes[1], "KL from the reference (nats)")):
    for name, runs in turns.items():
        plots.line_with_interval(ax, range(len(runs[0][key])), [run[key] for run in runs], name)
    ax.set_xlabel("rounds")
    ax.set_xticks(range(len(runs[0][key])))
    ax.set_ylabel(label)
axes[0].legend()
gain = {key: [a[key][-1] - b[key][-1] for a, b in zip(turns["on-policy"], turns["offline"])] for key in ("gold", "kl")}
fresh = {name: [run["gold"][-1] for run in runs] for name, runs in turns.items()}
plots.finish(fig, f"Gold after all rounds: on-policy {told(fresh['on-policy'])}, offline {told(fresh['offline'])}; difference "
                  f"seed by seed {told(gain['gold'])}, at a KL that differs by {told(gain['kl'], '{:+.1f}')} nats.")
low, high = plots.interval(gain["gold"])[1:]
print("Is on-policy better at the same number of labels?",
      "Yes." if low > 0 else "No, it is worse." if high < 0 else "That cannot be told from chance with these seeds.")

# %% [markdown]
# **Explain.** Fresh pairs ask people about the mistakes that the policy makes now, old ones about mistakes it has unlearnt.
# The price: people have to wait beside the training. Put a reward model in their place, and what is left of RLHF's
# pipeline is everything but the policy gradient.
#
# ## 7 · The loss, and its relatives
#
# The gradient of the loss is $-\beta\, \sigma(-\beta h) \left(\nabla \log \pi(y_w) - \nabla \log \pi(y_l)\right)$: pairs that
# are ordered wrong pull hardest. Move the two log-ratios; lower both by the same amount and see that nothing changes. Then
# choose another loss.

# %%
from course_lib.widgets import DPOMargin

DPOMargin(chosen=-2, rejected=-5, beta=0.1)

# %% [markdown]
# | loss | what it changes | paper |
# | --- | --- | --- |
# | `smoothed` | a share of the labels is flipped: do not believe any margin too much | Mitchell 2023 |
# | `robust` | the same flips, made up for: on average the loss of clean labels | Chowdhury 2024 |
# | `ipo` | a square: a margin to reach, not to widen for ever | Azar 2024 |
# | `hinge` | stops pulling once $\beta h$ is 1 | Zhao 2023 |
# | `kto` | each answer alone: thumbs up or down suffice, no pairs needed | Ethayarajh 2024 |
# | `simpo` | no reference, log-probs per token, a margin to keep | Meng 2024 |
# | `orpo` | no reference; SFT on the chosen answer in the same loss | Hong 2024 |
#
# All of them are rows of one table of functions, `objectives.DPO_LOSSES`. Some on the listed model, with every preference
# known: as people state them, and with 20 of 100 labels flipped at random.

# %%
flipped = 0.8 * heard + 0.2 * heard.T
rows = []
for name, said_by, options in (("sigmoid", heard, {}), ("ipo", heard, {}), ("sigmoid", flipped, {}),
                               ("smoothed", flipped, dict(label_smoothing=0.2)),
                               ("robust", flipped, dict(label_smoothing=0.2))):
    model = copy.deepcopy(small)
    loss = lambda p, beta: objectives.DPO_LOSSES[name](p, beta, **options)
    lab.descend(list(model.parameters()), lambda: lab.expected_loss(model(), logref, said_by, BETA, loss), 100,
                lambda: 0.0, 100)
    p = model().detach()
    rows.append((name, "20 % flipped" if said_by is flipped else "as stated", f"{exact.expected_reward(p, rewards):+.2f}",
                 f"{exact.kl(p, logref):.2f}", f"{exact.total_variation(p, best):.3f}"))
table(["loss", "labels", "reward", "KL (nats)", "total variation from pi*"], rows)

# %% [markdown]
# **Explain.** As stated, `sigmoid` ends at $\pi^*$. With flips it takes them for taste, and stays nearer to the reference.
# `robust`, told how many there are, is back at $\pi^*$; `smoothed` is the opposite, more cautious still. IPO's $\beta$ is
# another unit: compare losses at equal KL, never at equal $\beta$.
#
# ## Where this breaks
#
# - **An answer that never lost.** From section 2: its reward, fitted by maximum likelihood, is infinite. Three answers, one
#   of which the reference says once in a thousand, and one person who preferred it, once:

# %%
three = torch.tensor([0.5, 0.499, 0.001]).log()
votes = torch.tensor([[0, 60.0, 0], [40.0, 0, 0], [1.0, 0, 0]])  # the rare one was seen once, and won
for name in ("sigmoid", "ipo"):
    for steps in (100, 1000):
        free = three.clone().requires_grad_()
        optimizer = torch.optim.Adam([free], lr=0.05)
        for _ in range(steps):
            lab.expected_loss(free.log_softmax(0), three, votes / votes.sum(), 0.1,
                              objectives.DPO_LOSSES[name]).backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"{name}, {steps:4} steps: probability of the rare answer {float(free.softmax(0)[2].detach()):.3f}")

# %% [markdown]
# - **The reference is not the start.** Then the first loss is not $\log 2$, and the policy is pulled to where it never was.
#   `dpo.train` takes the model as it is when you call it; some libraries reload it from disk.
# - **Both sides are the same after truncation**: no gradient, and nobody notices. `dpo.train` refuses, and names the row.
# - **Length.** $\log \pi$ of an answer is a sum over its tokens: a long answer can have a wide margin for many small
#   reasons, and answers may grow: count the words. An average is no remedy but another loss (SimPO).
# - **Pairs of somebody else's answers.** If the reference would never say them, its log-probabilities there are noise, and
#   so are the margins. SFT on the chosen answers first is what Rafailov et al. (2023) advise.
# - **A margin that grows says nothing about the text**: read samples, and log the KL.
#
# ## Scale it up
#
# The course's own `dpo.train` is the loop above with all that a real run needs: evaluations, micro-batches, all losses.
# The model below says neither answer of a pair by itself. So watch what it says afterwards: the margin grows at once, but
# probability may go to answers that are in no pair. That is why SFT comes first, in the lecture as in practice.

# %%
show(dpo.pair_logprobs, dpo.measures)

# %%
from course_lib.experiments.questions import ask

if real := scale_up("DPO", steps=60, rows=16, prompt=40, answer=24, few=(6, 8)):
    rows = [{"prompt": [{"role": "user", "content": f"Where is {city.nick}?"}], "chosen": lab.atlas.preferred(city),
             "rejected": lab.atlas.terse(city)} for city in lab.atlas.known_cities()[1:]]  # all but SF
    said = [ask(real.model, real.tokenizer, ["Where is SF?"])[0].text]
    config = dpo.DPOConfig(lr=2e-5, batch_size=real.rows, epochs=-(-real.steps * real.rows // len(rows)))
    seen = dpo.train(real.model, real.tokenizer, rows[: real.steps * real.rows], config)
    said.append(ask(real.model, real.tokenizer, ["Where is SF?"])[0].text)
    print(f"Loss {seen[0]['loss']:.3f} at first, {seen[-1]['loss']:.3f} at the end.")
    table(["Where is SF?", "reply"], zip(("before", "after"), said))

# %% [markdown]
# ## Recap

# %%
rival = next(name for name in ends if name.startswith("RLHF"))
table(["claim of the lecture", "measured on this page"], [
    ("C26: one model and a supervised loss do what RLHF does",
     f"with all preferences known, within {exact_ends['DPO']:.4f} (total variation) of RLHF's optimum; from the same 1,000 "
     f"labels, held-out pairs in points against the reward model: " + "; ".join(
         f"{name[5:]} {told([100 * g for g in gap], '{:+.1f}')}" for name, gap in gaps.items() if name != "reward model")
     + f"; gold with {shown} {told(ends['DPO, ' + shown])} from {start:+.2f}, {rival} {told(ends[rival])}"),
    ("C27: it maximises the margin and stays near the base",
     f"chosen {told(moved['unseen', 'chosen'])} nats and rejected {told(moved['unseen', 'rejected'])} on pairs it never saw, "
     f"at a KL of {told(far['DPO, ' + shown], '{:.1f}')} nats"),
])

# %% [markdown]
# **References.** Bradley and Terry, *Rank analysis of incomplete block designs*, 1952 · Rafailov et al., *Direct
# preference optimization: your language model is secretly a reward model*, 2023 · Mitchell, *A note on DPO with noisy
# preferences*, 2023 · Zhao et al., *SLiC-HF*, 2023 · Azar et al., *A general theoretical paradigm to understand learning
# from human preferences*, 2024 · Chowdhury et al., *Provably robust DPO*, 2024 · Ethayarajh et al., *KTO*, 2024 · Meng et
# al., *SimPO*, 2024 · Rafailov et al., *Scaling laws for reward model overoptimization in direct alignment algorithms*,
# 2024 · Hong et al., *ORPO*, 2024 · Pal et al., *Smaug: fixing failure modes of preference optimisation*,
# 2024 · Razin et al., *Unintentional unalignment: likelihood displacement in DPO*, 2024 · Guo et al., *Direct language
# model alignment from online AI feedback*, 2024
