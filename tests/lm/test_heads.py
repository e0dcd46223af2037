"""The value head: which text a value has read, and that it costs the policy nothing."""

import copy

import pytest
import torch

from course_lib.algorithms.reinforce import adam
from course_lib.environments import LMAgent
from course_lib.lm.enumerate import letters_lm
from course_lib.lm.heads import LMCritic, SharedCritic, ValueModel, value_head
from course_lib.lm.sampling import sample

PROMPTS = [[3, 0, 1], [3, 2]]


def loud(head):
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, head.weight.numel())[None])
        head.bias.fill_(0.25)


@pytest.fixture(params=[1, 3], ids=["one sample", "shared prompts"])
def setting(request):
    model, tokenizer = letters_lm(3, seed=1, device="cpu")
    out = sample(model, tokenizer, PROMPTS, max_new_tokens=5, samples_per_prompt=request.param, seed=2)
    return model, tokenizer, out


def one_by_one(trunk, head, out):
    """The values of each row alone, without padding, by a plain forward pass over all of its text."""
    rows = torch.zeros(out.completion_ids.shape)
    for i, mask in enumerate(out.completion_mask):
        prompt, answer = out.prompt_ids[i][out.prompt_mask[i]], out.completion_ids[i][mask]
        hidden = trunk(input_ids=torch.cat([prompt, answer])[None], use_cache=False).last_hidden_state[0]
        rows[i, : len(answer)] = head(hidden[len(prompt) - 1 : -1])[:, 0]
    return rows


def test_a_value_has_read_the_text_before_its_token(setting):
    model, _, out = setting
    critic = LMCritic(ValueModel(model), "fp32")
    loud(critic.head)
    values = critic.values(None, out)
    assert values.dtype == torch.float32 and values.requires_grad
    assert torch.allclose(values, one_by_one(critic.trunk, critic.head, out), atol=1e-5)
    changed = copy.deepcopy(out)
    changed.completion_ids[:, -1] = (changed.completion_ids[:, -1] + 1) % 3  # the last token is nobody's past
    assert torch.equal(critic.values(None, changed), values)


def test_padding_is_not_read(setting):
    model, _, out = setting
    critic = LMCritic(ValueModel(model), "fp32")
    loud(critic.head)
    values = critic.values(None, out)
    assert (values[~out.completion_mask] == 0).all()
    junk = copy.deepcopy(out)
    junk.prompt_ids[~out.prompt_mask] = 1
    junk.completion_ids[~out.completion_mask] = 1
    assert torch.allclose(critic.values(None, junk), values, atol=1e-6)


def test_pitfall_value_head_initialised_large(setting):
    model, _, out = setting
    for critic in (LMCritic(ValueModel(model), "fp32"), SharedCritic(model, "fp32")):
        assert (critic.values(None, out) == 0).all()
    head = value_head(4)
    head(torch.ones(4)).sum().backward()
    assert (head.weight.grad != 0).all()  # it can learn all the same


def test_one_forward_pass_gives_the_policys_logprobs(setting):
    model, tokenizer, out = setting
    agent, critic = LMAgent(model, tokenizer, temperature=0.7, precision="fp32"), SharedCritic(model, "fp32")
    loud(critic.head)
    logprobs, values = critic.logprobs_and_values(out, 0.7)
    assert torch.allclose(logprobs, agent.logprobs(None, out), atol=1e-5)
    assert torch.allclose(values, one_by_one(model.get_decoder(), critic.head, out), atol=1e-5)


def test_who_owns_the_trunk(setting):
    """A critic of its own never touches the policy; a shared one trains the policy's trunk, and owns the head alone."""
    model, _, out = setting
    before = copy.deepcopy(model.state_dict())
    own = LMCritic(ValueModel(model), "fp32")
    loud(own.head)
    own.values(None, out).sum().backward()
    adam(own.model)[0].step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    shared = SharedCritic(model, "fp32")
    loud(shared.head)
    shared.values(None, out).sum().backward()
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0 and len(list(shared.model.parameters())) == 2


def test_a_critic_of_a_half_precision_policy_is_trained_in_float32(setting):
    model, _, out = setting
    critic = LMCritic(ValueModel(model.bfloat16()), "fp32")
    assert {p.dtype for p in critic.model.parameters()} == {torch.float32} != {p.dtype for p in model.parameters()}
    loud(critic.head)
    critic.values(None, out).sum().backward()
    assert critic.trunk.embed_tokens.weight.grad.abs().sum() > 0


def test_pitfall_dropout_on_in_one_of_two_passes(setting):
    model, _, out = setting
    critic = LMCritic(ValueModel(model), "fp32")
    loud(critic.head)
    for layer in critic.trunk.layers:
        layer.self_attn.attention_dropout = 0.5
    critic.model.train()
    assert torch.equal(critic.values(None, out), critic.values(None, out)) and critic.trunk.training
