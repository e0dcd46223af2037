# %% [markdown]
# # 11 · Graduating to TRL
#
# *Appendix: the same reward, the same preferences and the same model in another library*
#
# **You will be able to** carry a reward function and preference data from this course to Hugging Face's TRL unchanged,
# set its GRPO and DPO up so that they do what the lecture's formulas say, and name where its defaults do something else.
#
# | | |
# | --- | --- |
# | time | about 3 minutes on two CPU cores, 1 without TRL (estimates, for a filled store) |
# | starts from | the models of notebooks 05 and 07, and the comparisons of notebook 04 |
# | leaves behind | nothing |
#
# Why leave? For samplers on several GPUs, adapters for large models, and somebody who mends it when a model comes out.
# Why was it good to start here? Each line of what follows has a formula that you have derived, or a mistake you have made.

# %%
import copy
import importlib.util
import tempfile
import warnings

import torch

from course_lib import artifacts, plots, smoke
from course_lib.algorithms import dpo, grpo
from course_lib.algorithms.training import warmup_cosine
from course_lib.environments import LMAgent, Questions
from course_lib.experiments.preferences import comparisons
from course_lib.experiments.reward_model import GROUP
from course_lib.experiments.starts import solve_rates, sum_rows
from course_lib.lm import load_lm
from course_lib.progress import Progress
from course_lib.rewards import text_of
from course_lib.rewards.maths import maths_reward

# %% [markdown]
# TRL is not one of the course's packages. Without it the course's half of each comparison runs, and each cell that needs it
# says what it would do. (On the web you see a run with TRL 1.16.)

# %% tags=["needs-trl"]
trl = None
if all(importlib.util.find_spec(name) for name in ("trl", "accelerate")):
    import datasets
    import transformers
    import trl

    warnings.filterwarnings("ignore")  # of names that transformers has changed, and that `rollout_func` may still change
    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    print("TRL", trl.__version__)
else:
    print('TRL is not installed. To install it beside the course: pip install "trl>=1.16,<2", which brings accelerate.')
    print("On Colab: pip install --no-deps trl accelerate. TRL asks for a newer datasets than Colab's, and runs with it.")


def skipped(what):
    """True, and a line that says what would happen, where TRL is missing."""
    if trl is None:
        print(f"Skipped without TRL: {what}")
    return trl is None

# %% [markdown]
# ## 1 · GRPO: one reward function, two trainers
#
# Two-step sums from notebook 07, where the start is right now and then, and the rule that pays 1 for a right number. A reward
# of this course is called as TRL calls it, `reward(prompts=..., completions=..., **columns)`, and returns a list of floats.
# The rows are a data set as they are.

# %%
seeds, steps, count, samples = ([0], 2, 2, 4) if smoke() else ([0, 1, 2], 8, 8, 8)
length, rate = 32, 2e-4
start, tokenizer = load_lm("sums_start")
train, test = sum_rows("train", 1000), sum_rows("test", 8 if smoke() else 50)
reward = maths_reward()
print(train[0])
print(reward(prompts=[train[0]["prompt"]], completions=[f"#{train[0]['answer']}"], answer=[train[0]["answer"]]))

# %% [markdown]
# The course's GRPO, with the settings of TRL's default: tokens weigh the same ("dapo"), no reference, learning rate constant.

# %%
def course_grpo(seed):
    """The trained policy, and the mean reward of each step."""
    agent = LMAgent(copy.deepcopy(start), tokenizer, max_new_tokens=length, precision="fp32")
    config = grpo.GRPOConfig(steps=steps, count=count, samples=samples, lr=rate, warmup=0, final_lr=1.0, average="token",
                             seed=seed)
    history = grpo.train(agent, Questions(train, reward), config)
    return agent.model, [entry["reward"] for entry in history]

# %% [markdown]
# And TRL's. `quiet` holds what has nothing to do with the algorithm, and switches off what TRL switches on by itself: bf16 and
# gradient checkpointing. (A T4 has no bf16: `bf16=False, fp16=True` there.)

# %%
quiet = dict(bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no", logging_steps=1,
             disable_tqdm=True, lr_scheduler_type="constant", adam_beta2=0.99, use_cpu=start.device.type == "cpu")


def run(trainer):
    """Train, and return what was logged of each step."""
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]

# %% [markdown]
# Chance, too, can be made equal. TRL takes the prompts in the course's order, and its `rollout_func` lets another sampler make
# the completions: here the course's, seeded as the course seeds it. (On a GPU you would put a fast sampler there.)

# %%
def trl_grpo(seed):
    """The same with TRL: the same prompts, and the same random numbers for the same tokens."""
    questions, rows = Questions(train, reward), []
    for step in range(steps):
        questions.reset(count, 1, seed * 1_000_003 + step)
        rows += questions.current

    def rollout(prompts, trainer):
        agent = LMAgent(trainer.model, tokenizer, max_new_tokens=length, precision="fp32")
        said = agent.act(prompts, seed * 1_000_003 + trainer.state.global_step)
        return {"prompt_ids": [ids[real].tolist() for ids, real in zip(said.prompt_ids, said.prompt_mask)],
                "completion_ids": [ids[real].tolist() for ids, real in zip(said.completion_ids, said.mask)], "logprobs": None}

    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(folder, max_steps=steps, per_device_train_batch_size=count * samples, shuffle_dataset=False,
                                num_generations=samples, max_completion_length=length, learning_rate=rate, **quiet)
        trainer = trl.GRPOTrainer(copy.deepcopy(start), reward, args=config, processing_class=tokenizer, rollout_func=rollout,
                                  train_dataset=datasets.Dataset.from_list(rows))
        logged = run(trainer)
    return trainer.model, [entry["reward"] for entry in logged]

