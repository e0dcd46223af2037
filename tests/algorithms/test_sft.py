"""SFT: only the assistant's tokens, END included, and nothing lost in the buckets."""

import copy
from collections import Counter

import pytest
import torch

from course_lib.algorithms import sft, training


@pytest.fixture
def chats():
    return [sft.qa(f"Question {'x' * n}?", "yes " * (n % 5 + 1)) for n in range(23)]


def test_the_mask_is_the_answer_and_its_end(tiny_lm):
    _, tokenizer = tiny_lm
    (example,) = sft.encode_chat(tokenizer, [sft.qa("Where is SF?", "SF is in CA, USA")])
    said = [i for i, m in zip(example.ids, example.mask) if m]
    assert tokenizer.decode(said) == "SF is in CA, USA" + tokenizer.eos_token


def test_pitfall_prompt_tokens_in_the_loss(tiny_lm):
    """Other words in the prompt's *targets* leave the loss's count alone: gradients reach logits of answer positions only."""
    model, tokenizer = tiny_lm
    ids, mask = sft.batch(sft.encode_chat(tokenizer, [sft.qa("Where is SF?", "CA")]), tokenizer.pad_token_id)
    logits = model(ids.to(model.device)).logits.detach().requires_grad_()
    from course_lib.objectives import next_token_loss

    next_token_loss(logits, ids.to(model.device), mask.to(model.device)).backward()
    carried = (logits.grad.abs().sum(-1)[0] > 0).cpu()
    assert torch.equal(carried[:-1], mask[0, 1:]) and not carried[-1]


def test_loss_equals_the_plain_equation(tiny_lm, chats):
    model, tokenizer = tiny_lm
    ids, mask = (t.to(model.device) for t in sft.batch(sft.encode_chat(tokenizer, chats[:6]), tokenizer.pad_token_id))
    from course_lib.objectives import next_token_loss

    plain = next_token_loss(model(ids).logits, ids, mask)
    assert torch.allclose(training.loss_sum(model, ids, mask, "fp32") / mask.sum(), plain, atol=1e-5)


def test_buckets_hold_every_example_once(tiny_lm, chats):
    _, tokenizer = tiny_lm
    examples = sft.encode_chat(tokenizer, chats)
    batches = sft.bucketed(examples, 4, tokenizer.pad_token_id, seed=3)
    rows = Counter(tuple(t for t in row if t != tokenizer.pad_token_id) for ids, _ in batches for row in ids.tolist())
    assert rows == Counter(tuple(e.ids) for e in examples)
    assert sum(int(m.sum()) for _, m in batches) == sum(map(sum, (e.mask for e in examples)))


def test_buckets_waste_less_than_shuffling(tiny_lm):
    _, tokenizer = tiny_lm
    examples = sft.encode_chat(tokenizer, [sft.qa("q" * (1 + 7 * n % 97), "a") for n in range(256)])
    padded = sum(ids.numel() for ids, _ in sft.bucketed(examples, 16, tokenizer.pad_token_id, seed=0))
    plain = sum(sft.batch(examples[i : i + 16], 0)[0].numel() for i in range(0, 256, 16))
    assert padded < 0.8 * plain


def test_order_depends_on_the_seed_only(tiny_lm, chats):
    _, tokenizer = tiny_lm
    examples = sft.encode_chat(tokenizer, chats)
    a, b, c = (sft.bucketed(examples, 4, 0, seed=s) for s in (1, 1, 2))
    assert all(torch.equal(x[0], y[0]) for x, y in zip(a, b))
    assert not all(x[0].shape == y[0].shape and torch.equal(x[0], y[0]) for x, y in zip(a, c))


@pytest.mark.parametrize("change", [dict(seed=1), dict(lr=1e-2), dict(clip=1e-3), dict(warmup=0.9), dict(epochs=3)])
def test_pitfall_30_no_setting_is_silently_unused(tiny_lm, chats, change):
    def weights(**more):
        model = copy.deepcopy(tiny_lm[0])
        sft.train(model, tiny_lm[1], chats, sft.SFTConfig(**dict(epochs=2, batch_size=2, lr=1e-3, precision="fp32") | more))
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert not torch.equal(weights(), weights(**change))


def test_pitfall_eos_is_learnt(tiny_lm):
    """After fitting one answer the model ends it by itself."""
    import copy

    from course_lib.lm.sampling import sample

    model, tokenizer = tiny_lm
    model = copy.deepcopy(model)
    chat = sft.qa("Where?", "Here")
    sft.train(model, tokenizer, [chat] * 8, sft.SFTConfig(epochs=40, batch_size=8, lr=1e-2, precision="fp32"))
    out = sample(model, tokenizer, [chat[:1]], max_new_tokens=30, temperature=0)
    assert out.texts == ["Here"] and out.finished.tolist() == [True]


def test_pitfall_28_one_bos_and_one_end(tiny_lm):
    """The template writes BOS and END itself: the tokenizer adds no second one."""
    _, tokenizer = tiny_lm
    (example,) = sft.encode_chat(tokenizer, [sft.qa("Where is SF?", "CA")])
    assert example.ids.count(tokenizer.bos_token_id) == 1 and example.ids[0] == tokenizer.bos_token_id
    assert example.ids.count(tokenizer.eos_token_id) == 2, "one at the end of each turn"
    assert example.ids[-1] == tokenizer.eos_token_id != example.ids[-2]


def test_a_template_of_the_hub_needs_no_marks(tiny_lm):
    """The same examples, and so the same training, whether the template marks the assistant's words or not."""
    _, tokenizer = tiny_lm
    talk = [*sft.qa("Where is SF?", "In CA."), *sft.qa("And LA?", "There, too.")]
    marked = sft.encode_chat(tokenizer, [talk])
    for mark in ("{% generation %}", "{% endgeneration %}"):
        tokenizer.chat_template = tokenizer.chat_template.replace(mark, "")
    assert sft.encode_chat(tokenizer, [talk]) == marked
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="instruct version, or set tokenizer.chat_template"):
        sft.encode_chat(tokenizer, [talk])


def test_bad_conversations_are_named(tiny_lm):
    _, tokenizer = tiny_lm
    good = sft.qa("a", "b")
    with pytest.raises(ValueError, match="conversation 1 has no assistant"):
        sft.encode_chat(tokenizer, [good, good[:1]])
    with pytest.raises(ValueError, match="conversation 0 has .* max_length 3"):
        sft.encode_chat(tokenizer, [good], max_length=3)
    with pytest.raises(ValueError, match="no data"):
        sft.train(tiny_lm[0], tokenizer, [])
