"""The rollout engine against plain forward passes, exact distributions and Hugging Face's own generation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, TopKLogitsWarper, TopPLogitsWarper
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from course_lib.lm.decoding import HFDecoder, LlamaDecoder
from course_lib.lm.logprobs import completion_logprobs
from course_lib.lm.sampling import draw_tokens, mix, sample, uniforms
from course_lib.lm.turns import Reader, sample_turn

LLAMA = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
ARCHITECTURES = {
    "llama": ("llama", LLAMA),
    "llama, grouped queries": ("llama", LLAMA | dict(num_key_value_heads=2)),
    "llama, scaled positions": ("llama", LLAMA | dict(
        rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})),
    "gpt2": ("gpt2", dict(n_embd=32, n_layer=2, n_head=4)),
    "qwen2": ("qwen2", LLAMA | dict(num_key_value_heads=2)),
    "mistral, sliding window": ("mistral", LLAMA | dict(num_key_value_heads=2, sliding_window=6)),
    "gemma2": ("gemma2", LLAMA | dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=6, layer_types=[
        "sliding_attention", "full_attention"])),
}  # fmt: skip
FAST = {"llama", "llama, grouped queries"}
PROMPTS = ["a", "how now brown cow", "rl hf", "the cat"]  # uneven: three rows are padded


def make_lm(tokenizer, architecture="llama", *, context=64, vocab=None, **changes):
    """A small random model whose next-token distributions are far from uniform."""
    kind, shape = ARCHITECTURES[architecture]
    special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    general = dict(vocab_size=vocab or len(tokenizer), max_position_embeddings=context, initializer_range=0.3)
    config = CONFIG_MAPPING[kind](**shape | special | general | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def many_ends(model, share=4):
    """Let every fourth token end a row, so that rows end at different steps."""
    model.generation_config.eos_token_id = list(range(2, model.config.vocab_size, share))
    return model


def script(model, tokens):
    """Make `model` continue any prompt of length n with tokens[0], tokens[1], ... after position n-1 = 0."""

    def overwrite(module, args, kwargs, output):
        positions = kwargs["position_ids"][:, -1]  # of the last token read
        output.logits[:, -1] = 0
        output.logits[torch.arange(len(positions)), -1, torch.tensor(tokens)[positions]] = 100.0

    model.register_forward_hook(overwrite, with_kwargs=True)
    return model


def alone(model, rollouts, temperature=1.0):
    """Log-probs by one forward pass per row, without padding or cache: the definition."""
    result = torch.zeros_like(rollouts.logprobs)
    for i in range(len(result)):
        prompt = rollouts.prompt_ids[i][rollouts.prompt_mask[i]]
        completion = rollouts.completion_ids[i][rollouts.completion_mask[i]]
        with torch.no_grad():
            logits = model(torch.cat([prompt, completion])[None]).logits[0].float() / temperature
        steps = torch.arange(len(completion))
        result[i, steps] = logits.log_softmax(-1)[len(prompt) - 1 + steps, completion]
    return result


# Log-probs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pitfall_08_logprobs_equal_a_full_forward_pass(tiny_tokenizer, architecture, device):
    model = many_ends(make_lm(tiny_tokenizer, architecture)).to(device)
    assert LlamaDecoder.fits(model) == (architecture in FAST)
    rollouts = sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=12, samples_per_prompt=3, temperature=0.8)
    assert len(set(rollouts.completion_mask.sum(-1).tolist())) >= 3, "rows should end at different steps"
    torch.testing.assert_close(rollouts.logprobs, alone(model, rollouts, 0.8), atol=1e-4, rtol=0)
    torch.testing.assert_close(completion_logprobs(model, rollouts, 0.8), rollouts.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ["llama, grouped queries", "qwen2"])
@pytest.mark.parametrize("autocast", [False, True])
def test_pitfall_08_bfloat16_stays_near_the_forward_pass(tiny_tokenizer, architecture, autocast):
    model = many_ends(make_lm(tiny_tokenizer, architecture, initializer_range=0.1))
    model = model if autocast else model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        rollouts = sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=12, samples_per_prompt=3)
        full = completion_logprobs(model, rollouts)
    assert rollouts.logprobs.dtype == full.dtype == torch.float32
    assert rollouts.completion_mask.sum() > 30
    gap = (rollouts.logprobs - full).abs()
    assert 0 < gap.max() < 0.05
    assert all(p.dtype == (torch.float32 if autocast else torch.bfloat16) for p in model.parameters())


def test_pitfall_01_each_logprob_belongs_to_its_own_token(tiny_tokenizer):
    model = make_lm(tiny_tokenizer)
    rollouts = sample(model, tiny_tokenizer, ["ab"], max_new_tokens=5)
    ids = rollouts.prompt_ids[0].tolist()
    for token, logprob in zip(rollouts.completion_ids[0].tolist(), rollouts.logprobs[0]):
        expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token]
        assert abs(logprob - expected) < 1e-4
        ids.append(token)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pitfall_02_padding_does_not_change_a_row(tiny_tokenizer, architecture):
    model = make_lm(tiny_tokenizer, architecture)
    one = sample(model, tiny_tokenizer, PROMPTS[:1], max_new_tokens=10)
    padded = sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=10)
    assert not padded.prompt_mask[0, 0] and padded.prompt_mask[:, -1].all(), "padding belongs on the left"
    length = one.completion_ids.shape[1]
    assert padded.completion_ids[0, :length].equal(one.completion_ids[0])
    torch.testing.assert_close(padded.logprobs[0, :length], one.logprobs[0], atol=1e-5, rtol=0)


def test_pitfall_04_nothing_counts_after_eos(tiny_tokenizer):
    model = many_ends(make_lm(tiny_tokenizer))
    rollouts = sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=16, samples_per_prompt=4)
    eos = torch.tensor(model.generation_config.eos_token_id)
    for ids, mask, logprobs, finished in zip(
        rollouts.completion_ids, rollouts.completion_mask, rollouts.logprobs, rollouts.finished
    ):
        length = int(mask.sum())
        assert mask[:length].all() and length >= 1
        assert not torch.isin(ids[: length - 1], eos).any()
        assert torch.isin(ids[length - 1], eos) == finished and (finished or length == 16)
        assert (ids[length:] == tiny_tokenizer.pad_token_id).all() and (logprobs[length:] == 0).all()
    assert rollouts.completion_ids.shape[1] == rollouts.completion_mask.sum(-1).max()


def test_pitfall_05_eos_counts_even_where_it_is_the_padding_token(tiny_tokenizer):
    tiny_tokenizer.pad_token = tiny_tokenizer.eos_token
    model = script(make_lm(tiny_tokenizer), tiny_tokenizer("hi").input_ids + [2, 2, 2, 2])
    rollouts = sample(model, tiny_tokenizer, [[1]], max_new_tokens=6)
    assert rollouts.completion_mask.tolist() == [[True, True, True]] and rollouts.finished.all()
    assert rollouts.completion_ids[0, -1] == 2 and rollouts.texts == ["hi"]


def test_pitfall_06_logprobs_are_those_of_the_sampling_temperature(tiny_tokenizer):
    model = make_lm(tiny_tokenizer)
    rollouts = sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=6, temperature=0.5)
    torch.testing.assert_close(completion_logprobs(model, rollouts, 0.5), rollouts.logprobs, atol=1e-4, rtol=0)
    assert (completion_logprobs(model, rollouts, 1.0) - rollouts.logprobs).abs().max() > 0.1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_pitfall_07_dropout_is_off_and_the_mode_is_restored(tiny_tokenizer, architecture):
    dropout = dict(attention_dropout=0.5) if architecture == "llama" else dict(attn_pdrop=0.5, resid_pdrop=0.5)
    model = make_lm(tiny_tokenizer, architecture, **dropout).train()
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.Linear) or "Conv1D" in type(m).__name__).eval()
    rollouts = sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=6)
    torch.testing.assert_close(completion_logprobs(model, rollouts), rollouts.logprobs, atol=1e-4, rtol=0)
    assert all(module.training != (module is frozen) for module in model.modules())
    with pytest.raises(IndexError):
        sample(model, tiny_tokenizer, [[10_000]], max_new_tokens=6)
    assert all(module.training != (module is frozen) for module in model.modules())
    torch.testing.assert_close(alone(model.eval(), rollouts), rollouts.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("truncation", [dict(top_k=4), dict(top_p=0.6)])
def test_pitfall_24_truncated_logprobs_are_not_those_of_the_model(tiny_tokenizer, truncation):
    """Against the full distribution they are too high, by -log of the kept mass, even for one and the same model."""
    model = make_lm(tiny_tokenizer)
    rollouts = sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=6, samples_per_prompt=4, **truncation)
    excess = (rollouts.logprobs - completion_logprobs(model, rollouts))[rollouts.completion_mask]
    assert (excess > -1e-5).all() and excess.mean() > 0.05
    if "top_p" in truncation:
        assert (excess.neg().exp() >= 0.6 - 1e-5).all()


@pytest.mark.parametrize("as_messages", [True, False])
def test_pitfall_28_one_bos_whichever_way_the_prompt_comes(tiny_tokenizer, as_messages):
    model = make_lm(tiny_tokenizer)
    messages = [{"role": "user", "content": "hi"}]
    raw = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert raw.startswith(tiny_tokenizer.bos_token)
    rollouts = sample(model, tiny_tokenizer, [messages if as_messages else raw], max_new_tokens=2)
    ids = rollouts.prompt_ids[0].tolist()
    assert ids.count(tiny_tokenizer.bos_token_id) == 1 and ids[0] == tiny_tokenizer.bos_token_id
    assert ids[-1] == tiny_tokenizer.convert_tokens_to_ids("<|assistant|>"), "no EOS after the generation prompt"


# Prompts


def test_pitfall_17_a_string_is_raw_text_and_never_goes_through_the_chat_template(tiny_tokenizer):
    model = make_lm(tiny_tokenizer)
    text = sample(model, tiny_tokenizer, ["hi"], max_new_tokens=2)
    assert text.prompt_ids[0].tolist() == [1, *tiny_tokenizer("hi").input_ids]
    asked = sample(model, tiny_tokenizer, [[{"role": "user", "content": "hi"}]], max_new_tokens=2)
    assert asked.prompt_ids[0].tolist() == [1, 3, *tiny_tokenizer("hi").input_ids, 2, 4]  # user, hi, END, assistant
    ids = sample(model, tiny_tokenizer, [[9, 8, 7], (5,)], max_new_tokens=2)
    assert ids.prompt_ids.tolist() == [[9, 8, 7], [0, 0, 5]]
    assert ids.prompt_mask.tolist() == [[True, True, True], [False, False, True]]
    assert sample(model, tiny_tokenizer, [""], max_new_tokens=2).prompt_ids.tolist() == [[1]]


@pytest.mark.parametrize("reader", ["sample", "preferences", "reward model"])
def test_pitfall_17_a_string_for_a_chat_model_is_refused_everywhere(tiny_tokenizer, reader):
    """The course's own template marks the assistant's words, and its models read both; another template means a chat model."""
    from course_lib.algorithms.dpo import encode_pairs
    from course_lib.lm.chat import CHATML
    from course_lib.lm.reward_head import encode_answer

    model = make_lm(tiny_tokenizer)
    tiny_tokenizer.chat_template = CHATML
    with pytest.raises(ValueError, match="a string would bypass: give messages.*'content': 'hi'.*raw text its token ids"):
        if reader == "sample":
            sample(model, tiny_tokenizer, ["hi"], max_new_tokens=2)
        elif reader == "preferences":
            encode_pairs(tiny_tokenizer, [{"prompt": "hi", "chosen": "a", "rejected": "b"}])
        else:
            encode_answer(tiny_tokenizer, "hi", "a")
    raw = tiny_tokenizer("hi")["input_ids"]
    assert sample(model, tiny_tokenizer, [raw], max_new_tokens=2).prompt_ids.tolist() == [raw]
    tiny_tokenizer.chat_template = None  # a base model: text is what it is for
    assert sample(model, tiny_tokenizer, ["hi"], max_new_tokens=2).prompt_ids.tolist() == [[1, *raw]]
    with pytest.raises(ValueError, match="instruct version, or set tokenizer.chat_template"):
        sample(model, tiny_tokenizer, [[{"role": "user", "content": "hi"}]], max_new_tokens=2)


def test_pitfall_23_rows_stay_with_their_prompt_while_others_are_dropped(tiny_tokenizer):
    rollouts = sample(many_ends(make_lm(tiny_tokenizer)), tiny_tokenizer, PROMPTS, max_new_tokens=6, samples_per_prompt=3)
    assert rollouts.group.tolist() == [i for i in range(len(PROMPTS)) for _ in range(3)]
    for i, text in enumerate(rollouts.texts):
        ids = rollouts.completion_ids[i][rollouts.completion_mask[i]]
        assert text == tiny_tokenizer.decode(ids, skip_special_tokens=True)
        prompt = rollouts.prompt_ids[i][rollouts.prompt_mask[i]]
        assert tiny_tokenizer.decode(prompt, skip_special_tokens=True) == PROMPTS[i // 3]


BAD = {
    "non-empty list": [dict(prompts=[]), dict(prompts="hello")],
    "wrap it in a list": [dict(prompts=[{"role": "user", "content": "hi"}])],
    "prompt 1 is empty": [dict(prompts=["a", []])],
    "temperature": [dict(temperature=-1), dict(temperature=float("nan")), dict(temperature=float("inf"))],
    "top_k": [dict(top_k=-1), dict(top_k=2.5)],
    "top_p": [dict(top_p=0), dict(top_p=1.1), dict(top_p=float("nan"))],
    "at least 1": [dict(max_new_tokens=0), dict(samples_per_prompt=0), dict(batch_size=0)],
    "stop": [dict(stop="\n"), dict(stop=["a", ""])],
    "leaves no room in the model's context of 64: shorten it to at most 63": [dict(prompts=[[5] * 64])],
}


@pytest.mark.parametrize(("message", "bad"), [(message, bad) for message, cases in BAD.items() for bad in cases])
def test_bad_arguments_say_what_is_wrong(tiny_tokenizer, message, bad):
    arguments = dict(prompts=["a"], max_new_tokens=4) | bad
    with pytest.raises(ValueError, match=message):
        sample(make_lm(tiny_tokenizer), tiny_tokenizer, **arguments)


def test_messages_without_a_chat_template_and_nan_logits_are_errors(tiny_tokenizer):
    model = make_lm(tiny_tokenizer)
    tiny_tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat template"):
        sample(model, tiny_tokenizer, [[{"role": "user", "content": "hi"}]], max_new_tokens=2)
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite: in fp16.*choose precision 'fp32' or 'bf16'; otherwise .*diverged"):
        sample(model, tiny_tokenizer, ["a"], max_new_tokens=2)


@pytest.mark.parametrize("read", [1, 3])
@pytest.mark.parametrize(("token", "value"), [(7, "nan"), (7, "inf"), (slice(None), "-inf")])
@pytest.mark.parametrize("options", [dict(), dict(temperature=0), dict(top_k=5, top_p=0.9)])
def test_logits_that_are_not_finite_are_an_error_at_the_first_token_and_later(tiny_tokenizer, read, token, value, options):
    """Those in the prefill, or those where the third token has been read. A token that is forbidden, -inf, is no error."""
    def spoil(module, args, kwargs, output):
        output.logits[:, -1, 8] = -torch.inf
        if kwargs["position_ids"][0, -1] + 1 == read:
            output.logits[0, -1, token] = float(value)

    model = make_lm(tiny_tokenizer, eos_token_id=None)
    model.generation_config.eos_token_id = tiny_tokenizer.eos_token = None
    model.register_forward_hook(spoil, with_kwargs=True)
    if read > 1:
        assert sample(model, tiny_tokenizer, [[5], [6]], max_new_tokens=read - 1, **options).logprobs.isfinite().all()
    for ask in (sample, lambda model, *rest, **more: sample_turn(Reader(model), *rest, **more)):
        if ask is sample or "top_k" not in options:
            with pytest.raises(ValueError, match="logits are not finite"):
                ask(model, tiny_tokenizer, [[5], [6]], max_new_tokens=read + 1, **options)


# Where a completion ends


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_context_limits_each_row_by_its_own_length(tiny_tokenizer, architecture):
    model = make_lm(tiny_tokenizer, architecture, context=16, eos_token_id=None)
    model.generation_config.eos_token_id = None
    tiny_tokenizer.eos_token = None
    prompts = [[5] * 15, [6] * 10, [7] * 3]
    rollouts = sample(model, tiny_tokenizer, prompts, max_new_tokens=8, samples_per_prompt=2)
    assert rollouts.completion_mask.sum(-1).tolist() == [1, 1, 6, 6, 8, 8] and not rollouts.finished.any()
    torch.testing.assert_close(alone(model, rollouts), rollouts.logprobs, atol=1e-4, rtol=0)
    for batch_size in (1, 4):
        again = sample(model, tiny_tokenizer, prompts, max_new_tokens=8, samples_per_prompt=2, batch_size=batch_size)
        assert again.completion_ids.equal(rollouts.completion_ids)


def test_a_row_whose_context_is_full_stays_in_it_while_others_go_on(tiny_tokenizer):
    """One row of five is too few to drop; its place among GPT-2's learned positions would run over their end."""
    model = make_lm(tiny_tokenizer, "gpt2", context=16, eos_token_id=None)
    model.generation_config.eos_token_id = tiny_tokenizer.eos_token = None
    rollouts = sample(model, tiny_tokenizer, [[5] * 15, [7], [8], [9], [10]], max_new_tokens=8)
    assert rollouts.completion_mask.sum(-1).tolist() == [1, 8, 8, 8, 8]
    torch.testing.assert_close(alone(model, rollouts), rollouts.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one. two. three", ["."], "one"),
        ("so it is #6\nand", ["\n", "#7"], "so it is #6"),
        ("abcabd abc", ["abd"], "abc"),
        ("héé où", ["é o"], "hé"),  # the stop string has more bytes than characters
        ("say <|user|>more", ["<|user|>"], "say "),
        ("no stop here", ["!"], "no stop here"),
    ],
)
def test_a_stop_string_ends_the_row_with_the_token_that_completes_it(tiny_tokenizer, text, stop, expected):
    ids = tiny_tokenizer(text, add_special_tokens=False).input_ids
    model = script(make_lm(tiny_tokenizer), [*ids, 2, 2])
    rollouts = sample(model, tiny_tokenizer, [[1]], max_new_tokens=40, samples_per_prompt=2, stop=stop)
    completed = next((n for n in range(1, len(ids)) if any(s in tiny_tokenizer.decode(ids[:n]) for s in stop)), None)
    assert rollouts.completion_ids[0].tolist() == (ids[:completed] if completed else [*ids, 2])
    assert rollouts.texts == [expected] * 2 and rollouts.finished.all() and rollouts.completion_mask.all()


