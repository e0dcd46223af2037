"""What each of two processes does in `test_sharding`: every algorithm on shares of the weights, and the first also alone.

    ACCELERATE_USE_FSDP=true FSDP_VERSION=2 RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python sharded.py FOLDER

The numbers go to FOLDER/RANK.json.
"""

import contextlib
import copy
import json
import shutil
import sys
import weakref
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from course_lib.algorithms import dpo, grpo, ppo, pretrain, processes, reinforce, reward_model, rlhf, sft, sharding, training
from course_lib.environments import LMAgent, Questions, play
from course_lib.lm.heads import LMCritic, ValueModel
from course_lib.lm.logprobs import recompute
from course_lib.lm.model import build_lm, load_lm, save_lm
from course_lib.lm.reward_head import RewardModel
from course_lib.lm.tokenizer import train_tokenizer

from together import (CASES, DOCUMENTS, PAIRS, POLICY, ROWS, WORDS, gap, gradients, letters, pretraining, same_batch,
                      same_minibatches)

NAMES = ["pretrain", "sft", "reward_model", "dpo", "reinforce rloo", "rlhf", "ppo", "ppo shared", "grpo GRPO",
         "grpo silent half", "grpo all silent"]


def checkpointed(model, tokenizer):
    """A reward model whose layers are computed again in the backward pass."""
    judge = RewardModel.on(model)
    recompute(judge.backbone)
    history = reward_model.train(judge, tokenizer, PAIRS, reward_model.RewardConfig(batch_size=6, precision="fp32", log_every=1))
    model.load_state_dict({f"model.{k}": v for k, v in judge.backbone.state_dict().items()}, strict=False)
    return history


def idle(model, tokenizer):
    """With a weight that no loss depends on: it has no gradient, and weight decay leaves it alone."""
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(3, 2)))
    return pretraining(weight_decay=0.5)(model, tokenizer)


def adapted(algorithm):
    """With an adapter; the model below it is frozen, and the reference."""
    def run(model, tokenizer):
        from course_lib.lm.lora import add_lora, adapter_off

        policy = add_lora(model, 2)
        if algorithm == "dpo":
            return dpo.train(policy, tokenizer, PAIRS, dpo.DPOConfig(batch_size=6, precision="fp32", lr=1e-2))
        agent = LMAgent(policy, tokenizer, max_new_tokens=6, precision="fp32")
        return rlhf.train(agent, Questions(ROWS, letters), rlhf.RLHFConfig(**POLICY | dict(lr=1e-2), beta=0.2),
                          reference=adapter_off(policy))

    return run


ALL = {name: CASES[name] for name in NAMES} | {"pretrain idle": idle, "reward_model recomputed": checkpointed}
with contextlib.suppress(ImportError):
    import peft  # noqa: F401

    ALL |= {f"{name} adapter": adapted(name) for name in ("dpo", "rlhf")}


def entire(seen):
    """Gradients of which each process has a part, whole."""
    return [[g.full_tensor() if isinstance(g, DTensor) else g for g in step] for step in seen]


