# %% [markdown]
# # 03 · REINFORCE: from rewards to gradients
#
# *Lecture: Reinforcement learning: abridged history; RL: problem description; LM as RL problem; Optimizing policy
# function; Policy gradient/REINFORCE*
#
# > We reinforce good actions, increasing the chance they happen again.
#
# **You will be able to** say what state, action, policy and reward are for a language model, derive the policy gradient
# and check every line of it with numbers, estimate it from samples, lower its variance without changing its mean, and
# recognise a run that is going wrong.
#
# | | |
# | --- | --- |
# | time | about 1 minute on two CPU cores, as long on a T4 (estimates, for a filled store) |
# | starts from | `policy_sft`: the base model, fine-tuned on answers as people give them: some good, most not |
# | leaves behind | that model and four studies in the store, if they are not there yet |
#
# Four claims of the lecture are measured: agent, environment and reward are one frame for a bandit and a language model
# (C9), the log-derivative trick gives the gradient (C10), large rewards make large steps (C11), and RL with language
# models is hard to get right (C12).

# %%
import copy

import torch

from course_lib import artifacts, exact, plots, smoke
from course_lib.algorithms import reinforce
from course_lib.checks import check
from course_lib.environments import Letters, LMAgent, Questions, TableAgent, play
from course_lib.experiments import reinforce as studies
from course_lib.lm import load_lm
from course_lib.progress import Progress
from course_lib.rewards.gold import atlas_gold
from course_lib.teach import scale_up, show, table
from course_lib.worlds import atlas

# %% [markdown]
# ## 1 · Five dates

# %%
dates = {"1992": "Williams:\nREINFORCE", "1998": "Sutton & Barto:\nthe textbook",
         "2013": "Mnih et al.:\ndeep networks\nplay Atari", "2017": "Schulman et al.:\nPPO",
         "today": "language\nmodels"}
fig, ax = plots.subplots(height=1.8)
ax.plot(range(5), [0] * 5, color=plots.PALETTE[0], marker="o", markersize=9, linestyle="-")
for at, (year, what) in enumerate(dates.items()):
    ax.text(at, 0.25, what, ha="center", va="bottom")
    ax.text(at, -0.3, year, ha="center", va="top", fontweight="bold")
ax.set(xlim=(-0.6, 4.6), ylim=(-1, 2.2))
ax.set_axis_off()
plots.finish(fig, "The algorithm of this page is from 1992; what is new is what it is applied to.")

# %% [markdown]
# Why again now? The lecture gives two reasons. RL with language models *was viewed as very hard to get right* (it
# still is: section 8 shows how it fails), and variants were found that work. All of them, PPO and GRPO included, are
# this page's algorithm with changes.
#
# ## 2 · Agent and environment (C9)
#
# An **agent** in a **state** $s_t$ chooses an **action** $a_t$ with its **policy** $p_\theta$. The **environment**
# returns a **reward** $r_t$ and the next state.

# %%
def loop(ax, title, agent, environment, action, answer):
    """The lecture's picture: agent above, environment below, what goes down and what comes back."""
    ax.set(xlim=(0, 1), ylim=(0, 1), title=title)
    frame = {"boxstyle": "round,pad=0.5", "facecolor": "#eef1f4", "edgecolor": plots.PALETTE[0]}
    for y, text in ((0.87, agent), (0.13, environment)):
        ax.text(0.5, y, text, ha="center", va="center", bbox=frame)
    for x, start, end, text, side in ((0.66, 0.74, 0.27, action, "left"), (0.34, 0.27, 0.74, answer, "right")):
        ax.annotate("", (x, end), (x, start), arrowprops={"arrowstyle": "-|>", "lw": 2, "color": "#4d4d4d"})
        ax.text(x + (0.03 if side == "left" else -0.03), 0.5, text, ha=side, va="center")
    ax.set_axis_off()


fig, axes = plots.subplots(1, 2, height=3.4)
loop(axes[0], "Reinforcement learning", "agent: policy $p_\\theta$", "environment", "action $a_t$",
     "reward $r_t$\nstate $s_{t+1}$")
loop(axes[1], "… with a language model", "language model $p_\\theta$", "person, rule,\nor reward model",
     "answer\n(completion)", "reward of\nthe answer;\nnext prompt")
plots.finish(fig, "For a language model the state is the prompt, the action the whole answer, the policy "
                  "the model itself.")

# %% [markdown]
# In the course's code the loop is one function. Read it with the picture in mind: whatever `agent` and `environment`
# are, nothing else happens.

# %%
show(play)

# %% [markdown]
# REINFORCE is one function too (sections 4 to 6 explain its lines):

# %%
show(reinforce.train)

# %% [markdown]
# **Predict.** A bandit has ten arms and one state; on a grid each move costs a point until the far corner is reached;
# a tiny language model is paid for the letters it says. How much of the training function has to change between the
# three?

# %%
runs = []
with Progress("three tasks", total=2 if smoke() else 5, unit="seed") as progress:
    for seed in range(2 if smoke() else 5):
        runs.append(studies.three_tasks(seed, steps=4 if smoke() else 40))
        progress.update()
fig, ax = plots.subplots()
for name in runs[0]:
    plots.line_with_interval(ax, range(1, len(runs[0][name]) + 1), [run[name] for run in runs], name)
