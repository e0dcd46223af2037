"""Direct preference optimization: RLHF as supervised learning (Rafailov et al. 2023).

    L_DPO = -E_(x, y_w, y_l) ln sigma(beta ln(pi(y_w|x) / pi_ref(y_w|x)) - beta ln(pi(y_l|x) / pi_ref(y_l|x)))

No reward model, no sampling: the policy's own log-ratio to the reference is the reward. The reference's log-probabilities
never change, so they are computed once, before the first step. (An adapter instead of all weights: `lm.lora`.) Left out:
training on new pairs as they come.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib.algorithms.processes import backward, begin, gathered, record, share, total, within_memory
from course_lib.algorithms.training import Checkpoints, looks, make_optimizers, pad_right, resume, take_step, warmup_cosine
from course_lib.lm import shared
from course_lib.lm.device import autocast
from course_lib.lm.logprobs import completion_logprobs
from course_lib.lm.sampling import Rollouts, encode_prompt
from course_lib.lm.shared import Scored, can_share
from course_lib.objectives import DPO_LOSSES, REFERENCE_FREE, PairLogprobs, sequence_logprob
from course_lib.progress import Progress
from course_lib.rewards import text_of


@dataclass(frozen=True)
class DPOConfig:
    loss: str = "sigmoid"          # one of objectives.DPO_LOSSES
    beta: float = 0.1              # how dear it is to leave the reference
    options: dict = field(default_factory=dict)  # further arguments of the loss, such as {"label_smoothing": 0.1}
    batch_size: int = 32           # pairs in a step
    micro_batch_size: int = 32     # most pairs in one forward pass, four times as many in one without gradients; fewer save
                                   # memory and change nothing else
    epochs: int = 1
    lr: float = 1e-4               # peak learning rate
    warmup: float = 0.1            # share of the steps with a rising learning rate
    clip: float = 1.0              # largest gradient norm
    precision: str = "auto"        # see `autocast`
    max_length: int = 256          # tokens of a prompt with its answer
    truncate: bool = False         # cut longer answers instead of refusing them
    seed: int = 0                  # of the order of the pairs
    evaluations: int = 0           # how often the held-out pairs are looked at, besides the start; at the end in any case
    checkpoint_every: int = 100    # steps, where the run saves itself


@dataclass(frozen=True)
class Pair:
    prompt: list[int]    # token ids
    chosen: list[int]    # END included
    rejected: list[int]


def encode_pairs(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], max_length: int = 256, truncate: bool = False
                 ) -> list[Pair]:
    """Rows with `prompt`, `chosen` and `rejected` (strings, or messages) as token ids.

    Raises ValueError, naming the row, for a missing column, for a row longer than `max_length` unless it is to be cut, and
    for a pair that is the same on both sides, from the start or once it is cut: its gradient would be zero.
    """
    if not rows:
        raise ValueError("there are no pairs: give rows with prompt, chosen and rejected")
    pairs = []
    for i, row in enumerate(rows):
        if missing := {"prompt", "chosen", "rejected"} - row.keys():
            raise ValueError(f"row {i} has no {', '.join(sorted(missing))}; it has {', '.join(sorted(row))}")
        prompt = encode_prompt(tokenizer, row["prompt"])
        answers = [[*tokenizer(text_of(row[side]), add_special_tokens=False, split_special_tokens=True)["input_ids"],
                    tokenizer.eos_token_id] for side in ("chosen", "rejected")]
        room = max_length - len(prompt)
        if max(map(len, answers)) > room and not truncate or room < 1:
            raise ValueError(f"row {i} has {len(prompt)} tokens of prompt and up to {max(map(len, answers))} of answer, "
                             f"max_length is {max_length}: shorten it, or allow answers to be cut with truncate=True")
        chosen, rejected = (ids[:room] for ids in answers)
        if chosen == rejected:
            raise ValueError(f"row {i}: chosen and rejected are the same {'after they are cut' * truncate}: nothing can be "
                             f"learnt from {text_of(row['chosen'])[:80]!r}; drop it or raise max_length")
        pairs.append(Pair(prompt, chosen, rejected))
    return pairs


def as_rollouts(prompts: Sequence[list[int]], answers: Sequence[Sequence[list[int]]], pad: int, device: torch.device
                ) -> Rollouts:
    """The answers to each of B prompts behind it, N rows in this order: one forward pass, in which a prompt is read once."""
    width = max(map(len, prompts))
    prompt = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])                                  # (B, P)
    real = torch.arange(width) >= width - torch.tensor([len(p) for p in prompts])[:, None]                  # (B, P)
    every = [ids for some in answers for ids in some]
    ids = pad_right(every, pad)                                                                             # (N, T)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(a) for a in every])[:, None]                      # (N, T)
    group = torch.arange(len(prompts)).repeat_interleave(torch.tensor([len(some) for some in answers]))     # (N,)
    tensors = (prompt[group], real[group], ids, mask, torch.zeros(ids.shape), torch.ones(len(ids), dtype=torch.bool), group)
    return Rollouts(*(t.to(device) for t in tensors), texts=[""] * len(ids))


def answer_logprobs(model: PreTrainedModel, rollouts: Rollouts, precision: str = "auto") -> Tensor:
    """ln p(answer | prompt) of each row: (N,) float32, with gradients."""
    with autocast(model.device, precision):
        logprobs = completion_logprobs(model, rollouts)  # (N, T)
    return sequence_logprob(logprobs, rollouts.completion_mask)


def pair_logprobs(model: PreTrainedModel, pairs: Sequence[Pair], pad: int, precision: str = "auto") -> Tensor:
    """ln p(answer | prompt), chosen and rejected: (B, 2) float32, with gradients. One forward pass reads a prompt once."""
    if hasattr(model, "get_decoder") and can_share(model):  # a model with its adapter off is asked as a whole
        with autocast(model.device, precision):
            return shared.answer_logprobs(model, [[Scored(p.prompt + answer, len(p.prompt)) for answer in (p.chosen, p.rejected)]
                                                  for p in pairs])
    rollouts = as_rollouts([p.prompt for p in pairs], [(p.chosen, p.rejected) for p in pairs], pad, model.device)
    return answer_logprobs(model, rollouts, precision).view(-1, 2)


@torch.no_grad()
def all_logprobs(model: PreTrainedModel, pairs: Sequence[Pair], pad: int, precision: str = "auto", size: int = 128) -> Tensor:
    """`pair_logprobs` of any number of pairs, without gradients: (n, 2)."""
    order = share(torch.tensor([len(p.prompt) + len(p.chosen) for p in pairs]).argsort())

    def those(size: int) -> Tensor:
        parts = [part.tolist() for part in order.split(size) if len(part)]
        return torch.cat([torch.zeros(0, 2, device=model.device),
                          *(pair_logprobs(model, [pairs[i] for i in part], pad, precision) for part in parts)])

    out = within_memory(those, size)
    return gathered(out)[gathered(order).argsort().to(out.device)]


def batches(pairs: Sequence[Pair], batch_size: int, seed: int) -> list[Tensor]:
    """Indices of shuffled batches of pairs of similar length: shuffled, sorted within stretches of 16 batches, cut, and the
    batches shuffled."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.tensor([len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs])
    order = torch.randperm(len(pairs), generator=generator)
    cut = [part for stretch in order.split(16 * batch_size)
           for part in stretch[length[stretch].argsort(stable=True)].split(batch_size)]
    return [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]


