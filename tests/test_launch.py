"""One run from a YAML file: what is read, what is refused, what a dry run says, and what a run leaves behind."""

import errno
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from course_lib import cli, launch, memory, setup_env, store
from course_lib.lm.model import load_lm, save_lm
from course_lib.lm.reward_head import load_reward_model
from course_lib.rewards.learned import LearnedReward

ROOT = Path(__file__).resolve().parents[1]
FILES = {name: ROOT / "configs" / f"{name}.yaml" for name in launch.ALGORITHMS}
QUICK = {"sft": dict(limit=6, batch_size=3), "reward_model": dict(limit=6, batch_size=3), "dpo": dict(limit=6, batch_size=3),
         **{name: dict(steps=2, count=2, samples=4, limit=8, max_new_tokens=5, unfinished="null", checkpoint_every=1,
                       reward="reward_for_tests:letters")
            for name in ("reinforce", "rlhf", "ppo", "grpo")}}


@pytest.fixture
def tiny(tiny_lm, tmp_path, monkeypatch):
    """A folder with a tiny model, and a module with a reward that tells any two answers apart."""
    (tmp_path / "reward_for_tests.py").write_text(
        "def letters(prompts, completions, **columns):\n    return [sum(map(ord, str(c))) % 17 / 17 for c in completions]\n"
        "def same(prompts, completions, **columns):\n    return [0.0 for _ in completions]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    save_lm(tmp_path / "tiny", *tiny_lm)
    return tmp_path / "tiny"


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
    monkeypatch.setattr(setup_env, "ensure", lambda argv: None)
    for name in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PYTHONUTF8", "TOKENIZERS_PARALLELISM", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def words(name, tiny, out, **changes):
    flags = {"model": tiny, "output": out, **QUICK[name], **changes}
    return ["train", name, "--config", str(FILES[name]), *(x for key, v in flags.items() for x in (f"--{key}", str(v)))]


@pytest.mark.parametrize("name", FILES)
def test_the_file_of_every_algorithm_runs_and_explains_each_key(name, tiny, tmp_path):
    text = FILES[name].read_text(encoding="utf-8")
    said = yaml.safe_load(text)
    settings, config = launch.read(name, FILES[name], {})
    assert set(said) <= {*vars(settings), *vars(config)}
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) == len(said) and sum("#" in line for line in lines) > len(lines) / 2
    assert cli.main(words(name, tiny, tmp_path / "out")) == 0
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert history and not (tmp_path / "out" / "checkpoint").exists()
    start, _ = load_lm(tiny, device="cpu")
    if name == "reward_model":
        (model, _), start = load_reward_model(tmp_path / "out"), launch.RewardModel.on(start)
        assert not torch.equal(model.head.weight.cpu(), start.head.weight)
    else:
        model, _ = load_lm(tmp_path / "out", device="cpu")
        assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters()))


def test_pitfall_30_every_setting_reaches_the_run(tiny, monkeypatch):
    seen = {}
    monkeypatch.setattr(launch.ppo, "train", lambda agent, world, config, **more: seen.update(agent=agent, world=world, **more))
    monkeypatch.setattr(launch.reward_model, "train", lambda judge, *_, **more: seen.update(judge=judge))
    for critic, kind in (("shared", launch.SharedCritic), ("own", launch.LMCritic)):
        flags = dict(reward="reward_for_tests:letters", temperature="0.7", unfinished="-2", max_new_tokens="9", critic=critic)
        settings, config = launch.read("ppo", FILES["ppo"], flags)
        launch.online("ppo", settings, config, [{"prompt": "a"}], "fp32", *load_lm(tiny, device="cpu"))
        assert (seen["agent"].temperature, seen["agent"].max_new_tokens, seen["world"].unfinished) == (0.7, 9, -2.0)
        assert type(seen["critic"]) is kind
    settings, config = launch.read("reward_model", FILES["reward_model"], dict(layers="1", pooling="mean"))
    launch.supervised("reward_model", settings, config, [], "fp32", *load_lm(tiny, device="cpu"), torch.device("cpu"))
    assert len(seen["judge"].backbone.layers) == 1 and seen["judge"].pooling == "mean"