ax.axhline(1, color="black", linewidth=0.8)
ax.set_xlabel("step (batch of 32 episodes)")
ax.set_ylabel("score: 0 as at the start, 1 the best")
ax.legend(loc="lower right")
solved = {name: min(sum(run[name][-5:]) / 5 for run in runs) for name in runs[0]}
plots.finish(fig, f"One function, three tasks: over the last five steps every seed reaches at least "
                  f"{min(solved.values()):.0%} of the way from its start to the best score.")

# %% [markdown]
# **Explain.** Nothing changed: `reinforce.train` asks an agent for actions and log-probabilities, and an environment
# for rewards. What a state is (the number 1, a cell, a prompt) and what an action is (an arm, a move, an answer) is
# their business.
#
# ## 3 · A language model as an RL problem: two views
#
# **Bandit view**: one state (the prompt), one action (the whole answer), one reward. **Token view**: the state is the
# text so far, every token is an action, and the reward comes at the end. Both are the same model: the probability of
# the answer is the product of its tokens' probabilities.
#
# To see this exactly we take a language model that is so small that *every* answer can be listed: three letters, at
# most three of them, 40 answers in all. It is a real transformer, sampled by the course's sampler.

# %%
from course_lib.lm.enumerate import all_logprobs, letters_lm

tiny, signs = letters_lm(studies.LETTERS, seed=3)
speaker = LMAgent(tiny, signs, max_new_tokens=studies.LENGTH, precision="fp32")
letters = Questions([{"prompt": [signs.bos_token_id]}],
                    lambda prompts, completions, **_: studies.letters_reward(completions).tolist())
said = play(speaker, letters, count=1, samples=6, seed=2)
action = said.steps[0].action
rows = []
for text, done, logp, score in zip(said.texts, action.finished, said.sampled, said.score):
    each = [f"{p:.3f}" for p in logp[logp != 0].exp()]
    rows.append((text + "∎" * bool(done), " × ".join(each), f"{logp.sum().exp():.4f}", f"{score:+g}"))
table(["answer (∎ ends it)", "p of each token", "their product", "reward"], rows)

# %% [markdown]
# **Exercise 1 · the log-probability of an answer** (difficulty 2 of 5, 8 minutes)
#
# *Goal: $\ln p_\theta(a \mid s)$, the one number about the model that REINFORCE needs.*
#
# A row holds prompt and answer; `mask` marks the answer's tokens. Remember what the logits at a position predict.

# %%
def answer_logprob(logits, ids, mask):
    """ln p(answer | prompt) of each row.

    logits: (B, T, V); ids: (B, T) token ids; mask: (B, T) bool, True where a token belongs to the answer.
    Returns (B,), with a gradient.
    """
    ### BEGIN SOLUTION
    logp = logits[:, :-1].log_softmax(-1)
    chosen = logp.gather(-1, ids[:, 1:, None])[..., 0]
    return (chosen * mask[:, 1:]).sum(1)
    ### END SOLUTION

# %%
answer_logprob = check("answer_logprob", answer_logprob)

# %% [markdown]
# Your function against the list of all answers:

# %%
every_id, every_mask, every_logp = all_logprobs(tiny, studies.LENGTH)
ids = torch.cat([action.prompt_ids, action.completion_ids], 1)
mask = torch.cat([torch.zeros_like(action.prompt_mask), action.mask], 1)
with torch.no_grad():
    yours = answer_logprob(tiny(ids).logits, ids, mask)
number = {tuple(i[m].tolist()): n for n, (i, m) in enumerate(zip(every_id, every_mask))}
every_logp = every_logp.detach()
listed = every_logp[[number[tuple(i[m].tolist())] for i, m in zip(action.completion_ids, action.mask)]]
print(f"largest difference to the list: {float((yours - listed).abs().max()):.1e}")
print(f"the list's probabilities sum to {float(every_logp.exp().sum()):.6f}")

# %% [markdown]
# ## 4 · The policy gradient, line by line (C10)
#
# We want the $\theta$ that maximises the expected reward, and climb: $\theta \leftarrow \theta + \alpha \nabla_\theta
# \mathbb{E}_{a \sim p_\theta}[R(a, s)]$. But $R$ does not depend on $\theta$: there is nothing to differentiate in it. What
# depends on $\theta$ is *how often* each answer comes.
#
# The lecture's derivation, with a number for each line. To have exact ones we list all answers; the policy is now a
# table of logits, one row for each beginning of an answer, so that the gradient has 52 entries.

# %%
policy = exact.TableLM(studies.LETTERS, studies.LENGTH, seed=0)
R = studies.letters_reward(policy.texts())  # (40,)
theta = policy.logits
print(f"{len(R)} answers, such as {policy.texts()[:6]}, with rewards from {R.min():+g} to {R.max():+g}")
print(f"expected reward: {float(exact.expected_reward(policy().detach(), R)):+.3f}")