def test_pitfall_26_a_row_that_ends_with_its_last_token_is_finished_and_one_that_is_cut_is_not(tiny_tokenizer):
    model = script(make_lm(tiny_tokenizer), [*tiny_tokenizer("hey").input_ids, 2, 2])
    assert sample(model, tiny_tokenizer, [[1]], max_new_tokens=4).finished.tolist() == [True]
    assert sample(model, tiny_tokenizer, [[1]], max_new_tokens=3).finished.tolist() == [False]


# Speed that must not change the result


def record_steps(monkeypatch, decoder):
    sizes, step = [], decoder.step
    monkeypatch.setattr(decoder, "step", lambda self, *args: sizes.append(len(args[0])) or step(self, *args))
    return sizes


@pytest.mark.parametrize("samples", [1, 8])
def test_finished_rows_are_dropped(tiny_tokenizer, monkeypatch, samples):
    """As soon as a quarter of the batch would go, where every prompt that has live rows keeps equally many."""
    sizes = record_steps(monkeypatch, LlamaDecoder)
    model, prompts = many_ends(make_lm(tiny_tokenizer)), PROMPTS * (32 // len(PROMPTS) // samples)
    rollouts = sample(model, tiny_tokenizer, prompts, max_new_tokens=30, samples_per_prompt=samples)
    live = rollouts.completion_mask[:, 1:].unflatten(0, (len(prompts), samples))  # still to be stepped
    counts = live.sum(1)  # (prompts, T - 1)
    needed = (counts.amax(0) * (counts > 0).sum(0)).tolist()
    assert len(sizes) == len(needed) > 8 and sizes[0] > 2 * sizes[-1]
    for before, size, least in zip([32, *sizes], sizes, needed):
        assert size == (least if least <= 0.75 * before else before)


def test_the_prompt_is_read_once_for_all_its_samples(tiny_tokenizer):
    model, shapes = make_lm(tiny_tokenizer), []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=2, samples_per_prompt=5)
    assert shapes[0][0] == len(PROMPTS) and shapes[1] == (5 * len(PROMPTS), 1)


