# %% [markdown]
# # 07 · GRPO: a group of answers is its own critic
#
# *Lecture: 4. Group Relative Policy Optimization (GRPO)*
#
# > GRPO skips the value model, reduces memory usage<br>
# > Use different samples from the single prompt to estimate the advantage<br>
# > DeepSeek uses rule-based reward for math and coding tasks.
#
# **You will be able to** compute a group's advantages and GRPO's loss, write a reward that is a rule, say what pass@k
# tells about a model, and tell which of GRPO's ingredients its successors took out, and why.
#
# | | |
# | --- | --- |
# | time | about 1 minute on two CPU cores, as long on a T4 (estimates, for a filled store) |
# | starts from | three models that are seldom right: two were fine-tuned on faulty examples, one on few |
# | leaves behind | three studies in the store, if they are not there yet |
#
# Three claims of the lecture are measured: GRPO needs less memory than PPO (C23), the group's mean stands in for the
# critic (C24), and a rule is reward enough for arithmetic and code (C25).

# %%
import copy
import math

import torch

from course_lib import artifacts, memory, objectives, plots, smoke
from course_lib.algorithms import grpo
from course_lib.checks import check
from course_lib.environments import LMAgent, Questions, play
from course_lib.experiments import grpo as experiments
from course_lib.experiments import starts
from course_lib.lm import load_lm
from course_lib.teach import scale_up, show, table
from course_lib.widgets import GroupViewer
from course_lib.widgets.group import Group, groups_of

start, tokenizer = load_lm("sums_start")  # trained now if it is missing

# %% [markdown]
# A small helper for this page: a share with its interval over seeds.

# %%
def share(values):
    """A share over seeds in words: its mean and, where the seeds differ, its 95 % interval."""
    mean, low, high = plots.interval(values)
    if len(values) == 1 or min(values) == max(values):
        return f"{mean:.0%}"
    return f"{mean:.0%} ({max(low, 0):.0%} to {min(high, 1):.0%})"

# %% [markdown]
# ## 1 · One model fewer (C23)
#
# PPO holds four language models. **Predict:** dropping the value model, does GRPO need three quarters of PPO's memory,
# half of it, or less than half? Weights are not all: a model in training also has gradients, and the optimizer's
# moments.

# %%
batch = dict(rows=64, prompt_tokens=512, new_tokens=512, micro_batch=4, group=8, checkpointing=True)
for algorithm in ("PPO", "GRPO"):
    print(f"{algorithm}, a 7B model, AdamW, bf16:")
    print(memory.table(memory.estimate(algorithm, memory.LLAMA_7B, **batch)), "\n")

# %%
SETUPS = {"PPO": ("PPO", []), "GRPO": ("GRPO", []), "GRPO, a rule as reward": ("GRPO", ["reward"]),
          "and no reference": ("GRPO", ["reward", "reference"])}


def held(shape):
    """GB that each role holds, totals without what is not there at the same time: {setup: {role: GB}}."""
    found = {}
    for setup, (algorithm, without) in SETUPS.items():
        usage = memory.estimate(algorithm, shape, without=without, **batch)
        found[setup] = {role: u.peak / 1e9 for role, u in usage.items()}
    return found

# %%
fig, ax = plots.subplots(height=3.8)
seven = held(memory.LLAMA_7B)
below = dict.fromkeys(SETUPS, 0.0)
for role, hatch in zip(memory.ROLES["PPO"], ("", "//", "..", "xx")):
    height = [seven[setup].get(role, 0) for setup in SETUPS]
    ax.bar([setup.replace(", a rule", ",\na rule") for setup in SETUPS], height, bottom=list(below.values()), label=role,
           hatch=hatch, edgecolor="white")
    below = {setup: below[setup] + gb for setup, gb in zip(SETUPS, height)}
