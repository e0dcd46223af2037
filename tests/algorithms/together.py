"""What each of two processes does in `test_processes`: every algorithm, together with the other process and then alone.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=... MASTER_PORT=... python together.py FOLDER

The numbers go to FOLDER/RANK.json.
"""

import contextlib
import copy
import json
import math
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import nn

from course_lib.algorithms import dpo, grpo, ppo, pretrain, processes, reinforce, reward_model, rlhf, sft, training
from course_lib.environments import LMAgent, Questions, play
from course_lib.lm.heads import LMCritic, SharedCritic, ValueModel
from course_lib.lm.model import build_lm
from course_lib.lm.reward_head import RewardModel
from course_lib.lm.tokenizer import train_tokenizer

WORLD = 2
ROWS = [{"prompt": f"{a}+{b}"} for a in range(4) for b in range(4)]
WORDS = ["a", "bc", "def", "g", "hijk", "lm", "no", "pqrst", "u", "vwxyz", "12", "345", "6"]
PAIRS = [{"prompt": f"say {w}", "chosen": w * 2, "rejected": w + "!"} for w in WORDS]
DOCUMENTS = [[1, *range(10, 10 + n), 2] for n in (3, 7, 5, 9, 4, 6, 8, 3, 5, 7, 6, 4)]
POLICY = dict(steps=2, count=4, samples=4, micro_batch_size=6, lr=1e-3, warmup=1)


class Memory(GeneralTracker):
    """Remembers what is logged."""

    name, requires_logging_directory, tracker = "memory", False, None

    def __init__(self):
        super().__init__()
        self.entries = []

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **more):
        self.entries.append((step, values))


def letters(prompts, completions, **columns):
    """A reward for anything: no two answers need to earn the same."""
    return [sum(map(ord, text)) % 17 / 17 + 0.1 * len(text) for text in completions]


