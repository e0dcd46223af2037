# %% [markdown]
# # 06 · PPO: several careful steps on every batch
#
# *Lecture: Proximal Policy Optimization; PPO uses large memory for training*
#
# > It is designed to be conservative in its updates and makes training more stable.
#
# **You will be able to** turn one score for an answer into a reward, a value and an advantage for each token; say what
# GAE's $\lambda$ trades, exactly; write the clipped loss and read its diagnostics; and tell what the clip buys, and
# what it does not.
#
# | | |
# | --- | --- |
# | time | about 2 minutes on two CPU cores, 1 minute on a T4 (estimates, for a filled store) |
# | starts from | a model that solves arithmetic stories now and then |
# | leaves behind | four studies in the store, if they are not there yet |
#
# Two claims of the lecture are measured: PPO is conservative and more stable (C21), and it learns from advantages of an
# actor-critic, not from rewards (C22). What its four models hold in memory (C23) is counted, and predicted for 7 B
# parameters.

# %%
import copy
import math

import torch

from course_lib import artifacts, exact, objectives, plots, smoke
from course_lib.algorithms import ppo
from course_lib.algorithms.rlhf import frozen
from course_lib.checks import check
from course_lib.environments import LMAgent, Questions, play
from course_lib.experiments import ppo as study
from course_lib.experiments import starts
from course_lib.lm import load_lm
from course_lib.lm.heads import LMCritic, SharedCritic, ValueModel
from course_lib.rewards.maths import maths_reward
from course_lib.teach import scale_up, show, table

policy, tokenizer = load_lm("sums_start")  # trained now if it is missing
stories, reward = starts.sum_rows("train", 2000), maths_reward()

# %%
def spread(values, form="{:.2f}"):
    """Mean over seeds, with the smallest and the largest."""
    return f"{form.format(sum(values) / len(values))} ({form.format(min(values))} to {form.format(max(values))})"

# %% [markdown]
# ## 1 · Four models
#
# REINFORCE needed one model. PPO, as it is used for language models, holds four:
#
# | model | says | trained? |
# | --- | --- | --- |
# | actor, the policy $p_\theta$ | the next token | yes |
# | critic $V$ | how much reward is still to be expected | yes |
# | reference $p_{PT}$ | what the start would have said | no |
# | reward $R$ | how good the whole answer is | no; here a rule that compares numbers |
#
# **Predict.** Actor and critic are trained with Adam, in float32. How many times the actor's weights do the models hold
# in the middle of a step? And how much of it would be saved without a critic, as in GRPO?

# %%
from course_lib import memory
from course_lib.algorithms.reinforce import adam, learning_rate
from course_lib.algorithms.training import take_step

actor, critic = copy.deepcopy(policy), LMCritic(ValueModel(policy), "fp32")
agent, reference = LMAgent(actor, tokenizer, max_new_tokens=32, precision="fp32"), frozen(policy)
episodes = play(agent, Questions(stories, reward), count=16)
with memory.Saved(actor) as of_actor:
    logprobs = episodes.logprobs(agent)
with memory.Saved(critic.model) as of_critic:
    values = episodes.values(critic)
(logprobs.sum() + values.sum()).backward()
optimizers = adam(actor, critic.model)
for optimizer in optimizers:
    optimizer.step()
roles = {"policy": actor, "value": critic.model, "reference": reference}
measured = memory.live(roles, optimizers, activations={"policy": of_actor.bytes, "value": of_critic.bytes})
action = episodes.steps[0].action
sizes = dict(rows=16, prompt_tokens=action.prompt_ids.shape[1], new_tokens=action.completion_ids.shape[1])
formula = memory.estimate("PPO", memory.shape_of(policy.config), precision="fp32", without=("reward",), **sizes)

# %%
kinds = ("weights", "gradients", "optimizer", "activations")
big = {name: memory.estimate(name, memory.LLAMA_7B, rows=64, group=8, micro_batch=4, prompt_tokens=512, new_tokens=512,
                             checkpointing=True) for name in ("PPO", "GRPO")}
