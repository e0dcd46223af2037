"""The reward head: read where the answer ends, never at padding; saved and loaded to the same rewards."""

import pytest
import torch
from torch import nn

from course_lib.lm.logprobs import recompute
from course_lib.lm.reward_head import RewardModel, Scored, collate, encode_answer, load_reward_model

CHAT = [{"role": "user", "content": "Where is SF?"}]


def rows_of(tokenizer, answers=("CA", "SF is in CA, USA", "It is in the west of the USA, in California")):
    return [encode_answer(tokenizer, CHAT, answer) for answer in answers]


def model_on(lm, pooling, **options):
    model = RewardModel.on(lm.cpu(), pooling=pooling, **options)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(3))
    return model


@pytest.fixture(params=["last", "mean"])
def model(request, tiny_lm):
    return model_on(tiny_lm[0], request.param)


def test_an_answer_is_encoded_as_the_chat_template_writes_it(tiny_tokenizer):
    row = encode_answer(tiny_tokenizer, CHAT, "SF is in CA")
    whole = [*CHAT, {"role": "assistant", "content": "SF is in CA"}]
    assert row.ids == tiny_tokenizer.apply_chat_template(whole, return_dict=True)["input_ids"]
    assert tiny_tokenizer.decode(row.ids[row.start :]) == "SF is in CA<|end|>"
    assert encode_answer(tiny_tokenizer, CHAT, "SF is in CA", finished=False).ids == row.ids[:-1]


def test_text_that_spells_a_special_token_stays_text(tiny_tokenizer):
    row = encode_answer(tiny_tokenizer, CHAT, "no <|end|> here")
    assert row.ids.count(tiny_tokenizer.eos_token_id) == 2  # the question's own and the answer's own


@pytest.mark.parametrize(("answer", "finished", "length", "says"), [
    ("x" * 50, True, 40, "more than max_length 40"), ("", False, 256, "no token to judge")])
def test_an_answer_that_cannot_be_judged_whole_is_refused(tiny_tokenizer, answer, finished, length, says):
    with pytest.raises(ValueError, match=says):
        encode_answer(tiny_tokenizer, CHAT, answer, finished, length)


def test_pitfall_27_padding_on_either_side_changes_nothing(tiny_lm, model):
    rows = rows_of(tiny_lm[1])
    alone = torch.cat([model(*collate([row], "cpu")) for row in rows])
    ids, real, answer = collate(rows, "cpu")
    assert torch.allclose(model(ids, real, answer), alone, atol=1e-5)
    wider = [nn.functional.pad(x, (0, 7)) for x in (ids, real, answer)]
    assert torch.allclose(model(*wider), alone, atol=1e-5)
    left = [torch.stack([x.roll(int((~r).sum())) for x, r in zip(part, real)]) for part in (ids, real, answer)]
    assert torch.allclose(model(*left), alone, atol=1e-5)


def test_pitfall_27_what_stands_in_the_padding_is_never_read(tiny_lm, model):
    """Whatever token padding is, END and one that is no padding token at all included."""
    ids, real, answer = collate(rows_of(tiny_lm[1]), "cpu")
    given = model(ids, real, answer)
    for token in (tiny_lm[1].pad_token_id, tiny_lm[1].eos_token_id, 100):
        assert torch.equal(model(torch.where(real, ids, token), real, answer), given)


def test_pitfall_27_an_end_inside_the_prompt_is_not_the_answers_end(tiny_lm):
    """The question's END comes first: reading there would give every answer to a question the same reward."""
    model = model_on(tiny_lm[0], "last")
    assert len(set(model(*collate(rows_of(tiny_lm[1]), "cpu")).tolist())) == 3


def test_the_reward_is_the_head_on_the_last_real_hidden_state(tiny_lm):
    """By hand: the backbone's own output at the last token, in float32, through the head."""
    model = model_on(tiny_lm[0], "last")
    for row in rows_of(tiny_lm[1]):
        hidden = model.backbone(input_ids=torch.tensor([row.ids])).last_hidden_state[0, -1]
        assert model(*collate([row], "cpu")).item() == pytest.approx((hidden @ model.head.weight[0]).item(), abs=1e-5)


def test_mean_pooling_is_over_the_answer_alone(tiny_lm):
    model = model_on(tiny_lm[0], "mean")
    (row,) = rows_of(tiny_lm[1], ["SF is in CA"])
    hidden = model.backbone(input_ids=torch.tensor([row.ids])).last_hidden_state[0, row.start :].mean(0)
    assert model(*collate([row], "cpu")).item() == pytest.approx((hidden @ model.head.weight[0]).item(), abs=1e-5)


