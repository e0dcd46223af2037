# %% [markdown]
# # 05 · RLHF: optimise a learned reward, and stay near where you came from
#
# *Lecture: Putting it together; One missing ingredient; Regularizing with pre-trained model*
#
# > The policy gradient optimizer seeks to maximize its reward, it will learn to cheat.
#
# **You will be able to** train a policy against a reward model, see by its own gold reward that it cheats, say what it
# exploits, hold it with a KL term whose price you can compute, and tell which estimate of the KL may go into a reward
# and which into a loss.
#
# | | |
# | --- | --- |
# | time | about 1 minute on two CPU cores, as long on a T4 (estimates, for a filled store) |
# | starts from | a policy fine-tuned on answers as people give them, and reward models trained on few comparisons |
# | leaves behind | those reward models and five studies in the store, if they are not there yet |
#
# Three claims of the lecture are measured: the optimised reward rises while the answers get worse (C17), the KL term
# keeps the policy near the pre-trained model (C19), and what it makes dear and what unlikely (C20).

# %%
import copy
from collections import Counter

import torch

from course_lib import artifacts, exact, objectives, plots, smoke
from course_lib.algorithms import rlhf
from course_lib.algorithms.reinforce import adam
from course_lib.algorithms.training import take_step
from course_lib.checks import check
from course_lib.environments import Letters, LMAgent, Questions, TableAgent, play
from course_lib.experiments import rlhf as lab
from course_lib.experiments.preferences import prompts
from course_lib.objectives import leave_one_out, policy_gradient_loss
from course_lib.teach import scale_up, show, table
from course_lib.worlds import atlas

# %%
def told(values, form="{:+.2f}"):
    """Mean over seeds in words, with its 95 % interval."""
    mean, low, high = plots.interval(values)
    return f"{form.format(mean)} ({form.format(low)} to {form.format(high)})"

# %% [markdown]
# ## 1 · The price of an answer
#
# With a learned reward alone, the best policy is whatever the reward model likes best, sense or nonsense. The lecture
# adds a price for leaving the model that the policy started from ($p^{PT}$, the **reference**):
#
# $$\hat{R}(a, s) := R(a, s) - \beta \log \frac{p^{RL}(a)}{p^{PT}(a)}$$
#
# An answer is a sequence of tokens, so $\log p(a) = \sum_t \log p(a_t \mid s, a_{<t})$, the chain rule.
#
# **Exercise 1 · the penalised reward** (difficulty 2 of 5, 8 minutes)
#
# *Goal: one number an answer, with the right sign, over the right tokens, as a constant.*

# %%
def penalised_reward(scores, logprobs, reference, mask, beta):
    """R(a, s) - beta log(p_RL(a) / p_PT(a)).

    scores: (N,) R of each answer; logprobs, reference: (N, T) log-probabilities of its tokens under the policy and
    under the reference; mask: (N, T) bool, the answer's tokens. Returns (N,), a constant: no gradient.
    """
    ### BEGIN SOLUTION
    ratio = torch.where(mask, logprobs - reference, 0).sum(1)
    return (scores - beta * ratio).detach()
    ### END SOLUTION

# %%
penalised_reward = check("penalised_reward", penalised_reward)

# %% [markdown]
# With it, RLHF is notebook 03's REINFORCE, on another reward. This is all of it; your function stands in the middle.
# The reference is a **frozen copy**: were it the policy's own weights, the ratio would be 1 for ever.

# %%
def align(agent, environment, reference, beta, *, steps, lr, count=1, samples=256):
    """REINFORCE with a leave-one-out baseline on your penalised reward; returns the history."""
    judge, optimizers, history = rlhf.reference_agent(agent, reference), adam(agent.model), []
    for step in range(steps):
        episodes = play(agent, environment, count=count, samples=samples, seed=step)
        with torch.no_grad():
            known = episodes.logprobs(judge)  # (N, T) under the reference, once a batch
        worth = penalised_reward(episodes.score, episodes.sampled, known, episodes.mask, beta)
        advantages = worth - leave_one_out(worth.view(count, samples)).view(-1)
        loss = policy_gradient_loss(episodes.logprobs(agent), episodes.mask, advantages)
        loss.backward()
        rate = lr * min(1, (step + 1) / 5) * (1 - 0.9 * step / steps)
        take_step(optimizers, rate, clip=1.0, loss=loss.item(), where=f"step {step}")
        kl = ((episodes.sampled - known) * episodes.mask).sum(1).mean()
        history.append({"reward": float(episodes.score.mean()), "kl": float(kl)})
    return history