# %% [markdown]
# $$\nabla_\theta \mathbb{E}_{a \sim p_\theta}[R(a)] \overset{(1)}{=} \nabla_\theta \sum_a p_\theta(a) R(a)
# \overset{(2)}{=} \sum_a R(a) \nabla_\theta p_\theta(a) \overset{(3)}{=} \sum_a R(a)\, p_\theta(a) \nabla_\theta \log p_\theta(a)
# \overset{(4)}{\approx} \frac{1}{n} \sum_{i=1}^n R(a_i) \nabla_\theta \log p_\theta(a_i)$$
#
# (1) is the definition of an expectation. (2): a gradient distributes over a sum. (3) is the **log-derivative
# trick**, $\nabla p = p \nabla \log p$. It turns the sum back into an expectation. (4): an expectation can be
# estimated from samples.
#
# **Exercise 2 · the estimate** (difficulty 1 of 5, 5 minutes)
#
# *Goal: line (4).*

# %%
def gradient_estimate(scores, rewards):
    """The estimate of the policy gradient from n samples.

    scores: (n, D), grad log p of each sampled answer; rewards: (n,) its R. Returns (D,).
    """
    ### BEGIN SOLUTION
    return (rewards[:, None] * scores).mean(0)
    ### END SOLUTION

# %%
gradient_estimate = check("gradient_estimate", gradient_estimate)

# %%
def finite_differences(step=1e-2):
    """(1) d E[R] / d theta, one entry after the other, by moving it a little up and down."""
    result, start = torch.zeros(theta.numel()), theta.detach().clone()
    with torch.no_grad():
        for i in range(theta.numel()):
            values = []
            for sign in (1, -1):
                theta.view(-1)[i] += sign * step
                values.append(exact.expected_reward(policy(), R))
                theta.copy_(start)
            result[i] = (values[0] - values[1]) / (2 * step)
    return result


p, scores = policy().detach().exp(), exact.score_functions(policy(), [theta])  # (40,), (40, 52)
grad_p = torch.stack([torch.autograd.grad(q, theta, retain_graph=True)[0].view(-1) for q in policy().exp()])
drawn = torch.multinomial(p, 100_000, replacement=True, generator=torch.Generator().manual_seed(0))
lines = {
    "(1) finite differences of E[R]": finite_differences(),
    "(2) sum of R grad p": R @ grad_p,
    "(3) sum of R p grad log p": (R * p) @ scores,
    "(4) your estimate, n = 100,000": gradient_estimate(scores[drawn], R[drawn]),
    "(4) your estimate, n = 100": gradient_estimate(scores[drawn[:100]], R[drawn[:100]]),
}

# %%
true = lines["(3) sum of R p grad log p"]
table(["line", "its first three entries", "distance from (3)", "cosine with (3)"], [
    (name, ", ".join(f"{x:+.4f}" for x in g[:3].tolist()), f"{float((g - true).norm() / true.norm()):.5f}",
     f"{float(torch.cosine_similarity(g, true, dim=0)):.5f}") for name, g in lines.items()])

# %% [markdown]
# **Explain.** Lines (1) to (3) are the same vector in three disguises. Only (4) has noise in it, and only (4) can be
# had for a real model: it asks for answers, their rewards, and $\nabla \log p$ of *those* answers.
#
# **Predict.** Ten times the samples: how much smaller is the error?

# %%
sizes = [10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000][: 5 if smoke() else None]
seeds = range(3 if smoke() else 20)
errors, cosines = [], []
for seed in seeds:
    generator = torch.Generator().manual_seed(seed + 1)
    many = torch.multinomial(p, sizes[-1] * 2, replacement=True, generator=generator)
    batches = many.split([*sizes, len(many) - sum(sizes)])[: len(sizes)]  # no sample in two of them
    guesses = [gradient_estimate(scores[batch], R[batch]) for batch in batches]
    errors.append([float((g - true).norm() / true.norm()) for g in guesses])
    cosines.append([float(torch.cosine_similarity(g, true, dim=0)) for g in guesses])
parameters = list(tiny.parameters())
real = studies.gradient_error(lambda: all_logprobs(tiny, studies.LENGTH)[2], parameters, R, sizes, seeds)

# %%
fits = [plots.loglog_fit(sizes, those) for those in (errors, real["error"])]
fig, ax = plots.subplots()
for label, those, fit in zip(("table, 52 parameters", "transformer"), (errors, real["error"]), fits):
    line = plots.line_with_interval(ax, sizes, those, f"{label}: slope {fit.slope.mean:.3f}")
ax.plot(sizes, 2 * errors[0][0] * (torch.tensor(sizes) / sizes[0]) ** -0.5, color="black", linestyle=":", marker="none",
        label="1/√n")
plots.log_scale(ax)
ax.set_xlabel("samples n")
ax.set_ylabel("error of the estimate\n(share of the gradient's length)")
ax.legend()
worst = min(min(c[-1] for c in those) for those in (cosines, real["cosine"]))
few = [plots.interval([error[1] for error in those]).mean for those in (errors, real["error"])]
plots.finish(fig, f"The error falls as a power of n with exponent {fits[0].slope.mean:.3f} (95 % interval "
                  f"{fits[0].slope.lo:.3f} to {fits[0].slope.hi:.3f}) for the table and {fits[1].slope.mean:.3f} "
                  f"({fits[1].slope.lo:.3f} to {fits[1].slope.hi:.3f}) for the transformer; at n = {sizes[1]} it is "
                  f"{few[0]:.2f} and {few[1]:.2f} of the gradient's length, and at n = {sizes[-1]:,} the smallest cosine "
                  f"of {2 * len(seeds)} estimates is {worst:.4f}.")