def test_pitfall_22_a_row_without_an_answer_is_an_error_not_nan(model):
    ids, real = torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="without a real token of an answer"):
        model(ids, real, torch.tensor([[False] * 5, [False, False, False, False, True]]))
    with pytest.raises(ValueError, match="without a real token"):
        model(ids, real & torch.tensor([[False], [True]]), real)  # a row of padding alone


def test_pitfall_7_dropout_is_off_while_scoring_and_on_again_after(tiny_lm):
    model, rows = model_on(tiny_lm[0], "last"), rows_of(tiny_lm[1])
    for layer in model.backbone.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    first, second = model.score(rows, precision="fp32"), model.score(rows, precision="fp32")
    assert torch.equal(first, second) and model.training and not first.requires_grad


def test_scores_come_in_the_order_of_the_rows_whatever_the_batches(tiny_lm, model):
    rows = rows_of(tiny_lm[1])
    together = model(*collate(rows, "cpu"))
    for size in (1, 2, 256):
        assert torch.allclose(model.score(rows[::-1], size, "fp32"), together.flip(0), atol=1e-5)


def test_whitening_sets_constants_and_keeps_the_order(model, tiny_lm):
    rows = rows_of(tiny_lm[1])
    raw = model.score(rows, precision="fp32")
    for _ in range(2):  # whitening what is white changes nothing
        model.whiten(model.score(rows, precision="fp32"))
        white = model.score(rows, precision="fp32")
        assert float(white.mean()) == pytest.approx(0, abs=1e-4) and float(white.std()) == pytest.approx(1, abs=1e-4)
    assert torch.equal(white.argsort(), raw.argsort())
    model.whiten(model.score(rows[:2], precision="fp32"))  # other answers, so another zero and unit
    other = model.score(rows[:2], precision="fp32")
    assert float(other.mean()) == pytest.approx(0, abs=1e-4) and float(other.std()) == pytest.approx(1, abs=1e-4)
    assert float(model.score(rows[:1], precision="fp32")) == pytest.approx(float(other[0]), abs=1e-4)  # not per batch
    with pytest.raises(ValueError, match="at least two"):
        model.whiten(raw[:1])


def test_saved_and_loaded_it_gives_the_same_rewards(model, tiny_lm, tmp_path):
    rows = rows_of(tiny_lm[1])
    model.whiten(model.score(rows, precision="fp32"))
    model.save(tmp_path, tiny_lm[1])
    again, tokenizer = load_reward_model(tmp_path, device="cpu")
    assert again.pooling == model.pooling and not again.training
    assert torch.equal(again.score(rows_of(tokenizer), precision="fp32"), model.score(rows, precision="fp32"))
    assert not [f.name for f in tmp_path.iterdir() if f.suffix in (".bin", ".pt", ".pkl")]


def test_the_first_layers_of_a_model_that_lists_its_layers_are_saved_and_loaded_too(tiny_tokenizer, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    lm = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                      num_attention_heads=2, num_key_value_heads=1)).eval()
    model, rows = model_on(lm, "last", layers=1), rows_of(tiny_tokenizer)
    model.save(tmp_path, tiny_tokenizer)
    again, _ = load_reward_model(tmp_path, device="cpu")
    assert len(again.backbone.layers) == 1 and len(lm.config.layer_types) == len(lm.model.layers) == 2
    assert torch.equal(again.score(rows, precision="fp32"), model.score(rows, precision="fp32"))


def test_pitfall_25_the_given_model_is_copied_and_left_alone(tiny_lm):
    lm, tokenizer = tiny_lm
    before = {name: p.clone() for name, p in lm.named_parameters()}
    model = RewardModel.on(lm, layers=1)
    assert len(model.backbone.layers) == 1 and len(lm.get_decoder().layers) == 2
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert all(torch.equal(p, before[name]) for name, p in lm.named_parameters())


def test_arguments_out_of_range_are_named(tiny_lm):
    with pytest.raises(ValueError, match="layers is between 1 and 2"):
        RewardModel.on(tiny_lm[0], layers=3)
    with pytest.raises(ValueError, match="pooling is one of"):
        RewardModel.on(tiny_lm[0], pooling="first")