ax.set_ylabel("GB, a 7B model")
ax.set_xlabel("what is trained with")
ax.legend()
ratios = {setup: gb / below["PPO"] for setup, gb in below.items()}
seventy = {setup: sum(roles.values()) for setup, roles in held(memory.LLAMA_70B).items()}
plots.finish(fig, f"At 7B, GRPO holds {ratios['GRPO']:.0%} of PPO's memory, with a rule as the reward "
                  f"{ratios['GRPO, a rule as reward']:.0%}, without a reference {ratios['and no reference']:.0%}; "
                  f"at 70B {seventy['GRPO'] / seventy['PPO']:.0%}, which is {seventy['GRPO']:,.0f} GB.")

# %% [markdown]
# **Explain.** PPO and GRPO differ by one model, but that one *learns*: with AdamW in mixed precision it holds 16 bytes
# a parameter, where a frozen model holds 2. So GRPO needs far less than the three quarters that counting models
# suggests. A rule saves the reward model as well, and with $\beta = 0$ the reference goes. (The formula agrees with
# live tensors to within 10 %; section 4 counts those of this page.)
#
# ## 2 · The task, and where we start
#
# Word problems with two steps, and one rule to judge them. The start was fine-tuned on 1,000 worked answers of which
# 55 % hold a mistake, as homework does. The tests are number tuples that no corpus and no fine-tuning showed.

# %%
test = starts.sum_rows("test", 6 if smoke() else 100)
train = starts.sum_rows("train", 40 if smoke() else 1000)
agent = LMAgent(copy.deepcopy(start), tokenizer, max_new_tokens=experiments.LENGTH)
first = Questions(test[:2], experiments.reward_of("sums"), unfinished=0.0)
before = play(agent, first, count=2, samples=8, seed=1)
for group in groups_of(before, 8)[:1]:
    print(group.prompt)
    for answer, reward in zip(group.answers, group.rewards):
        print(f"  reward {reward:.1f}   {answer}")

# %% [markdown]
# **Exercise 1 · the rule** (difficulty 2 of 5, 8 minutes)
#
# *Goal: reward what you mean. Every loophole here is one that a policy finds.*
#
# 0.1 for the form: the text ends in `#` and, right behind it, one whole number, which may be negative. 1 more if that number
# is right. Any other text earns 0.

# %%
def sum_reward(text, answer, finished):
    """The reward of one answer.

    text: what the model wrote, such as "5+8=13; 13-7=6 #6"; answer: the right number, an int;
    finished: False if the answer was cut off at the length limit, which earns nothing. Returns a float.
    """
    ### BEGIN SOLUTION
    before, mark, number = text.rpartition("#")
    digits = number.removeprefix("-")
    if not finished or not mark or not (digits.isascii() and digits.isdigit()):
        return 0.0
    return 0.1 + float(int(number) == answer)
    ### END SOLUTION

# %%
sum_reward = check("sum_reward", sum_reward)

# %% [markdown]
# In the convention of the course (and of TRL) a reward gets lists. Yours from here on:

# %%
def reward(prompts, completions, answer, finished, **columns):
    return [sum_reward(turns[-1]["content"], right, done)
            for turns, right, done in zip(completions, answer, finished)]


problems = Questions(train, reward)
tests = Questions(test, reward)

# %% [markdown]
# ### How good is the start?
#
# Three numbers say different things: **pass@1**, how often a sampled answer is right; **greedy**, how often the
# likeliest one is; **pass@k**, how often at least one of $k$ samples is. With $c$ of $n$ samples right, and $k$ of the
# $n$ drawn without putting back (Chen et al. 2021):
#
# $$\text{pass@}k = 1 - \binom{n-c}{k} \Big/ \binom{n}{k}$$
#
# **Exercise 2 · pass@k** (difficulty 1 of 5, 4 minutes)
#
# *Goal: an estimate that is right on average. $1 - (1 - c/n)^k$ is not.*

# %%
def pass_at_k(samples, correct, k):
    """The chance that at least one of k answers is right, from `samples` answers of which `correct` are: a float."""
    ### BEGIN SOLUTION
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)
    ### END SOLUTION

