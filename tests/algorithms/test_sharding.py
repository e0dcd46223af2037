"""Two processes that share out the weights take the steps that one takes with all of them; and what is refused."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from course_lib import launch
from course_lib.algorithms import processes
from course_lib.files import load_json
from course_lib.lm.model import load_lm, save_lm

ROOT = Path(__file__).resolve().parents[2]
CASES = ["pretrain", "pretrain idle", "sft", "reward_model", "reward_model recomputed", "dpo", "dpo adapter",
         "reinforce rloo", "rlhf", "rlhf adapter", "ppo", "ppo shared", "grpo GRPO", "grpo silent half", "grpo all silent"]
KILLED = ["sft", "dpo", "ppo"]


@pytest.fixture(scope="module")
def sharded(two_processes):
    """What two processes found, see `sharded.py`: (of the first, of the second)."""
    return two_processes("sharded.py", ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")


def case_of(found, name):
    if name.endswith("adapter"):
        pytest.importorskip("peft")
    return found[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_sharded_processes_take_the_step_of_one(sharded, name):
    """The same global batch: equal gradients, equal weights after the steps, equal numbers in the history."""
    for found in sharded:
        case = case_of(found, name)
        assert case["gradient"] < 1e-5 and case["history"] < 1e-5 and case["weights"] < 1e-4
        silent = name == "grpo all silent"
        assert (case["steps"] == 0) == silent and (case["size"] > 1e-3) != silent  # there was something to compare
        assert case["plain"]  # what was trained is the model that was given, with parameters like any other's


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES[:-1])
def test_at_every_step_a_process_holds_its_share_alone(sharded, name):
    """Of the weights and of both moments; the whole weights take no memory meanwhile."""
    first, second = (case_of(found, name)["sizes"] for found in sharded)
    assert first and len(first) == len(second)
    for (whole, own, moments, left, _), (_, others, other_moments, other_left, _) in zip(first, second):
        assert own + others == whole and left == other_left == 0
        assert moments <= own and other_moments <= others
    assert name == "pretrain idle" or first[-1][2] == first[-1][1] and second[-1][2] == second[-1][1]
    whole = max(entry[0] for entry in first)
    large = [entry for entry in (*first, *second) if entry[0] == whole]  # a value head has one row, which one process has
    assert all(abs(own - whole / 2) < 0.01 * whole for _, own, _, _, _ in large)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES[:-1])
def test_gradients_are_let_go_while_the_backward_pass_goes_on(sharded, name):
    """Of two layers and the embeddings, never more than about a layer waits for its turn."""
    for found in sharded:
        sizes = case_of(found, name)["sizes"]
        assert all(waiting < 0.5 * max(size[0] for size in sizes) for *_, waiting in sizes)


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_a_killed_sharded_run_goes_on_to_the_same_weights(sharded, name):
    """Bit by bit, by two processes. Its checkpoint is like any other: one process goes on from it as well."""
    for found in sharded:
        case = found[f"killed {name}"]
        assert case["same"] and case.get("alone", 0.0) < 1e-4
    assert ("alone" in case) == (name != "ppo") and not sharded[0][f"killed {name}"]["left"]


@pytest.mark.slow
def test_what_is_trained_on_shares_is_saved_whole(sharded):
    for found in sharded:
        assert found["saved"] == {"same": True, "type": "LlamaForCausalLM",
                                  "files": ["chat_template.jinja", "model.safetensors"]}


@pytest.mark.slow
def test_a_step_that_is_not_taken_leaves_the_weights_alone(sharded):
    assert all(found["diverged"] for found in sharded)


@pytest.mark.slow
def test_without_memory_all_begin_anew_without_old_gradients(sharded):
    for found in sharded:
        for case in (found["memory"], found["memory in backward"]):
            assert max(case["gradient"], case["history"]) < 1e-5 and case["calls"]
    assert sharded[1]["memory"]["calls"] == [4, 2, 2, 2, 2, 2, 2, 2]  # it failed once, and begins the next step with two


@pytest.mark.slow
def test_what_a_share_cannot_do_is_refused_before_the_first_step(sharded):
    for found in sharded:
        (fp16, first), (muon, second) = found["refused"]["fp16"], found["refused"]["muon"]
        assert "'bf16' or 'fp32'" in fp16 and "optimizer 'adamw'" in muon and first and second


@pytest.mark.slow
def test_no_case_is_forgotten(sharded):
    others = {"refused", "diverged", "memory", "memory in backward", "saved", *(f"killed {name}" for name in KILLED)}
    assert {name for name in sharded[0] if not name.endswith("adapter")} | {"dpo adapter", "rlhf adapter"} == {*CASES} | others


# ---- how it is launched ----------------------------------------------------------------------------------------------


def launched(**plugin):
    """What stands for an Accelerator of FSDP's second version."""
    plugin = SimpleNamespace(**dict(fsdp_version=2, cpu_offload=None, activation_checkpointing=False,
                                    cpu_ram_efficient_loading=False) | plugin)
    return SimpleNamespace(distributed_type=SimpleNamespace(value="FSDP"), state=SimpleNamespace(fsdp_plugin=plugin),
                           num_processes=1, parallelism_config=None)


