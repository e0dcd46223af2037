"""Conversations as tokens, for any tokenizer: which of them the assistant wrote, and what a tokenizer must have for it.

A template of the course marks the assistant's words with {% generation %}. Most templates of the hub do not: there the
conversation is written once up to each answer, with the prompt for an answer, and once including it; what the second text
has more is the answer.
"""

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHATML = (  # for a base model without a template: SmolLM2 and Qwen have these tokens in their vocabularies
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_TEMPLATE = ("messages need a tokenizer with a chat template, and this one, of a base model, has none: load the model's "
               "instruct version, or set tokenizer.chat_template (course_lib.lm.chat.CHATML is one, with "
               "tokenizer.eos_token = '<|im_end|>') and train it by SFT")
NEVER_STOP = "the model would never learn to stop. Set tokenizer.eos_token to the token that ends a turn"


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a model and its tokenizer a padding token that is not the end token, if the vocabulary has one to spare.

    One that ChatML or the tokenizer's own template writes is none to spare: as padding it would not be learnt any more.
    Where padding is the end token (or missing, and then usually made the end token), whoever masks padding by its id masks
    the end too, and the model never learns to stop.
    """
    end = tokenizer.eos_token_id
    if tokenizer.pad_token_id in (None, end):
        spare = {token.content: i for i, token in sorted(tokenizer.added_tokens_decoder.items())
                 if token.special and i not in (tokenizer.bos_token_id, end)
                 and token.content not in f"{CHATML}{tokenizer.chat_template}"}
        named = [content for content in spare if "pad" in content.lower()]
        tokenizer.pad_token = next(iter([*named, *spare]), tokenizer.eos_token)
    model.config.pad_token_id = tokenizer.pad_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id


def encode(tokenizer: PreTrainedTokenizerBase, conversation: Sequence[dict]) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them the assistant wrote, the end of each answer included.

    Raises ValueError for a tokenizer without a chat template, for a template that rewrites earlier answers when the
    conversation goes on, and for one whose answers do not end with the tokenizer's end token.
    """
    if not tokenizer.chat_template:
        raise ValueError(NO_TEMPLATE)
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        coded = tokenizer.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = coded["input_ids"], [bool(m) for m in coded["assistant_masks"]]
        ends = sum(said and token == tokenizer.eos_token_id for token, said in zip(ids, mask))
        if ends < sum(message["role"] == "assistant" for message in conversation):
            raise ValueError(f"this chat template does not end what it marks as an answer with the tokenizer's end token "
                             f"{tokenizer.eos_token!r}: {NEVER_STOP}")
        return ids, mask
    whole, spans = tokenizer.apply_chat_template(conversation, tokenize=False), []
    for i, message in enumerate(conversation):
        if message["role"] == "assistant":
            before = tokenizer.apply_chat_template(conversation[:i], tokenize=False, add_generation_prompt=True)
            after = tokenizer.apply_chat_template(conversation[: i + 1], tokenize=False)
            spans.append((len(before), _answer_end(tokenizer, whole, before, after)))
    coded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    return coded["input_ids"], [any(start <= first and last <= end for start, end in spans) and first < last
                                for first, last in coded["offset_mapping"]]


def _answer_end(tokenizer: PreTrainedTokenizerBase, whole: str, before: str, after: str) -> int:
    """Where in `whole` the answer ends that `after` has more than `before`: behind its end token. What a template writes
    between that and the next turn, a line's end as a rule, no model has to say."""
    if not (whole.startswith(after) and after.startswith(before)):
        raise ValueError("this chat template rewrites the conversation as it goes on, so that the assistant's words cannot be "
                         "told from the rest: mark them with {% generation %} ... {% endgeneration %} in "
                         "tokenizer.chat_template, or give conversations with one answer each")
    said, end = after[len(before) :], tokenizer.eos_token
    if end is None or end not in said:
        raise ValueError(f"this chat template ends an answer with {said[-20:]!r}, which does not hold the tokenizer's end "
                         f"token {end!r}: {NEVER_STOP}")
    return len(before) + said.rindex(end) + len(end)