# %%
pass_at_k = check("pass_at_k", pass_at_k)

# %%
def measured(model, samples=8):
    """pass@1 and pass@k of the tests, and how often the greedy answer is right."""
    greedy = starts.solve_rates(model, tokenizer, test, reward, samples=1)["greedy"]
    out = play(LMAgent(model, tokenizer, max_new_tokens=experiments.LENGTH), tests, count=len(test), samples=samples)
    right = (out.score.view(-1, samples) >= 1).sum(1).tolist()
    return {f"pass@{k}": sum(pass_at_k(samples, c, k) for c in right) / len(right) for k in (1, 8)} | {"greedy": greedy}


at_start = measured(start)
print("  ".join(f"{name} {rate:.0%}" for name, rate in at_start.items()))

# %% [markdown]
# **Explain.** Compare the first number with the other two. A sample is seldom right; yet the likeliest answer mostly is,
# and so is at least one of eight samples. The model *can* do it. This is what reinforcement learning needs: something to
# reinforce.
#
# ## 3 · The group's advantage (C24)
#
# PPO asked a critic what to expect. GRPO asks the question $G$ times, and takes the mean:
#
# $$\hat{A}_{i,t} = \tilde{r}_i = \frac{r_i - \text{mean}(\mathbf{r})}{\text{std}(\mathbf{r})}$$
#
# The same number for every token of answer $i$. **Predict:** what happens to a group whose answers are all right?
#
# **Exercise 3 · the group's advantage** (difficulty 2 of 5, 5 minutes)
#
# *Goal: the right axis, and no NaN.*

# %%
def group_advantage(rewards):
    """(r - mean) / (std + 1e-4) in each group: (prompts, G) -> (prompts, G). std is the sample's, over G - 1."""
    ### BEGIN SOLUTION
    away = rewards - rewards.mean(1, keepdim=True)
    return away / (rewards.std(1, keepdim=True) + 1e-4)
    ### END SOLUTION

# %%
group_advantage = check("group_advantage", group_advantage)

# %% [markdown]
# Eight answers to one question, their rewards, and what becomes of them. Turn rewards over with the numbered buttons;
# make them all equal; then compare the three schemes. (The second group was made by hand.)

# %%
alike = Group("Tom has 1 apples. Tom buys 1 apples. Tom buys 1 apples. How many apples does Tom have?",
              ["1+1=2; 2+1=3 #3"] * 8, [1.1] * 8, [15] * 8)
GroupViewer([groups_of(before, 8)[0], alike, groups_of(before, 8)[1]], longest=experiments.LENGTH)

# %% [markdown]
# **Explain.** A group in which all answers are alike teaches nothing: its advantages are exactly 0. The course's
# version makes sure of that even where rounding would leave 0.00000001, which the division by $10^{-4}$ would magnify:

# %%
show(objectives.group_advantages, objectives.degenerate)

# %% [markdown]
# ## 4 · GRPO's loss
#
# $$J(\theta) = \frac{1}{G} \sum_{i=1}^{G} \frac{1}{|o_i|} \sum_{t=1}^{|o_i|}
# \min\left(\rho_{i,t} \hat{A}_i,\ \text{clip}(\rho_{i,t}, 1-\epsilon, 1+\epsilon) \hat{A}_i\right)
# - \beta\, \text{KL}(p_\theta \| p_{ref}), \qquad \rho_{i,t} = \frac{p_\theta(o_{i,t})}{p_{old}(o_{i,t})}$$
#
# PPO's clip (notebook 06) with another advantage. With one update a batch the ratio is 1 and the clip idle.
#
# **Exercise 4 · the loss** (difficulty 3 of 5, 10 minutes)
#
# *Goal: clip like a pessimist, and average like the formula (without its KL).*

