# %% [markdown]
# # 10 · Which method when
#
# *Lecture: Summary; References*
#
# > Motivation for RL training is to overcome some of the issues with SFT. RLHF uses reward model to capture human
# > preferences. For some domains (math and coding), rule-based reward can be used.
#
# **You will be able to** compare alignment methods fairly, read a frontier of reward against KL, say what such a
# comparison cannot say, and choose a method for a problem of your own, with a reason.
#
# | | |
# | --- | --- |
# | time | about 1 minute on two CPU cores, less on a T4 (estimates, for a filled store) |
# | starts from | the policy of notebook 05, its answers, its reward models |
# | leaves behind | three studies in the store, if they are not there yet |
#
# One claim is measured, the lecture's summary as a whole (C30): best of n, SFT on the best of n, REINFORCE, RLOO, PPO,
# GRPO and DPO, from one start, one set of preferences, and one gold judge.

# %%
import torch

from course_lib import artifacts, memory, plots
from course_lib.checks import check
from course_lib.experiments import methods as lab
from course_lib.experiments import rlhf
from course_lib.lm import load_lm
from course_lib.store import get
from course_lib.teach import scale_up, show, table

# %%
def told(values, form="{:+.2f}"):
    """Mean over seeds in words, with its 95 % interval."""
    mean, low, high = plots.interval(values)
    return f"{form.format(mean)} ({form.format(low)} to {form.format(high)})"


def mean(values):
    return sum(values) / len(values)

# %% [markdown]
# ## 1 · What makes a comparison fair
#
# You have seen every method at work, each on the problem where it shows best. Now all of them on one:
#
# - **one start**: the policy that answers as people do (notebook 04), 3.6 M parameters;
# - **one set of preferences** for each seed: 1,000 comparisons by noisy people. DPO learns from them. The reward model
#   that all others optimise has learnt from *the same ones*;
# - **one price**: $\beta = 0.3$ for all that have a $\beta$;
# - **one judge**: the gold reward, on questions about cities that neither the labels nor these trainings touched. No
#   method sees it, with one exception:
# - **one budget of tuning**: each method may try two values of one setting, and keeps the one with more gold, on a seed of
#   its own and on other questions.

# %% [markdown]
# | method | learns from | samples while it learns | models it holds |
# | --- | --- | --- | --- |
# | best of n | nothing: it asks the reward model at every question | n for every answer, for ever | policy, reward |
# | SFT on the best of n | the best of 8 answers to 120 questions | once, before | policy, reward |
# | REINFORCE | reward minus the price of KL, no baseline | at every step | policy, reference, reward |
# | RLOO | the same, less the mean of the other answers | at every step | policy, reference, reward |
# | PPO | the same token by token, against a critic, every batch twice | at every step | policy, reference, reward, critic |
# | GRPO | the same in units of the group's spread, KL in the loss | at every step | policy, reference, reward |
# | DPO | the comparisons themselves | never | policy (and reference) |
#
# **Predict**, and write it down: which method ends with the most gold? Which costs least? Which two will be hard to tell
# apart?
#
# People do not say "two points of gold". They say which of two answers they prefer, so win rates are what the field reports.
#
# **Exercise 1 · the win rate** (difficulty 2 of 5, 8 minutes)
#
# *Goal: a policy against a copy of itself must come out at one half.*

# %%
def win_rate(ours, theirs):
    """How often one of our answers is better than one of theirs to the same question; a tie counts half.

    ours: (Q, K) gold rewards of K answers to each of Q questions; theirs: (Q, M). Every one of ours meets every one of
    theirs. Returns a float.
    """
    ### BEGIN SOLUTION
    lead = ours[:, :, None] - theirs[:, None, :]
    return float(((lead > 0).float() + 0.5 * (lead == 0).float()).mean())
    ### END SOLUTION

# %%
win_rate = check("win_rate", win_rate)

# %% [markdown]
# ## 2 · One table (C30)
#
# The runs come from the store. Here is what was run, as in every notebook before, only side by side:

# %%
show(lab.learn_online, lab.trial)

# %%
names = ("methods_offline", "methods_online", "methods_ppo")
studies, settings = {name: artifacts.result(name) for name in names}, {}
for name in names:
    settings |= artifacts.size(name)["methods"]