def test_the_general_path_gives_what_the_fast_path_gives(tiny_tokenizer, monkeypatch):
    model = many_ends(make_lm(tiny_tokenizer, "llama, grouped queries"))
    arguments = dict(max_new_tokens=12, samples_per_prompt=3, seed=5)
    steps = record_steps(monkeypatch, LlamaDecoder)
    fast = sample(model, tiny_tokenizer, PROMPTS, **arguments)
    assert steps
    monkeypatch.setattr(LlamaDecoder, "fits", staticmethod(lambda model: False))
    steps = record_steps(monkeypatch, HFDecoder)
    general = sample(model, tiny_tokenizer, PROMPTS, **arguments)
    assert steps and fast.texts == general.texts and fast.completion_ids.equal(general.completion_ids)
    torch.testing.assert_close(fast.logprobs, general.logprobs, atol=1e-5, rtol=0)


class Adapter(torch.nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear, self.weight = linear, linear.weight


@pytest.mark.parametrize("change", ["hook", "pre-hook", "adapter", "bias", "activation", "positions", "size"])
def test_the_fast_path_leaves_alone_what_it_does_not_compute(tiny_tokenizer, change):
    config = {
        "bias": dict(attention_bias=True),
        "activation": dict(hidden_act="gelu"),
        "positions": dict(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}),
    }
    model = make_lm(tiny_tokenizer, **config.get(change, {}))
    layer = model.model.layers[0]
    if change == "hook":
        layer.mlp.register_forward_hook(lambda module, args, output: 2 * output)
    if change == "pre-hook":
        layer.mlp.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    if change == "adapter":
        layer.mlp.up_proj = Adapter(layer.mlp.up_proj)
        layer.mlp.up_proj.forward = lambda x: 2 * layer.mlp.up_proj.linear(x)
    if change == "size":
        model.num_parameters = lambda: 7_000_000_000
    assert not LlamaDecoder.fits(model)
    rollouts = sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=5)
    torch.testing.assert_close(rollouts.logprobs, alone(model, rollouts), atol=1e-4, rtol=0)