left = {f"{role}, {how}": usage[role] for role in roles for how, usage in (("live", measured), ("formula", formula))}
right = {f"{name}\n{role}": usage for name in big for role, usage in big[name].items()}
fig, axes = plots.subplots(1, 2, height=4.4)
for ax, bars, unit, scale in ((axes[0], left, "MB", 1e6), (axes[1], right, "GB", 1e9)):
    bottom = [0.0] * len(bars)
    for kind, colour, hatch in zip(kinds, plots.PALETTE, ("", "//", "..", "xx")):
        heights = [getattr(usage, kind) / scale for usage in bars.values()]
        ax.bar(range(len(bars)), heights, bottom=bottom, color=colour, hatch=hatch, edgecolor="white", label=kind)
        bottom = [low + high for low, high in zip(bottom, heights)]
    ax.set_xticks(range(len(bars)), bars, rotation=60, ha="right", fontsize=9)
    ax.set_xlabel("role")
    ax.set_ylabel(unit)
axes[0].set_title("here, in one step")
axes[1].set_title("7 B parameters, bf16,\nAdamW, checkpointing")
axes[0].legend(fontsize=8, loc="center right")
total = {how: sum(getattr(u, k) for u in usage.values() for k in kinds) for how, usage in
         (("live", measured), ("formula", formula))}
share = sum(u.peak for u in big["GRPO"].values()) / sum(u.peak for u in big["PPO"].values())
of_critic = sum(getattr(measured["value"], k) for k in kinds) / total["live"]
plots.finish(fig, f"Counted in live tensors {total['live'] / 1e6:.0f} MB, by formula {total['formula'] / 1e6:.0f} MB: "
                  f"{total['live'] / measured['policy'].weights:.0f} times the actor's weights, {of_critic:.0%} of it the "
                  f"critic's. At 7 B GRPO needs {share:.0%} of PPO's memory.")

# %% [markdown]
# **Explain.** In float32 a trained model costs four times its weights before it has read a word: weights, gradients,
# and Adam's two moments; then come the activations. On the right it costs eight times: weights and gradients are in
# bf16, and Adam keeps its moments and a copy of the weights in float32. The critic is a second trained model as large
# as the actor, and dropping it is what GRPO saves (notebook 07). Between the two stands a value head on the actor's own
# trunk, `SharedCritic`. We will see what it costs.
#
# ## 2 · From a score to a reward for each token
#
# The lecture's regularised reward, $\hat R = R - \beta \log (p^{RL} / p^{PT})$, is a sum over tokens. So each token can
# pay for itself, and the score falls due when the answer is over:
#
# $$r_t = -\beta \, \ln \frac{p_\theta(a_t \mid s_t)}{p_{PT}(a_t \mid s_t)} +
# \begin{cases} R(a, s) & t \text{ is the last token} \\ 0 & \text{else} \end{cases}$$
#
# **Exercise 1 · the reward of each token** (difficulty 2 of 5, 8 minutes)
#
# *Goal: put the score on the right token, and the price on all of them.*
# *On a GPU, make new tensors where the inputs are: `torch.arange(..., device=mask.device)`.*

# %%
def token_rewards(scores, logprobs, ref_logprobs, mask, beta):
    """-beta ln(p / p_PT) at every real token, and the answer's score at its last real token. Constants.

    scores: (N,); logprobs, ref_logprobs, mask: (N, T), padded on the right. Returns (N, T), 0 where masked.
    """
    ### BEGIN SOLUTION
    rewards = torch.where(mask, -beta * (logprobs - ref_logprobs), 0)
    at = torch.arange(mask.shape[1], device=mask.device)
    last = at == mask.sum(1, keepdim=True) - 1
    return (rewards + torch.where(last, scores[:, None], 0)).detach()
    ### END SOLUTION

# %%
token_rewards = check("token_rewards", token_rewards)