def measures(logp: Tensor, ref: Tensor, beta: float) -> dict[str, float]:
    """What is logged of pairs: (n, 2) log-probs of chosen and rejected under the policy and under the reference.

    accuracy: share whose implicit reward beta ln(pi / pi_ref) is higher for the chosen answer; margin: by how much, on
    average; chosen, rejected: mean log-probabilities, which can fall both while the margin grows.
    """
    reward = beta * (logp - ref)  # (n, 2)
    margin = reward[:, 0] - reward[:, 1]
    return {"accuracy": float((margin > 0).float().mean()), "margin": float(margin.mean()),
            "chosen": float(logp[:, 0].mean()), "rejected": float(logp[:, 1].mean())}


def train(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict], config: DPOConfig = DPOConfig(),
          *, reference: nn.Module | None = None, held_out: Sequence[dict] = (), watch: Callable[[int], dict] | None = None,
          label: str = "DPO", seconds: float | None = None, checkpoint: Path | None = None) -> list[dict]:
    """Train `model` in place on rows with `prompt`, `chosen` and `rejected`; returns the history.

    reference: what the policy must stay near; default: the model as it is now. The losses without a reference take none.
    held_out: rows whose loss and `measures` are taken, under names that begin with `held_out_`, before the first step,
        `evaluations` times on the way and at the end; `watch` is called with the step at the same times.
    checkpoint: as in `training.fit`; a run that goes on is given the model it began with.
    History: one dict a step with `step`, `loss`, `measures`, `grad_norm`, `lr`.
    Raises ValueError for an unknown loss or option and for a beta that is not above 0, TrainingDiverged when the loss is not
    finite.
    """
    if config.loss not in DPO_LOSSES:
        raise ValueError(f"loss is one of {', '.join(DPO_LOSSES)}, not {config.loss!r}")
    if config.beta <= 0:
        raise ValueError(f"beta must be above 0, got {config.beta}: at 0 nothing is learnt, below it the rejected answer wins")
    if reference is not None and config.loss in REFERENCE_FREE:
        raise ValueError(f"the loss {config.loss!r} has no reference: leave it out")
    loss_of, pad = DPO_LOSSES[config.loss], tokenizer.pad_token_id
    if strange := set(config.options) - set(list(signature(loss_of).parameters)[2:]):  # behind the pairs and beta
        raise ValueError(f"the loss {config.loss!r} has no option {', '.join(sorted(strange))}")
    pairs = encode_pairs(tokenizer, rows, config.max_length, config.truncate)
    test = encode_pairs(tokenizer, held_out, config.max_length, config.truncate) if held_out else []
    strangers = [Pair(p.prompt, *(ids[: config.max_length - len(p.prompt)] for ids in (q.chosen, q.rejected)))
                 for p, q in zip(pairs, pairs[1:] + pairs[:1])]  # for KTO's drift
    kto = config.loss == "kto"

    def logps(of: nn.Module, those: Sequence[Pair]) -> Tensor:
        most = 4 * config.micro_batch_size  # without gradients nothing is kept between the layers
        return all_logprobs(of, those, pad, config.precision, most) if those else torch.zeros(0, 2)

    frozen = model if reference is None else reference
    ref, ref_test, ref_strangers = logps(frozen, pairs), logps(frozen, test), logps(frozen, strangers if kto else [])
    lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs], device=ref.device)
    plan = [b for e in range(config.epochs) for b in batches(pairs, config.batch_size, config.seed * 1000 + e)]
    look = looks(len(plan), config.evaluations)

    def losses(logp: Tensor, ref: Tensor, lengths: Tensor, drift: Tensor | float = 0.0) -> Tensor:
        p = PairLogprobs(*logp.unbind(1), *ref.unbind(1), *lengths.unbind(1), drift)
        return loss_of(p, config.beta, **config.options)

    def measure(step: int) -> dict:
        entry: dict = {}
        if test and step in look:
            logp = logps(model, test)
            size = torch.tensor([[len(p.chosen), len(p.rejected)] for p in test], device=logp.device)
            entry = {"held_out_loss": float(losses(logp, ref_test, size).mean())}
            entry |= {f"held_out_{k}": v for k, v in measures(logp, ref_test, config.beta).items()}
        return entry | (watch(step) if watch and step in look else {})

    optimizers = make_optimizers(model, config.lr, betas=(0.9, 0.99))
    begin(optimizers, config.precision)
    state = resume(checkpoint, model, optimizers, config)
    done, history = state.get("step", 0), state.get("history", [])
    if not done and (first := measure(0)):
        record(history, {"step": 0} | first)

    def gradient(batch: Tensor, drift: Tensor | float, size: int) -> tuple[float, Tensor]:
        """Add up the gradient of a batch, at most `size` pairs in a forward pass; the loss and the log-probs, (n, 2), of this
        process's pairs."""
        loss, seen = 0.0, [ref.new_zeros(0, 2)]
        for part in share(batch).split(size):
            if len(part):  # a batch may have fewer pairs than there are processes
                logp = pair_logprobs(model, [pairs[i] for i in part.tolist()], pad, config.precision)  # (B, 2)
                at = part.to(ref.device)
                loss_of_part = losses(logp, ref[at], lengths[at], drift).sum() / len(batch)
                backward(loss_of_part)
                loss += float(loss_of_part.detach())
                seen.append(logp.detach())
        return loss, torch.cat(seen)

    with (Progress(label, total=len(plan), seconds=seconds) as progress,
          Checkpoints(checkpoint, model, optimizers, config, config.checkpoint_every) as checkpoints):
        progress.update(done)
        for step, batch in enumerate(plan[done:], done):
            drift = 0.0
            if kto:
                other = logps(model, [strangers[i] for i in batch.tolist()])
                drift = (other[:, 0] - ref_strangers[batch.to(ref.device), 0]).mean()
            loss, logp = within_memory(lambda size: gradient(batch, drift, size), config.micro_batch_size)
            loss = total(loss)
            lr = config.lr * warmup_cosine(step, len(plan), max(round(config.warmup * len(plan)), 1))
            norm = take_step(optimizers, lr, config.clip, loss, f"step {step}")
            entry = measures(gathered(logp), gathered(ref[share(batch).to(ref.device)]), config.beta)
            record(history, {"step": step + 1, "loss": loss, **entry, "grad_norm": norm, "lr": lr} | measure(step + 1))
            checkpoints.after(step + 1, history=history)
            progress.update(loss=loss)
    return history