# %% [markdown]
# **Explain.** Independent samples: the error falls as $1/\sqrt n$, so ten times the samples buy a factor of three. A
# batch of a real run has 32 to 1,000 answers. Even here, with forty possible answers, 30 samples leave an error of the
# gradient's own order of length. Less noise for the same samples is what the rest of this page is after.
#
# ### What the optimiser sees
#
# Nobody builds a table of $\nabla \log p$ for a real model. We give autograd a **loss** whose gradient is minus line
# (4): $L = -\frac1n \sum_i A_i \log p_\theta(a_i \mid s_i)$, where $A_i$ is $R_i$, or soon $R_i - b$, and a mere
# number.
#
# **Exercise 3 · the loss of REINFORCE** (difficulty 2 of 5, 8 minutes)
#
# *Goal: the loss that trains the model in section 7.*

# %%
def reinforce_loss(logprobs, mask, advantages):
    """-1/n sum_i A_i ln p(a_i | s_i); advantages are constants, whatever they were computed from.

    logprobs: (n, T), ln p of each token; mask: (n, T) bool, which tokens were said; advantages: (n,). Returns a scalar.
    """
    ### BEGIN SOLUTION
    answers = torch.where(mask, logprobs, 0.0).sum(1)
    return -(advantages.detach() * answers).mean()
    ### END SOLUTION

# %%
reinforce_loss = check("reinforce_loss", reinforce_loss)

# %%
table_agent = TableAgent(policy)
episodes = play(table_agent, Letters(R), count=1, samples=5000, seed=1)
loss = reinforce_loss(episodes.logprobs(table_agent), episodes.mask, episodes.score)
(gradient,) = torch.autograd.grad(loss, theta)
by_hand = gradient_estimate(scores[episodes.steps[0].action.ids], episodes.score)
print(f"autograd of the loss and minus the estimate differ by {float((gradient.view(-1) + by_hand).abs().max()):.1e}")
print(f"the loss itself is {loss.item():+.3f}, the mean reward {float(episodes.score.mean()):+.3f}")

# %% [markdown]
# The value of this loss says nothing about how good the policy is: a policy that is sure of its answers has loss 0,
# the best one and the worst one alike. Watch the reward.
#
# ## 5 · Large reward, large step (C11)
#
# The lecture: if $R(a, s)$ is large, take large steps to maximise $p_\theta(a)$. One sampled answer $a$, one step of
# size $\alpha$: to first order $\ln p(a)$ changes by $\alpha (R(a) - b) \, \lVert \nabla \log p(a) \rVert^2$.
#
# **Predict.** Each of the 40 answers in turn is the one that was sampled. All rewards are moved up by 2, so that the
# worst one earns half a point. How many of the 40 become less likely with $b = 0$, and how many with $b =
# \mathbb{E}[R]$?

# %%
alpha, mean_reward = 0.01, float(p @ R)
updates = {name: studies.one_answer_updates(policy, policy, R + 2, b, alpha)
           for name, b in (("b = 0", 0.0), (f"b = E[R] = {mean_reward + 2:.2f}", mean_reward + 2))}
fig, axes = plots.subplots(1, 2, height=3.8, sharey=True)
for ax, (name, update), colour in zip(axes, updates.items(), plots.PALETTE):
    ax.axhline(0, color="black", linewidth=0.8)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.plot(update["advantage"], update["change"], "o", color=colour, alpha=0.7, linestyle="none")
    ax.set_title(f"One step with {name}", fontsize=12)
    ax.set_xlabel("R(a) − b of the sampled answer")
axes[0].set_ylabel("change of ln p(a)")
right = {name: sum(a * c > 0 or a == 0 for a, c in zip(u["advantage"], u["change"]))
         for name, u in updates.items()}
down = [sum(c < -1e-6 for c in u["change"]) for u in updates.values()]
off = max(abs(c / q - 1) for u in updates.values() for c, q in zip(u["change"], u["predicted"]) if abs(q) > 1e-3)
plots.finish(fig, f"The sign of the change is that of R - b for {min(right.values())} of {len(R)} answers, its size "
                  f"that of the equation within {off:.1%}; {down[0]} fall with b = 0 and {down[1]} with b = E[R].")

# %% [markdown]
# **Explain.** Sign and size follow $R - b$. Points with the same reward lie above each other because $\lVert \nabla
# \log p \rVert^2$ differs: a rare answer moves further. With $b = 0$ even the worst answer rises when it is the one that
# was sampled. In expectation that is no harm: better answers rise more, and all must sum to 1. But it takes many
# samples to work out.
#
# In a batch, answers push each other. Try it: begin with one sample and no baseline, then compare with the exact
# gradient. Lower all rewards by 4 points. Find a setting in which a *good* answer becomes less likely.

# %%
from course_lib.widgets import OneUpdate

OneUpdate()

# %% [markdown]
# ### The lecture's example
#
# > Q: where is SF?<br>
# > A1 (👍): SF usually refers to San Francisco, a city in California, USA<br>
# > A2 (👎): SF is in CA, USA
#
# The start is a model that was fine-tuned on answers as people give them: full and terse ones, some wrong, many with
# small talk around them. The reward is a rule that a person could have written down: the atlas rubric. (A *learned*
# reward comes in the next notebook.)

