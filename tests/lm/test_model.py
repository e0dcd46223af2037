"""Models in plain Hugging Face format."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_lib.lm.device import autocast, bf16_pays
from course_lib.lm.model import build_lm, load_lm, save_lm


def test_what_is_saved_transformers_loads(tiny_lm, tmp_path):
    model, tokenizer = tiny_lm
    save_lm(tmp_path, model, tokenizer)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 9, 20, 31]])
    assert torch.equal(again(ids).logits, model.cpu()(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_what_transformers_saves_we_load(tiny_lm, tmp_path):
    model, tokenizer = tiny_lm
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_lm(tmp_path, device="cpu")
    assert not again.training and all(torch.equal(a, b) for a, b in zip(again.parameters(), model.cpu().parameters()))


def test_the_seed_decides_the_weights_and_leaves_the_global_state(tiny_lm):
    _, tokenizer = tiny_lm
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    a, b, c = (build_lm(tokenizer, (16, 1, 2, 32), seed=s, device="cpu") for s in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(a.model.embed_tokens.weight, b.model.embed_tokens.weight)
    assert not torch.equal(a.model.embed_tokens.weight, c.model.embed_tokens.weight)


def test_unknown_names_get_a_hint(tiny_lm):
    with pytest.raises(ValueError, match="did you mean 'base'"):
        load_lm("bas")
    with pytest.raises(ValueError, match="tiny"):
        build_lm(tiny_lm[1], "huge")


def test_precision_is_checked():
    with pytest.raises(ValueError, match="fp16.*half"):
        autocast(torch.device("cpu"), "half")
    assert isinstance(bf16_pays("cpu"), bool) and not bf16_pays("mps")