def test_recording_hidden_states_and_a_value_head_keep_the_fast_path(tiny_tokenizer):
    model = make_lm(tiny_tokenizer)
    model.value = torch.nn.Linear(32, 1)
    model(torch.tensor([[1, 2]]), output_hidden_states=True)
    assert LlamaDecoder.fits(model)


def test_results_can_be_trained_on_and_no_gradient_is_recorded(tiny_tokenizer):
    model = make_lm(tiny_tokenizer)
    rollouts = sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=4)
    assert not rollouts.logprobs.requires_grad
    ratio = (completion_logprobs(model, rollouts) - rollouts.logprobs).exp()  # saves the sampled log-probs
    (ratio * rollouts.logprobs * rollouts.completion_mask).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.inference_mode():
        assert sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=4).texts == rollouts.texts


# Randomness


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    samples=st.integers(1, 3),
    batch_size=st.integers(1, 16),
    seed=st.integers(-(2**70), 2**70),
)
def test_same_seed_same_text_whatever_the_batch_size(architecture, lengths, samples, batch_size, seed):
    tokenizer, model = CACHED[architecture]
    prompts = [list(range(7, 7 + length)) for length in lengths]
    arguments = dict(max_new_tokens=6, samples_per_prompt=samples, seed=seed)
    one, other = (sample(model, tokenizer, prompts, batch_size=b, **arguments) for b in (256, batch_size))
    assert one.texts == other.texts and one.completion_ids.equal(other.completion_ids)
    torch.testing.assert_close(one.logprobs, other.logprobs, atol=1e-5, rtol=0)