results = {name: study["methods"][name] for name in lab.METHODS for study in studies.values() if name in study["methods"]}
start_gold = studies["methods_offline"]["start"]  # one a seed, as in all lists below
seeds = len(start_gold)


def at_end(name, key):
    """What was measured at the end of each seed's run; for best of n, with the n that was chosen."""
    result = results[name]
    return [run[key][run["n"].index(result["chosen"]) if name == "best of n" else -1] for run in result["runs"]]


gold = {name: at_end(name, "gold") for name in results}
gains = {name: [end - begin for end, begin in zip(gold[name], start_gold)] for name in gold}

# %%
shape, tokens = memory.shape_of(load_lm("policy_sft")[0].config), dict(prompt_tokens=16, new_tokens=lab.TOKENS)
reward_model = rlhf.load_rewards(get("rlhf_rewards"))[0]
reward_bytes = memory.live({"reward": reward_model})["reward"].weights
large = dict(rows=4, group=4, prompt_tokens=512, new_tokens=512, precision="bf16")
cost = {}
for name in results:
    here = lab.peak_bytes(name, shape, reward_bytes, rows=4, group=4, **tokens)
    seven = lab.peak_bytes(name, memory.LLAMA_7B, 2 * memory.LLAMA_7B.parameters, **large)
    samples = f"{results[name]['chosen']} an answer" if name == "best of n" else f"{results[name]['runs'][0]['samples']:,}"
    trained = "0" if name == "best of n" else told(at_end(name, "seconds"), "{:.0f}")
    cost[name] = [trained, samples, f"{here / 1e6:.0f}", f"{seven / 1e9:.0f}", lab.lines_of(lab.code_of(name))]
table(["method", "gold", "win rate", "KL (nats)", "learned reward", "seconds", "samples", "MB here", "GB at 7 B", "lines"],
      [("the start", told(start_gold), "50 %", "0", "0.0", "0", "0", "", "", ""), *[
          (name, told(gold[name]), told([100 * w for w in at_end(name, "wins")], "{:.0f}") + " %",
           told(at_end(name, "kl"), "{:.1f}"), told(at_end(name, "proxy"), "{:.1f}"), *cost[name]) for name in results]])
print(f"{seeds} seeds, 95 % intervals; {artifacts.size(names[0])['questions']} questions; labels: "
      f"{artifacts.size('rlhf_rewards')['labels']:,} for every method. Best of n: n = {results['best of n']['chosen']}, its KL "
      f"is the bound log n - (n - 1) / n.")
print(f"All but DPO need a reward model first: {studies['methods_offline']['reward_model_seconds']:.0f} seconds more.")

# %% [markdown]
# How the columns were measured. **seconds**: of processor time for training alone, judging apart; the study runs on one
# core where the store is filled with several trainings at a time, and says nothing about a GPU, where sampling is dearer
# against training than here. **MB, GB**: the most held at one time, by the formula of `memory.py` (notebook 06 compares
# it with live tensors), 4 answers at a time for everybody; at 7 B in bf16, with a reward model of 7 B. **samples**: answers
# drawn while learning. **lines**: code that the training function reaches in `algorithms/` and `objectives.py`, variants and
# logging included, comments, docstrings and the machinery that all share (optimizers, processes) left out.
#
# **Which differences are real?** Every seed has its own labels and its own reward model, good ones and bad ones, and all
# methods had to live with the same. So compare *seed by seed*: the luck of the labels drops out.

# %%
def against(rival):
    """Gold of every method minus that of `rival`, seed by seed."""
    return {name: [a - b for a, b in zip(gold[name], gold[rival])] for name in gold if name != rival}


fig, axes = plots.subplots(1, 2, height=4.0, sharey=True)
shown = list(results)
for ax, differences, title in ((axes[0], gains, "against the start"), (axes[1], against("best of n"), "against best of n")):
    for i, name in enumerate(shown):
        if name in differences:
            m, low, high = plots.interval(differences[name])
            ax.plot([low, high], [i, i], color=plots.PALETTE[0], linestyle="-", marker="none")
            ax.plot(differences[name], [i + 0.2] * seeds, linestyle="none", marker="o", markersize=4, color=plots.PALETTE[6])
            ax.plot([m], [i], marker="D", color=plots.PALETTE[1])
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_title(title)
    ax.set_xlabel("difference of gold, seed by seed")