@contextlib.contextmanager
def sizes(into):
    """At every step: numbers in the weights, in this process's shares, in its moments; bytes of whole weights meanwhile; and
    the most numbers in whole gradients, each time that one of them had been summed since the step before."""
    give, held = sharding.Shards.give, [0]

    def counted(self, i):
        give(self, i)
        held.append(sum(p.grad.numel() for p in self.whole if p.grad is not None))

    def look(optimizer, args, kwargs):
        if shards := processes._training.shards.get(optimizer):
            moments = [v.to_local() for s in optimizer.state.values() for v in s.values() if v.ndim]
            left = sum(p.untyped_storage().nbytes() for p in shards.whole)
            into.append([sum(p.numel() for p in shards.whole), sum(p.to_local().numel() for p in shards.own),
                         sum(v.numel() for v in moments) // 2, left, max(held)])
            held[:] = [0]

    looking = weakref.WeakSet()

    def attach(optimizer, args, kwargs):
        """To what comes last before the step."""
        if optimizer not in looking:
            looking.add(optimizer)
            optimizer.register_step_pre_hook(look)

    handle, sharding.Shards.give = register_optimizer_step_pre_hook(attach), counted
    try:
        yield
    finally:
        handle.remove()
        sharding.Shards.give = give


class Killed(BaseException):
    pass


def kill(at):
    def watch(step):
        if step == at:
            raise Killed
        return {}

    return watch


def resumable(tokenizer):
    """Runs of four steps that save themselves after each, as (train(model, watch, checkpoint), models that it trained)."""
    four = POLICY | dict(steps=4, checkpoint_every=1, evaluations=4)

    def with_critic(model, **more):
        critic = LMCritic(ValueModel(model), "fp32")
        agent = LMAgent(model, tokenizer, max_new_tokens=6, precision="fp32")
        history = ppo.train(agent, Questions(ROWS, letters), ppo.PPOConfig(**four, beta=0.1, target_kl=0.01, minibatches=2),
                            reference=rlhf.frozen(model), critic=critic, **more)
        return history, [*model.parameters(), *critic.model.parameters()]

    def preferring(model, **more):
        config = dpo.DPOConfig(batch_size=6, precision="fp32", lr=1e-3, epochs=2, evaluations=6, checkpoint_every=1)
        return dpo.train(model, tokenizer, PAIRS, config, **more), list(model.parameters())

    def tuning(model, **more):
        config = sft.SFTConfig(batch_size=4, epochs=1, precision="fp32", log_every=1, evaluations=4, checkpoint_every=1)
        return sft.train(model, tokenizer, [sft.qa(f"say {w}", w) for w in WORDS], config, **more), list(model.parameters())

    return {"ppo": with_critic, "dpo": preferring, "sft": tuning}


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def compared(case, model, tokenizer, accelerator, shift):
    """A case by both processes, and by the first one alone: how far they are apart.

    shift: added to the second process's weights; whatever a process begins with, it is given the first one's.
    """
    def run(helper):
        processes.use(helper)
        trained, seen, measured = copy.deepcopy(model), [], []
        with torch.no_grad():
            for p in trained.parameters():
                p.add_(shift if helper and helper.process_index else 0.0)
        with gradients(seen), sizes(measured):
            history = case(trained, tokenizer)
        assert not processes._training.shards  # of a run that is over
        return (entire(seen), history, [p.detach() for p in trained.parameters()]), measured, list(trained.parameters())

    (seen, history, weights), measured, parameters = run(accelerator)
    alone = [run(None)[0] if accelerator.is_main_process else None]
    seen_alone, expected, expected_weights = broadcast_object_list(alone)[0]
    size = max((float(g.abs().max()) for step in seen_alone for g in step if g is not None), default=0.0)
    return {"gradient": gap(seen, seen_alone), "size": size, "history": gap(history, expected),
            "weights": gap(weights, expected_weights), "steps": len(seen_alone), "sizes": measured,
            "plain": all(type(p) is torch.nn.Parameter for p in parameters)}


def killed(name, run, model, accelerator, out):
    """A run that is killed after two of its steps goes on, with both processes and with one."""
    processes.use(accelerator)
    whole, first, second, third = (copy.deepcopy(model) for _ in range(4))
    expected, weights = run(whole, watch=lambda step: {})
    with contextlib.suppress(Killed):
        run(first, watch=kill(3), checkpoint=out / name)
    copied = out / f"{name} of {accelerator.process_index}"
    shutil.copytree(out / name, copied)
    processes.wait()
    history, again = run(second, watch=lambda step: {}, checkpoint=out / name)
    found = {"same": history == expected and equal(weights, again), "left": (out / name).exists()}
    processes.use(None)
    if name != "ppo":  # another number of processes would play other episodes
        history, again = run(third, watch=lambda step: {}, checkpoint=copied)
        found["alone"] = max(gap(history, expected), gap(again, weights))
    return found


def refused(model, accelerator):
    processes.use(accelerator)
    found = {}
    for name, config in {"fp16": dict(precision="fp16", optimizer="adamw"), "muon": dict(precision="fp32")}.items():
        tried = copy.deepcopy(model)
        try:
            pretrain.train(tried, DOCUMENTS, pretrain.PretrainConfig(context=16, batch_size=5, **config))
        except ValueError as error:
            found[name] = [str(error), equal(tried.parameters(), model.parameters())]
    return found


def diverged(model, tokenizer, accelerator):
    processes.use(accelerator)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    before = [p.clone() for p in broken.parameters()]
    try:
        CASES["sft"](broken, tokenizer)
    except training.TrainingDiverged:
        return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(broken.parameters(), before))


def without_memory(model, tokenizer, accelerator):
    """The second process runs out of memory once, between two forward passes or within a backward pass."""
    rank, calls, found = accelerator.process_index, [], {}

    def exhausted(module, args, kwargs):
        """Of six rows in this process four are read, and leave their gradient; the other two are too many."""
        calls.append(len(kwargs["input_ids"]))
        if rank == 1 and calls[-2:] == [4, 2]:
            raise torch.OutOfMemoryError("simulated")

    def breaking(gradient):
        calls.append(0)
        if rank == 1 and len(calls) == 1:
            raise torch.OutOfMemoryError("simulated")

    config = sft.SFTConfig(batch_size=len(WORDS), micro_batch_size=4, epochs=2, precision="fp32", log_every=1)
    for name in ("memory", "memory in backward", None):
        processes.use(accelerator if name else None)
        small, seen = copy.deepcopy(model), []
        calls.clear()
        if name == "memory":
            small.model.register_forward_pre_hook(exhausted, with_kwargs=True)
        elif name:
            small.model.layers[0].register_forward_hook(lambda _, args, out: out.register_hook(breaking) and None
                                                        if out.requires_grad else None)
        with gradients(seen):
            history = sft.train(small, tokenizer, [sft.qa(f"say {w}", w) for w in WORDS], config)
        if name:
            found[name] = {"seen": entire(seen), "history": history, "calls": list(calls)}
    return {name: {"gradient": gap(case["seen"], seen), "history": gap(case["history"], history), "calls": case["calls"]}
            for name, case in found.items()}


def saved(model, tokenizer, accelerator, out):
    processes.use(accelerator)
    trained = copy.deepcopy(model)
    CASES["dpo"](trained, tokenizer)
    if accelerator.is_main_process:
        save_lm(out / "saved", trained, tokenizer)
    processes.wait()
    loaded, _ = load_lm(out / "saved", device="cpu")
    names = sorted(file.name for file in (out / "saved").iterdir())
    return {"same": equal(loaded.parameters(), trained.parameters()), "type": type(trained).__name__,
            "files": [name for name in names if not name.endswith(".json")]}


def main(out):
    torch.set_num_threads(1)
    sharding.PIECE = 5000  # several pieces in so small a model
    accelerator, tokenizer = Accelerator(cpu=True), train_tokenizer(WORDS, vocab_size=281)
    model = build_lm(tokenizer, (32, 2, 4, 63), context=128, device="cpu")  # rows that two processes cannot share equally
    for module in (reinforce, rlhf, ppo, grpo):
        module.play = same_batch
    ppo.orders = grpo.orders = same_minibatches
    found = {name: compared(case, model, tokenizer, accelerator, 0.01 if name in ("pretrain", "sft", "reinforce rloo") else 0)
             for name, case in ALL.items()}
    for module in (reinforce, rlhf, ppo, grpo):
        module.play = play
    found |= {f"killed {name}": killed(name, run, model, accelerator, out) for name, run in resumable(tokenizer).items()}
    found |= {"refused": refused(model, accelerator), "diverged": diverged(model, tokenizer, accelerator),
              **without_memory(model, tokenizer, accelerator), "saved": saved(model, tokenizer, accelerator, out)}
    (out / f"{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
