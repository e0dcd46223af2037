"""Memory: the formula against live tensors, and live tensors against counting by hand."""

import copy
import types

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from course_lib import memory
from course_lib.algorithms.training import loss_sum, make_optimizers
from course_lib.lm.decoding import LlamaDecoder
from course_lib.lm.fast import speed_up
from course_lib.lm.heads import SharedCritic, ValueModel
from course_lib.lm.logprobs import completion_logprobs
from course_lib.lm.model import build_lm
from course_lib.lm.sampling import sample
from course_lib.memory import LLAMA_7B, LLAMA_70B, Saved, Usage, activation_bytes, estimate, live, shape_of

ROWS, PROMPT, NEW = 8, 24, 24


@pytest.fixture
def model(device):
    """The course's model: its base shape and vocabulary."""

    class Words:
        pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

        def __len__(self):
            return 1536

    return build_lm(Words(), "base", device=device)


def batch(model):
    """ids (B, T) and which of them count, as in `estimate`: the completions."""
    ids = torch.randint(3, model.config.vocab_size, (ROWS, PROMPT + NEW), generator=torch.Generator().manual_seed(0))
    return ids.to(model.device), (torch.arange(PROMPT + NEW) >= PROMPT).expand(ROWS, -1).to(model.device)


def llama(kv_heads=4, tied=True, width=64, layers=3):
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=300, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=kv_heads,
        intermediate_size=176, tie_word_embeddings=tied, max_position_embeddings=64))


# ---- the formula -----------------------------------------------------------------------------------------------------


def test_parameters_are_the_published_ones():
    """Llama 2 as it is on the hub: 6,738,415,616 and 68,976,648,192."""
    assert LLAMA_7B.parameters == 6_738_415_616
    assert LLAMA_70B.parameters == 68_976_648_192


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_exactly(kv_heads, tied):
    model = llama(kv_heads, tied)
    shape, value = shape_of(model.config), ValueModel(model)
    assert (shape.parameters, shape.tensors) == (sum(p.numel() for p in model.parameters()), len(list(model.parameters())))
    scalar = memory.replace(shape, scalar=True)
    assert (scalar.parameters, scalar.tensors) == (sum(p.numel() for p in value.parameters()), len(list(value.parameters())))


def test_heads_may_have_a_width_of_their_own():
    """Qwen3-0.6B: 16 heads of 128 numbers in a model that is 1024 wide; the norms of queries and keys are left out."""
    config = Qwen3Config(vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, head_dim=128,
                         num_attention_heads=16, num_key_value_heads=8, tie_word_embeddings=True)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    shape = shape_of(config)
    assert shape.parameters + 28 * 2 * 128 == sum(p.numel() for p in model.parameters()) == 596_049_920
    attention = model.model.layers[0].self_attn
    assert (shape.q_width, shape.kv_width) == (attention.q_proj.out_features, attention.k_proj.out_features) == (2048, 1024)
    assert memory.kv_cache_bytes(shape, 1) == 2 * 28 * 1024 * 2
    linear = [m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)]
    assert shape.adapter(8) == sum(8 * (m.in_features + m.out_features) for m in linear)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_a_model_of_another_kind_has_no_estimate(kind):
    with pytest.raises(ValueError, match=f"no estimate of the memory of models of the kind '{kind}'"):
        shape_of(AutoConfig.for_model(kind))


def test_7b_by_hand():
    """16 bytes a trained parameter, 2 a frozen one, half a megabyte a cached token."""
    ppo = estimate("PPO", LLAMA_7B, rows=64, prompt_tokens=512, new_tokens=512, micro_batch=4, group=8)
    states = {role: (u.weights + u.gradients + u.optimizer) / 1e9 for role, u in ppo.items()}
    assert states == pytest.approx({"policy": 107.81, "reference": 13.48, "reward": 13.21, "value": 105.72}, abs=0.01)
    assert memory.kv_cache_bytes(LLAMA_7B, 1) == 2 * 32 * 4096 * 2 == 524_288
    assert ppo["policy"].kv_cache == 524_288 * (8 * 512 + 64 * 512)
    assert memory.kv_cache_bytes(LLAMA_70B, 1) == 2 * 80 * 1024 * 2  # 8 of 64 heads have keys of their own


@pytest.mark.parametrize("shape", [LLAMA_7B, LLAMA_70B])
def test_grpo_needs_about_half_of_ppo(shape):
    """C23, weights, gradients and optimizer alone: (16 + 2 + 2) / (16 + 2 + 2 + 16), and 18 / 36 without a reward model."""
    def states(algorithm, **options):
        usage = estimate(algorithm, shape, rows=1, prompt_tokens=0, new_tokens=0, **options)
        return sum(u.total for u in usage.values())

    assert states("GRPO") / states("PPO") == pytest.approx(20 / 36, abs=0.01)
    assert states("GRPO", without=["reward"]) / states("PPO") == pytest.approx(18 / 36, abs=0.01)
    assert states("GRPO", without=["reward", "reference"]) == states("SFT")
    assert states("DPO") == states("GRPO", without=["reward"])