axes[0].set_yticks(range(len(shown)), shown)
axes[0].invert_yaxis()
axes[0].set_ylabel("method (every dot a seed)")
sure = [name for name, values in gains.items() if plots.interval(values).lo > 0]
ahead = [name for name, values in against("best of n").items() if plots.interval(values).lo > 0]
plots.finish(fig, f"Better than the start beyond chance: {', '.join(sure) or 'none'}. Better than best of n beyond chance: "
                  f"{', '.join(ahead) or 'none'}.")

# %%
pairs = [(a, b) for i, a in enumerate(results) for b in list(results)[i + 1 :]]
apart = {(a, b): plots.interval([x - y for x, y in zip(gold[a], gold[b])]) for a, b in pairs}
open_ = [f"{a} and {b}" for (a, b), (m, low, high) in apart.items() if not (low > 0 or high < 0)]
print(f"Of {len(pairs)} pairs of methods, {len(open_)} cannot be told apart with {seeds} seeds: {'; '.join(open_) or 'none'}.")

# %% [markdown]
# **Explain.** Everything beats the start, the simplest included: what the labels say can be had in many ways. Count the pairs
# that cannot be told apart before you rank the rest: of so many intervals, one in twenty excludes 0 by chance alone. Who asks
# the reward model about what the policy says *now* can learn what no sample of the start shows; look up in that list whether
# RLOO makes more of it than SFT makes of the best answers of the start. With as few samples as here it need not. DPO has
# nothing but its own labels to go by, and some sets of 1,000 noisy verdicts are worse than others; the others hear of them
# through a reward model, which smooths them first. Be slow to rank RLOO, PPO and GRPO: PPO had half of their samples (it used
# each twice), and GRPO's $\beta$, in units of the group's spread, is another price.
#
# ## 3 · The frontier
#
# A policy that has gone twice as far *should* have more to show for it. So put the price on one axis and what it bought on
# the other. A point is **on the frontier** when no other point beats it: is no dearer, and no worse, and better in one
# of the two.
#
# **Exercise 2 · the frontier** (difficulty 3 of 5, 10 minutes)
#
# *Goal: decide for every point whether some other point beats it. Mind equal points: they do not beat each other.*

# %%
def on_the_frontier(kl, gold):
    """Which points no other point beats: kl, gold: (P,) tensors. Returns (P,) bool.

    One point beats another when its KL is not higher and its gold not lower, and one of the two is better.
    """
    ### BEGIN SOLUTION
    no_worse = (kl[:, None] <= kl[None]) & (gold[:, None] >= gold[None])
    better = (kl[:, None] < kl[None]) | (gold[:, None] > gold[None])
    return ~(no_worse & better).any(0)
    ### END SOLUTION

# %%
on_the_frontier = check("on_the_frontier", on_the_frontier)

# %%
def looks(name, key="gold"):
    """[(KL, what was measured in each seed, when)] of a method at every look on the way; the KL is a mean over seeds."""
    runs = results[name]["runs"]
    marks = [f"n = {n}" for n in runs[0]["n"]] if name == "best of n" else [f"step {s}" for s in runs[0]["step"]]
    every = [(mean([run["kl"][i] for run in runs]), [run[key][i] for run in runs], mark) for i, mark in enumerate(marks)]
    return every[1:] if name == "best of n" else every  # the best of 1 is the start


points = [(name, *look) for name in results for look in looks(name)]
kept = on_the_frontier(torch.tensor([p[1] for p in points]), torch.tensor([mean(p[2]) for p in points])).tolist()
frontier = sorted((kl, name, mean(values), mark) for keep, (name, kl, values, mark) in zip(kept, points) if keep)

# %%
fig, ax = plots.subplots(height=5.0)
for name in results:
    way = looks(name)
    x = [0.0, *(max(kl, 0) ** 0.5 for kl, _, _ in way)]
    low_high = [plots.interval(start_gold), *(plots.interval(values) for _, values, _ in way)]
    (line,) = ax.plot(x, [i.mean for i in low_high], label=name, markevery=range(1, len(x)))
    for at, i in list(zip(x, low_high))[1:]:
        ax.plot([at, at], [i.lo, i.hi], color=line.get_color(), linestyle="-", linewidth=1, marker="none", alpha=0.5)