# %%
def grpo_loss(logprobs, old, advantages, mask, eps):
    """-J without the KL term, a scalar.

    logprobs, old: (N, T) ln p of each token under the policy and under the one that sampled; advantages: (N,);
    mask: (N, T) bool, True on the tokens of an answer; eps: how far the ratio may move.
    """
    ### BEGIN SOLUTION
    ratio, a = (logprobs - old).exp(), advantages[:, None]
    gain = torch.minimum(ratio * a, ratio.clamp(1 - eps, 1 + eps) * a)
    per_answer = (gain * mask).sum(1) / mask.sum(1)
    return -per_answer.mean()
    ### END SOLUTION

# %%
grpo_loss = check("grpo_loss", grpo_loss)

# %% [markdown]
# ### All of GRPO, live
#
# With your reward, your advantage and your loss, this is the whole algorithm. **Predict** the loss of the first step.

# %%
from course_lib.algorithms.reinforce import adam, learning_rate
from course_lib.algorithms.training import take_step
from course_lib.progress import Progress

steps, count, samples = (2, 2, 4) if smoke() else (25, 16, 8)
config = grpo.GRPOConfig(steps=steps, lr=2e-4)
live = LMAgent(copy.deepcopy(start), tokenizer, max_new_tokens=experiments.LENGTH)
optimizers, rewards, losses = adam(live.model), [], []
with Progress("GRPO, live", total=steps) as progress:
    for step in range(steps):
        episodes = play(live, problems, count=count, samples=samples, seed=step)
        advantages = group_advantage(episodes.score.view(count, samples)).flatten()
        logprobs = episodes.logprobs(live)
        loss = grpo_loss(logprobs, logprobs.detach(), advantages, episodes.mask, eps=0.2)
        loss.backward()
        take_step(optimizers, learning_rate(step, config), config.clip, loss.item(), f"step {step}")
        rewards.append(float(episodes.score.mean()))
        losses.append(loss.item())
        progress.update(reward=rewards[-1])
print(f"mean reward {rewards[0]:.2f} in the first step, {rewards[-1]:.2f} in the last one")
print(f"the loss: {losses[0]:+.6f}, ..., {losses[-1]:+.6f}")

# %%
after = measured(live.model)
table(["held-out problems", *after], [("start", *(f"{at_start[k]:.0%}" for k in after)),
                                      (f"after {steps} steps", *(f"{after[k]:.0%}" for k in after))])
asked = play(LMAgent(start, tokenizer, max_new_tokens=32), tests, count=5, samples=1, seed=7)
told = play(live, tests, count=5, samples=1, seed=7)
rows = zip([turns[-1]["content"] for turns in asked.steps[0].states], asked.texts, told.texts)
table(["question", "a sample before", "a sample after"], rows)

# %% [markdown]
# And the memory (C23), counted in live tensors and by the formula:

# %%
shape = memory.shape_of(live.model.config)
counted = memory.live({"policy": live.model}, optimizers)["policy"]
formula = memory.estimate("GRPO", shape, rows=128, prompt_tokens=32, new_tokens=32, precision="fp32",
                          without=["reference", "reward"])["policy"]
rows = [(name, f"{getattr(counted, name) / 1e6:.2f} MB", f"{getattr(formula, name) / 1e6:.2f} MB")
        for name in ("weights", "optimizer")]
table(["the policy's", "live tensors", "formula"], rows)

# %% [markdown]
# **Explain.** The loss is 0 from beginning to end, up to rounding: at ratio 1 it is minus the mean advantage, which is 0
# by construction. It says nothing about progress. Watch the reward.
#
# `grpo.train` is the same loop with the switches of section 6, several updates a batch, a reference, and no forward
# pass for answers whose advantage is 0:

# %%
show(grpo.gradient)

# %% [markdown]
# ## 5 · A rule is reward enough (C25): does RL add, or sharpen?
#
# Three starts, several seeds, from the store. "Noisy": the model above. "Weak": fine-tuned on only 150 worked answers,
# all right, so that even its likeliest answer is often wrong. "Functions": one-line Python functions from a
# description, of which 55 % of the examples did something else; the reward runs the model's code against unit tests in
# a sandbox.