CACHED = {}


@pytest.fixture(autouse=True)
def cached_models(tiny_tokenizer):
    for architecture in ("llama", "gpt2"):
        if architecture not in CACHED:
            CACHED[architecture] = tiny_tokenizer, many_ends(make_lm(tiny_tokenizer, architecture))


def test_seeds_rows_and_the_global_state_are_independent(tiny_tokenizer):
    model = make_lm(tiny_tokenizer)
    state = torch.random.get_rng_state()
    texts = [sample(model, tiny_tokenizer, ["a"], max_new_tokens=9, seed=s, samples_per_prompt=4).texts for s in (0, 1)]
    assert torch.random.get_rng_state().equal(state)
    assert len({text for row in texts for text in row}) == 8
    assert sample(model, tiny_tokenizer, ["a"], max_new_tokens=9, seed=0).texts == texts[0][:1]


def p_value(counts, probs):
    """Pearson's chi-square test: the probability of a worse fit if the counts come from probs."""
    expected = probs * counts.sum()
    assert expected.min() > 5, "too few counts for the approximation"
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(probs) - 1) / 2).double(), statistic.double() / 2)


def test_the_generator_is_uniform_and_uncorrelated(device):
    """Four tests, each with a false-alarm rate of 1e-6; the numbers are fixed, so it either always passes or never."""
    u = uniforms(7, torch.arange(1000, device=device), 50).cpu()
    assert u.dtype == torch.float32 and u.min() >= 0 and u.max() < 1
    bins = (u.double() * 16).long()
    flat = torch.full((256,), 1 / 256).double()
    seeds = (uniforms(8, torch.arange(1000, device=device), 50).cpu().double() * 16).long()
    for other in (bins[:, :-1] * 16 + bins[:, 1:], bins[:-1] * 16 + bins[1:], bins[:, ::2] * 16 + seeds[:, ::2]):
        assert p_value(torch.bincount(other.flatten(), minlength=256).double(), flat) > 1e-6
    assert p_value(torch.bincount(bins.flatten(), minlength=16).double(), flat[:16] * 16) > 1e-6
    rows = torch.tensor([3, 500, 7], device=device)
    assert uniforms(7, rows, 20).cpu().equal(u[rows.cpu()][:, :20]), "a number depends on its own row and step alone"