class CPUOffloadPolicy:
    """Called like torch's."""


@pytest.mark.parametrize(("plugin", "says"), [
    ({"fsdp_version": 1}, "fsdp_version: 2"),
    ({"cpu_offload": CPUOffloadPolicy()}, "fsdp_offload_params: false"),
    ({"activation_checkpointing": True}, "gradient_checkpointing: true"),
    ({"cpu_ram_efficient_loading": True}, "fsdp_cpu_ram_efficient_loading: false"),
])
def test_other_kinds_of_fsdp_are_refused_with_what_to_do(plugin, says):
    processes.use(launched())
    processes.use(None)
    with pytest.raises(ValueError, match=says):
        processes.use(launched(**plugin))
    assert processes.size() == 1 and not processes.sharded()


@pytest.mark.parametrize("name", ["tp", "cp", "dp_replicate"])
def test_meshes_of_several_dimensions_are_refused(name):
    accelerator = launched()
    accelerator.parallelism_config = SimpleNamespace(**{f"{name}_size": 2})
    with pytest.raises(ValueError, match="parallelism_config"):
        processes.use(accelerator)


def environment():
    """What `accelerate launch` makes of configs/fsdp.yaml."""
    pytest.importorskip("accelerate")
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(ROOT / "configs/fsdp.yaml"), "-m", "course_lib", "train", "sft"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    made = prepare_multi_gpu_env(args)
    return {key: value for key, value in made.items() if key.startswith(("ACCELERATE_", "FSDP_"))}


def test_the_config_is_read_by_accelerate_and_explains_itself():
    made = environment()
    assert made["ACCELERATE_USE_FSDP"] == "true" and made["FSDP_VERSION"] == "2"
    assert made["FSDP_OFFLOAD_PARAMS"] == made["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"
    said = yaml.safe_load((ROOT / "configs/fsdp.yaml").read_text(encoding="utf-8"))
    assert said["distributed_type"] == "FSDP" and said["fsdp_config"]["fsdp_version"] == 2


@pytest.mark.slow
def test_a_run_launched_with_the_config_leaves_a_plain_model(surrounding, tiny_lm, tmp_path):
    """As `accelerate launch --config_file configs/fsdp.yaml` starts it: by torch's launcher, and gloo in place of NCCL."""
    save_lm(tmp_path / "tiny", *tiny_lm)
    words = {"model": tmp_path / "tiny", "limit": 6, "batch_size": 3, "precision": "fp32"}
    flags = [x for key, value in words.items() for x in (f"--{key}", str(value))]
    command = ["train", "sft", "--config", str(ROOT / "configs/sft.yaml"), *flags]
    env = surrounding(**environment(), COURSE_QUIET="") | {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}  # the default's value
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={env['MASTER_PORT']}"]
    done = subprocess.run([*start, "-m", "course_lib", *command, "--output", str(tmp_path / "out")],
                          env=env, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training over 2 processes on cpu, fully sharded") == 1
    assert launch.run([*command[1:], "--output", str(tmp_path / "alone")]) == 0
    one, other = (load_lm(tmp_path / name, device="cpu")[0] for name in ("out", "alone"))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    before = tiny_lm[0].state_dict()
    assert any(not torch.equal(p, before[name]) for name, p in one.named_parameters())
    for a, b in zip(load_json(tmp_path / "out/history.json"), load_json(tmp_path / "alone/history.json"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