# %%
STUDIES = {"noisy": "grpo_sums", "weak": "grpo_weak", "functions": "grpo_functions"}
studies = {name: artifacts.result(study) for name, study in STUDIES.items()}


def rate(study, name):
    """A rate before, and of every seed after."""
    return study["before"][name], [run[name] for run in study["after"]]


rows = []
for name, study in studies.items():
    for measure in ("pass@1", "greedy", "pass@8"):
        was, now = rate(study, measure)
        rows.append((name, measure, f"{was:.0%}", share(now), f"{100 * (sum(now) / len(now) - was):+.0f} points"))
table(["start", "held-out problems", "before", "after GRPO", "change"], rows)

# %%
fig, axes = plots.subplots(1, 3, height=3.6, sharey=True)
for ax, (name, study) in zip(axes, studies.items()):
    ks = [k for k in (1, 2, 4, 8) if f"pass@{k}" in study["before"]]
    plots.line_with_interval(ax, ks, [[study["before"][f"pass@{k}"] for k in ks]], "start")
    plots.line_with_interval(ax, ks, [[run[f"pass@{k}"] for k in ks] for run in study["after"]], "GRPO")
    ax.axhline(study["before"]["greedy"], color="black", linewidth=1, linestyle=":")
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, ks)
    ax.set_title(name)
    ax.set_xlabel("k, number of tries")
    ax.set_ylim(0, 1.02)
axes[0].set_ylabel("pass@k, held-out problems")
axes[0].legend(loc="lower right", fontsize=9)


def rise(study, name):
    """Mean change of a rate, in points."""
    was, now = rate(study, name)
    return f"{100 * (sum(now) / len(now) - was):+.0f}"


said = (f"{name}: pass@1 {rise(s, 'pass@1')} points, pass@8 {rise(s, 'pass@8')}, greedy {rise(s, 'greedy')}"
        for name, s in studies.items())
plots.finish(fig, "; ".join(said) + ". The dotted line: greedy answers of the start.")

# %%
fig, axes = plots.subplots(1, 2, height=3.6)
for name, study in studies.items():
    curves = study["curves"]
    width = min(10, len(curves["reward"][0]))  # single batches are noisy: the mean of ten steps each
    for ax, curve in zip(axes, (curves["reward"], curves["entropy"])):
        means = [[sum(run[i : i + width]) / width for i in range(0, len(run) - width + 1, width)] for run in curve]
        plots.line_with_interval(ax, [width * (i + 1) for i in range(len(means[0]))], means, name, markevery=1)
axes[0].set_ylabel("mean reward of ten batches")
axes[1].set_ylabel("entropy of an answer, nats")
axes[0].legend(fontsize=9)
for ax in axes:
    ax.set_xlabel("steps taken")

seconds = [second for study in studies.values() for second in study["seconds"]]
runs = [(rewards_of, entropy) for study in studies.values()
        for rewards_of, entropy in zip(study["curves"]["reward"], study["curves"]["entropy"])]
up = sum(r[-1] > r[0] for r, _ in runs)
down = sum(e[-1] < e[0] for _, e in runs)
plots.finish(fig, f"From first to last step the reward rises in {up} of {len(runs)} runs, and entropy falls in "
                  f"{down}; a run took {min(seconds):.0f} to {max(seconds):.0f} seconds where the store was filled.")

# %% [markdown]
# **Explain.** Read the three rows of each start together. Where the start is *noisy*, its likeliest answer was right
# most of the time, and pass@1 climbs towards that: mostly, RL **sharpens** here, it makes the model do what it already
# could, and greedy gains less. Where the start is *weak*, the likeliest answer itself was often wrong, and greedy gains
# more: there RL **teaches**, because right answers that were one among many become the rule. In all cases it works with
# what the start can sample. A problem with a pass@k of 0 has nothing to reinforce. That pass@8 rises as well does not
# contradict it: what is solved once in ten tries becomes what is solved every second time. Falling entropy is the
# price, and greedy accuracy that falls while pass@1 rises is the early alarm: look for it in the table of the live run,
# which is far shorter.
#
# ## 6 · What came after: the length of an answer (C24)
#
# Two of GRPO's divisions are questionable (Liu et al. 2025, *Dr. GRPO*). **Predict:** two answers are wrong, one of 2
# tokens, one of 8. With $1/|o_i|$, which of them is punished harder, per token?