# %% [markdown]
# ### Where it must end: a model small enough to list (C20)
#
# Three letters, at most three of them: 40 answers. Here every expectation is a sum, and the best policy is known.
# Maximise $\mathbb{E}_p[R] - \beta\, \mathrm{KL}(p \,\|\, p^{PT})$ over all distributions $p$: with a multiplier for
# $\sum_a p(a) = 1$, the derivative $R(a) - \beta(\log p(a) - \log p^{PT}(a) + 1) - \lambda$ must be zero. Solve for
# $p(a)$, and the constants become $Z$:
#
# $$p^*(a) = \frac{1}{Z}\, p^{PT}(a)\, e^{R(a) / \beta}$$
#
# **Predict** its two limits: what is $p^*$ for $\beta \to \infty$, and for $\beta \to 0$?
#
# **Exercise 2 · the optimum** (difficulty 1 of 5, 4 minutes)
#
# *Goal: the formula above in logarithms, where nothing overflows.*

# %%
def rlhf_optimum(logref, rewards, beta):
    """log p*(a) of p*(a) = p_PT(a) exp(R(a) / beta) / Z.

    logref: (S,) log p_PT of all answers; rewards: (S,); beta > 0. Returns (S,).
    """
    ### BEGIN SOLUTION
    return (logref + rewards / beta).log_softmax(0)
    ### END SOLUTION

# %%
rlhf_optimum = check("rlhf_optimum", rlhf_optimum)

# %% [markdown]
# Now train a policy by sampling, live, with your penalised reward, and lay it beside your optimum.

# %%
BETA = 0.5
small = exact.TableLM(letters=3, length=3, seed=0)
reference = rlhf.frozen(small)
rewards = torch.randn(40, generator=torch.Generator().manual_seed(0))
best = rlhf_optimum(reference(), rewards, BETA)
steps = align(TableAgent(small), Letters(rewards), reference, BETA, steps=20 if smoke() else 200, lr=0.1)
with torch.no_grad():
    trained = small()
print(f"total variation from the optimum: {exact.total_variation(reference(), best):.3f} before, "
      f"{exact.total_variation(trained, best):.4f} after {len(steps)} steps")
print(f"KL from the reference: {exact.kl(trained, reference()):.2f} nats; of the optimum: "
      f"{exact.kl(best, reference()):.2f} nats")

# %% [markdown]
# Drag $\beta$. Grey is the reference, blue the optimum for the $\beta$ you choose, orange the policy that was just
# trained. Look for an answer with a high reward that the reference hardly ever gives: how small must $\beta$ be before
# it is worth its price? (`p_RL >> p_PT` pays; what is worth less than the rest becomes unlikely.)

# %%
from course_lib.widgets import BetaSlider

BetaSlider(small.texts(), reference().exp(), rewards, beta=BETA, trained=trained.exp())

# %% [markdown]
# That was one run. The same over seeds, each with a reference and rewards of its own, and with the KL in the reward or
# (as in GRPO) as a term of the loss, token by token:

# %%
c20 = artifacts.result("rlhf_optimum")
fig, ax = plots.subplots()
names = {"reward": "k1 in the reward", "k2": "k2 in the loss, by token", "k3": "k3 in the loss, by token"}
for penalty, name in names.items():
    plots.line_with_interval(ax, c20["steps"], c20["tv"][penalty], name)
ax.axhline(0.02, color="black", linewidth=0.8)
ax.annotate("0.02", (c20["steps"][-1], 0.02), xytext=(-18, 4), textcoords="offset points")
ax.set_yscale("log")
ax.set_xlabel("steps")
ax.set_ylabel("total variation from $p^*$")
ax.legend()
ends = {penalty: [run[-1] for run in c20["tv"][penalty]] for penalty in names}
plots.finish(fig, f"With the KL in the reward the policy reaches the closed form: total variation "
                  f"at most {max(ends['reward']):.4f} in {len(ends['reward'])} seeds. With the KL in the loss, token by "
                  f"token, it ends elsewhere: {told(ends['k2'], '{:.2f}')} for k2, {told(ends['k3'], '{:.2f}')} for k3.")