def test_roles():
    def roles(algorithm):
        return set(estimate(algorithm, LLAMA_7B, rows=2, prompt_tokens=8, new_tokens=8))

    assert roles("PPO") - roles("GRPO") == {"value"} and len(roles("PPO")) == 4
    assert roles("DPO") == {"policy", "reference"} and roles("SFT") == {"policy"}


def test_micro_batches_and_checkpoints_save_activations_and_nothing_else():
    options = {"rows": 16, "prompt_tokens": 100, "new_tokens": 100}
    whole = estimate("PPO", LLAMA_7B, **options)["policy"]
    split = estimate("PPO", LLAMA_7B, **options, micro_batch=4)["policy"]
    again = estimate("PPO", LLAMA_7B, **options, checkpointing=True)["policy"]
    assert split.activations * 4 == whole.activations > 10 * again.activations
    zero = {"activations": 0}
    assert memory.replace(split, **zero) == memory.replace(whole, **zero) == memory.replace(again, **zero)
    d, tokens = LLAMA_7B.width, 3200
    one = activation_bytes(memory.replace(LLAMA_7B, layers=1), tokens, 1600)
    assert again.activations == one + 32 * 2 * d * tokens


def test_bad_settings_are_refused():
    options = {"rows": 6, "prompt_tokens": 8, "new_tokens": 8}
    with pytest.raises(ValueError, match="no estimate for 'KTO'"):
        estimate("KTO", LLAMA_7B, **options)
    with pytest.raises(ValueError, match="'fp8'; there are .* in fp32, bf16, autocast"):
        estimate("PPO", LLAMA_7B, precision="fp8", **options)
    with pytest.raises(ValueError, match="multiple of group"):
        estimate("PPO", LLAMA_7B, group=4, **options)
    with pytest.raises(ValueError, match="SFT has the roles policy"):
        estimate("SFT", LLAMA_7B, without=["value"], **options)


# ---- the formula against live tensors --------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "autocast"])
def test_one_step_of_ppo_is_as_predicted(model, precision):
    """C23: weights, gradients, optimizer and cache to the byte, activations within 10 %."""
    value, reward = ValueModel(model), ValueModel(model).requires_grad_(False)
    models = {"policy": model, "reference": copy.deepcopy(model).requires_grad_(False), "reward": reward, "value": value}
    optimizers = [*make_optimizers(model, 1e-3), torch.optim.AdamW(value.parameters())]
    (ids, mask), numbers = batch(model), {"fp32": "fp32", "autocast": "bf16"}[precision]
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    with Saved(model) as policy_saved:
        loss = loss_sum(model, ids, mask, numbers)
    with Saved(value) as value_saved, torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "autocast"):
        loss = loss + value.head(value.trunk(input_ids=ids, use_cache=False).last_hidden_state).float().square().mean()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    found = live(models, optimizers, caches={"policy": cache},
                 activations={"policy": policy_saved.bytes, "value": value_saved.bytes})
    expected = estimate("PPO", shape_of(model.config), rows=ROWS, prompt_tokens=PROMPT, new_tokens=NEW, precision=precision)
    assert set(found) == set(expected)
    for role, usage in found.items():
        buffers = sum(b.numel() * 4 for b in models[role].buffers())  # rotary frequencies: some hundred bytes
        assert usage.weights - buffers == expected[role].weights and buffers < 1000
        assert (usage.gradients, usage.optimizer) == (expected[role].gradients, expected[role].optimizer)
        assert usage.activations == pytest.approx(expected[role].activations, rel=0.1)
    if precision == "fp32":  # the cache was filled outside of autocast
        assert found["policy"].kv_cache == expected["policy"].kv_cache
    assert found["policy"].activations > 10_000_000


@pytest.mark.parametrize("dtype, precision", [(torch.float32, "fp32"), (torch.bfloat16, "bf16")])
@pytest.mark.parametrize("kv_heads, width, layers", [(4, 64, 3), (1, 64, 2), (2, 256, 4)])
def test_activations_of_other_shapes(dtype, precision, kv_heads, width, layers):
    torch.manual_seed(0)
    model = llama(kv_heads, True, width, layers).to(dtype)
    if precision == "fp32":  # weights in bfloat16 are for GPUs, where attention is the fused kernel's
        speed_up(model)
    ids, mask = batch(model)
    with Saved(model) as saved:
        loss_sum(model, ids, mask, "fp32")
    assert saved.bytes == pytest.approx(activation_bytes(shape_of(model.config), ids.numel(), ROWS * NEW, precision), rel=0.1)