# %%
start, tokenizer = load_lm("policy_sft")
SF = atlas.cities()[0]
pair = {"A1": atlas.preferred(SF), "A2": atlas.terse(SF)}
parts = atlas_gold.parts(prompts=["Where is SF?"] * 2, completions=list(pair.values()), city=[SF.city] * 2)
table(["", "answer", "reward", "why"], [
    (name, text, f"{sum(why.values()):+g}",
     ", ".join(f"{part} {points:+g}" for part, points in why.items() if points) or "-")
    for (name, text), why in zip(pair.items(), parts)])

# %% [markdown]
# **Predict.** REINFORCE on this one question, 16 sampled answers a step. Neither A1 nor A2 is shown to the model as a
# target; the reward only judges what it says by itself. What happens to their probabilities?

# %%
example = artifacts.result("reinforce_example")
fig, axes = plots.subplots(1, 2, height=3.8)
steps = range(len(example["A1"][0]))
for name in ("full marks", "A1", "A2"):
    plots.line_with_interval(axes[0], steps, example[name], name)
plots.line_with_interval(axes[1], steps[1:], example["reward"], "sampled answers")
axes[0].set_ylabel("ln p(answer | Where is SF?)")
axes[1].set_ylabel("reward by the rubric")
for ax in axes:
    ax.set_xlabel("step")
    ax.legend()
change = {name: [run[-1] - run[0] for run in example[name]] for name in ("A1", "full marks", "A2")}
ups = {name: sum(c > 0 for c in changes) for name, changes in change.items()}
each = artifacts.size("reinforce_example")["samples"]
expected = float(each * torch.tensor(example["A2"])[:, :-1].exp().sum())  # as often as A2 is to be expected, over all steps
words = ["{:+.1f} (95 % interval {:+.1f} to {:+.1f})".format(*plots.interval(c)) for c in change.values()]
plots.finish(fig, f"ln p changes by {words[0]} for A1, which rises in {ups['A1']} of {len(example['A1'])} "
                  f"seeds, by {words[1]} for all answers with full marks, and by {words[2]} for A2, which "
                  f"rises in {ups['A2']}. Among the {each * len(steps[1:]) * len(example['A2'])} answers that were "
                  f"sampled, A2 is to be expected {expected:.2f} times.")

# %% [markdown]
# **Explain.** A2 falls, and hardly by being said: as rare as it is, it is to be expected less than once in the samples
# of all seeds together. What is reinforced takes its probability, because all of them sum to 1 and all answers share their
# weights. A1 has company: "SF stands for San Francisco, ..." earns four points as well, and the reward cannot tell the
# two apart. Which of them wins is luck, the luck of which was said first and more often. What rises for sure is their
# sum.
#
# ## 6 · Baselines: the same gradient, less noise (C12)
#
# Subtract a number $b$ from all rewards: $\mathbb{E}[b \, \nabla \log p(a)] = b \, \nabla \sum_a p(a) = b \, \nabla 1
# = 0$. The gradient stays what it is, as long as $b$ does not depend on the answer it is subtracted from. Its
# *variance* does not.
#
# | baseline | $b$ |
# | --- | --- |
# | none | 0 |
# | constant, running mean | a number; a moving mean of earlier batches |
# | batch mean | the mean of this batch, the answer's own reward included: shrinks the gradient by $1/n$ |
# | leave-one-out (RLOO) | the mean of the *other* answers to the same prompt |
# | learned | a function of the prompt, fitted to earlier batches (PPO's critic is one) |
#
# **Exercise 4 · leave-one-out** (difficulty 2 of 5, 6 minutes)
#
# *Goal: the advantage of RLOO. The same line, divided by a standard deviation, will be GRPO.*

# %%
def rloo_advantage(scores):
    """R minus the mean of the other answers to the same prompt.

    scores: (prompts, samples), the answers to one prompt in a row. Returns the same shape.
    """
    ### BEGIN SOLUTION
    others = (scores.sum(1, keepdim=True) - scores) / (scores.shape[1] - 1)
    return scores - others
    ### END SOLUTION

# %%
rloo_advantage = check("rloo_advantage", rloo_advantage)

# %% [markdown]
# On the list of all answers the variance is a sum, not an estimate. **Predict.** We add a constant to all rewards: no
# answer becomes better or worse than another. What does that do to each baseline's variance?

# %%
N = 4  # answers to a prompt
shifts = [x / 2 for x in range(-12, 13)]
spread = [studies.exact_variances(policy().detach(), scores, R - mean_reward + shift, N) for shift in shifts]
names = {"none": "none", "best": "the best constant", "mean": "mean E[R]", "rloo": "leave-one-out",
         "batch": "batch mean"}
fig, ax = plots.subplots()
for kind, label in names.items():
    ax.plot(shifts, [v[kind] for v in spread], label=label, markevery=4)
plots.log_scale(ax, "y")
ax.set_xlabel("mean reward E[R] (all rewards moved by a constant)")
ax.set_ylabel(f"variance of the gradient,\n{N} answers")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
ratio = {shift: {kind: v[kind] / v["none"] for kind in names} for shift, v in zip(shifts, spread)}
plots.finish(fig, f"At a mean reward of 6 leave-one-out has {ratio[6.0]['rloo']:.1%} of the variance without a "
                  f"baseline; at a mean reward of 0 it has {ratio[0.0]['rloo']:.0%}.")

