"""One number in place of a next token: the value head, and the critics of PPO that have one."""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from course_lib.lm.device import autocast
from course_lib.lm.logprobs import accepted, eval_mode, position_ids, recomputed
from course_lib.lm.sampling import Rollouts


def value_head(width: int) -> nn.Linear:
    """From a hidden state to a value. It starts at 0: a critic that knows nothing yet must not say anything loud."""
    head = nn.Linear(width, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def completion_hidden(trunk: nn.Module, rollouts: Rollouts) -> Tensor:
    """The hidden states from which each token of the completions is predicted: (N, T, width), with gradients.

    Entry t has read the prompt and the tokens before t. A prompt is read once for all of its samples; dropout is off.
    """
    first, prompt = rollouts.prompts()                                   # (B,), (N,)
    width, real = rollouts.prompt_ids.shape[1], rollouts.completion_mask
    with eval_mode(trunk):
        if len(first) == len(prompt) or recomputed(trunk):
            ids = torch.cat([rollouts.prompt_ids, rollouts.completion_ids[:, :-1]], 1)  # (N, P+T-1)
            mask = torch.cat([rollouts.prompt_mask, real[:, :-1]], 1)
            return _hidden(trunk, ids, mask).last_hidden_state[:, width - 1 :]
        read = _hidden(trunk, rollouts.prompt_ids[first], rollouts.prompt_mask[first], use_cache=True)
        before = read.last_hidden_state[:, -1:][prompt]                  # (N, 1, width)
        if real.shape[1] == 1:
            return before
        read.past_key_values.reorder_cache(prompt)
        mask = torch.cat([rollouts.prompt_mask[first][prompt], real[:, :-1]], 1)
        rest = _hidden(trunk, rollouts.completion_ids[:, :-1], mask, use_cache=True, past_key_values=read.past_key_values)
        return torch.cat([before, rest.last_hidden_state], 1)


def _hidden(trunk: nn.Module, ids: Tensor, mask: Tensor, use_cache: bool = False, **cache):
    positions = accepted(trunk, position_ids=position_ids(mask)[:, -ids.shape[1] :])
    return trunk(input_ids=ids, attention_mask=mask.long(), use_cache=use_cache, **cache, **positions)


class ValueModel(nn.Module):
    """A copy of a language model's trunk with a value head, in float32, for it is trained.

    lm: where the trunk's weights come from, the policy's start or a reward model; it stays as it is.
    """

    def __init__(self, lm: PreTrainedModel):
        super().__init__()
        self.trunk = copy.deepcopy(lm.get_decoder()).float().requires_grad_(True)
        self.head = value_head(lm.config.get_text_config().hidden_size).to(lm.device)


class LMCritic:
    """V(s_t) of the text before each token of a completion, by a model of its own: PPO's fourth model."""

    shared = False

    def __init__(self, model: ValueModel, precision: str = "auto"):
        self.model, self.trunk, self.head, self.precision = model, model.trunk, model.head, precision

    def values(self, states: Sequence, action: Rollouts) -> Tensor:
        """(n, T) float32 with gradients, 0 where masked. The first token's value has read the prompt alone."""
        with autocast(action.prompt_ids.device, self.precision):
            hidden = completion_hidden(self.trunk, action)
        return self._valued(hidden, action)

    def _valued(self, hidden: Tensor, action: Rollouts) -> Tensor:
        return self.head(hidden.to(self.head.weight.dtype))[..., 0].float().masked_fill(~action.completion_mask, 0)


SCALES = ("logits_scaling", "final_logit_softcapping", "logit_scale")  # of Granite, Gemma 2 and Cohere: behind the LM head


class SharedCritic(LMCritic):
    """The same by a value head on the policy's own trunk: a model less, and two objectives that pull at one trunk.

    Raises ValueError for a policy that does more to its logits than its LM head: one forward pass would not give them.
    """

    shared = True

    def __init__(self, policy: PreTrainedModel, precision: str = "auto"):
        config = policy.config.get_text_config()
        for name in SCALES:
            if getattr(config, name, None) not in (None, 1):
                raise ValueError(f"the policy's logits have a {name}, which the LM head alone does not apply: give PPO a critic "
                                 "of its own, LMCritic(ValueModel(policy))")
        self.policy, self.trunk, self.precision = policy, policy.get_decoder(), precision
        self.model = self.head = value_head(config.hidden_size).to(policy.device)

    def logprobs_and_values(self, action: Rollouts, temperature: float) -> tuple[Tensor, Tensor]:
        """ln p and V of each token from one forward pass: (n, T) each, float32, 0 where masked."""
        mask = action.completion_mask
        with autocast(mask.device, self.precision):
            hidden = completion_hidden(self.trunk, action)
            logits = self.policy.get_output_embeddings()(hidden[mask])                                  # (tokens, V)
        chosen = -F.cross_entropy(logits.float() / temperature, action.completion_ids[mask], reduction="none")
        return chosen.new_zeros(mask.shape).masked_scatter(mask, chosen), self._valued(hidden, action)