# %% [markdown]
# ## 3 · The critic, and advantages instead of rewards (C22)
#
# REINFORCE gives every token of an answer the same credit, although most of them had nothing to do with its success. An
# **actor-critic** asks at every token: is it now better than it was? With $V(s_t)$ the expected reward from here on,
#
# $$\delta_t = r_t + V(s_{t+1}) - V(s_t) \qquad\qquad A_t = \delta_t + \lambda A_{t+1}$$
#
# (Schulman et al. 2016, with $\gamma = 1$). With $\lambda = 0$ a token is judged by the critic's change of mind alone;
# with $\lambda = 1$ by all that really came, minus what was expected.
#
# **Exercise 2 · GAE** (difficulty 3 of 5, 12 minutes)
#
# *Goal: sum backwards in time, and stop where the answer stops.*
# *On a GPU, make new tensors where the inputs are: `torch.zeros(..., device=values.device)`.*

# %%
def gae(rewards, values, mask, lam):
    """A_t = delta_t + lam A_{t+1} with delta_t = r_t + V(s_{t+1}) - V(s_t); nothing follows the last real token.

    rewards, values, mask: (N, T), padded on the right. Returns (N, T), constants, 0 where masked.
    """
    ### BEGIN SOLUTION
    values = torch.where(mask, values, 0).detach()
    advantages, advantage, following = torch.zeros_like(values), 0.0, 0.0
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + following - values[:, t]
        advantage = torch.where(mask[:, t], delta + lam * advantage, 0)
        advantages[:, t], following = advantage, values[:, t]
    return advantages
    ### END SOLUTION

# %%
gae = check("gae", gae)

# %% [markdown]
# ### Exactly, where every sequence can be listed
#
# Which $\lambda$ is best? On a language model with three letters and at most four of them, nothing has to be sampled:
# the gradient that GAE estimates, its bias and its variance are sums over 121 sequences. Three critics: none at all
# ($V = 0$), one that has learnt from 200 episodes, and the true values.
#
# **Predict.** For which of the three is $\lambda = 0$ unbiased? For which is $\lambda = 1$?

# %% tags=["nbval-check-output"]
small = exact.TableLM(letters=3, length=4, seed=0).double()
worth = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64)  # of a, b, c and the end
scores = torch.where(small.mask, worth[small.ids], 0).sum(1)
true = exact.policy_gradient(small, scores, [small.logits])
for name, values in (("none", torch.zeros(small.ids.shape, dtype=torch.float64)),
                     ("perfect", exact.state_values(small, scores))):
    for lam in (0.0, 1.0):
        mean = small().exp() @ study.gae_gradients(small, scores, values, lam)
        print(f"critic {name:8} lambda {lam:.0f}: error of the expected gradient {(mean - true).norm() / true.norm():.2f}")

# %%
c22 = artifacts.result("ppo_bias")
lams, seeds = c22["lams"], len(c22["none"]["bias"])
fig, axes = plots.subplots(1, 3, height=3.8)
error, patient = {}, {}
for name in study.CRITICS:
    bias, noise = torch.tensor(c22[name]["bias"]), torch.tensor(c22[name]["spread"])  # (seeds, lams)
    error[name], patient[name] = ((bias.square() + noise.square() / n).sqrt() for n in (64, 4096))
    label = {"none": "no critic", "learnt": "learnt", "perfect": "perfect"}[name]
    for ax, runs in zip(axes, (bias, noise, error[name])):
        plots.line_with_interval(ax, lams, runs.tolist(), label)
for ax, title in zip(axes, ("bias", "spread of one episode", "error, 64 episodes")):
    ax.set_title(title)
    ax.set_xlabel("λ")
fig.supylabel("relative to the true gradient")
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
best, later = (lams[int(e["learnt"].mean(0).argmin())] for e in (error, patient))
start_bias = {name: float(torch.tensor(c22[name]["bias"])[:, 0].mean()) for name in study.CRITICS}
plots.finish(fig, f"Bias at λ = 0: {start_bias['none']:.2f} without a critic, {start_bias['learnt']:.2f} with the learnt one, "
                  f"0 with the perfect one; at λ = 1 it is 0 for all. The learnt critic does best at λ = {best:g} with 64 "
                  f"episodes, at λ = {later:g} with 4,096.")