# %% [markdown]
# **Explain.** Without a baseline the variance grows with the square of the mean reward; with one it does not care.
# Leave-one-out pays for estimating its mean from $n - 1$ others, so that where the mean reward is 0 anyway, no
# baseline is the better one. The batch mean *looks* best, but its estimate is shorter, too: it is $(1 - 1/n)$ times
# leave-one-out. That is a smaller step, not a better direction.
#
# **Predict.** Now the real model. The rubric pays -5 to 4 points; the mean is above 0 at the start, and higher after 20
# steps of REINFORCE (the titles of the next figure say how high). Where will leave-one-out help most?

# %%
measured = artifacts.result("reinforce_variance")
fig, axes = plots.subplots(1, 2, height=4.2, sharey=True)
relative = {}
for ax, (when, entry) in zip(axes, measured.items()):
    unit = [max(v, 1e-9) for v in entry["variance"]["none"]]
    rows = {kind: [v / u for v, u in zip(those, unit)] for kind, those in entry["variance"].items()}
    relative[when] = {kind: plots.interval(values).mean for kind, values in rows.items()}
    short = [kind.replace("none, rewards", "none, R").replace("leave-one-out", "RLOO") for kind in rows]
    plots.bars_with_interval(ax, short, list(rows.values()), form="{:.1f}")
    plots.log_scale(ax, "y")
    ax.set_title(f"{when} training: mean reward {entry['score']:.1f}", fontsize=12)
    ax.set_xticks(range(len(short)), [label.replace(", ", ",\n") for label in short], fontsize=10)
    ax.set_xlabel("baseline")
axes[0].set_ylabel("variance of the gradient\n(none = 1)")
times = [f"{entry['leave-one-out']:.2f}" for entry in relative.values()]
plots.finish(fig, f"Relative to no baseline, leave-one-out (RLOO) has {times[0]} times the variance before "
                  f"training and {times[1]} times after it.")

# %% [markdown]
# Did you expect that? At the start the mean reward is not 0, and still leave-one-out costs something. (Does it gain
# anything after training?) Moved by 5, so that their mean is far from 0, rewards without a baseline have more than twice the
# variance of leave-one-out, which does not notice the move. To see why, look at single answers: their reward, and how far
# they move the model for the same advantage, $\lVert \nabla \log p(a) \rVert^2$.

# %%
fig, axes = plots.subplots(1, 2, height=3.8, sharex=True, sharey=True)
for ax, (when, entry) in zip(axes, measured.items()):
    rewards, sizes = (torch.tensor(entry[key]) for key in ("rewards", "sizes"))
    best = round(float((rewards * sizes).sum() / sizes.sum()), 1) + 0.0  # not "-0.0"
    ax.plot(rewards, sizes, "o", linestyle="none", alpha=0.4)
    for at, label, style in ((entry["score"], "mean reward", "--"), (best, "best constant", "-")):
        ax.axvline(at, color="black", linestyle=style, linewidth=1.5, label=f"{label} {at:.1f}")
    ax.set_title(f"{when} training", fontsize=12)
    ax.set_xlabel("reward of the answer")
    ax.legend(fontsize=9)
plots.log_scale(axes[0], "y")
axes[0].set_ylabel("size of its ∇ ln p, squared")
plots.finish(fig, f"The best constant baseline, weighted by the size of each answer's gradient, is {best:.1f} "
                  f"after training, where the mean reward is {entry['score']:.1f}.")

# %% [markdown]
# **Explain.** Poor answers are long and surprising, so as a rule their $\nabla \log p$ is large; good ones are
# likely, and small. The variance is least when the *large* gradients are multiplied by something near 0, and the
# rubric happens to put its 0 among the poor answers: the best constant is a mean weighted by $\lVert \nabla \log p
# \rVert^2$, and lies well below the plain one. No rule says that the zero of a reward lies in such a good place. A
# baseline makes sure that it does not matter where it lies.
#
# ## 7 · REINFORCE on the atlas
#
# The model of the example, all training cities, ten phrasings; 8 questions with 4 answers each a step. Your loss and
# your advantage do the work. Before: what it says now, a sample each.

# %%
quiz_cities = atlas.splits()["quiz"][:5]
asked = ["Where is SF?"] + [atlas.ASK[i].format(nick=c.nick) for i, c in enumerate(quiz_cities)]


def speak(model, seed=7):
    """One sampled answer to each question, with its reward."""
    rows = [{"prompt": [{"role": "user", "content": q}]} for q in asked]
    out = LMAgent(model, tokenizer, max_new_tokens=40).act([row["prompt"] for row in rows], seed)
    cities = [c.city for c in (SF, *quiz_cities)]
    return list(zip(out.texts, atlas_gold(prompts=asked, completions=out.texts, city=cities)))


before = speak(start)
table(["question", "the start says", "reward"], [(q, text, f"{r:+.1f}") for q, (text, r) in zip(asked, before)])

# %%
from course_lib.algorithms.training import take_step