ax.plot([max(kl, 0) ** 0.5 for kl, *_ in frontier], [g for _, _, g, _ in frontier], linestyle="none", marker="o", markersize=14,
        markerfacecolor="none", markeredgecolor="black", label="on the frontier")
ax.axhline(mean(start_gold), color="grey", linewidth=0.8)
ax.set_xlabel("√KL from the start (KL in nats; best of n: its bound)")
ax.set_ylabel("gold reward")
ax.legend(fontsize=9)
plots.finish(fig, "On the frontier: " + "; ".join(f"{name}, {mark} (gold {g:.2f} at {kl:.1f} nats)"
                                                  for kl, name, g, mark in frontier) + ".")

# %% [markdown]
# **Explain.** Each line begins at the start and moves away from it as it trains (best of n: as n doubles). To go a short way,
# best of n needs no training at all. It cannot go far, since its KL grows only as $\log n$, and beyond some n it picks what
# fools the reward model (notebook 05): its line turns down. A trained policy goes as far as its steps carry it, and what
# holds it is the price of KL. Look for two methods of which the nearer one has more gold: distance is not what is bought, only
# what is paid. And mind the whiskers: with this many points, some are on the frontier by luck.
#
# Hide methods and see who takes their place on the frontier:

# %%
from course_lib.widgets import Frontier

placed = {name: [(kl, *plots.interval(values), mark) for kl, values, mark in looks(name)] for name in results}
Frontier(placed, start=mean(start_gold))

# %% [markdown]
# ## 4 · Your own point
#
# Choose a method and a $\beta$, **predict** where the point will land (more or less KL than the study's? more or less
# gold?), and run. It takes the setting that the study chose, and the labels of the study's first seed. Compare with the
# study's run *of that seed*, printed below yours: the points of the figure are means over seeds, and seeds differ by more than
# many a $\beta$. Then change the line and run the cells from there on again: the points stay.

# %%
SEED = artifacts.size("methods_online")["seeds"][0]

policy, tokenizer = load_lm("policy_sft")
start = lab.Start(policy, tokenizer, artifacts.result("answers"), rlhf.load_rewards(get("rlhf_rewards")),
                  artifacts.size("rlhf_rewards")["labels"])
judge = lab.Judge(start, "test", artifacts.size("methods_online")["questions"], SEED)
mine = {}

# %%
METHOD, BETA = "RLOO", 0.1  # or "REINFORCE", "PPO", "GRPO", "DPO"

chosen = settings[METHOD] | {settings[METHOD]["tune"]: results[METHOD]["chosen"], "beta": BETA}
del chosen["tune"]
model, run = lab.trial(METHOD, start, judge, SEED, **chosen)
mine[f"my {METHOD}, beta {BETA:g}"] = run
for name, run in mine.items():
    print(f"{name}: gold {run['gold'][-1]:.2f} at {run['kl'][-1]:.2f} nats, learned reward {run['proxy'][-1]:.2f}, "
          f"{run['seconds'][-1]:.0f} seconds")
same = results[METHOD]["runs"][0]
print(f"the study's {METHOD} with these labels, beta {settings[METHOD]['beta']:g}: gold {same['gold'][-1]:.2f} at "
      f"{same['kl'][-1]:.2f} nats")

# %% [markdown]
# Your win rate, with two answers of each policy to every question:

# %%
two = [lab.answers(who, tokenizer, judge.rows, 2, seed=7, max_new_tokens=lab.TOKENS) for who in (model, policy)]
scores = [torch.tensor(judge.gold([text for some in said for text in some], 2)).view(-1, 2) for said in two]
print(f"{METHOD}, beta {BETA:g}, wins {win_rate(*scores):.0%} against the start; the start against itself "
      f"{win_rate(scores[1], scores[1]):.0%}")
Frontier(placed | {name: [(k, g, float("nan"), float("nan"), f"step {s}") for s, k, g in zip(*(run[key] for key in (
    "step", "kl", "gold")))] for name, run in mine.items()}, start=mean(start_gold))

# %% [markdown]
# ## 5 · What this comparison cannot say
#
# **Equal KL is not equal quality.** KL counts how much probability has moved, in nats, not whether it moved from bad answers to
# good ones. Here are the methods that came within half a nat of the same KL:

# %%
BUDGET = 2.0
near = {name: min(looks(name), key=lambda look: abs(look[0] - BUDGET)) for name in results}
close = {name: look for name, look in near.items() if abs(look[0] - BUDGET) < 0.5}
table(["method", "when", "KL (nats)", "gold"], [
    (name, mark, f"{kl:.2f}", told(values))
    for name, (kl, values, mark) in sorted(close.items(), key=lambda entry: -mean(entry[1][1]))])
ends = [mean(values) for _, values, _ in close.values()] or [mean(start_gold)]
print(f"Within half a nat of {BUDGET:g} nats, mean gold goes from {min(ends):.2f} to {max(ends):.2f}.")

# %% [markdown]
# Gao et al. (2022) found the same at scale: best of n and RL spend their KL so differently that they call it an imperfect
# measure of how hard a reward was optimised. Rafailov et al. (2023) plot the frontier nevertheless, and so do we: it shows who
# is *dominated*, not by how much somebody is better. Besides, best of n's KL here is a bound, the others' an estimate from
# samples.
#
# **Tuning can decide as much as the method.** What the two values were worth, on the seed that chose:

# %%
table(["method", "setting", "values tried", "gold of each", "chosen"], [
    (name, settings[name]["tune"], ", ".join(f"{v:g}" for v in settings[name][settings[name]["tune"]]),
     ", ".join(f"{g:+.2f}" for g in results[name]["tried"]), f"{results[name]['chosen']:g}") for name in results])
swing = max(abs(a - b) for a, b in (result["tried"] for result in results.values()))
means = sorted(map(mean, gold.values()))
print(f"One setting moves gold by up to {swing:.2f}; the best and the worst method differ by {means[-1] - means[0]:.2f}.")

# %% [markdown]
# Two values on one seed are little, and they are more than many papers give the baseline. Who tunes a method more makes it
# better: an unequal effort is the most common reason why new methods win. Other settings were not tuned at all, such as
# $\beta$, and $\beta$ does not mean the same everywhere: DPO's is in units of people's log-odds, the others' in units of a
# whitened reward, GRPO's in those of the group's spread.
#
# **One scale, one task.** 3.6 M parameters, answers of ten words, one kind of question. What costs little here (a second
# model, n samples) may be what decides at 70 B; what looks alike here may separate on long reasoning. The order of methods
# need not survive a change of size.
#
# **One proxy.** The reward models order pairs right about as often as printed below, and all methods but DPO share their
# mistakes. Expect a better one to help those most that search hardest, and a worse one to harm them most (notebook 05). And
# gold, which judged here, exists in no real project: people would compare the methods, or another proxy would.

# %%
judges = artifacts.result("rlhf_rewards")
print(f"accuracy of the reward models on held-out pairs {told(judges['accuracy'], '{:.3f}')}; a perfect judge "
      f"{mean(judges['ceiling']):.3f}")
rank = lambda values: {name: i for i, (name, _) in enumerate(sorted(values.items(), key=lambda e: e[1]))}
promised = rank({name: mean(at_end(name, "proxy")) for name in results})
kept_ = rank({name: mean(values) for name, values in gold.items()})
n = len(results)
rho = 1 - 6 * sum((promised[name] - kept_[name]) ** 2 for name in results) / (n * (n * n - 1))
print(f"Would the learned reward have ranked the {n} methods as gold does? Rank correlation {rho:+.2f}.")

# %% [markdown]
# **Read samples.** The same questions to all, first seed. Numbers never show what a policy has taken a liking to.

# %%
asked = start.questions("test", artifacts.size("methods_online")["questions"])
for i in range(min(2, len(asked))):
    rows = []
    for name, result in results.items():
        said = result["runs"][0]["said"]
        text = (said[result["runs"][0]["n"].index(result["chosen"])] if name == "best of n" else said[-1])[i]
        rows.append((name, text, f"{rlhf.atlas_gold(prompts=[''], completions=[text], city=[asked[i]['city']])[0]:+.1f}"))
    table([asked[i]["prompt"][-1]["content"], f"about {asked[i]['city']}", "gold"], rows)

# %% [markdown]
# ## 6 · A guide for choosing
#
# A method is chosen by what you *have*: labels, a reward, machines, somebody who must serve the result. Each line says where
# it comes from: **measured here** (the numbers are this page's, with all its limits), **measured in** another notebook, or
# **literature**.