# %%
show(objectives.token_weights)

# %% [markdown]
# A model small enough to list all of its texts makes it exact. Texts of the letters a and b; right are those that
# begin with a, so that nothing rewards or punishes length. No sampling: the exact gradient of each objective.

# %%
flows = {"GRPO, 1/|o|": experiments.length_flow("sequence"), "Dr. GRPO, constant": experiments.length_flow("constant")}
fig, axes = plots.subplots(1, 2, height=3.6, sharey=True)
for ax, kind in zip(axes, ("right", "wrong")):
    for name, flow in flows.items():
        ax.plot([point["right"] for point in flow], [point[f"length of {kind}"] for point in flow], label=name,
                markevery=5)
    ax.set_title(f"{kind} texts")
    ax.set_xlabel("share of right texts, rising")
axes[0].set_ylabel("mean length, tokens")
axes[0].legend(fontsize=9)
ends = {name: (flow[0], flow[-1]) for name, flow in flows.items()}
(g0, g1), (d0, d1) = ends.values()
wrong, right = "length of wrong", "length of right"
plots.finish(fig, f"With 1/|o|, wrong texts go from {g0[wrong]:.2f} to {g1[wrong]:.2f} tokens and right ones from "
                  f"{g0[right]:.2f} to {g1[right]:.2f}; with a constant they go to {d1[wrong]:.2f} and {d1[right]:.2f}.")

# %% [markdown]
# And sampled, by `grpo.train`, with several seeds:

# %%
runs = experiments.length_runs(range(2 if smoke() else 5))
fig, ax = plots.subplots(height=3.4)
groups = {f"{name}, {kind}": [run[f"length of {kind}"] for run in ends] for kind in ("right", "wrong")
          for name, ends in runs.items()}
plots.bars_with_interval(ax, list(groups), groups)
ax.set_ylabel("mean length, tokens")
ax.set_xlabel("variant, and which texts")
after = {name: sum(run[wrong] for run in ends) / len(ends) for name, ends in runs.items()}
plots.finish(fig, f"At the start wrong texts have {g0[wrong]:.2f} tokens; after sampled GRPO {after['GRPO']:.2f}, after "
                  f"Dr. GRPO {after['Dr. GRPO']:.2f}.")

# %% [markdown]
# **Explain.** $1/|o_i|$ shares an answer's punishment among its tokens: the longer a wrong answer, the cheaper each
# token of it, so wrong answers grow. That growth was once read as "the model learns to think longer". The division by
# the standard deviation is the other one: it blows up groups that are almost all right or all wrong.
#
# What came after GRPO is a switch each:

# %%
for name, settings in grpo.VARIANTS.items():
    print(f"{name:10}", ", ".join(f"{key}={value!r}" for key, value in settings.items()) or "the defaults")

# %% [markdown]
# DAPO lets ratios rise further than they may fall (rare tokens have room to grow), lets every token count the same, and
# draws more prompts to replace groups that teach nothing. GSPO takes one ratio an answer. Dr. GRPO with one update a
# batch *is* RLOO of notebook 03, times a constant; a test of the course says so, to a millionth.
#
# How many groups taught nothing?

# %%
for name, study in studies.items():
    share_of = [sum(run[-5:]) / 5 if len(run) >= 5 else run[-1] for run in study["curves"]["degenerate"]]
    print(f"{name:10} {share(share_of)} of the groups in the last steps are all right or all wrong")

