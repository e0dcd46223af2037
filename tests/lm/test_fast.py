"""lm.fast: the numbers of Hugging Face's modules, forward and backward."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from course_lib.lm import fast
from course_lib.lm.decoding import LlamaDecoder
from course_lib.lm.fast import PRODUCTS, RMSNorm, plain, speed_up
from course_lib.lm.logprobs import token_logprobs
from course_lib.lm.model import build_lm, load_lm, save_lm
from course_lib.lm.reward_head import RewardModel, load_reward_model


class Module(torch.nn.Module):
    is_causal = True
    num_key_value_groups = 1


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


# ---- the norm --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5, 32), (7, 16), (1, 1, 64)])
def test_the_norm_gives_the_same_numbers_and_gradients(shape):
    """Against double precision, where the course's is as near as Hugging Face's; the result itself is the same to the bit."""
    slow = LlamaRMSNorm(shape[-1])
    slow.weight.data = draw(shape[-1], seed=1).detach()
    quick = copy.deepcopy(slow)
    quick.__class__ = RMSNorm
    x, y, upstream = draw(*shape), draw(*shape), draw(*shape, seed=2).detach()
    assert torch.equal(quick(x), slow(y))
    quick(x).backward(upstream)
    z, weight = (t.detach().double().requires_grad_() for t in (x, slow.weight))
    (z / (z.square().mean(-1, keepdim=True) + slow.variance_epsilon).sqrt() * weight).backward(upstream.double())
    assert torch.allclose(x.grad.double(), z.grad, atol=1e-5, rtol=1e-5)
    assert torch.allclose(quick.weight.grad.double(), weight.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("of_input, of_weight", [(True, False), (False, True)])
def test_the_norm_takes_no_gradient_that_nobody_wants(of_input, of_weight):
    norm = RMSNorm(16)
    norm.weight.requires_grad_(of_weight)
    x = draw(4, 16).detach().requires_grad_(of_input)
    norm(x).square().sum().backward()
    assert (x.grad is not None, norm.weight.grad is not None) == (of_input, of_weight)


def test_the_norm_keeps_its_input_and_little_else():
    kept = []
    x, norm = draw(4, 8, 64), RMSNorm(64)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        norm(x)
    assert sorted(kept) == [32, 64, 4 * 8 * 64]


def test_half_precision_where_linear_maps_read_it_and_float32_at_the_end(tiny_lm):
    model, _ = tiny_lm
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.model.layers[0].input_layernorm(draw(2, 3, 32)).dtype == torch.bfloat16
        assert model.model.norm(draw(2, 3, 32)).dtype == torch.float32
        rounded = model.model.layers[0].input_layernorm(draw(2, 3, 32))
    exact = model.model.layers[0].input_layernorm(draw(2, 3, 32))
    assert exact.dtype == torch.float32 and torch.equal(exact.bfloat16(), rounded)


def test_weights_in_half_precision_take_the_usual_way():
    norm, usual = RMSNorm(16).bfloat16(), LlamaRMSNorm(16).bfloat16()
    x = draw(4, 16, dtype=torch.bfloat16)
    assert torch.equal(norm(x), usual(x))


# ---- attention -------------------------------------------------------------------------------------------------------


def both(mask, q=9, s=9, heads=4, kv_heads=4, dtype=torch.bfloat16):
    """Results and gradients of the products, and of the fused kernel in float32: two lists of tensors."""
    found = []
    module = Module()
    module.num_key_value_groups = heads // kv_heads
    for kind, function in ((dtype, fast.attention), (torch.float32, sdpa_attention_forward)):
        query, key, value = (draw(2, h, t, 16, seed=i, dtype=kind) for i, (h, t) in
                             enumerate([(heads, q), (kv_heads, s), (kv_heads, s)]))
        out = function(module, query, key, value, mask, scaling=0.25)[0]
        out.float().square().sum().backward()
        found.append([out, query.grad, key.grad, value.grad])
    return found


def close(products, fused):
    return all(a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=0.08, rtol=0.05)
               for a, b in zip(products, fused))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("mask", ["causal", "bool", "added"])
def test_attention_by_products_is_attention(mask, kv_heads, monkeypatch):
    keep = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    keep[0, ..., :3] = False
    keep[0, :, :3] = torch.eye(9, dtype=torch.bool)[:3]  # a row of padding looks at itself
    masks = {"causal": None, "bool": keep, "added": torch.zeros(keep.shape).masked_fill(~keep, -1e9)}
    monkeypatch.setattr(fast, "sdpa_attention_forward", None)  # it must not be needed
    assert close(*both(masks[mask], kv_heads=kv_heads))


def test_the_last_queries_of_a_longer_text():
    keep = torch.ones(2, 1, 4, 9, dtype=torch.bool).tril(5)
    assert close(*both(keep, q=4))


def test_a_row_that_may_look_nowhere_gives_numbers():
    keep = torch.ones(2, 1, 9, 9, dtype=torch.bool).tril()
    keep[0, :, :3] = False
    (out, *grads), _ = both(keep)
    assert all(torch.isfinite(t).all() for t in (out, *grads))


@pytest.mark.parametrize("case", ["float32", "long", "dropout", "not causal"])
def test_what_is_not_handled_goes_to_the_fused_kernel(case, monkeypatch):
    calls, module = [], Module()
    monkeypatch.setattr(fast, "sdpa_attention_forward", lambda *a, **k: calls.append(k) or (None, None))
    dtype = torch.float32 if case == "float32" else torch.bfloat16
    length = fast.LONGEST + 1 if case == "long" else 4
    query = torch.zeros(1, 4, length, 8, dtype=dtype)
    options = {"dropout": {"dropout": 0.5}, "not causal": {"is_causal": False}}.get(case, {})
    fast.attention(module, query, query, query, None, **options)
    assert len(calls) == 1


# ---- whole models ----------------------------------------------------------------------------------------------------

SMALL = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)


@pytest.mark.parametrize("make", [lambda: LlamaForCausalLM(LlamaConfig(**SMALL)), lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL))])
@pytest.mark.parametrize("half", [False, True])
def test_a_model_computes_what_it_did(make, half):
    torch.manual_seed(0)
    slow = make().eval()
    quick = speed_up(copy.deepcopy(slow))
    assert sum(type(m) in fast.NORMS.values() for m in quick.modules()) == 5
    ids, mask = torch.randint(0, 64, (3, 12)), torch.ones(3, 12, dtype=torch.bool)
    mask[0, :4] = False
    for model in (slow, quick):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            token_logprobs(model, ids, mask).sum().backward()
    gaps = [((a.grad - b.grad).norm() / a.grad.norm()).item() for a, b in zip(slow.parameters(), quick.parameters())
            if a.grad.norm() > 1e-6]
    assert max(gaps) < (0.05 if half else 1e-5)


def test_what_is_saved_knows_nothing_of_it(tiny_lm, tmp_path):
    (model, tokenizer), ids = tiny_lm, torch.arange(7, 20)[None]
    save_lm(tmp_path, model, tokenizer)
    assert PRODUCTS not in (tmp_path / "config.json").read_text()
    usual = LlamaForCausalLM.from_pretrained(tmp_path)
    assert type(usual.model.norm) is LlamaRMSNorm and usual.config._attn_implementation == "sdpa"
    assert torch.equal(usual(ids).logits, model(ids).logits)


def test_the_courses_models_have_it(tiny_lm, tmp_path):
    model, tokenizer = tiny_lm
    save_lm(tmp_path / "lm", model, tokenizer)
    RewardModel.on(model).save(tmp_path / "rm", tokenizer)
    for made in (build_lm(tokenizer, "tiny").model, load_lm(tmp_path / "lm")[0].model,
                 load_reward_model(tmp_path / "rm")[0].backbone):
        assert type(made.norm) is RMSNorm and made.config._attn_implementation == PRODUCTS
        assert made.layers[0].input_layernorm.inner and not made.norm.inner
    assert LlamaDecoder.fits(model)


def test_plain_undoes_it(tiny_lm):
    model = plain(tiny_lm[0])
    assert not any(type(m) in fast.NORMS.values() for m in model.modules())
    assert model.config._attn_implementation == "sdpa"