# %% [markdown]
# **Explain.** With $\lambda = 1$ the values cancel from the expectation: whatever the critic says, it is only a
# baseline. Any $\lambda < 1$ replaces a part of what really came by what the critic *thinks* would come: less noise,
# and the critic's errors become the gradient's. A perfect critic could be trusted fully. How far to trust a real one
# depends on how good it is and on how many episodes average out the noise: with more episodes the best $\lambda$ moves
# towards 1.
#
# ### A critic that watches an answer being written
#
# A task so small that even the critic can be exact: **write it backwards**. A word of four letters, `cabd`, and the answer
# is `dbac`. A tiny Llama starts from fine-tuning on examples half of which are wrong. The true value of a text is the
# chance that the answer will be right: while all letters are right, the product of the probabilities to come; after a
# wrong one, 0. **Predict** where the advantage of a wrong answer sits, with $\lambda = 0$ and with $\lambda = 1$.

# %%
from course_lib.widgets import ClipExplorer, GaeSlider

start, letters = study.backwards_start(steps=20 if smoke() else 300, wrong=0.5)
print(f"The start writes a word backwards with probability {study.chance_right(start):.3f}.")
tiny = LMAgent(start, letters, max_new_tokens=study.LENGTH + 1, precision="fp32")
episodes = play(tiny, Questions(study.backwards(), study.is_right), count=64, seed=1)
action = episodes.steps[0].action
values = study.true_values(start, action)
fall = (values[:, :3] - values[:, 1:4]).max(1).values  # how much a single letter cost
worst = int(torch.where(episodes.score == 0, fall, -1).argmax())
said = action.completion_ids[worst][action.completion_mask[worst]]
print("asked for", letters.decode(action.prompt_ids[worst][1:5].flip(0)), "and got", letters.decode(said))
GaeSlider([letters.decode([i]) for i in said.tolist()], [0.0] * len(said), values[worst][: len(said)].tolist(), lam=0.0)

# %% [markdown]
# With true values and $\lambda = 0$ the blame falls on the wrong letter, and on no other. That is what a critic is for.
#
# Now a critic that has to learn, on the arithmetic stories. It is shown answers of the policy, right and wrong, and
# learns to predict their scores from the text *so far*. How much of the scores' variance can it explain in each quarter
# of an answer?

# %%
agent, watching = LMAgent(policy, tokenizer, max_new_tokens=32), LMCritic(ValueModel(policy))
fit = study.fit_critic(agent, watching, Questions(stories, reward), count=64 if smoke() else 1000, epochs=3, lr=1e-3)
table(["", "first quarter", "second", "third", "last"],
      [["explained variance, held-out answers", *(f"{share:.2f}" for share in fit["by_part"])]])

# %% [markdown]
# **Explain.** A share near 0 says that the critic has learnt the mean score and little else. To do better it would have
# to check the arithmetic, and a thousand answers do not teach it that. A value model is as hard to train as a reward
# model, and gets a far poorer signal. GRPO's authors name this, beside memory, as a reason to do without one; they argue
# it and do not measure it. Move $\lambda$ below, over a wrong answer and a right one: the flatter $V$ is, the more evenly
# $\lambda = 1$ spreads the surprise at the end over all tokens, and the more of it $\lambda = 0$ leaves to the last one.

# %%
episodes = play(agent, Questions(starts.sum_rows("test", 40), reward), count=20, samples=2, seed=3)
action, earned = episodes.steps[0].action, episodes.score.tolist()
with torch.no_grad():
    values = watching.values(None, action)


def over_tokens(row):
    """The lambda slider over one answer."""
    real = action.completion_mask[row]
    words = [tokenizer.decode([i]) for i in action.completion_ids[row][real].tolist()]
    return GaeSlider(words, [0.0] * (len(words) - 1) + [earned[row]], values[row][real].tolist())


wrong, right = earned.index(min(earned)), earned.index(max(earned))
print(f"wrong: {action.texts[wrong]}     right: {action.texts[right]}")
over_tokens(wrong)

# %%
over_tokens(right)