# %% [markdown]
# ## Where this breaks
#
# - **Nothing to reinforce.** If no sample is ever right, all advantages are 0. Teach the form first (SFT), or take easier
#   problems.
# - **Nothing left to learn.** When most groups are all right, most samples are wasted: DAPO's dynamic sampling.
# - **The rule is not what you mean.** Right numbers from wrong steps earn the full point here.
# - **Too fast.** A run may lose greedy accuracy while its mean reward rises. Give the live run `lr=3e-4, final_lr=1.0`, a
#   higher rate without decay, and compare its three rates.
# - **Small groups.** The mean of 4 answers is a noisy baseline, and their standard deviation a noisier one.
# - **Entropy collapse.** Sharpening ends exploration: pass@8 may fall below the start's. Look at it.
#
# ## Scale it up
#
# The same call on a real model. `reward` is in TRL's convention, so that it runs there unchanged; for harder problems,
# `data_sets.questions("gsm8k")` and `maths_reward("####")`.

# %%
if real := scale_up("GRPO", steps=100, rows=32, prompt=72, answer=96, group=8, few=(2, 8)):
    careful = "Answer with the steps, then # and the number alone. "
    rows = [{**row, "prompt": [{"role": "user", "content": careful + row["prompt"][0]["content"]}]} for row in train]
    config = grpo.GRPOConfig(steps=real.steps, count=real.rows // 8, lr=1e-6, longest=96, **grpo.VARIANTS["Dr. GRPO"])
    seen = grpo.train(LMAgent(real.model, real.tokenizer, max_new_tokens=96), Questions(rows, reward), config)
    print("mean reward of each step:", *(f"{entry['reward']:.2f}" for entry in seen))

# %% [markdown]
# ## Recap

# %%
equal = objectives.group_advantages(torch.full((1, 8), 0.1)).abs().max()
table(["claim of the lecture", "measured on this page"], [
    ("C23: GRPO drops the value model", f"{ratios['GRPO']:.0%} of PPO's memory at 7B, {ratios['GRPO, a rule as reward']:.0%} "
     "with a rule as the reward, by formula"),
    ("C24: an answer is compared with its group",
     f"largest advantage in a group of equal rewards: {float(equal):g}; with 1/|o| wrong texts go from {g0[wrong]:.2f} to "
     f"{g1[wrong]:.2f} tokens, with a constant to {d1[wrong]:.2f}"),
    ("C25: rules are reward enough for mathematics and code", "pass@1 " + "; ".join(
        f"{name} {study['before']['pass@1']:.0%} to {share(rate(study, 'pass@1')[1])}, where the start had pass@8 "
        f"{study['before']['pass@8']:.0%}" for name, study in studies.items())),
])

# %% [markdown]
# | question | answer |
# | --- | --- |
# | What replaces the critic? | the mean reward of a group of answers to the same prompt |
# | What does it save? | a model that learns, the most expensive kind: section 1 |
# | Which groups teach nothing? | those whose rewards are all equal; their advantage is exactly 0 |
# | Does RL add or sharpen? | it reinforces what the start samples: compare pass@1, greedy and pass@k |
# | What is wrong with 1/\|o\|? | long wrong answers are punished less per token, and grow |
#
# **References** · Shao et al., *DeepSeekMath: pushing the limits of mathematical reasoning*, 2024 · DeepSeek-AI,
# *DeepSeek-R1*, 2025 · Liu et al., *Understanding R1-Zero-like training: a critical perspective* (Dr. GRPO), 2025 ·
# Yu et al., *DAPO: an open-source LLM reinforcement learning system at scale*, 2025 · Zheng et al., *Group sequence
# policy optimization*, 2025 · Ahmadian et al., *Back to basics: revisiting REINFORCE-style optimization* (RLOO), 2024 ·
# Chen et al., *Evaluating large language models trained on code*, 2021 · Yue et al., *Does reinforcement learning really
# incentivize reasoning capacity in LLMs beyond the base model?*, 2025
