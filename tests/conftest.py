"""Fixtures that all tests share. torch is imported only by tests that use it."""

import importlib.util
import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as for a job in the background; tests of Ctrl-C need the default
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch loads; tiny models are fastest so
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SPECIAL = ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|system|>"]


def pytest_generate_tests(metafunc):
    """A test with an argument `device` runs once on every kind of device this machine has."""
    if "device" in metafunc.fixturenames:
        import torch

        devices = ["cpu"]
        devices += ["cuda"] if torch.cuda.is_available() else []
        devices += ["mps"] if torch.backends.mps.is_available() else []
        metafunc.parametrize("device", devices)


@pytest.fixture(autouse=True)
def surroundings(request, monkeypatch, tmp_path_factory):
    """Unit tests get an empty store and one thread; tests of claims share the real store and, of the cores, what falls to each
    of pytest's processes."""
    monkeypatch.delenv("COURSE_STRICT", raising=False)
    if request.node.get_closest_marker("claims"):
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(max(1, os.cpu_count() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))))
        yield
        torch.set_num_threads(before)
    else:
        monkeypatch.setenv("COURSE_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture
def tiny_tokenizer():
    """One token per byte after the seven special ones, in the shape of the course's own tokenizer: 263 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from course_lib.lm.tokenizer import CHAT_TEMPLATE

    symbols = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({symbol: token for token, symbol in enumerate(symbols)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        additional_special_tokens=SPECIAL[3:],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def tiny_lm(tiny_tokenizer):
    """(model, tokenizer): a random two-layer Llama, 32 wide, on the CPU in eval mode; the same weights each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from course_lib.lm.fast import speed_up

    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return speed_up(model).eval(), tiny_tokenizer


@pytest.fixture(scope="session")
def build():
    """`notebooks/build.py` as a module."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "notebooks" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