# %% [markdown]
# ## 4 · Conservative: the clip (C21)
#
# Sampling answers is expensive. Can a batch be used for more than one step? After the first step the answers are no
# longer the policy's own. A weight on each token mends what is said at $s_t$. How often a text gets to $s_t$ has changed
# too; PPO leaves that out, which is right only while the policy has moved little:
#
# $$\text{ratio}_t = \frac{p_\theta(a_t \mid s_t)}{p_{old}(a_t \mid s_t)} \qquad\qquad
# \max_\theta \; E\big[\min\big(\text{ratio}_t A_t,\; \text{clip}(\text{ratio}_t, 1-\epsilon, 1+\epsilon) A_t\big)\big]$$
#
# (Schulman et al. 2017, equation 7). **Predict** before you move the sliders: the advantage is positive and the ratio
# is 1.5. Does the token's probability still rise? And with a negative advantage and a ratio of 1.5?

# %%
ClipExplorer(advantage=1.0, ratio=1.5)

# %% [markdown]
# **Exercise 3 · whitening** (difficulty 2 of 5, 6 minutes)
#
# *Goal: scale advantages over the tokens that are there.*

# %%
def whiten(values, mask):
    """Mean 0 and deviation 1 over the real tokens: (x - mean) / sqrt(variance + 1e-8), the biased variance.

    values, mask: (N, T). Returns (N, T), 0 where masked.
    """
    ### BEGIN SOLUTION
    real = values[mask]
    white = (values - real.mean()) / (real.var(unbiased=False) + 1e-8).sqrt()
    return torch.where(mask, white, 0)
    ### END SOLUTION

# %%
whiten = check("whiten", whiten)

# %% [markdown]
# **Exercise 4 · the clipped loss** (difficulty 3 of 5, 10 minutes)
#
# *Goal: a pessimist's bound, token by token.*

# %%
def clipped_loss(logprobs, old_logprobs, advantages, mask, eps):
    """-mean over the real tokens of min(r A, clip(r, 1 - eps, 1 + eps) A), with r = p / p_old.

    logprobs, with a gradient; old_logprobs, advantages and mask, constants: (N, T). Returns a scalar.
    """
    ### BEGIN SOLUTION
    ratio = (logprobs - old_logprobs).exp()
    near = ratio.clamp(1 - eps, 1 + eps)
    gain = torch.minimum(ratio * advantages, near * advantages)
    return -torch.where(mask, gain, 0).sum() / mask.sum()
    ### END SOLUTION

# %%
clipped_loss = check("clipped_loss", clipped_loss)

# %% [markdown]
# ## 5 · PPO in twenty lines, from your functions
#
# The task is to write words backwards, as in section 3. All 625 words can be listed, so the chance of a right answer is a
# sum, not a sample.

# %%
def my_ppo(epochs, eps, steps=2 if smoke() else 24, lr=1e-3):
    """PPO without a critic or a reference, from token_rewards, gae, whiten and clipped_loss."""
    model = copy.deepcopy(start)
    actor = LMAgent(model, letters, max_new_tokens=study.LENGTH + 1, precision="fp32")
    task, optimizers = Questions(study.backwards(), study.is_right), adam(model)
    chances = [study.chance_right(model)]
    for step in range(steps):
        batch = play(actor, task, count=64, seed=step)
        old, mask = batch.sampled, batch.mask
        rewards = token_rewards(batch.score, old, old, mask, 0.0)
        advantages = whiten(gae(rewards, torch.zeros_like(old), mask, 1.0), mask)
        rate = learning_rate(step, ppo.PPOConfig(steps=steps, lr=lr))  # up, then down in a line
        for epoch in range(epochs):
            loss = clipped_loss(batch.logprobs(actor), old, advantages, mask, eps)
            loss.backward()
            take_step(optimizers, rate, 1.0, loss.item(), f"step {step}")
        chances.append(study.chance_right(model))
    return chances

# %% [markdown]
# **Predict.** One step on each batch, four steps without a clip, four steps with it: which order will they end in?