def test_logits_are_kept_where_they_count(model):
    """What the other half of the tokens adds when they have a loss too: a hidden state and a row of log-probs each."""
    ids, half = batch(model)
    kept = []
    for mask in (half, torch.ones_like(half)):
        with Saved(model) as saved:
            loss_sum(model, ids, mask, "fp32")
        kept.append(saved.bytes)
    more = activation_bytes(shape_of(model.config), 0, ROWS * (PROMPT - 1), "fp32")  # the first token is never predicted
    assert kept[1] - kept[0] == pytest.approx(more, rel=0.01)


def test_the_log_probs_of_training_keep_what_is_predicted(model):
    """The way in which the policy-gradient algorithms read completions, one sample a prompt."""
    class Bytes:
        pad_token_id, eos_token_id = 0, None

        def decode(self, ids, **_):
            return ""

    model.generation_config.eos_token_id = None
    prompts = [row.tolist() for row in batch(model)[0][:, :PROMPT]]
    rollouts = sample(model, Bytes(), prompts, max_new_tokens=NEW)
    with Saved(model) as saved:
        completion_logprobs(model, rollouts)
    expected = activation_bytes(shape_of(model.config), ROWS * (PROMPT + NEW), ROWS * NEW, "fp32")
    assert saved.bytes == pytest.approx(expected, rel=0.1)


def test_the_decoders_cache_is_as_predicted(model):
    """Prompts once for each group of samples, then blocks of slots for what is sampled."""
    group, new = 4, LlamaDecoder.BLOCK
    ids = batch(model)[0][:, :PROMPT]
    decoder = LlamaDecoder(model)
    with torch.no_grad():
        prefill = model(input_ids=ids, use_cache=True)
        decoder.begin(prefill.past_key_values, torch.ones_like(ids, dtype=torch.bool), group, new)
        tokens = torch.ones(ROWS * group, dtype=torch.long, device=model.device)
        for step in range(new):
            decoder.step(tokens, torch.full_like(tokens, PROMPT + step))
    found = live({"policy": model}, caches={"policy": decoder})["policy"].kv_cache
    expected = estimate("GRPO", shape_of(model.config), rows=ROWS * group, group=group, prompt_tokens=PROMPT, new_tokens=new,
                        precision="fp32")["policy"].kv_cache
    assert found == expected


# ---- counting --------------------------------------------------------------------------------------------------------


def test_live_counts_by_hand():
    layer = torch.nn.Linear(10, 5, bias=False)
    assert live({"policy": layer}) == {"policy": Usage(weights=200)}
    layer(torch.ones(1, 10)).sum().backward()
    assert live({"policy": layer}) == {"policy": Usage(weights=200, gradients=200)}
    optimizer = torch.optim.AdamW(layer.parameters())
    optimizer.step()
    assert live({"policy": layer}, [optimizer]) == {"policy": Usage(200, 200, 404)}
    assert live({"policy": layer.half()})["policy"].weights == 100


def test_shared_memory_counts_once(model):
    shared = SharedCritic(model)
    value = torch.nn.ModuleList([shared.trunk, shared.head])
    usage = live({"policy": model, "value": value, "reference": model})
    assert usage["policy"].weights > 14_000_000
    assert usage["value"].weights == 4 * (256 + 1) and usage["reference"].weights == 0
    whole = torch.zeros(100)
    keys = types.SimpleNamespace(keys=whole[:10], values=whole[10:20])
    cache = types.SimpleNamespace(layers=[keys])
    assert live({"policy": torch.nn.Identity()}, caches={"policy": cache})["policy"].kv_cache == 400  # what it holds on to


def test_saved_counts_by_hand():
    x, w = torch.ones(100), torch.nn.Linear(100, 100, bias=False)
    with Saved(w) as saved:
        w(x).exp().sum()
    assert saved.bytes == 400 + 400  # the input of the product, the result of exp; not the weights
    with Saved(w) as saved, torch.no_grad():
        w(x).exp().sum()
    assert saved.bytes == 0
    with Saved(w) as saved:
        w(x).sum() + w(x).sum()
    assert saved.bytes == 400
    loss = w(x).exp().sum()
    loss.backward()
    plain = w.weight.grad.clone()
    w.weight.grad = None
    with Saved(w):
        loss = w(x).exp().sum()
    loss.backward()
    assert torch.equal(w.weight.grad, plain)


def test_a_peak_is_sampling_or_learning():
    assert Usage(1, 2, 3, activations=10, kv_cache=4).peak == 16 and Usage(1, 2, 3, 4, 10).peak == 16
    assert Usage(1, 2, 3, 4, 10).total == 20


def test_the_table_sums_up():
    lines = memory.table({"policy": Usage(10**9, 10**9, 2 * 10**9, 10**8, 0), "reference": Usage(10**9)}).splitlines()
    assert lines[0].split() == ["GB", "weights", "gradients", "optimizer", "activations", "kv", "cache", "peak"]
    assert lines[1].split() == ["policy", "1", "1", "2", "0.1", "0", "4.1"]
    assert lines[3].split() == ["together", "2", "1", "2", "0.1", "0", "5.1"]
    assert len({len(line) for line in lines}) == 1
