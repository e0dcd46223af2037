"""The course's tokenizer: byte-level BPE, single digits, a chat template that marks what the assistant says."""

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>", "tool": "<|tool|>"}
SPECIAL = [PAD, BOS, END, *ROLES.values()]  # ids 0, 1, 2, ...; padding is not the end token, so that END is learnt

# Digits and the letters of abbreviations are tokens of their own: 13 is read as 1 and 3, SF as S and F, so that a model can
# copy an abbreviation that it has never met.
SPELLED = r"\d|[A-Z](?=[A-Z])|(?<=[A-Z])[A-Z]"

# {% generation %} tells transformers which tokens the assistant wrote: content and END, and nothing else.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('unknown role ' + message['role'] + ': use system, user, assistant or tool') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024, max_length: int = 256) -> PreTrainedTokenizerFast:
    """Byte-pair encoding (Sennrich et al. 2016) over bytes, learnt from `texts`.

    Any text encodes and decodes to itself: the 256 bytes are always in the vocabulary. Digits, and letters in a run of
    capitals, are tokens of their own. `tokenizer(text)` adds no special tokens; callers place them.

    Raises ValueError when `vocab_size` cannot hold the bytes and the special tokens.
    """
    least = 256 + len(SPECIAL)
    if vocab_size < least:
        raise ValueError(f"vocab_size {vocab_size} is too small: 256 bytes and {len(SPECIAL)} special tokens need {least}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPELLED), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        extra_special_tokens=list(ROLES.values()),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_length,
        padding_side="left",
    )


def encode_documents(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of each text between BOS and END. An empty text is an error: there would be nothing to learn."""
    texts = list(texts)
    if not all(texts):
        raise ValueError(f"text {texts.index('')} is empty")
    # split_special_tokens: a text that spells "<|end|>" is text, not an end
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in encoded]