# %% [markdown]
# **Predict**: how far apart are two libraries after eight steps of a stochastic algorithm?

# %% tags=["needs-trl"]
def over_seeds(name, train_once):
    """What training returns, of each seed."""
    runs = []
    with Progress(name, total=len(seeds), unit="seed") as progress:
        for seed in seeds:
            runs.append(train_once(seed))
            progress.update()
    return runs


found = {"course": over_seeds("the course's GRPO", course_grpo)}
if not skipped("GRPOTrainer on the same rows with the same reward, and its curve beside the course's."):
    found["TRL"] = over_seeds("TRL's GRPO", trl_grpo)

# %% tags=["needs-trl"]
fig, ax = plots.subplots(height=3.8)
for name, runs in found.items():
    plots.line_with_interval(ax, range(1, steps + 1), [curve for _, curve in runs], name)
ax.set_xlabel("steps")
ax.set_ylabel("mean reward of the batch")
ax.legend()
rates = {name: [solve_rates(policy, tokenizer, test, reward, max_new_tokens=length)["pass@1"] for policy, _ in runs]
         for name, runs in found.items()}
before = solve_rates(start, tokenizer, test, reward, max_new_tokens=length)["pass@1"]
plots.finish(fig, f"Held-out problems solved by a sample: {before:.2f} at the start; after {steps} steps "
             + ", ".join(f"{name} {plots.interval(values).mean:.2f} ({min(values):.2f} to {max(values):.2f})"
                         for name, values in rates.items()) + f", over {len(seeds)} seeds.")

# %% [markdown]
# **Explain.** The same loss on the same completions gives the same gradient, and so the same next completions. Where the
# curves part, rounding has turned one token over, and from there on the two policies read different texts. With TRL's own
# sampler they would be two draws from one experiment.
#
# One difference is left: TRL does not tell a reward whether an answer was finished. The course passes `finished`, so that half
# a number earns nothing; in TRL a reward has to look at `completion_ids` for the END token.
#
# ## 2 · DPO: one preference set, two trainers
#
# The policy of notebook 05 and the comparisons of its answers. TRL wants answers to messages as messages: one line. (Where
# all are strings it takes them as raw text and leaves the chat template out. It does not say so.)
#
# Nothing is sampled in DPO. If each step reads all pairs, nothing is left to chance: the curves must lie on each other.

# %%
policy, words = load_lm("policy_sft")
pool = artifacts.result("answers")["train"]
pairs_count, epochs, beta, dpo_rate = (4, 2, 0.1, 1e-4) if smoke() else (32, 8, 0.1, 1e-4)


def pairs_of(seed):
    """Comparisons as TRL's and the course's DPO both take them."""
    def said(text):
        return [{"role": "assistant", "content": text}]

    return [{"prompt": row["prompt"], "chosen": said(row["chosen"]), "rejected": said(row["rejected"])}
            for row in comparisons(pool, GROUP, pairs_count, seed)]


print({key: text_of(turns) for key, turns in pairs_of(0)[0].items()})

# %%
def course_dpo(seed):
    """The trained policy, and loss and margin of each step."""
    model = copy.deepcopy(policy)
    config = dpo.DPOConfig(batch_size=pairs_count, epochs=epochs, beta=beta, lr=dpo_rate, warmup=0, precision="fp32")
    history = dpo.train(model, words, pairs_of(seed), config)
    return model, [(entry["loss"], entry["margin"]) for entry in history]


def trl_dpo(seed, model=None, reference=True):
    """The same with TRL. reference: give it the model as it is now; False leaves the reference to TRL."""
    model = copy.deepcopy(policy if model is None else model)
    adam = torch.optim.AdamW(model.parameters(), lr=dpo_rate, betas=(0.9, 0.99), weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: warmup_cosine(step, epochs, 1))  # the course's
    with tempfile.TemporaryDirectory() as folder:
        config = trl.DPOConfig(folder, num_train_epochs=epochs, per_device_train_batch_size=pairs_count, beta=beta,
                               max_length=None, **quiet)
        logged = run(trl.DPOTrainer(model, copy.deepcopy(model) if reference else None, args=config, processing_class=words,
                                    train_dataset=datasets.Dataset.from_list(pairs_of(seed)), optimizers=(adam, falling)))
    return model, [(entry["loss"], entry["rewards/margins"]) for entry in logged]

# %% tags=["needs-trl"]
dpo_runs = {"course": over_seeds("the course's DPO", course_dpo)}
if not skipped("DPOTrainer on the same pairs, and its curves beside the course's."):
    dpo_runs["TRL"] = over_seeds("TRL's DPO", trl_dpo)