def test_a_reward_model_is_alone_on_the_device(tiny, tmp_path, monkeypatch):
    """The language model that it is a copy of stays on the CPU."""
    seen = {}
    monkeypatch.setattr(launch, "best_device", lambda: torch.device("meta"))
    monkeypatch.setattr(launch, "load_lm", lambda name, device: seen.update(model=device) or load_lm(name, device=device))
    monkeypatch.setattr(launch.reward_model, "train", lambda judge, *_, **more: seen.update(judge=judge.device))
    monkeypatch.setattr(launch, "save", lambda *_: None)
    assert cli.main(words("reward_model", tiny, tmp_path / "out")) == 0
    assert str(seen["model"]) == "cpu" and str(seen["judge"]) == "meta"


def test_a_missing_model_is_trained_before_the_processes_connect(tiny, tmp_path, monkeypatch):
    """Afterwards the one that trains it would wait for the others, and these for its lock on the store."""
    order = []
    monkeypatch.setattr(launch, "folder_of", lambda name: order.append("model"))
    monkeypatch.setattr(launch, "connect", lambda settings: order.append("connect"))
    assert cli.main(words("sft", tiny, tmp_path / "out")) == 0
    assert order == ["model", "connect"]


def test_the_reward_model_of_one_run_is_the_reward_of_the_next(tiny, tmp_path, monkeypatch):
    assert cli.main(words("reward_model", tiny, tmp_path / "judge")) == 0
    judged, judge = [], LearnedReward.__call__
    monkeypatch.setattr(LearnedReward, "__call__", lambda *args, **kw: judged.append(judge(*args, **kw)) or judged[-1])
    assert cli.main(words("rlhf", tiny, tmp_path / "out", reward=tmp_path / "judge")) == 0
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert [sum(scores) / len(scores) for scores in judged] == pytest.approx([entry["reward"] for entry in history], abs=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_a_dry_run_trains_nothing(name, tiny, tmp_path, capsys):
    assert cli.main([*words(name, tiny, tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"{name}: {tiny}" in said and "policy" in said and "tokens a step" in said and "\nfits: about" in said
    assert not (tmp_path / "out").exists()


def test_a_dry_run_does_not_train_the_model_it_would_begin_with(tmp_path, capsys):
    assert cli.main(["train", "sft", "--config", str(FILES["sft"]), "--model", "base", "--dry-run"]) == 1
    assert "the model base is not in the store" in capsys.readouterr().err and not store.root().joinpath(".locks").exists()


def test_a_dry_run_says_what_does_not_fit(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1_000_000)
    assert cli.main([*words("grpo", tiny, tmp_path / "out"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "DOES NOT FIT" in said and "gradient_checkpointing: true" in said


def test_a_dry_run_refuses_what_the_run_would(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert cli.main([*words("grpo", tiny, tmp_path / "out"), "--dry-run"]) == 1
    assert "2 prompts cannot be dealt out equally to 3 processes: choose a multiple for `count`" in capsys.readouterr().err


def test_the_estimate_of_a_sharded_run_divides_what_the_optimizer_needs(tiny, tmp_path, capsys, monkeypatch):
    def optimizer():
        assert cli.main([*words("rlhf", tiny, tmp_path / "out"), "--dry-run"]) == 0
        policy, reference = (line.split() for line in capsys.readouterr().out.splitlines()
                             if line.startswith(("policy", "reference")))
        assert float(reference[3]) == 0
        return [float(number) for number in policy[1:4]]

    monkeypatch.setenv("WORLD_SIZE", "2")
    weights, gradients, moments = optimizer()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert optimizer() == pytest.approx([weights, gradients / 2, (moments + gradients) / 2], rel=1e-2)


def test_the_estimate_counts_the_roles_of_the_run(tiny, tmp_path):
    def roles(name, **flags):
        settings, config = launch.read(name, FILES[name], {key: str(v) for key, v in flags.items()})
        return launch.memory_of(name, settings, config, memory.LLAMA_7B, 64, 100, 100, "fp32")

    assert set(roles("grpo")) == {"policy"} and set(roles("grpo", beta=0.1)) == {"policy", "reference"}
    assert set(roles("rlhf", reward=tmp_path)) == {"policy", "reference", "reward"}
    assert set(roles("ppo")) == {"policy", "value"} and set(roles("ppo", critic="shared")) == {"policy"}
    assert set(roles("rlhf", lora=16)) == {"policy"}  # the model below the adapter is the reference
    full, adapter = roles("sft")["policy"], roles("sft", lora=16)["policy"]
    assert adapter.optimizer < 0.02 * full.optimizer and adapter.gradients < 0.02 * full.gradients
    assert roles("sft", gradient_checkpointing="true")["policy"].activations < 0.3 * full.activations


# ---- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "says"), [
    ({"lerning_rate": 1}, "lerning_rate: no setting of grpo is called"),
    ({"sample": 4}, "--sample: no setting of grpo is called 'sample': did you mean 'samples'"),
    ({"critic": "own"}, "--critic: no setting of grpo"), ({"evaluations": 5}, "--evaluations: no setting of grpo"),
    ({"steps": "many"}, "--steps must be a whole number, not 'many'"),
    ({"steps": 1.5}, "--steps must be a whole number, not 1.5"),
    ({"lr": "[1]"}, "--lr must be a number"),
    ({"lr": "[x"}, "--lr: '[x' is not YAML"), ({"lr": "2026-13-45"}, "--lr: '2026-13-45' is not YAML"),
    ({"data": "*.jsonl"}, "no file '*.jsonl'"), ({"model": "%x"}, "no model '%x'"),
    ({"precision": 16}, "precision is one of auto, fp32, bf16, fp16, not '16'"),
    ({"output": "null"}, "--output must be a text, not None"),
    ({"scale": "maybe"}, "--scale must be true or false, not 'maybe'"),
    ({"precision": "half"}, "precision is one of auto, fp32, bf16, fp16, not 'half'"),
    ({"tracker": "paper"}, "tracker is one of None, tensorboard, trackio"),
    ({"samples": 1}, "at least two samples"),
    ({"data": "nowhere.jsonl"}, "no file 'nowhere.jsonl'"),
    ({"data": "atlass"}, "no data set 'atlass'"),
    ({"reward": "nothing"}, "reward: 'nothing' is none of gold, maths"),
    ({"reward": "maths", "data": "atlas"}, "reward maths needs the column answer"),
    ({"model": "bas"}, "did you mean 'base'"),
])
def test_what_cannot_be_is_said_in_a_line_that_names_the_key(change, says, tiny, tmp_path, capsys):
    assert cli.main(words("grpo", tiny, tmp_path / "out", **change)) == 1
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said


@pytest.mark.parametrize(("text", "says"), [
    ("lr: 1\nmodel: base\ndata: sums", "output is missing"), ("lr: true", "config.yaml: lr must be a number, not True"),
    ("model: 3", "model must be a text"), ("a: [", "is not YAML"), ("just words", "must hold lines like"),
    ("betta: 1", "did you mean 'beta'"),
])
def test_mistakes_in_the_file_name_it(text, says, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(text)
    assert cli.main(["train", "grpo", "--config", str(tmp_path / "config.yaml")]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("argv", "says"), [
    (["grppo", "--config", "x.yaml"], "did you mean 'grpo'"), (["--config", "x.yaml"], "give one algorithm"),
    (["grpo", "--config", "x.yaml"], "no file 'x.yaml': configs/grpo.yaml"), (["grpo", "--config"], "--config needs a value"),
    (["grpo", "dpo", "--config=x.yaml"], "give one algorithm"),
])
def test_mistakes_on_the_command_line(argv, says, capsys):
    assert cli.main(["train", *argv]) == 1
    assert says in capsys.readouterr().err


def test_no_data_and_a_bad_row_are_named(tiny, tmp_path, capsys):
    (tmp_path / "pairs.jsonl").write_text("")
    assert cli.main(words("dpo", tiny, tmp_path / "out", data=tmp_path / "pairs.jsonl")) == 1
    assert "is empty" in capsys.readouterr().err
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    assert cli.main(words("dpo", tiny, tmp_path / "out", data=tmp_path / "pairs.jsonl")) == 1
    assert "row 0: there is no column rejected" in capsys.readouterr().err


def test_a_finished_run_is_not_overwritten(tiny, tmp_path, capsys):
    assert cli.main(words("sft", tiny, tmp_path / "out")) == 0
    assert cli.main(words("sft", tiny, tmp_path / "out")) == 1
    assert "output: the run in" in capsys.readouterr().err


def test_without_accelerate_a_tracker_is_refused_and_the_rest_works(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert cli.main(words("sft", tiny, tmp_path / "a", tracker="tensorboard")) == 1
    assert "needs the package accelerate" in capsys.readouterr().err
    assert cli.main(words("sft", tiny, tmp_path / "b")) == 0


def test_a_tracker_that_is_not_there_is_named(tiny, tmp_path, capsys, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    assert cli.main(words("sft", tiny, tmp_path / "a", tracker="trackio")) == 1
    assert "pip install trackio" in capsys.readouterr().err


# ---- values ----------------------------------------------------------------------------------------------------------


def test_a_limit_beyond_what_a_world_has_is_all_of_it():
    every = launch.of_world("sums", "questions", 10**6)
    assert 1000 < len(every) < 10**6 and len({str(row["prompt"]) for row in every}) == len(every)


def test_flags_win_and_yaml_numbers_are_numbers(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "model: base\ndata: sums\noutput: o\nlr: 1e-5\nsteps: 3\nclip_range: .inf\nclip_high: null\n")
    flags = {"steps": "5", "beta": "1e-3", "gradient_checkpointing": "true"}
    settings, config = launch.read("grpo", tmp_path / "c.yaml", flags)
    assert (config.lr, config.steps, config.beta, config.clip_range) == (1e-5, 5, 1e-3, float("inf"))
    assert settings.gradient_checkpointing is True and config.clip_high is None


@pytest.mark.parametrize(("said", "meant"), [
    ("2026-10-18", "2026-10-18"), ("2026-13-45", "2026-13-45"), ("123", "123"), ("1e-5", "1e-5"), ("no", "no"), ("@run", "@run"),
    ("[x", "[x"), ("[x]", "[x]"), ("%x", "%x"), ("a: b", "a: b"), ("a b", "a b"), ("'a b'", "a b"), ("null", None),
])
def test_a_flag_that_is_a_text_is_taken_as_it_is(said, meant):
    settings, _ = launch.read("grpo", FILES["grpo"], {"reward": said})
    assert settings.reward == meant


@pytest.mark.parametrize("world", launch.WORLDS)
@pytest.mark.parametrize("kind", ["conversations", "preferences", "questions"])
def test_worlds_have_examples_of_each_kind(world, kind):
    rows = launch.of_world(world, kind, 20)
    assert 15 <= len(rows) <= 20 and rows == launch.of_world(world, kind, 20)
    if kind == "conversations":
        assert all([m["role"] for m in row] == ["user", "assistant"] for row in rows)
    elif kind == "preferences":
        assert all(row["chosen"] != row["rejected"] and row["prompt"][0]["role"] == "user" for row in rows)


def test_rewards_by_name_and_by_module(tmp_path, monkeypatch):
    (tmp_path / "mine_for_test.py").write_text(
        "def short(prompts, completions, **c):\n    return [-len(t) for t in completions]\n")
    monkeypatch.chdir(tmp_path)
    settings, _ = launch.read("grpo", FILES["grpo"], {"reward": "mine_for_test:short"})
    assert launch.reward_of(settings)(prompts=[""], completions=["abc"]) == [-3]
    for world, name in (("atlas", "_atlas"), ("sums", "maths"), ("functions", "code")):
        settings, _ = launch.read("grpo", FILES["grpo"], {"data": world})
        assert launch.reward_of(settings).__name__ == name
    settings, _ = launch.read("grpo", FILES["grpo"], {"data": "x.jsonl"})
    with pytest.raises(ValueError, match="reward is missing"):
        launch.reward_of(settings)


def test_an_adapter_is_trained_and_saved_alone(tiny, tmp_path):
    peft = pytest.importorskip("peft")
    assert cli.main(words("rlhf", tiny, tmp_path / "out", lora=2, gradient_checkpointing="true")) == 0
    base, words_of_base = load_lm(tiny, device="cpu")
    from course_lib.lm.lora import load_lora

    assert isinstance(load_lora(base, tmp_path / "out"), peft.PeftModel) and not (tmp_path / "out" / "config.json").exists()
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == words_of_base.get_vocab()


def test_a_killed_run_goes_on_by_the_same_command(tiny, tmp_path, monkeypatch):
    from course_lib.algorithms import reinforce

    whole = words("reinforce", tiny, tmp_path / "whole", steps=4)
    assert cli.main(whole) == 0
    log, calls = reinforce.Run.log, []

    def killed(self, *args, **more):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return log(self, *args, **more)

    again = words("reinforce", tiny, tmp_path / "killed", steps=4)
    monkeypatch.setattr(reinforce.Run, "log", killed)
    assert cli.main(again) == 130
    monkeypatch.setattr(reinforce.Run, "log", log)
    assert cli.main(again) == 0
    assert (tmp_path / "killed/history.json").read_bytes() == (tmp_path / "whole/history.json").read_bytes()
    assert (tmp_path / "killed/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "grpo"])
def test_a_run_whose_model_could_not_be_saved_goes_on_to_saving_it(name, tiny, tmp_path, monkeypatch):
    """The disk is full at the very end, and the last step is none after which a checkpoint is due."""
    whole, again = (words(name, tiny, tmp_path / out, checkpoint_every=100) for out in ("whole", "again"))
    assert cli.main(whole) == 0
    with monkeypatch.context() as full:
        def save(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        full.setattr(launch, "save", save)
        with pytest.raises(OSError, match="No space left"):
            launch.run(again[1:])
    assert (tmp_path / "again/checkpoint/state.json").exists()
    for step in (torch.optim.Adam, torch.optim.AdamW):
        monkeypatch.setattr(step, "step", lambda *_: pytest.fail("a step was taken again"))
    assert cli.main(again) == 0 and not (tmp_path / "again/checkpoint").exists()
    for file in sorted(path.name for path in (tmp_path / "whole").iterdir()):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_a_run_that_took_no_step_says_so(tiny, tmp_path, capsys):
    assert cli.main(words("grpo", tiny, tmp_path / "out")) == 0
    assert "NOTHING WAS LEARNT" not in capsys.readouterr().err
    assert cli.main(words("grpo", tiny, tmp_path / "same", reward="reward_for_tests:same")) == 0
    assert "NOTHING WAS LEARNT: all answers to a prompt had the same reward" in capsys.readouterr().err


@pytest.mark.slow
def test_two_launched_processes_train_together(tiny, tmp_path):
    """As `accelerate launch` starts them on several GPUs: by torch's launcher, and gloo in place of NCCL."""
    pytest.importorskip("accelerate")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", "-m", "course_lib",
               *words("grpo", tiny, tmp_path / "out")]
    env = dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1",
               COURSE_QUIET="")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training over 2 processes on cpu") == 1 and done.stderr.count("GRPO: 2 steps") == 1
    alone = tmp_path / "alone"
    assert cli.main(words("grpo", tiny, alone)) == 0
    assert (tmp_path / "out/history.json").read_text() != (alone / "history.json").read_text()  # other prompts, other answers