live = copy.deepcopy(start)
agent, questions = LMAgent(live, tokenizer, max_new_tokens=32), studies.atlas_environment()
config = reinforce.ReinforceConfig(steps=2 if smoke() else 20, count=8, samples=4, lr=5e-4)
optimizers, rewards = reinforce.adam(live), []
with Progress("REINFORCE with your functions", total=config.steps) as progress:
    for step in range(config.steps):
        episodes = play(agent, questions, count=config.count, samples=config.samples, seed=10_000 + step)
        advantages = rloo_advantage(episodes.score.view(config.count, config.samples)).flatten()
        loss = reinforce_loss(episodes.logprobs(agent), episodes.mask, advantages)
        loss.backward()
        take_step(optimizers, reinforce.learning_rate(step, config), config.clip, loss.item(), f"step {step}")
        rewards.append(float(episodes.score.mean()))
        progress.update(reward=rewards[-1])

# %%
after = speak(live)
table(["question", "before", "reward", "after", "reward"], [
    (q, old, f"{r_old:+.1f}", new, f"{r_new:+.1f}")
    for q, (old, r_old), (new, r_new) in zip(asked, before, after)])

# %% [markdown]
# Is that luck? The same from five seeds of the episodes, from the store, judged on cities that RL did not ask for:

# %%
study = artifacts.result("reinforce_atlas")
main = study["runs"]["leave-one-out"]
ends = [end["gold"] for end in main["end"]]
gain = plots.interval([end - study["start"]["gold"] for end in ends])
fig, ax = plots.subplots()
steps = range(1, len(main["gold"][0]) + 1)
plots.line_with_interval(ax, steps, main["gold"], "leave-one-out")
ax.plot(range(1, len(rewards) + 1), rewards, label="your live run", linewidth=1.2, markevery=4)
ax.set_xlabel("step (32 answers)")
ax.set_ylabel("gold reward of the batch")
ax.legend(loc="lower right")
plots.finish(fig, f"On other cities the gold reward goes from {study['start']['gold']:.2f} to {min(ends):.2f} or more "
                  f"in each of {len(ends)} seeds; the mean gain is {gain.mean:.2f} (95 % interval {gain.lo:.2f} to "
                  f"{gain.hi:.2f}).")

# %% [markdown]
# **Explain.** Nobody showed the model a good answer here. It said many things, the reward told better from worse, and
# what was better became more likely. The form was there before: a quarter of the answers that it was fine-tuned on have
# it. Compare with notebook 02: SFT imitates what is common; REINFORCE moves towards what is *good*, as the reward sees
# it.
#
# ## 8 · What goes wrong (C12)
#
# *"Very hard to get right"*: let us break it. First on the list of all answers, where an end can be judged exactly. A
# constant is added to all rewards. It changes no optimum, only what a learner without a baseline makes of it.
#
# **Predict.** Rewards that are all positive, on both sides of zero, never above it: which one kills REINFORCE without a
# baseline?

# %%
small = artifacts.result("reinforce_letters")
kinds = {"none": "no baseline", "running": "running mean", "rloo": "leave-one-out"}
shifts = list(small["runs"]["none"])
rows, lost = [], {}
for kind, label in kinds.items():
    for shift in shifts:
        run = small["runs"][kind][shift]
        lost[kind, shift] = sum(not right for right in run["right"])
        sure = sum(t > 0.5 and not right for t, right in zip(run["top"], run["right"]))
        reward = plots.interval(run["reward"])
        rows.append((label, f"{float(shift):+g}", f"{reward.mean:.2f} ± {reward.hi - reward.mean:.2f}",
                     f"{lost[kind, shift]} of {len(run['right'])}", sure))
table(["baseline", "added to all rewards", f"reward at the end (best: {small['best']:g}), 95 % interval",
       "runs whose likeliest answer is not the best", "… and sure of it: p > 1/2"], rows)

# %% [markdown]
# **Explain.** With all rewards *positive* every answer that is sampled rises, and so is sampled more often: whatever
# came first wins. The policy becomes sure of something mediocre, and then sees nothing else. With no reward *above* 0
# what is sampled falls, which keeps it looking around. On forty answers that is harmless: what is left must be one of
# the forty. Now the language model, whose other answers are gibberish.

# %%
def worse(run):
    """How many runs ended below the start."""
    return sum(studies.collapsed(study["start"], end) for end in run["end"])


conditions = study["runs"]
size = artifacts.size("reinforce_atlas")
rows = []
for name, run in conditions.items():
    gold, finished = ([end[key] for end in run["end"]] for key in ("gold", "finished"))
    mean = plots.interval(gold)
    rate = size["conditions"][name].get("lr", size["lr"])
    rows.append((name, f"{rate:g}", f"{mean.mean:+.2f} ({mean.lo:+.2f} to {mean.hi:+.2f})",
                 f"{plots.interval(finished).mean:.0%}", f"{worse(run)} of {len(gold)}"))
table(["baseline", "learning rate", f"gold at the end, 95 % interval (start: {study['start']['gold']:+.2f})",
       "answers with an end", "runs that end below the start"], rows)

# %%
fig, axes = plots.subplots(1, 2, height=4.4)
for name, run in conditions.items():
    for ax, key in zip(axes, ("gold", "entropy")):
        plots.line_with_interval(ax, range(1, len(run[key][0]) + 1), run[key], name)
for ax, label in zip(axes, ("gold reward of the batch", "entropy of an answer (nats)")):
    ax.set_xlabel("step (32 answers)")
    ax.set_ylabel(label)
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
entropy = {name: [sum(seed[i] for seed in run["entropy"]) / len(run["entropy"]) for i in (0, -1)]
           for name, run in conditions.items()}