# %%
def lead(name, rival):
    """How much more gold, in words."""
    m, low, high = plots.interval([a - b for a, b in zip(gold[name], gold[rival])])
    verdict = "ahead of" if low > 0 else "behind" if high < 0 else "not told apart from"
    return f"{name} is {verdict} {rival}: {m:+.2f} ({low:+.2f} to {high:+.2f})"


n, held = results["best of n"]["chosen"], {name: row[3] for name, row in cost.items()}
guide = [
    ("you may not train, or want to know in an hour what your reward model is worth", "best of n",
     f"gold {told(gains['best of n'])} over the start with n = {n}, at no training, and {n} times the price of every answer",
     "measured here"),
    ("the same, but every answer must be cheap", "SFT on the best of n",
     f"one supervised run on the best of a few answers: {lead('SFT on the best', 'best of n')}",
     "measured here"),
    ("you have comparisons, and no reward model, or no way to sample in training", "DPO",
     f"gold {told(gains['DPO'])} with no sample drawn; {lead('DPO', 'best of n')}", "measured here"),
    ("you have a reward that can be asked at any time", "a policy gradient on fresh samples",
     f"{lead('RLOO', 'DPO')}; {lead('RLOO', 'best of n')}", "measured here"),
    ("you wonder which of the policy gradients", "the one with the fewest parts: RLOO",
     f"{lead('PPO', 'RLOO')}; {lead('GRPO', 'RLOO')}; {lead('REINFORCE', 'RLOO')}", "measured here"),
    ("memory is short", "DPO, SFT; then RLOO, GRPO; PPO last",
     f"{held['DPO']}, {held['RLOO']}, {held['PPO']} GB at 7 B by the formula", "measured here"),
]
table(["when", "choose", "because", "source"], guide)

# %% [markdown]
# | when | choose | source |
# | --- | --- | --- |
# | a program tells right from wrong (sums, code, tools) | GRPO, RLOO with that rule | measured in 07; DeepSeek-R1 2025 |
# | samples are dear: each batch must serve for several steps | PPO, with its clip | measured in 06; Schulman 2017 |
# | rewards come within long answers | PPO with a good critic, for credit token by token | literature: Schulman 2016 |
# | thumbs up or down, no pairs | KTO: each answer is judged alone | literature: Ethayarajh 2024 |
# | people can be asked again | DPO in rounds, on fresh answers | measured in 08; Guo 2024 |
# | pairs, a way to sample, time to tune both | an online method | literature: Xu 2024, Tang 2024; here: the table above |
# | the reward model is weak | a small n, a large $\beta$, an early stop | measured in 05 (more labels: no effect); Gao 2022 |
# | there are demonstrations | SFT first: what is never sampled cannot be reinforced | measured in 02, 07; Ouyang 2022 |
# | the model lacks the knowledge | pre-training, a tool, or "I do not know" | measured in 02; Gekhman 2024 |
# | an agent's errors were corrected | SFT while it knows little, then DPO | SFT measured in 09; Qin 2025 |
# | a whole product | SFT, then best of n or DPO, then RL, and again | literature: Ouyang 2022, Touvron 2023, Lambert 2024 |
#
# If you remember one sequence: **look at samples; best of n to test the reward; DPO if pairs are all you have; RLOO or GRPO
# if the reward holds; PPO when you can say why.**

# %% [markdown]
# ## 7 · The lecture's summary, with numbers
#
# | lecture | what you have seen |
# | --- | --- |
# | RL overcomes some of SFT's issues | good and invented answers (02); what is right now and then becomes the rule (07) |
# | a reward model captures human preferences | pairs, and when scores do better (04); what it cannot see is exploited (05) |
# | a rule-based reward for mathematics and code | pass@1 rises; beside it what the start could do already (07) |
# | regularise with the pre-trained model | gold ends higher where the KL has a price (05) |
# | PPO: conservative, four models | what the clip is worth, and when it is not needed (06) |
# | GRPO: no value model | about three fifths of PPO's memory at 7 B; a length bias to mind (06, 07) |
# | DPO: supervised, no sampling | the same optimum with all preferences known, another path with few (08) |