# %%
live = {"1 epoch": my_ppo(1, math.inf), "4 epochs, no clip": my_ppo(4, math.inf), "4 epochs, clip 0.2": my_ppo(4, 0.2)}
fig, ax = plots.subplots(height=3.6)
for name, chances in live.items():
    ax.plot(chances, label=name, markevery=4)
ax.set_xlabel("batches of 64 answers")
ax.set_ylabel("chance of a right answer")
ax.legend()
plots.finish(fig, "One run each: " + ", ".join(f"{name} {c[0]:.2f} to {c[-1]:.2f}" for name, c in live.items()) + ".")

# %% [markdown]
# Look at their order, and do not believe it yet: one run is an anecdote.
#
# ### Over seeds: what the clip buys, and what it does not
#
# The same task with the course's `ppo.train`: the clip, the critic, one or four epochs, two learning rates, five seeds.
# With one step a batch the ratio is exactly 1 and the clip has nothing to do, so "1 epoch" stands for both. A run
# counts as **collapsed** when its chance of a right answer ends below half of the start's.

# %%
c21 = artifacts.result("ppo_stability")
arms, rates = list(c21["runs"]), c21["lrs"]
fig, axes = plots.subplots(1, 2, height=4.6, sharey=True)
collapsed = {}
for ax, lr, i in zip(axes, rates, range(len(rates))):
    ends = {arm: [run["right"][-1] for run in c21["runs"][arm][i]] for arm in arms}
    collapsed[lr] = {arm: sum(end < c21["start"] / 2 for end in runs) for arm, runs in ends.items()}
    plots.bars_with_interval(ax, arms, ends)
    ax.set_xticks(range(len(arms)), [f"{arm}\n{collapsed[lr][arm]} of {len(ends[arm])} collapsed" for arm in arms],
                  rotation=35, ha="right", fontsize=8.5)
    ax.axhline(c21["start"], color="black", linewidth=1, linestyle="--")
    ax.set_title(f"learning rate {lr:g}")
    ax.set_xlabel("what is trained, and how")
axes[0].set_ylabel("chance of a right answer at the end\n(dashed: at the start)")
without, clipped = (sum(collapsed[lr][arm] for lr in rates) for arm in ("4 epochs, no clip", "PPO, 4 epochs"))
n = sum(len(c21["runs"]["PPO, 4 epochs"][i]) for i in range(len(rates)))
plots.finish(fig, f"Four epochs a batch: {without} of {n} runs collapse without the clip, {clipped} of {n} with it.")

# %%
rows = []
for arm in arms[1:]:
    for lr, runs in zip(rates, c21["runs"][arm]):
        rows.append([arm, f"{lr:g}", *(spread([run[name] for run in runs], form) for name, form in
                     (("approx_kl", "{:.3f}"), ("clipfrac", "{:.2f}"), ("entropy", "{:.2f}"),
                      ("explained_variance", "{:.2f}")))])
table(["run", "learning rate", "approx KL of a batch's last update, nats a token", "clip fraction", "entropy at the end",
       "explained variance"], rows)

# %% [markdown]
# **Explain.** The weights correct a token, not the way that led to it, and they vary wildly once the policy has moved:
# each step without a clip follows ratios that its own last step has made, and the policy leaves the region in which the
# batch says anything about it.
# The clip stops a token once it has moved far enough, so that four epochs learn *more* than one at a rate at which four
# epochs without a clip lose what the start could do.
#
# What it does not do: make a learning rate harmless. A clipped token gets no gradient, but the step that carried it
# past the edge was taken, and Adam's momentum takes it further. At the larger rate REINFORCE and PPO end below their
# start on average, with the clip too. And compared with REINFORCE, which takes a single step, PPO is not the more stable
# one: at the smaller rate it gets more out of each answer.
#
# The critic brings nothing here, and its explained variance says why: with the clip it stays near 0, no better than a
# constant, and without the clip, at the larger rate, it is far worse than one. A batch of 64 answers a step is
# too little to learn from what a right answer looks like; a whitened advantage has the batch's mean as its baseline
# anyway.
#
# ### What the details are worth
#
# "The N implementation details of RLHF with PPO" (Huang et al. 2023) lists what papers leave out. `ppo.train` has most
# of them, and its docstring says why the others are missing. Each can be switched off:

# %%
tuned = artifacts.result("ppo_details")
usual = [run["right"][-1] for run in c21["runs"]["PPO, 4 epochs"][rates.index(tuned["lr"])]]
rows = [("PPO, 4 epochs, as it is", spread(usual), "")]
for arm, runs in tuned["runs"].items():
    ends = [run["right"][-1] for run in runs]
    mean, low, high = plots.interval([a - b for a, b in zip(ends, usual)])  # the same seeds
    rows.append((arm, spread(ends), f"{mean:+.2f} ({low:+.2f} to {high:+.2f})"))
table(["one switch at a time", "chance right at the end, over seeds", "difference, 95 % interval"], rows)

# %% [markdown]
# Read the intervals before the means: a detail whose interval holds 0 has not shown here that it matters, in either
# direction. Most of such lists were never measured one by one. One that does matter is the early stop in the place of the
# clip: it sees a step that went too far once it has been taken.
#
# ## 6 · All four models at work
#
# The policy on arithmetic stories, with a critic of its own, the frozen reference and the rule as reward: the course's
# `ppo.train`, live. One step of it in full:

# %%
show(ppo.gradient)

# %%
agent, critic = LMAgent(policy, tokenizer, max_new_tokens=32), LMCritic(ValueModel(policy))
config = ppo.PPOConfig(steps=2 if smoke() else 12, count=8, samples=8, epochs=2, lr=2e-4, beta=0.02)
before = play(agent, Questions(starts.sum_rows("test", 40), reward), count=40, seed=0)
history = ppo.train(agent, Questions(stories, reward), config, critic=critic, reference=reference)
after = play(agent, Questions(starts.sum_rows("test", 40), reward), count=40, seed=0)
names = ("reward", "entropy", "kl", "explained_variance", "clipfrac", "approx_kl")
table(["step", *names], [[e["step"], *(f"{e[name]:.3f}" for name in names)] for i, e in enumerate(history)
                        if i % 2 == 0 or e is history[-1]])
right = [sum(score >= 1 for score in e.score.tolist()) for e in (before, after)]
print(f"Held-out stories solved by one sampled answer each: {right[0]} of 40 before, {right[1]} of 40 after.")
first = max(e["ratio_error"] for e in history)
print(f"Largest |ratio - 1| at the first minibatch of any step: {first:.1g}")

# %% [markdown]
# How to read the columns. *reward* is the only one that says whether it works, and a single run does not say it
# clearly: a batch is 64 answers to eight stories, easier ones or harder ones, and of 40 test answers some ten are right
# by chance's favour or in spite of it. Look at its trend, and at the seeds below. *entropy* falling fast means that
# answers become alike. *kl* is how far the policy is from the reference, in nats an answer. *explained variance* near 0
# means that the critic is no better than a constant. A *clip fraction* above about 0.3, or an *approx KL* of more than
# some hundredths of a nat, says that the steps are too large for the number of epochs. The loss is not in the table:
# its value means nothing.
#
# Over seeds, with four epochs and a value head on the policy's own trunk, with and without the clip:

# %%
sums = artifacts.result("ppo_sums")
fig, axes = plots.subplots(1, 2, height=3.8)
for name in ("clip", "no clip"):
    curves = [run["reward"] for run in sums[name]]
    plots.line_with_interval(axes[0], range(1, len(curves[0]) + 1), curves, name)
axes[0].set_xlabel("batches of answers")
axes[0].set_ylabel("mean reward")
axes[0].legend()
solved = {"start": [sums["start"]["pass@1"]], **{k: [r["pass@1"] for r in sums[k]] for k in ("clip", "no clip")}}
plots.bars_with_interval(axes[1], list(solved), solved)
axes[1].set_xlabel("four epochs a batch")
axes[1].set_ylabel("held-out stories solved, one sample")
greedy = {k: [r["greedy"] for r in sums[k]] for k in ("clip", "no clip")}
plots.finish(fig, f"Held-out stories solved by a sample: {solved['start'][0]:.2f} at the start, "
                  f"{spread(solved['clip'])} with the clip, {spread(solved['no clip'])} without. By the greedy answer: "
                  f"{sums['start']['greedy']:.2f} at the start, {spread(greedy['clip'])} with the clip, "
                  f"{spread(greedy['no clip'])} without.")