# %% [markdown]
# **Explain.** Near $p^*$ something rare happens: $R(a) - \beta \log (p(a) / p^{PT}(a))$ is the *same number* for every
# answer, namely $\beta \log Z$. All advantages vanish, and with them the noise of the gradient. So a policy trained by
# sampling can get as near as it likes. The losses go somewhere else, and more steps do not help. Section 2 says why.
#
# ## 2 · Three estimates of the KL
#
# $\mathrm{KL}(p \,\|\, p^{PT}) = \mathbb{E}_{a \sim p} \log \frac{p(a)}{p^{PT}(a)}$ has to be estimated from samples.
# With $r = p^{PT}(a) / p(a)$, Schulman (2020) compares
#
# $$k_1 = -\log r \qquad k_2 = \tfrac{1}{2} (\log r)^2 \qquad k_3 = (r - 1) - \log r$$
#
# **Predict.** Which of them can be negative? Which are right on average? (Hint: what is $\mathbb{E}_{a \sim p}[r]$?)
#
# **Exercise 3 · k3** (difficulty 1 of 5, 4 minutes)
#
# *Goal: an estimate that is right on average and never negative.* `torch.expm1(x)` is $e^x - 1$ without the rounding error
# where x is small, as it is in the first steps of a run.

# %%
def kl_estimate(logprobs, reference):
    """k3 = (r - 1) - log r, with r = p_PT / p, for each entry.

    logprobs, reference: log p and log p_PT of what was sampled, any shape. Returns the same shape.
    """
    ### BEGIN SOLUTION
    ratio = reference - logprobs
    return torch.expm1(ratio) - ratio
    ### END SOLUTION

# %%
kl_estimate = check("kl_estimate", kl_estimate)

# %% [markdown]
# On a listed model nothing needs to be sampled: mean and spread of each estimate are sums over all answers. Here for
# policies on the way from the reference to a policy far away:

# %%
there = exact.TableLM(3, 3, seed=1)
far, spread = [], {"k1": [], "k2": [], "k3": []}
for share in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0):
    policy = copy.deepcopy(reference)
    policy.logits.data.lerp_(there.logits.data, share)
    p, logp, logref = policy().exp(), policy(), reference()
    far.append(float(exact.kl(logp, logref)))
    for name, k in (("k1", objectives.k1), ("k2", objectives.k2), ("k3", kl_estimate)):
        values = k(logp, logref)
        mean = (p * values).sum()
        spread[name].append((float(mean), float((p * (values - mean) ** 2).sum().sqrt())))

# %%
fig, axes = plots.subplots(1, 2, height=3.9)
for name, pairs in spread.items():
    axes[0].plot(far, [mean / kl - 1 for (mean, _), kl in zip(pairs, far)], label=name)
    axes[1].plot(far, [std / kl for (_, std), kl in zip(pairs, far)], label=name)
for ax, title in zip(axes, ("bias / KL", "standard deviation / KL")):
    ax.set_xlabel("KL from the reference (nats)")
    ax.set_ylabel(title)
plots.log_scale(axes[1])
axes[0].legend()
near, away = ({name: pairs[i][1] / far[i] for name, pairs in spread.items()} for i in (0, -1))
plots.finish(fig, f"k1 and k3 have no bias, k2 is off by {spread['k2'][-1][0] / far[-1] - 1:+.0%} at a KL of "
                  f"{far[-1]:.1f} nats. The spread of one estimate, in units of the KL: at {far[0]:.3f} nats "
                  f"{near['k1']:.1f} for k1 and {near['k3']:.1f} for k3, at {far[-1]:.1f} nats {away['k1']:.1f} and "
                  f"{away['k3']:.1f}.")

# %% [markdown]
# **Explain.** $r - 1$ has mean zero under $p$ and moves against $-\log r$: adding it takes out noise as long as the two
# models are near. Far away, one answer with a huge $r$ can outweigh all others.
#
# ### An estimate is not its gradient
#
# As a *measurement*, k3 is good. As a *loss*, what counts is the gradient, and it is another matter. **Predict**: the
# value of k1 is right on average. What is the average of its gradient, $\mathbb{E}_p[\nabla \log p(a)]$?

# %%
grads = lab.kl_estimates(there, reference)
table(["as a term of the loss", "error to ∇KL(p ‖ p_PT)", "error to ∇KL(p_PT ‖ p)", "noise of one sample"],
      [(name, *(f"{row[key]:.2f}" for key in ("error", "reverse", "noise"))) for name, row in grads.items()])
print("Errors and noise in units of the gradient's own norm: 0.00 is exact, 1.00 is no better than nothing at all.")

