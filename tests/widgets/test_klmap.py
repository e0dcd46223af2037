"""The KL map: each token's log-ratio, its colour and its sum."""

import numpy as np
import pytest

from course_lib.widgets import KLMap
from course_lib.widgets.klmap import LESS, MORE, KLMapState, frame, plus


@pytest.fixture
def state():
    return KLMapState(["CA", "<b>", "end"], [-1.0, -3.0, -0.5], [-2.5, -1.0, -0.5], beta=0.1, context=["SF?"])


def test_the_ratio_is_policy_minus_reference(state):
    assert state.ratios.tolist() == [1.5, -2.0, 0.0]
    assert state.total() == -0.5 and state.penalty() == pytest.approx([0.15, -0.2, 0.0])


def test_each_model_reads_the_text_once(tiny_lm):
    model, tokenizer = tiny_lm
    read = []
    model.register_forward_hook(lambda *_: read.append(1))
    state = KLMapState.of(model, lambda ids: np.zeros((len(ids), len(tokenizer))), tokenizer, "a b c")
    assert len(state.policy) == 5 and read == [1]


def test_the_sign_stands_in_text(state):
    assert state.text().startswith("CA(+1.50) <b>(−2.00) end(0.00)\n")
    assert "= −0.50 nats; times beta = 0.1 the reward loses −0.05. 1 of 3 tokens became more likely, 1 less." in state.text()
    assert "The furthest is <b>, 7.39 times less likely." in state.text()
    assert "+1.50" in state.html() and "−2.00" in state.html()


def test_colours_tell_direction_and_size():
    fills = [frame(ratio)["fill"] for ratio in (-2, -1, -0.2, -0.05, 0.05, 0.2, 1, 2)]
    assert fills == [LESS[3][0], LESS[2][0], LESS[1][0], LESS[0][0], MORE[0][0], MORE[1][0], MORE[2][0], MORE[3][0]]
    assert frame(0.0)["edge"] == frame(-0.0)["edge"] and len(set(fills)) == 7


def test_plus():
    assert [plus(x) for x in (0.5, -0.5, 0.001, -0.001)] == ["+0.50", "−0.50", "0.00", "0.00"]


def test_content_is_escaped(state):
    assert "<b>" not in state.html() and "&lt;b&gt;" in state.html()


def test_two_models_over_the_answer_alone(model, tiny_tokenizer, messages):
    def doubled(ids):
        return 2 * model(ids)

    state = KLMapState.of(doubled, model, tiny_tokenizer, messages)
    assert state.tokens == ["C", "A", "<|end|>"] and state.context[0] == "<|bos|>" and state.context[-1] == "<|assistant|>"
    ids = tiny_tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    logits = model(ids)
    for t, ratio in zip(range(len(ids) - 3, len(ids)), state.ratios, strict=True):
        p, q = (np.exp(k * logits[t - 1]) / np.exp(k * logits[t - 1]).sum() for k in (2, 1))
        assert ratio == pytest.approx(np.log(p[ids[t]] / q[ids[t]]))
    assert KLMapState.of(model, model, tiny_tokenizer, messages).total() == 0


def test_the_same_numbers_from_torch_models(llama, messages):
    lm, tokenizer = llama
    assert KLMapState.of(lm, lm, tokenizer, messages).ratios.tolist() == [0, 0, 0]


def test_the_slider_sets_beta(state):
    widget = KLMap(state=state)
    assert widget.slider.value == 0.1
    widget.slider.value = 1.0
    assert state.beta == 1.0 and "beta = 1 the reward loses −0.50" in widget.picture.value
    assert KLMap(state=KLMapState(["a"], [-1], [-2], beta=0.37)).slider.value == 0.37


@pytest.mark.parametrize(("policy", "reference", "beta", "says"), [
    ([-1.0], [-1.0, -2.0], 0.1, "2 tokens, 1 of the policy, 2 of the reference"),
    ([-1.0, -np.inf], [-1.0, -2.0], 0.1, "no chance at all"),
    ([-1.0, -1.0], [-1.0, -2.0], -1, "at least 0"),
])
def test_wrong_arguments(policy, reference, beta, says):
    with pytest.raises(ValueError, match=says):
        KLMapState(["a", "b"], policy, reference, beta)