# %% [markdown]
# ## Where this breaks
#
# - **The winner was tuned and the others were not.** Ask for the number of runs behind each line of a table.
# - **Judged by the proxy that was optimised.** It always finds that its own pupil is best. Here: the column *learned reward*.
# - **One seed.** The dots of section 2 differ more between seeds than many published methods do.
# - **A length bias of the judge.** Language models as judges like long answers (Dubois et al. 2024); gold here does not.
# - **Best of n against trained policies at equal KL**: one is a bound, the other an estimate, and they move different
#   probabilities.
# - **Win rates are not transitive**, and depend on whom one plays: 80 % against a weak start may be 50 % against a good one.
#
# ## Scale it up
#
# The functions above take any causal language model of Hugging Face; only the judge has to be yours. A start, a rule, two
# methods, one table:

# %%
from course_lib.algorithms import grpo
from course_lib.algorithms.rlhf import RLHFConfig, frozen
from course_lib.environments import LMAgent, Questions

if real := scale_up("RLHF", steps=100, rows=32, prompt=24, answer=32, group=4, few=(2, 8)):
    asks = [{"prompt": [{"role": "user", "content": f"Where is {city.city}?"}]} for city in lab.atlas.cities()[:32]]

    def brief(prompts, completions, **columns):
        """Minus the words of an answer, in tens."""
        return [-len(text[-1]["content"].split()) / 10 for text in completions]

    common = dict(steps=real.steps, count=real.rows // 4, samples=4, lr=1e-5, beta=0.05)
    for name, train, config in (("RLOO", lab.rlhf.train, RLHFConfig(**common)),
                                ("GRPO", grpo.train, grpo.GRPOConfig(**common))):
        big = frozen(real.model).requires_grad_(True)
        seen = train(LMAgent(big, real.tokenizer, max_new_tokens=32), Questions(asks, brief), config, reference=frozen(big))
        print(f"{name}: reward {seen[0]['reward']:.2f} to {seen[-1]['reward']:.2f}, KL {seen[-1]['kl']:.1f} nats")

# %% [markdown]
# ## Recap

# %%
table(["claim of the lecture", "measured on this page"], [
    ("C30: the summary: which method when",
     f"from {mean(start_gold):+.2f}, with the same labels: " + "; ".join(f"{name} {told(gold[name])}" for name in results)
     + f". {len(sure)} of {len(gold)} are better than the start beyond chance; {len(open_)} of {len(pairs)} pairs of methods "
     f"cannot be told apart"),
])

# %% [markdown]
# **The lecture's references.** Jesse Mu, *Instruction finetuning, and RLHF* · Daniel Khashabi, *Alignment of LMs* · Vivek
# Srikumar, *Aligning LLMs to preferences* · Nathan Lambert, *Reinforcement learning from human feedback*
#
# **And those of this comparison.** Williams, *Simple statistical gradient-following algorithms*, 1992 · Schulman et
# al., *High-dimensional continuous control using generalized advantage estimation*, 2016 · Schulman et al., *Proximal
# policy optimization algorithms*, 2017 · Stiennon et al., *Learning to summarize from human feedback*, 2020 · Ouyang et
# al., *Training language models to follow instructions with human feedback*, 2022 · Gao et al., *Scaling laws for
# reward model overoptimization*, 2022 · Rafailov et al., *Direct preference optimization*, 2023 · Dong et al., *RAFT:
# reward ranked finetuning*, 2023 · Touvron et al., *Llama 2*, 2023 · Coste et al., *Reward model ensembles help
# mitigate overoptimization*, 2023 · Ahmadian et al., *Back to basics: revisiting REINFORCE style optimization for
# RLHF*, 2024 · Shao et al., *DeepSeekMath*, 2024 · Ethayarajh et al., *KTO*, 2024 · Guo et al., *Direct language model
# alignment from online AI feedback*, 2024 · Dubois et al., *Length-controlled AlpacaEval*, 2024 · Xu et al., *Is DPO
# superior to PPO for LLM alignment?*, 2024 · Tang et al., *Understanding the performance gap between online and offline
# alignment algorithms*, 2024 · Gekhman et al., *Does fine-tuning LLMs on new knowledge encourage hallucinations?*, 2024
# · Lambert et al., *Tülu 3*, 2024 · DeepSeek-AI, *DeepSeek-R1*, 2025 · Qin et al., *UI-TARS*, 2025