# %% [markdown]
# **Explain.** Differentiate under the sum, with samples held fixed:
#
# - k1: $\mathbb{E}_p[\nabla \log p] = \nabla \sum_a p(a) = \nabla 1 = 0$. As a loss it does nothing, on average.
# - k2: $\mathbb{E}_p[\log\tfrac{p}{p^{PT}} \nabla \log p] = \nabla \mathrm{KL}(p \,\|\, p^{PT})$. The estimate with the
#   biased value has the right gradient. k1 *in the reward* gives the very same one.
# - k3: $\mathbb{E}_p[(1 - r) \nabla \log p] = -\mathbb{E}_{p^{PT}}[\nabla \log p] = \nabla \mathrm{KL}(p^{PT} \,\|\, p)$:
#   the KL the other way round.
# - by token: each token answers for its own step only, not for where it leads. That is a third objective, and the
#   reason why two lines of the figure of section 1 stop early. In the first steps the difference is small; k2's also
#   shrinks with $\beta$, k3's more slowly.
#
# The course's own loss refuses k1:

# %%
show(objectives.kl_penalised, objectives.kl_loss)

# %% [markdown]
# ## 3 · Let it cheat (C17)
#
# Now a real language model. The policy was fine-tuned on answers *as people give them*: full, terse, repetitive,
# chatty, some wrong. People (simulated, unbiased, with noise) compared two of its answers at a time, a thousand times,
# and a small reward model learnt from that. This is all a real project would have. The course also has the **gold
# reward**, the rubric that the people had in mind; training never sees it.

# %%
from course_lib.lm import load_lm
from course_lib.rewards.gold import atlas_gold
from course_lib.rewards.learned import LearnedReward

policy, tokenizer = load_lm("policy_sft")
models = lab.load_rewards(artifacts.get("rlhf_rewards"))
judged = artifacts.result("rlhf_rewards")
print(f"{len(models)} reward models. Of the comparisons that people make of answers about other cities, they predict")
print(", ".join(f"{share:.0%}" for share in judged["accuracy"]), "right. A coin has 50%; knowing gold itself would give",
      f"{judged['ceiling'][0]:.0%}.")

# %% [markdown]
# Better than a coin, far from perfect: an ordinary reward model. **Predict**, before you run the next cell. $\beta = 0$,
# nothing but the learned reward counts. How will the learned reward go? How will gold? What will the answers look like?
#
# The run is live, and the loop is the one above, with your function in it.

# %%
proxy = lab.Watched(LearnedReward(models[0], tokenizer))  # notes gold, beside
questions = Questions(prompts("live", atlas.known_cities(), 480), proxy)
cheat = copy.deepcopy(policy)
agent = LMAgent(cheat, tokenizer, max_new_tokens=lab.TOKENS)
live = align(agent, questions, rlhf.frozen(policy), beta=0, steps=2 if smoke() else 32, lr=3e-4, count=10, samples=4)
table(["step", "learned reward", "gold reward", "KL (nats)"],
      [(i + 1, f"{live[i]['reward']:+.2f}", f"{proxy.gold[i]:+.2f}", f"{live[i]['kl']:.1f}")
       for i in range(len(live)) if i % 4 == 0 or i + 1 == len(live)])
table(["question", "what the policy says now", "learned", "gold"],
      [(q, said, f"{r:+.1f}", f"{g:+.1f}") for q, _, said, r, g in proxy.said[::8]])

# %% [markdown]
# Whatever your run did, it is a single one. Below, every seed has *its own* people, labels and reward model.

# %%
free, remedies = artifacts.result("rlhf_hacking")["beta 0"], artifacts.result("rlhf_remedies")
control = remedies["gold itself"]
GOLD = dict(color=plots.PALETTE[1], linestyle="--", marker="s")  # gold looks the same in every figure
fig, axes = plots.subplots(1, 2, height=4.2, sharey=True)
at = list(range(1, len(free[0]["gold"]) + 1))
for ax, runs, title in ((axes[0], free, "a learned reward is optimised"), (axes[1], control, "control: gold itself is")):
    if runs is free:
        plots.line_with_interval(ax, at, [lab.smooth(run["proxy"]) for run in runs], "the reward that is optimised")
    plots.line_with_interval(ax, at, [lab.smooth(run["gold"]) for run in runs], "gold", **GOLD)
    ax.set_title(title, fontsize=12)
    ax.set_xlabel("steps of RL, beta = 0")
