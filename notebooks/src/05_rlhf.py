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
# | time | about 3 minutes on two CPU cores, 1 minute on a T4 (estimates, for a filled store) |
# | starts from | a policy fine-tuned on answers as people give them, and reward models trained on few comparisons |
# | leaves behind | four studies in the store, if they are not there yet |
#
# Three claims of the lecture are measured: the optimised reward rises while the answers get worse (C17), the KL term
# keeps the policy near the pre-trained model (C19), and what it makes dear and what unlikely (C20).

# %%
import copy
import html
from collections import Counter

import torch
from IPython.display import Markdown, display

from course_lib import artifacts, exact, objectives, plots, smoke
from course_lib.algorithms import rlhf
from course_lib.algorithms.reinforce import adam
from course_lib.algorithms.training import take_step
from course_lib.checks import check
from course_lib.environments import Letters, LMAgent, Questions, TableAgent, play
from course_lib.experiments import rlhf as lab
from course_lib.objectives import leave_one_out, policy_gradient_loss
from course_lib.teach import show

# %%
def table(head, rows):
    """Show rows under a head as a table; model text is escaped."""
    def cell(value):
        return html.escape(" ".join(str(value).split())).replace("|", "&#124;")

    lines = [head, ["---"] * len(head), *([cell(value) for value in row] for row in rows)]
    display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))


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
ax.annotate("0.02", (c20["steps"][-1], 0.02), xytext=(4, -3), textcoords="offset points")
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
# *`torch.expm1(x)` is $e^x - 1$ without the rounding error where x is small, as it is in the first steps of a run.*

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
#   reason why two lines of the figure above stop early. For small $\beta$ and few steps the difference is small, which
#   is why libraries get away with it.
#
# The course's own loss refuses k1:

# %%
show(objectives.kl_penalised, objectives.kl_loss)
