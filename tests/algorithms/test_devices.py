"""No device is taken for granted: a pretended accelerator, on which tensors of different devices must not meet."""

import re
from pathlib import Path

import pytest
import torch

import course_lib
from course_lib.algorithms import dpo, grpo, ppo, pretrain, reinforce, reward_model, rlhf, sft
from course_lib.environments import LMAgent, Questions
from course_lib.lm.heads import LMCritic, SharedCritic, ValueModel
from course_lib.lm.reward_head import RewardModel
from tests.pretended import CPU, THERE, Pretended, there

WORDS = ["a", "bc", "def", "g", "hijk", "lm"]
PAIRS = [{"prompt": f"say {w}", "chosen": w * 2, "rejected": w + "!"} for w in WORDS]
POLICY = dict(steps=2, count=2, samples=4, micro_batch_size=4, lr=1e-3, evaluations=0)


def letters(prompts, completions, **columns):
    return [sum(map(ord, text)) % 17 / 17 for text in completions]


def online(train, config, critic=None, **more):
    def run(model, tokenizer):
        agent = LMAgent(model, tokenizer, max_new_tokens=5, precision="fp32")
        extra = {"reference": there(rlhf.frozen(model))} if getattr(config, "beta", 0) else {}
        if critic:
            extra["critic"] = critic(model)
        return train(agent, Questions([{"prompt": w} for w in WORDS], letters), config, **extra)

    return run


def on_trunk(model):
    critic = LMCritic(ValueModel(model), "fp32")
    there(critic.model)
    return critic


def on_policy(model):
    critic = SharedCritic(model, "fp32")
    there(critic.model)
    return critic


RUNS = {
    "pretrain": lambda m, t: pretrain.train(m, [[1, 9, 8, 2], [1, 7, 2]] * 4, pretrain.PretrainConfig(
        context=8, batch_size=2, precision="fp32", optimizer="adamw"), held_out=[[1, 9, 2]]),
    "sft": lambda m, t: sft.train(m, t, [sft.qa(f"say {w}", w) for w in WORDS], sft.SFTConfig(
        batch_size=3, epochs=1, precision="fp32")),
    "reward_model": lambda m, t: reward_model.train(there(RewardModel.on(m)), t, PAIRS, reward_model.RewardConfig(
        batch_size=3, precision="fp32")),
    "dpo": lambda m, t: dpo.train(m, t, PAIRS, dpo.DPOConfig(batch_size=3, evaluations=1, precision="fp32"), held_out=PAIRS),
    "dpo kto": lambda m, t: dpo.train(m, t, PAIRS, dpo.DPOConfig(batch_size=3, loss="kto", precision="fp32")),
    **{f"reinforce {b}": online(reinforce.train, reinforce.ReinforceConfig(**POLICY, baseline=b))
       for b in ("rloo", "running", "learned")},
    "rlhf": online(rlhf.train, rlhf.RLHFConfig(**POLICY, beta=0.1)),
    "ppo": online(ppo.train, ppo.PPOConfig(**POLICY, beta=0.1, whiten_rewards=True), critic=on_trunk),
    "ppo shared": online(ppo.train, ppo.PPOConfig(**POLICY), critic=on_policy),
    **{f"grpo {name}": online(grpo.train, grpo.GRPOConfig(**POLICY, beta=0.1, epochs=2, minibatches=2, longest=5, **change))
       for name, change in grpo.VARIANTS.items()},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_algorithm_trains_on_another_device(tiny_lm, name):
    model, tokenizer = tiny_lm
    before = [p.detach().clone() for p in model.parameters()]
    there(model)
    with Pretended():
        history = RUNS[name](model, tokenizer)
    assert history
    if name != "reward_model":
        assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


@pytest.mark.parametrize("mix", [
    lambda x: x + torch.ones(3),
    lambda x: torch.cat([x, torch.zeros(2)]),
    lambda x: torch.where(torch.ones(3, dtype=torch.bool), x, 0),
    lambda x: torch.arange(5)[x.long()],
    lambda x: x.gather(0, torch.zeros(1, dtype=torch.long)),
    lambda x: torch.stack([x.cpu(), x]),
])
def test_the_pretended_device_refuses_to_mix(mix):
    with Pretended():
        x = torch.zeros(3, device="cuda:0")
        assert x.device == THERE and x.cpu().device == CPU and x.device == THERE and (x * 2).device == THERE
        assert (x + torch.tensor(1.0)).device == THERE and x[torch.tensor([0])].device == THERE
        with pytest.raises(RuntimeError, match="two devices"):
            mix(x)


def test_the_pretended_device_refuses_a_generator_of_the_cpu_and_numpy():
    with Pretended():
        x = torch.zeros(3, device="cuda:0")
        with pytest.raises(RuntimeError, match="generator of another device"):
            x.uniform_(generator=torch.Generator().manual_seed(0))
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
        assert x.cpu().uniform_(generator=torch.Generator().manual_seed(0)).numpy().shape == (3,)


def test_the_library_names_no_device():
    """Outside of the module that chooses: a literal would pin a tensor to one kind of machine."""
    root = Path(course_lib.__file__).parent
    literal = re.compile(r"""\.cuda\(|\.to\(["']|device\s*=\s*["']|torch\.device\(["']|map_location\s*=\s*["']""")
    for folder in ("algorithms", "lm", "rewards"):
        for file in (root / folder).glob("*.py"):
            if file.name != "device.py":
                found = [line for line in file.read_text().splitlines() if literal.search(line)]
                assert not found, f"{file.name}: {found}"