def test_the_generator_gives_the_published_numbers():
    """First outputs of SplitMix64 from state 0 (S. Vigna's reference in C)."""
    states = torch.arange(3) * (0x9E3779B97F4A7C15 - 2**64)
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(x) % 2**64 for x in mix(states)] == expected


@pytest.mark.parametrize("truncation", [dict(), dict(temperature=0.7), dict(top_k=3), dict(top_p=0.7)])
def test_completions_follow_the_distribution(tiny_tokenizer, truncation):
    """All 2-token completions over 5 tokens, against their exact probabilities; false-alarm rate 1e-6, seed fixed."""
    tiny_tokenizer.eos_token = None
    model = make_lm(tiny_tokenizer, vocab=5, eos_token_id=None)
    model.lm_head.weight.data /= 2
    rollouts = sample(model, tiny_tokenizer, [[3, 4]], max_new_tokens=2, samples_per_prompt=20_000, **truncation)
    with torch.no_grad():
        logits = model(torch.tensor([[3, 4, token] for token in range(5)])).logits.double()  # (5, 3, 5)
    logits = logits / truncation.get("temperature", 1.0)
    if "top_k" in truncation:
        logits = TopKLogitsWarper(3)(None, logits.flatten(0, 1)).view_as(logits)
    if "top_p" in truncation:
        logits = TopPLogitsWarper(0.7)(None, logits.flatten(0, 1)).view_as(logits)
    probs = logits.softmax(-1)
    joint = (probs[0, 1][:, None] * probs[:, 2]).flatten()  # (25,)
    counts = torch.bincount(rollouts.completion_ids[:, 0] * 5 + rollouts.completion_ids[:, 1], minlength=25)
    assert counts[joint == 0].sum() == 0 and (joint > 0).sum() >= 4
    assert p_value(counts[joint > 0].double(), joint[joint > 0]) > 1e-6
    logprobs = rollouts.logprobs.sum(-1).double()
    torch.testing.assert_close(logprobs.exp(), joint[rollouts.completion_ids @ torch.tensor([5, 1])], atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(1, 40),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    temperature=st.sampled_from([0.1, 1.0, 3.0]),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.01, 1.0),
    u=st.sampled_from([0.0, 2.0**-23, 0.5, 1 - 2.0**-23]),
    seed=st.integers(0, 1000),
)
def test_draws_stay_in_the_truncated_support(vocab, scale, temperature, top_k, top_p, u, seed):
    logits = scale * torch.randn(3, vocab, generator=torch.Generator().manual_seed(seed))
    logits[0, : vocab // 2] = -torch.inf  # tokens that the model forbids
    tokens, logprobs = draw_tokens(logits, torch.full((3,), u), temperature=temperature, top_k=top_k, top_p=top_p)
    warped = (logits / temperature).double()
    if top_k:
        warped = TopKLogitsWarper(min(top_k, vocab))(None, warped)
    if top_p < 1 and scale:  # equal logits: which of them survive is arbitrary
        slack = TopPLogitsWarper(min(top_p + 1e-5, 1 - 1e-9))(None, warped)
        assert slack.gather(-1, tokens[:, None]).isfinite().all()
    elif scale:
        torch.testing.assert_close(
            logprobs.double(), warped.log_softmax(-1).gather(-1, tokens[:, None])[:, 0], atol=1e-4, rtol=1e-5
        )
    assert logits.gather(-1, tokens[:, None]).isfinite().all(), "a token that the model forbids"
    assert logprobs.isfinite().all() and (logprobs <= 1e-6).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_what_generate_does(tiny_tokenizer, architecture):
    model = make_lm(tiny_tokenizer, architecture)
    rollouts = sample(model, tiny_tokenizer, PROMPTS, max_new_tokens=8, temperature=0, seed=3)
    generated = model.generate(
        rollouts.prompt_ids, attention_mask=rollouts.prompt_mask.long(), do_sample=False, max_new_tokens=8
    )
    width = rollouts.prompt_ids.shape[1]
    assert generated[:, width:][:, : rollouts.completion_ids.shape[1]].equal(rollouts.completion_ids)
    assert (rollouts.logprobs == 0).all(), "under the greedy policy its own choice is certain"