axes[0].set_ylabel("reward (mean of 5 batches)")
axes[0].legend(loc="upper left", fontsize=9)
axes[1].legend(loc="lower right", fontsize=9)
turns, calm = ([lab.turnover(run) for run in runs] for runs in (free, control))
fall, dip = ([turn["peak"] - turn["end"] for turn in those] for those in (turns, calm))
rises = [lab.smooth(run["proxy"])[-1] > max(lab.smooth(run["proxy"])[: len(at) * 3 // 4]) for run in free]
plots.finish(fig, f"The learned reward still rises at the end in {sum(rises)} of {len(rises)} seeds. Gold peaks after "
                  f"{min(t['step'] for t in turns)} to {max(t['step'] for t in turns)} steps and then falls by "
                  f"{told(fall, '{:.1f}')} points, in every seed by at least {min(fall):.1f}. Where gold itself is "
                  f"optimised, it ends {told(dip, '{:.1f}')} below its peak.")

# %% [markdown]
# **Explain.** At first both rise: much of what the reward model learnt is true. Then the policy finds answers that the
# reward model overrates, and since nothing else counts, it says more and more of them. What exactly gets worse? Gold is
# a sum of parts, so it can tell.

# %%
from course_lib.rewards import rubric


def anatomy(rows):
    """Mean points of each part of the gold rubric over some answers."""
    cities = {city.city: city for city in atlas.cities()}
    parts = [rubric.parts(said, cities[city]) for _, city, said, *_ in rows]
    return {name: sum(p[name] for p in parts) / len(parts) for name in parts[0]}


def grown(rows, start):
    """The three words whose number in an answer has grown most."""
    then, now = (Counter(word for row in some for word in row[2].split()) for some in (start, rows))
    gain = {word: now[word] / len(rows) - then[word] / len(start) for word in now}
    return ", ".join(f"{word} {gain[word]:+.1f}" for word in sorted(gain, key=gain.get)[-3:][::-1])

# %%
start = [row for run in free for row in run["first"]]
before, after = anatomy(start), [anatomy(run["last"]) for run in free]
names = list(before)
table(["seed", *names, "words that became more frequent"],
      [("before RL", *(f"{before[n]:+.2f}" for n in names), ""),
       *((seed, *(f"{parts[n]:+.2f}" for n in names), grown(free[seed]["last"], start))
         for seed, parts in enumerate(after))])
lost = [min(names, key=lambda part: parts[part] - before[part]) for parts in after]
print("What lost most:", ", ".join(f"seed {seed}: {part}" for seed, part in enumerate(lost)))

# %% [markdown]
# The gallery: of each seed's last batch, the two answers whose learned reward is furthest above their gold.

# %%
rows = []
for seed, run in enumerate(free):
    seen = {row[2]: row for row in run["last"]}.values()
    for q, city, said, r, g in sorted(seen, key=lambda row: row[4] - row[3])[:2]:
        broken = [name for name, points in anatomy([(q, city, said)]).items() if points < 0]
        rows.append((seed, q, said, f"{r:+.1f}", f"{g:+.1f}", ", ".join(broken) or "says too little"))
table(["seed", "question", "answer", "learned", "gold", "exploited"], rows)

# %% [markdown]
# Read them aloud, and look for two exploits. *What the reward model cannot see*: wrong places, in sentences of a form that it
# likes; that it does not know the truth was measured in notebook 04. *What nobody showed it*: it averages over the tokens of
# an answer, so that tokens of good answers (words, or parts of words) lift the average wherever and as often as they stand. The
# policy before RL hardly ever talked like that, so hardly anybody compared such answers, and nobody told the reward model that
# they are bad. Which of the two a policy found, the line "What lost most" says, seed by seed.
#
# ## 4 · The leash (C19)
#
# The penalised reward of section 1, on the same reward models.

# %%
sweep = {"beta 0": free} | artifacts.result("rlhf_beta")
fig, axes = plots.subplots(1, 2, height=4.2)
for name, runs in sweep.items():
    plots.line_with_interval(axes[0], at, [lab.smooth(run["gold"]) for run in runs], name)
    plots.line_with_interval(axes[1], at, [lab.smooth(run["kl"]) for run in runs], name)
for ax, label in zip(axes, ("gold reward", "KL from the reference (nats)")):
    ax.set_xlabel("steps")
    ax.set_ylabel(label)
axes[0].set_ylim(-5.3, 4)  # gold is never below -5
axes[1].set_ylim(bottom=0)
axes[1].legend(fontsize=9)
end = {name: [lab.turnover(run)["end"] for run in runs] for name, runs in sweep.items()}
peak = {name: [lab.turnover(run)["peak"] for run in runs] for name, runs in sweep.items()}
best_beta = max(end, key=lambda name: plots.interval(end[name]).mean)
gained = [a - b for a, b in zip(end[best_beta], end["beta 0"])]  # the same reward model, seed by seed
higher = [a - b for a, b in zip(peak[best_beta], peak["beta 0"])]
plots.finish(fig, f"Gold ends highest with {best_beta}: by {told(gained)} points above beta 0, seed by seed. The best "
                  f"gold on the way differs by {told(higher)}.")

# %%
low, high = plots.interval(higher)[1:]
print(f"Gold ends {told(gained)} points higher with {best_beta} than without KL.")
print("Does the KL also raise the best gold that is reached on the way?",
      "Yes." if low > 0 else "No, it lowers it." if high < 0 else "That cannot be told from chance.")

# %% [markdown]
# **Explain.** The KL is a brake, not a compass: it knows nothing about gold. It stops the slide, because the answers at
# the bottom of it are ones that the reference would hardly ever give, and their price grows with every step.
# (Gao et al., 2022, found that at scale it does not raise the best gold on the way; the line above says what was measured
# here.)
#
# Where is the price paid? Token by token, for an answer of the policy that you trained without KL. Blue tokens became
# likelier than under the reference; move $\beta$ and see what they would cost.

# %%
from course_lib.widgets import KLMap

q, _, said, *_ = max(proxy.said, key=lambda row: row[3] - row[4])
KLMap(cheat, policy, tokenizer,
      [{"role": "user", "content": q}, {"role": "assistant", "content": said}], beta=0.3)

# %% [markdown]
# ## 5 · Best of n, and Gao's two curves
#
# There is a way to optimise a reward without any training: draw $n$ answers, keep the one that the reward model likes
# best. What does that do to the distribution?
#
# **Exercise 4 · the best of n** (difficulty 3 of 5, 10 minutes)
#
# *Goal: the distribution that choosing makes.* The best of n is a, or something worse than a, with probability
# $P(R \le R(a))^n$.

# %%
def best_of_n(p, reward, n):
    """The probability that each answer is the best of n independent samples. No two rewards are equal.

    p: (S,) probabilities; reward: (S,); n: a whole number. Returns (S,), in the order of p.
    """
    ### BEGIN SOLUTION
    below = torch.stack([p[reward < r].sum() for r in reward])
    return (below + p) ** n - below**n
    ### END SOLUTION

# %%
best_of_n = check("best_of_n", best_of_n)

# %% [markdown]
# Its KL from the policy has a simple bound, $\log n - \frac{n-1}{n}$, which does not depend on the reward. It is exact
# when no answer has a probability of its own, as with very long texts. Our listed model is the other extreme:

# %%
p, worth = reference().exp(), rewards
for n in (1, 2, 4, 16, 64):
    q = best_of_n(p, worth, n)
    real = float(torch.special.xlogy(q, q / p).sum())
    print(f"n = {n:2}: expected reward {(q * worth).sum():+.2f}, KL {real:.3f} nats, at most "
          f"{objectives.best_of_n_kl(n):.3f}")

# %% [markdown]
# With a KL for best of n, both ways of optimising go into one picture, over the distance $d = \sqrt{\mathrm{KL}}$. Gao
# et al. found that the gold reward *gained* follows $d\,(\alpha - \beta d)$ for best of n and $d\,(\alpha - \beta \log
# d)$ for RL. (Their $\beta$ is a constant of the fit, not the weight of the KL.) Both are fitted to both:

# %%
CAP = 20.0  # nats: what lies beyond is no language any more, and follows neither form
bon = artifacts.result("rlhf_best_of")


def gains(curve, kl, start):
    """(KL, gold gained) along a curve, up to the cap; noise may put a KL near 0 below it."""
    return [(max(k, 1e-3), gold - start) for k, gold in zip(kl, curve) if k < CAP]


points = {"best of n": [pair for gold in bon["gold"] for pair in gains(gold, bon["kl"], gold[0])],
          "RL, beta 0": [pair for run in free for pair in gains(
              lab.smooth(run["gold"]), lab.smooth(run["kl"]), run["gold"][0])]}
fits = {name: {form: lab.gao_fit(*zip(*pairs), form) for form in lab.FORMS} for name, pairs in points.items()}
table(["optimised by", "form", "alpha", "beta", "R²", "mean residual"],
      [(name, form, f"{fit.alpha:.2f}", f"{fit.beta:.2f}", f"{fit.r2:.2f}",
        f"{sum(map(abs, fit.residuals)) / len(fit.residuals):.2f}")
       for name, both in fits.items() for form, fit in both.items()])

# %%
fig, axes = plots.subplots(2, 2, height=6.0, sharex="col", height_ratios=[2.2, 1])
for (name, pairs), column in zip(points.items(), axes.T):
    d = torch.tensor([kl for kl, _ in pairs]).sqrt()
    column[0].plot(d, [gain for _, gain in pairs], ".", color="#9aa3ad", markersize=4, linestyle="none")
    line = torch.linspace(float(d.min()), float(d.max()), 60)
    for i, (form, fit) in enumerate(fits[name].items()):
        column[0].plot(line, fit(line, form), color=plots.PALETTE[i], marker="none", label=form)
        column[1].plot(d, fit.residuals, "os"[i], color=plots.PALETTE[i], markersize=3, linestyle="none")
    column[0].set_title(name)
    column[0].set_ylabel("gold gained")
    column[1].set_ylabel("residual")
    column[1].set_xlabel("d = √KL")
axes[0, 1].legend(fontsize=9)
r2 = {name: {form: fit.r2 for form, fit in both.items()} for name, both in fits.items()}
better = {name: max(both, key=both.get) for name, both in r2.items()}
plots.finish(fig, "Which form fits better here: " + "; ".join(
    f"{name}: {form} (R² {r2[name][form]:.2f}, the other {min(r2[name].values()):.2f})" for name, form in better.items()) + ".")

# %% [markdown]
# How far does best of n get, and does it turn as well?

# %%
fig, ax = plots.subplots(height=3.9)
plots.line_with_interval(ax, bon["n"], bon["proxy"], "learned reward")
plots.line_with_interval(ax, bon["n"], bon["gold"], "gold", **GOLD)
ax.set_xlabel("n")
ax.set_ylabel("mean reward of the best of n")
plots.log_scale(ax, "x")
ax.legend()
mean_gold = [plots.interval([run[i] for run in bon["gold"]]).mean for i in range(len(bon["n"]))]
top = max(range(len(mean_gold)), key=mean_gold.__getitem__)
plots.finish(fig, f"Mean gold is highest for the best of {bon['n'][top]} ({mean_gold[top]:.2f}) and {mean_gold[-1]:.2f} for "
                  f"the best of {bon['n'][-1]}; the learned reward rises throughout. The best of {bon['n'][-1]} is at most "
                  f"{bon['kl'][-1]:.1f} nats away.")

# %% [markdown]
# ## 6 · What else helps
#
# Four remedies on the same problem: the KL; **stopping early**, at the KL where the *other* seeds had their best gold
# (so no run chooses its own end by peeking); **more labels** for the reward model; and the **minimum of an ensemble**,
# which an answer can only please by pleasing all of its members.
#
# **Predict** their order. Which of them change *what* is optimised, and which only *how far*?

# %%
bars = {"before RL": [sum(row[4] for row in run["first"]) / len(run["first"]) for run in free],
        "nothing": end["beta 0"], best_beta: end[best_beta], "early stop": lab.early_stop(free)}
bars |= {name: [lab.turnover(run)["end"] for run in remedies[name]]
         for name in ("minimum of 5", "more labels", "gold itself")}
fig, ax = plots.subplots(height=4.0)
plots.bars_with_interval(ax, list(bars), bars, form="{:+.1f}")
ax.axhline(0, color="black", linewidth=0.8)
ax.tick_params(axis="x", labelsize=9)
ax.set_xlabel("remedy")
ax.set_ylabel("gold reward at the end")
plots.finish(fig, "Gold at the end: " + ", ".join(f"{name} {told(values, '{:+.1f}')}" for name, values in bars.items()) + ".")
many = artifacts.result("rlhf_rewards_many")["accuracy"]
print("Accuracy of the reward models:", told(judged["accuracy"], "{:.2f}"), "with few labels,", told(many, "{:.2f}"),
      "with more.")

# %% [markdown]
# **Explain.** KL and early stop change how far, the minimum and more labels change what is optimised. Lay the intervals of the
# latter two beside that of *nothing*: where they overlap, so few seeds do not tell the remedy from none. What more labels did to
# the accuracy, the last line says; a reward model that is a little more often right about answers that people compared can keep
# the blind spots it had, and an ensemble whose members share a blind spot has it too. (The best $\beta$ was chosen by the ends
# of these very runs; early stop did not choose by its own.)
#
# ## Where this breaks
#
# - **The reference moves**: it shares weights with the policy, or dropout is on in it. `rlhf.train` refuses both.
# - **The wrong sign**, or the ratio upside down: the policy is paid for leaving. The KL in the log rises at once.
# - **A KL of truncated samples**: sample with top-p, take log-probs of the full distribution, and the estimate is of no KL
#   any more: too large as a rule, and below zero where the policy is the flatter of the two. The KL of a whole batch that is
#   clearly negative is always a bug.
# - **Sampler and trainer disagree**, by a bug or by rounding. At the first step the policy *is* the reference, so the KL
#   must be 0 (the cell below prints what was measured).
# - **k1 in the loss**: its expected gradient is zero, whatever $\beta$ is. `RLHFConfig` refuses it.
# - **$\beta$ is no constant of nature**: it is measured in reward per nat. Rescale the reward, and $\beta$ must follow. A
#   controller (Ziegler et al., 2019) steers $\beta$ to a KL that you choose:

# %%
print(f"KL of the live run at its first step: {live[0]['kl']:.3f} nats")
show(rlhf.next_beta)

# %%
steered = copy.deepcopy(reference).requires_grad_(True)
config = rlhf.RLHFConfig(steps=20 if smoke() else 300, count=1, samples=64, lr=0.05, final_lr=1.0, beta=0.1,
                         target_kl=0.5, gain=0.2)
run = rlhf.train(TableAgent(steered), Letters(rewards), config, reference=reference)
late = run[-len(run) // 3 :]
print(f"target 0.50 nats; KL of the last {len(late)} steps {sum(e['kl'] for e in late) / len(late):.2f} nats, "
      f"beta from {run[0]['beta']:.2f} to {run[-1]['beta']:.2f}")

# %% [markdown]
# ## Scale it up
#
# The same call trains any causal language model of Hugging Face against any reward in TRL's convention. Here a rule, so
# that nothing has to be labelled first: answer in few words.

# %%
def brief(prompts, completions, **columns):
    """Minus the words of an answer, in tens."""
    return [-len(text[-1]["content"].split()) / 10 for text in completions]


if real := scale_up("RLHF", steps=60, rows=32, prompt=40, answer=48, group=4, few=(3, 8)):
    asks = [{"prompt": [{"role": "user", "content": f"What is the capital of {city.country}?"}]}
            for city in atlas.cities()[:32]]
    config = rlhf.RLHFConfig(steps=real.steps, count=real.rows // 4, samples=4, lr=1e-5, beta=0.05)
    speaker = LMAgent(real.model, real.tokenizer, max_new_tokens=48)
    seen = rlhf.train(speaker, Questions(asks, brief), config, reference=rlhf.frozen(real.model))
    print(f"reward {seen[0]['reward']:.2f} at first, {seen[-1]['reward']:.2f} at the end, KL {seen[-1]['kl']:.2f} nats")

# %% [markdown]
# ## Recap

# %%
table(["claim of the lecture", "measured on this page"], [
    ("C17: optimised alone, the reward is cheated",
     f"learned reward rising to the end in {sum(rises)} of {len(rises)} seeds, while gold falls by {told(fall, '{:.1f}')} "
     f"from its peak; where gold itself is optimised, by {told(dip, '{:.1f}')}"),
    ("C19: the KL term keeps the policy near the pre-trained model",
     f"gold ends {told(gained)} points higher with {best_beta}; the best gold on the way differs by {told(higher)}"),
    ("C20: p_RL >> p_PT pays, p_RL << p_PT becomes unlikely",
     f"a trained policy is within {max(ends['reward']):.4f} (total variation) of p_PT exp(R / beta) / Z"),
])

# %% [markdown]
# **References.** Ziegler et al., *Fine-tuning language models from human preferences*, 2019 · Stiennon et al.,
# *Learning to summarize from human feedback*, 2020 · Schulman, *Approximating KL divergence*, 2020 · Nakano et al.,
# *WebGPT*, 2021 · Korbak et al., *RL with KL penalties is better viewed as Bayesian inference*, 2022 · Gao et al.,
# *Scaling laws for reward model overoptimization*, 2022 · Coste et al., *Reward model ensembles help mitigate
# overoptimization*, 2023 · Beirami et al., *Theoretical guarantees on the best-of-n alignment policy*, 2024 · Shao et
# al., *DeepSeekMath*, 2024