class ImplicitReward:
    """beta ln(pi(y|x) / pi_ref(y|x)), DPO's policy as a reward model (Rafailov et al. 2023, equation 5), in the course's
    convention. The term beta ln Z(x) is left out: it is the same for all answers to one prompt."""

    def __init__(self, model: PreTrainedModel, reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, beta: float = 0.1,
                 precision: str = "auto"):
        self.model, self.reference, self.tokenizer = model, reference, tokenizer
        self.beta, self.precision = beta, precision
        self.__name__ = "implicit_reward"

    @torch.no_grad()
    def __call__(self, prompts: Sequence, completions: Sequence, **columns) -> list[float]:
        """One reward a completion; the end of the answer is part of it."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        of: dict[tuple, list[int]] = {}  # prompt -> its completions
        for i, prompt in enumerate(prompts):
            of.setdefault(tuple(encode_prompt(self.tokenizer, prompt)), []).append(i)
        ids = [[*self.tokenizer(text_of(c), add_special_tokens=False, split_special_tokens=True)["input_ids"], end]
               for c in completions]
        rewards, asked = torch.zeros(len(ids)), list(of)
        for part in (asked[i : i + 32] for i in range(0, len(asked), 32)):
            rows = as_rollouts([list(p) for p in part], [[ids[i] for i in of[p]] for p in part], pad, self.model.device)
            policy, reference = (answer_logprobs(m, rows, self.precision) for m in (self.model, self.reference))
            rewards[[i for p in part for i in of[p]]] = (self.beta * (policy - reference)).cpu()
        return rewards.tolist()