def half_silent(prompts, completions, **columns):
    """Nothing to learn from in the second half of the batch, which is the second process's."""
    return [r if i < len(completions) // 2 else 0.0 for i, r in enumerate(letters(prompts, completions))]


def same_batch(agent, environment, *, count, samples=1, seed=0):
    """`play`, dealt out: together the processes have the very batch that one alone plays."""
    whole = play(agent, environment, count=count * processes.size(), samples=samples, seed=seed % 2**52)
    rows = torch.arange(len(whole.score)).chunk(processes.size())[processes.rank()]
    return whole.select(rows) if processes.size() > 1 else whole


def same_minibatches(episodes, config, seed):
    """Two halves of each process's episodes; alone, the union of what the processes have."""
    parts = torch.arange(episodes).chunk(1 if processes.size() > 1 else WORLD)
    halves = [part.chunk(config.minibatches) for part in parts]
    return [torch.cat([half[i] for half in halves]) for _ in range(config.epochs) for i in range(config.minibatches)]


def online(train, config, reward=letters, **more):
    def run(model, tokenizer):
        agent = LMAgent(model, tokenizer, max_new_tokens=6, precision="fp32")
        arguments = {name: make(model) if callable(make) else make for name, make in more.items()}
        return train(agent, Questions(ROWS, reward), config, **arguments)

    return run


def pretraining(**change):
    config = pretrain.PretrainConfig(**dict(context=16, batch_size=5, micro_batch_size=2, epochs=2, precision="fp32",
                                            optimizer="adamw", lr=1e-3, log_every=1, evaluations=2) | change)
    return lambda model, tokenizer: pretrain.train(model, DOCUMENTS, config, held_out=DOCUMENTS[:5])


def tuning(model, tokenizer):
    conversations = [sft.qa(f"say {w}", w) for w in WORDS]
    config = sft.SFTConfig(batch_size=6, micro_batch_size=2, epochs=1, precision="fp32", lr=1e-3, log_every=1)  # 6, 6 and 1 rows
    return sft.train(model, tokenizer, conversations, config)


def rewarding(**change):
    def run(model, tokenizer):
        judge = RewardModel.on(model)
        config = reward_model.RewardConfig(**dict(batch_size=6, micro_batch_size=2, precision="fp32", log_every=1) | change)
        history = reward_model.train(judge, tokenizer, PAIRS, config)
        model.load_state_dict({f"model.{k}": v for k, v in judge.backbone.state_dict().items()}, strict=False)
        return history

    return run


def preferring(**change):
    config = dpo.DPOConfig(**dict(batch_size=6, micro_batch_size=2, precision="fp32", lr=1e-3, evaluations=2) | change)
    return lambda model, tokenizer: dpo.train(model, tokenizer, PAIRS, config, held_out=PAIRS[:3])


REINFORCE, RLHF, PPO, GRPO = reinforce.ReinforceConfig, rlhf.RLHFConfig, ppo.PPOConfig, grpo.GRPOConfig
MINI = dict(epochs=2, minibatches=2)
CASES = {
    "pretrain": pretraining(), "pretrain muon": pretraining(optimizer="muon"), "sft": tuning,
    "reward_model": rewarding(), "reward_model ranking": rewarding(loss="plackett-luce", center=0.1),
    "dpo": preferring(), "dpo kto": preferring(loss="kto"),
    **{f"reinforce {b}": online(reinforce.train, REINFORCE(**POLICY, baseline=b))
       for b in ("rloo", "batch", "running", "learned")},
    "rlhf": online(rlhf.train, RLHF(**POLICY, beta=0.2, target_kl=0.01), reference=rlhf.frozen),
    "rlhf k3": online(rlhf.train, RLHF(**POLICY, beta=0.2, penalty="k3"), reference=rlhf.frozen),
    "ppo": online(ppo.train, PPO(**POLICY, **MINI, beta=0.1, target_kl=0.01, whiten_rewards=True, critic_lr=1e-3, max_kl=0.5),
                  reference=rlhf.frozen, critic=lambda model: LMCritic(ValueModel(model), "fp32")),
    "ppo shared": online(ppo.train, PPO(**POLICY, **MINI, value_coef=1.0),
                         critic=lambda model: SharedCritic(model, "fp32")),
    **{f"grpo {name}": online(grpo.train, GRPO(**POLICY, **MINI, beta=0.1, longest=6, **change | dict(oversample=1)),
                              reference=rlhf.frozen)
       for name, change in grpo.VARIANTS.items()},  # oversampling fills each process's share from its own prompts
    "grpo silent half": online(grpo.train, GRPO(**POLICY), half_silent),
    "grpo all silent": online(grpo.train, GRPO(**POLICY, **MINI), lambda prompts, completions, **c: [1.0] * len(completions)),
}


@contextlib.contextmanager
def gradients(into):
    """Every gradient that is about to be clipped: what the step is made of."""
    clip = nn.utils.clip_grad_norm_

    def look(parameters, most):
        parameters = list(parameters)
        into.append([None if p.grad is None else p.grad.clone() for p in parameters])
        return clip(parameters, most)

    nn.utils.clip_grad_norm_ = look
    try:
        yield
    finally:
        nn.utils.clip_grad_norm_ = clip


def gap(a, b):
    """Largest difference, infinite where one has what the other has not."""
    if isinstance(a, (list, tuple)):
        return math.inf if len(a) != len(b) else max(map(gap, a, b), default=0.0)
    if isinstance(a, dict):
        return math.inf if a.keys() != b.keys() else max((gap(a[k], b[k]) for k in a), default=0.0)
    if a is None or b is None:
        return 0.0 if a is b else math.inf
    if isinstance(a, torch.Tensor):
        return float((a.detach() - b.detach()).abs().max())
    return abs(a - b)


def main(out):
    torch.set_num_threads(1)
    remembered = Memory()
    accelerator = Accelerator(cpu=True, log_with=[remembered])
    accelerator.init_trackers("test")
    tokenizer = train_tokenizer(WORDS, vocab_size=280)
    model = build_lm(tokenizer, (32, 2, 4, 64), context=128, device="cpu")
    for module in (reinforce, rlhf, ppo, grpo):
        module.play = same_batch
    ppo.orders = grpo.orders = same_minibatches
    found = {}
    for name, case in CASES.items():
        results = []
        for helper in (accelerator, None):
            processes.use(helper)
            trained, seen = copy.deepcopy(model), []
            if helper and processes.rank():  # whatever a process begins with, it is given the first one's weights
                for p in trained.parameters():
                    p.data.add_(0.01 if not name.startswith(("dpo", "rlhf", "ppo", "grpo", "reward")) else 0.0)
            with gradients(seen):
                history = case(trained, tokenizer)
            results.append((seen, history, list(trained.parameters())))
        (seen, history, weights), (alone, expected, expected_weights) = results
        size = max((float(g.abs().max()) for step in alone for g in step if g is not None), default=0.0)
        found[name] = {"gradient": gap(seen, alone), "size": size, "history": gap(history, expected),
                       "weights": gap(weights, expected_weights), "steps": len(alone)}

    processes.use(accelerator)
    remembered.entries.clear()
    for module in (reinforce, rlhf, ppo, grpo):
        module.play = play
    agent = LMAgent(copy.deepcopy(model), tokenizer, max_new_tokens=6)
    said = []

    def spoken(prompts, completions, **columns):
        said.append([*map(list, zip(prompts, completions))])
        return letters(prompts, completions)

    written = []
    write = training._write_checkpoint
    training._write_checkpoint = lambda *arguments: written.append(1) or write(*arguments)
    history = reinforce.train(agent, Questions(ROWS, spoken), REINFORCE(**POLICY, checkpoint_every=1), checkpoint=out / "c")
    found["alone"] = {"said": said, "written": len(written), "logged": list(remembered.entries), "history": history,
                      "left": (out / "c").exists()}

    class Killed(BaseException):
        pass

    def kill(step):
        if step == 3:
            raise Killed
        return {}

    config = REINFORCE(**POLICY | dict(steps=4), checkpoint_every=2, evaluations=4, baseline="learned")
    whole, first, second = (LMAgent(copy.deepcopy(model), tokenizer, max_new_tokens=6) for _ in range(3))
    expected = reinforce.train(whole, Questions(ROWS, letters), config, watch=lambda step: {})
    with contextlib.suppress(Killed):
        reinforce.train(first, Questions(ROWS, letters), config, watch=kill, checkpoint=out / "k")
    history = reinforce.train(second, Questions(ROWS, letters), config, watch=lambda step: {}, checkpoint=out / "k")
    found["killed"] = {"same": history == expected, "steps": len(history)}

    calls = []

    def exhausted(module, args, kwargs):
        calls.append(len(kwargs["input_ids"]))
        if torch.is_grad_enabled() and processes.rank() == 1 and len(kwargs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("simulated")

    small = copy.deepcopy(model)
    small.model.register_forward_pre_hook(exhausted, with_kwargs=True)
    seen, alone = [], []
    with gradients(seen):
        history = pretraining(micro_batch_size=4)(small, tokenizer)
    processes.use(None)
    with gradients(alone):
        expected = pretraining(micro_batch_size=4)(copy.deepcopy(model), tokenizer)
    found["memory"] = {"gradient": gap(seen, alone), "history": gap(history, expected), "rows": calls[-1]}
    (out / f"{accelerator.process_index}.json").write_text(json.dumps(found))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