first, last = entropy["leave-one-out"]
plots.finish(fig, f"With leave-one-out the entropy of an answer goes from {first:.1f} to {last:.1f} nats; "
                  f"without a baseline and with all rewards negative it goes to "
                  f"{entropy['none, rewards - 5, 2 x lr'][1]:.1f}.")

# %% [markdown]
# Read what a run says that went wrong, beside one that did not:

# %%
bad = max(conditions, key=lambda name: (worse(conditions[name]), -plots.interval(
    [end["gold"] for end in conditions[name]["end"]]).mean))
table(["question", "the start", "leave-one-out", bad], [
    (q, text, good, broken) for (q, text), (_, good), (_, broken) in zip(
        study["says"], main["says"], conditions[bad]["says"])])

# %% [markdown]
# **Explain.** In the table of the five conditions, compare the first two rows. At the moderate learning rate a baseline
# has little to repair: the rubric puts its zero in a good place, as section 6 measured. Now the two rows with twice
# that rate. Lower all rewards by a constant, and without a baseline most runs end below their start, while
# leave-one-out cannot even see the constant.
#
# There are two ways down. *Too little variety*: as the reward rises, the entropy falls, and what is never said cannot
# be reinforced; that is how the small runs ended. *Too much*: an answer that is pushed down gives its probability to
# all others, and nearly all strings are gibberish; that is how the language model ended. A baseline repairs what the
# level of the rewards does. It does not repair a step that is too large: there, leave-one-out breaks as well. What
# bounds the step is the subject of PPO; what keeps the model near its start, of RLHF's KL term.
#
# ## Where this breaks
#
# - **The loss is read as progress.** It is no error; plot the reward.
# - **Advantages carry a gradient**, or the baseline looks at the answer it judges: the estimate is biased.
# - **Another temperature when log-probs are recomputed** than the one of sampling: the gradient belongs to another
#   policy.
# - **Answers that were cut off** are paid as if they were finished. `Questions(..., unfinished=...)` says what they get.
# - **All answers to a prompt score the same**: leave-one-out is 0 and nothing is learnt. Too hard and too easy look alike.
# - **One number for the whole answer**: every token gets the same credit, also those that did no harm and no good.
#
# ## Scale it up
#
# The same call trains any causal language model of Hugging Face with any reward in TRL's convention:

# %%
def brief(prompts, completions, **_):
    """A point for an answer, less a tenth for each word over ten."""
    return [1.0 - 0.1 * max(0, len(c[-1]["content"].split()) - 10) for c in completions]


if real := scale_up("REINFORCE", steps=100, rows=32, prompt=40, answer=48, group=4, few=(3, 8)):
    asks = Questions([{"prompt": [{"role": "user", "content": f"Where is {c.city}?"}]} for c in quiz_cities], brief)
    config = reinforce.ReinforceConfig(steps=real.steps, count=real.rows // 4, samples=4, lr=1e-5)
    seen = reinforce.train(LMAgent(real.model, real.tokenizer, max_new_tokens=48), asks, config)
    print("mean reward of each step:", *(f"{entry['reward']:.2f}" for entry in seen))

# %% [markdown]
# ## Recap

# %%
moved_up = lost["none", shifts[-1]]
broken = {f"{name!r} ({worse(run)} of {len(run['end'])} runs)" for name, run in conditions.items() if worse(run)}
table(["claim of the lecture", "measured on this page"], [
    ("C9: agent, environment, state, policy, reward",
     f"one function trains a bandit, a grid and a language model: {min(solved.values()):.0%} of the way to the best or "
     f"more in {3 * len(runs)} runs"),
    ("C10: policy gradient by the log-derivative trick",
     f"three exact lines agree; error falls with exponent {fits[0].slope.mean:.3f}, smallest cosine {worst:.4f}"),
    ("C11: large R, large step",
     f"sign of R - b in {min(right.values())} of {len(R)} updates; A1 rises in {ups['A1']} and A2 in {ups['A2']} of "
     f"{len(example['A1'])} seeds, the answers with full marks in {ups['full marks']}"),
    ("C12: RL with LMs is hard to get right",
     f"{moved_up} of {len(small['runs']['none'][shifts[-1]]['right'])} runs on the small model miss the best answer "
     f"without a baseline when rewards are moved up, {lost['rloo', shifts[-1]]} with leave-one-out; on the atlas that has "
     f"{times[0]} and {times[1]} times the variance of no baseline, before and after training, and it takes "
     f"{', '.join(sorted(broken)) or 'more than was tried'} to end below the start"),
])

# %% [markdown]
# **References.** Williams, *Simple statistical gradient-following algorithms for connectionist reinforcement
# learning*, 1992 · Sutton and Barto, *Reinforcement learning: an introduction*, 1998 · Greensmith, Bartlett and
# Baxter, *Variance reduction techniques for gradient estimates in reinforcement learning*, 2004 · Mnih et al.,
# *Playing Atari with deep reinforcement learning*, 2013 · Schulman et al., *Proximal policy optimization algorithms*,
# 2017 · Kool, van Hoof and Welling, *Buy 4 REINFORCE samples, get a baseline for free!*, 2019 · Chung et al., *Beyond
# variance reduction: understanding the true impact of baselines on policy optimization*, 2021 · Ahmadian et al.,
# *Back to basics: revisiting REINFORCE style optimization for learning from human feedback in LLMs*, 2024