def test_other_backbones_of_hugging_face(tiny_tokenizer):
    """GPT-2 takes absolute positions, Qwen2 rotary ones with biases."""
    from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM

    size = dict(vocab_size=len(tiny_tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2)
    for lm in (GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=128, **size)),
               Qwen2ForCausalLM(Qwen2Config(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                            num_key_value_heads=1, **size))):
        model = model_on(lm.eval(), "last")
        rows = rows_of(tiny_tokenizer)
        alone = torch.cat([model(*collate([row], "cpu")) for row in rows])
        ids, real, answer = collate(rows, "cpu")
        assert torch.allclose(model(ids, real, answer), alone, atol=1e-5)
        left = [torch.stack([x.roll(int((~r).sum())) for x, r in zip(part, real)]) for part in (ids, real, answer)]
        assert torch.allclose(model(*left), alone, atol=1e-5)  # absolute positions must count real tokens only


def test_collate_marks_what_is_real_and_what_is_the_answers():
    ids, real, answer = collate([Scored([5, 6, 7], 1), Scored([5, 8], 1)], "cpu")
    assert ids.tolist() == [[5, 6, 7], [5, 8, 0]]
    assert real.int().tolist() == [[1, 1, 1], [1, 1, 0]] and answer.int().tolist() == [[0, 1, 1], [0, 1, 0]]


GROUPS = [("Where is SF?", ("CA", "SF is in CA, USA", "It is in the west of the USA, in California")),
          ("Which country is Lyon in?", ("France", "Lyon is in France, a country in Europe"))]


def groups_of(tokenizer):
    return [[encode_answer(tokenizer, [{"role": "user", "content": question}], answer) for answer in answers]
            for question, answers in GROUPS]


def test_answers_to_one_prompt_read_together_get_the_rewards_that_each_gets_alone(tiny_lm, model):
    rows = groups_of(tiny_lm[1])
    alone = torch.cat([model(*collate([answer], "cpu")) for row in rows for answer in row])
    together = model.compare(rows)
    assert torch.allclose(together, alone, atol=1e-5)
    weights = torch.arange(1.0, len(alone) + 1)
    for one, other in zip(*(torch.autograd.grad((r * weights).sum(), [*model.parameters()]) for r in (together, alone))):
        assert torch.allclose(one, other, atol=1e-4)


def test_a_prompt_is_read_once_and_the_last_mlp_where_the_reward_is_read(tiny_lm):
    model, rows, seen = model_on(tiny_lm[0], "last"), groups_of(tiny_lm[1]), []
    mlps = [layer.mlp.down_proj for layer in model.backbone.layers]
    hooks = [mlp.register_forward_hook(lambda _, args, out: seen.append(out.shape[:-1].numel())) for mlp in mlps]
    model.compare(rows)
    width = max(row[0].start + sum(len(a.ids) - a.start for a in row) for row in rows)
    assert seen == [len(rows) * width] * (len(mlps) - 1) + [5]
    for hook in hooks:
        hook.remove()


def test_layers_that_are_computed_again_in_the_backward_pass_give_the_same_gradients(tiny_lm):
    model, rows = model_on(tiny_lm[0], "last").train(), groups_of(tiny_lm[1])
    weights, found, ran = torch.arange(1.0, 6.0), [], []
    model.backbone.layers[0].mlp.register_forward_pre_hook(lambda *_: ran.append(1))
    for again in (False, True):
        if again:
            recompute(model.backbone)
        ran.clear()
        rewards = model.compare(rows)
        found.append([rewards, *torch.autograd.grad((rewards * weights).sum(), [*model.parameters()])])
    assert len(ran) == 2  # it was computed again
    for plain, recomputed in zip(*found, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-5)


def test_answers_to_different_prompts_do_not_share_one(tiny_lm):
    mixed = [[groups_of(tiny_lm[1])[0][0], groups_of(tiny_lm[1])[1][0]]]
    with pytest.raises(ValueError, match="different prompts"):
        model_on(tiny_lm[0], "last").compare(mixed)


def test_a_backbone_whose_attention_takes_no_mask_of_ones_own_reads_each_answer_alone(tiny_lm):
    model = model_on(tiny_lm[0], "last")
    shared = model.compare(groups_of(tiny_lm[1]))
    model.backbone.set_attn_implementation("eager")
    assert torch.allclose(model.compare(groups_of(tiny_lm[1])), shared, atol=1e-5)