# %% tags=["needs-trl"]
fig, axes = plots.subplots(1, 2, height=3.6)
for name, runs in dpo_runs.items():
    for i, ax in enumerate(axes):
        curves = [[entry[i] for entry in curve] for _, curve in runs]
        plots.line_with_interval(ax, range(1, len(curves[0]) + 1), curves, name)
for ax, label in zip(axes, ("loss", "margin of the implicit reward")):
    ax.set_xlabel("steps")
    ax.set_ylabel(label)
axes[0].legend()
gaps = [abs(a - b) for (_, ours), (_, theirs) in zip(dpo_runs["course"], dpo_runs.get("TRL", ()))
        for (a, _), (b, _) in zip(ours, theirs)]
plots.finish(fig, f"The loss begins at ln 2 = 0.693 and the margin at 0, over {len(seeds)} sets of {pairs_count} pairs. "
             + (f"At no step are the two losses of a set further apart than {max(gaps):.0e}." if gaps else ""))

# %% [markdown]
# ## 3 · Where is the reference?
#
# The lecture's $\pi_{ref}$ is the model you start from. **Predict**: you have a model in memory, the one that DPO has just
# trained, and start a second round of DPO from it, with other pairs. What is TRL's first loss?

# %% tags=["needs-trl"]
once, _ = dpo_runs["course"][0]  # a trained model, in memory only
history = dpo.train(copy.deepcopy(once), words, pairs_of(7), dpo.DPOConfig(batch_size=pairs_count, precision="fp32"))
print(f"course: {history[0]['loss']:.4f}   (ln 2 = 0.6931)")
if not skipped("the first loss of DPOTrainer from a model in memory, without and with the reference that was meant."):
    for name, given in (("left to itself", False), ("with the reference given", True)):
        _, logged = trl_dpo(7, once, reference=given)
        print(f"TRL, {name}: {logged[0][0]:.4f}")

# %% [markdown]
# **Explain.** By default TRL loads the reference once more, from where the model came from (`name_or_path`): from the disk,
# or from the hub. What you did to it in memory is not there. Nothing warns you, except a first loss that is not
# $\log 2$. Give `ref_model=`, as section 2 does; or `precompute_ref_log_probs=True`, which reads the model before its first
# step; or save the model and load it again. GRPO and RLOO with $\beta > 0$ reload as well, and have no `ref_model=`: there
# only saving and loading helps.
#
# ## 4 · What TRL 1.16 does differently
#
# All but the last are tests of the course (`tests/interop/test_trl_parity.py`) that run against TRL's own trainers.

# %% [markdown]
# | topic | the lecture and this course | TRL 1.16 |
# | --- | --- | --- |
# | GRPO's average | $1/\|o_i\|$ in each answer | "dapo" unless you say `loss_type="grpo"` |
# | KL in GRPO | $k_3$, as in the paper | $k_3$ times the ratio: same value, another gradient (below) |
# | group's deviation | std + 0.0001, exactly 0 where all rewards are equal | the same, up to rounding |
# | RLOO | gradient of $A \log p$ | of the clipped ratio of whole answers; equal while nothing has moved |
# | reference | the model you give | reloaded from `name_or_path` |
# | IPO | margin of whole answers | margin of the mean per token |
# | label smoothing | the loss "smoothed" | "sigmoid" ignores it; "robust" uses it |
# | long pairs | an error, unless you allow cutting | cut at `max_length=1024`, silently |
# | finished? | a column for the reward | not passed |
# | learning rate | 1e-4: a small model | 1e-6: a large one |
# | PPO | notebook 06 | removed; 1.12 is the last version that has it |
#
# The gradient of $k_3$ is that of $\text{KL}(p_{ref} \| p_\theta)$; times the ratio it becomes that of $\text{KL}(p_\theta \|
# p_{ref})$, the one that the lecture writes (DeepSeek-V3.2). `use_bias_correction_kl=False` gives the paper's GRPO.

# %% [markdown]
# ## Scale it up
#
# The same in a script on GPUs: `accelerate launch train.py`, with `model` a hub name, `peft_config=LoraConfig(...)`, so that
# the reference is the model with its adapter switched off, and `use_vllm=True`, so that a fast sampler makes the completions.
# Its log-probabilities are not exactly the trainer's; TRL corrects by the ratio of the two (`sampler_gap` in this course).
#
# ## Recap
#
# | question | answer |
# | --- | --- |
# | What can be taken along unchanged? | reward functions, rows, pairs, any model that is saved |
# | What must be looked at? | the loss type, the KL's gradient, the reference, bf16, learning rate |
# | How do you know that a reference is right? | DPO's first loss is $\log 2$, GRPO's first KL is 0 |
#
# **References** · von Werra et al., *TRL: Transformer reinforcement learning*, 2020 · Shao et al., *DeepSeekMath*, 2024 ·
# DeepSeek-AI, *DeepSeek-V3.2*, 2025 (the KL's ratio) · Azar et al., *A general theoretical paradigm to understand learning
# from human preferences* (IPO), 2024
