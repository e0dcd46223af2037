"""From what a notebook author writes (a text, words, ids, a conversation) to tokens and what is trained on."""

from collections.abc import Sequence


def conversation(tokenizer, messages: list[dict]) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation in the chat template, and which of them the assistant wrote (its end included).

    Raises:
        ValueError: the template does not mark the assistant's tokens, so nothing can tell them apart.
    """
    if "{% generation %}" not in (tokenizer.chat_template or "").replace("{%-", "{%").replace("-%}", "%}"):
        raise ValueError("This tokenizer's chat template has no {% generation %} markers: give `mask` yourself "
                         "(LossMask, WordByWord), or the numbers: KLMap(state=KLMapState(...)).")
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    return list(encoded["input_ids"]), [bool(flag) for flag in encoded["assistant_masks"]]


def tokenise(source: str | Sequence, tokenizer=None, mask=None) -> tuple[list, list[bool]]:
    """`source` as tokens (words without a tokenizer, ids with one) and whether each is trained on.

    Args:
        source: a text, a list of words, a list of ids, or a list of messages (`{"role": ..., "content": ...}`).
        tokenizer: needed for ids and messages; a text then starts with its BOS token.
        mask: one truth value per token; without it, the assistant's tokens of a conversation, all tokens of a text.
    """
    if isinstance(source, str) and tokenizer is None:
        tokens, trained = source.split(), None
    elif isinstance(source, str):
        bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        tokens, trained = bos + tokenizer.encode(source, add_special_tokens=False), None
    elif len(source) and isinstance(source[0], dict):
        if tokenizer is None:
            raise ValueError("A conversation needs a tokenizer, whose chat template turns it into tokens.")
        tokens, trained = conversation(tokenizer, source)
    else:
        tokens, trained = list(source), None
    if len(tokens) < 2:
        raise ValueError(f"At least two tokens are needed, an input and its target; got {tokens!r}.")
    trained = list(map(bool, mask)) if mask is not None else trained or [True] * len(tokens)
    if len(trained) != len(tokens):
        raise ValueError(f"The mask has {len(trained)} entries for {len(tokens)} tokens: {tokens!r}.")
    return tokens, trained