# %% [markdown]
# The samples get better with the clip, and the greedy answer gets worse: compare the two halves of the last line. Samples
# are what is rewarded; the policy has moved towards right ones, and has lost a part of what it did best. Notebook 07 takes
# that up.
#
# ## Where this breaks
#
# - **The score on the wrong token**: in the last column instead of at the last real token. Everything runs, nothing is
#   learnt.
# - **Cut-off answers**: they never reach an end, and a critic that bootstraps past the limit rewards rambling. Here
#   they are over, and pay a penalty (`missing_eos_penalty`).
# - **Two code paths**: sampling and training compute log-probs differently. `sampler_gap` in the history bounds it; the
#   ratio is taken inside the training code, so that it starts at exactly 1.
# - **Whitened rewards**: a task whose every reward is −1 looks like one whose every reward is 0, if the mean goes too.
# - **A critic that knows nothing** and a small $\lambda$: the gradient follows its errors, as section 3 shows.
# - **The clip is no trust region**: it takes gradients away, it does not pull anything back. `max_kl` stops a batch
#   early.
#
# ## Scale it up
#
# The same call on a real model; the critic is a value head on the policy's trunk, to save a model's memory.

# %%
if real := scale_up("PPO", steps=40, rows=32, prompt=72, answer=64, group=4, epochs=4, few=(2, 8)):
    rows = [{"prompt": [{"role": "user", "content": row["prompt"][0]["content"] + " End with # and the number."}],
             "answer": row["answer"]} for row in stories]
    config = ppo.PPOConfig(steps=real.steps, count=real.rows // 4, samples=4, lr=1e-6, critic_lr=1e-5, beta=0.05)
    solver = LMAgent(real.model, real.tokenizer, max_new_tokens=64)
    seen = ppo.train(solver, Questions(rows, reward), config, critic=SharedCritic(real.model), reference=frozen(real.model))
    print("mean reward of each step:", *(f"{entry['reward']:.2f}" for entry in seen))

# %% [markdown]
# ## Recap

# %%
table(["claim of the lecture", "measured on this page"], [
    ("C21: PPO is conservative and makes training more stable",
     f"four epochs a batch: {without} of {n} runs collapse without the clip, {clipped} of {n} with it; REINFORCE, one "
     f"step a batch: {sum(collapsed[lr]['REINFORCE'] for lr in rates)} of {n}"),
    ("C21: it gets more out of each batch",
     f"at learning rate {rates[0]:g}: REINFORCE {spread([r['right'][-1] for r in c21['runs']['REINFORCE'][0]])}, PPO with "
     f"four epochs {spread([r['right'][-1] for r in c21['runs']['PPO, 4 epochs'][0]])}, start {c21['start']:.2f}"),
    ("C22: advantages from a critic, not rewards",
     f"GAE's bias at λ = 0 with a learnt critic {start_bias['learnt']:.2f}, at λ = 1 none; best λ {best:g} with 64 "
     f"episodes, {later:g} with 4,096"),
    ("C23: PPO holds four models, GRPO drops one",
     f"formula / live {total['formula'] / total['live']:.2f}; GRPO needs {share:.0%} of PPO's memory at 7 B"),
])

# %% [markdown]
# **References.** Schulman et al., *High-dimensional continuous control using generalized advantage estimation*, 2016 ·
# Schulman et al., *Proximal policy optimization algorithms*, 2017 · Ziegler et al., *Fine-tuning language models from
# human preferences*, 2019 · Ouyang et al., *Training language models to follow instructions with human feedback*, 2022
# · Huang et al., *The N implementation details of RLHF with PPO*, 2023
