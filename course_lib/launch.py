"""One training run from a YAML file: what `python -m course_lib train grpo --config configs/grpo.yaml` does.

    python -m course_lib train grpo --config configs/grpo.yaml --model smollm2-135m --reward gsm8k --lr 1e-6
    python -m course_lib train grpo --config configs/grpo.yaml --dry-run
    accelerate launch --multi_gpu --num_processes 4 -m course_lib train grpo --config configs/grpo.yaml
    accelerate launch --config_file configs/fsdp.yaml -m course_lib train grpo --config configs/grpo.yaml

A file has the settings of a run (`Settings`), and beside them the fields of the algorithm's config. Every key is a flag,
and the flag wins. A key that the algorithm does not read is refused. The run goes to the folder `output`: weights and
tokenizer, `history.json`, and while all is not written yet a checkpoint, from which the same command goes on after a kill.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
import yaml

from course_lib import data_sets, memory
from course_lib.algorithms import dpo, grpo, ppo, processes, reinforce, reward_model, rlhf, sft
from course_lib.algorithms.training import checkpoint_kept
from course_lib.environments import LMAgent, Questions
from course_lib.files import save_json
from course_lib.lm.device import best_device, bf16_pays
from course_lib.lm.heads import LMCritic, SharedCritic, ValueModel
from course_lib.lm.hub import folder_of
from course_lib.lm.logprobs import recompute
from course_lib.lm.model import load_lm, save_lm
from course_lib.lm.reward_head import RewardModel
from course_lib.lm.sampling import encode_prompt
from course_lib.progress import say

WORLDS = ("atlas", "sums", "functions")
UNREAD = {"evaluations"}  # fields of the configs that do nothing here, where no data are held out
NO_ACCELERATE = "needs the package accelerate: run `pip install accelerate` (the extra \"scale\" of the course)"


@dataclass(frozen=True)
class Settings:
    """What every run is told, whatever its algorithm."""

    model: str                            # see `load_lm`
    data: str                             # a world of the course, or what `data_sets.load` takes: a file, a name of the hub
    output: str                           # the folder of the run
    limit: int = 2000                     # most examples
    preset: str | None = None             # how the columns of the data are called, see `data_sets.PRESETS`
    bad: str = "refuse"                   # "drop": leave out examples with a mistake
    precision: str = "auto"               # "fp32", "bf16", "fp16" (a T4), or "auto": bf16 where that pays
    lora: int = 0                         # width of an adapter that is trained in place of the model; 0: all weights
    gradient_checkpointing: bool = False  # keep less for the backward pass, and compute it again
    tracker: str | None = None            # "tensorboard" or "trackio"


@dataclass(frozen=True)
class JudgeSettings(Settings):
    layers: int | None = None  # of the model that the reward model keeps; None: all
    pooling: str = "last"      # see `RewardModel`


@dataclass(frozen=True)
class OnlineSettings(Settings):
    reward: str | None = None       # see `reward_of`; None: the world's own
    max_new_tokens: int = 48        # of an answer
    temperature: float = 1.0        # of sampling
    unfinished: float | None = 0.0  # reward of an answer that was cut off; None: the reward's own business


@dataclass(frozen=True)
class PPOSettings(OnlineSettings):
    critic: str = "own"  # "shared": a value head on the policy's trunk


ALGORITHMS: dict[str, tuple[type, type]] = {
    "sft": (Settings, sft.SFTConfig), "reward_model": (JudgeSettings, reward_model.RewardConfig),
    "reinforce": (OnlineSettings, reinforce.ReinforceConfig), "rlhf": (OnlineSettings, rlhf.RLHFConfig),
    "ppo": (PPOSettings, ppo.PPOConfig), "grpo": (OnlineSettings, grpo.GRPOConfig), "dpo": (Settings, dpo.DPOConfig),
}


# ---- reading the settings --------------------------------------------------------------------------------------------


def run(argv: Sequence[str]) -> int:
    """The command line behind `train`: ALGORITHM --config FILE [--dry-run] [--KEY VALUE ...]. Returns the exit code.

    Raises ValueError for anything that cannot be: the message names the key.
    """
    name, file, dry, flags = arguments(argv)
    settings, config = read(name, file, flags)
    if dry:
        print(report(name, settings, config))
        return 0
    train(name, settings, config)
    return 0


def arguments(argv: Sequence[str]) -> tuple[str, Path, bool, dict[str, str]]:
    """Algorithm, file, whether it is a dry run, and the flags."""
    words, dry, flags, rest = list(argv), False, {}, []
    while words:
        word = words.pop(0)
        key, given, value = word[2:].partition("=")
        if word == "--dry-run":
            dry = True
        elif not word.startswith("--"):
            rest.append(word)
        elif not given and not words:
            raise ValueError(f"the flag {word} needs a value")
        else:
            flags[key.replace("-", "_")] = value if given else words.pop(0)
    if len(rest) != 1:
        raise ValueError(f"with --config give one algorithm, of {', '.join(ALGORITHMS)}, not {' '.join(rest) or 'none'}")
    return known(rest[0], ALGORITHMS, "algorithm"), Path(flags.pop("config", "")), dry, flags


def known(name: str, names, kind: str) -> str:
    """The name, if it is one; else ValueError with the closest."""
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
    raise ValueError(f"no {kind} is called {name!r}: {hint}")


def read(name: str, file: Path, flags: dict[str, str]) -> tuple[Any, Any]:
    """Settings and config of a run from a YAML file and the flags, which win."""
    if not file.is_file():
        raise ValueError(f"no file '{file}': configs/{name}.yaml of the course is one to begin with")
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {error}") from None
    if not isinstance(said, dict):
        raise ValueError(f"{file} must hold lines like `lr: 1e-5`")
    given = {key: (value, f"{file}: {key}") for key, value in said.items()}
    parts = ALGORITHMS[name]
    hints = {key: hint for part in parts for key, hint in get_type_hints(part).items() if key not in UNREAD}
    for key, text in flags.items():
        given[key] = (_flag(key, text, hints.get(key)), f"--{key}")
    values = {}
    for key, (value, place) in given.items():
        try:
            known(str(key), hints, f"setting of {name}")
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        values[key] = typed(value, hints[key], place)
    settings, config = parts
    for field in dataclasses.fields(settings):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise ValueError(f"{file}: {field.name} is missing")
    names = {field.name for field in dataclasses.fields(config)}
    one = settings(**{k: v for k, v in values.items() if k in {f.name for f in dataclasses.fields(settings)}})
    _check(one)
    return one, config(**{key: value for key, value in values.items() if key in names})


def _flag(key: str, text: str, hint: Any) -> Any:
    """What a flag says, read as YAML; for a setting that is a text, the flag's own where YAML reads no text, as in 2026-10-18."""
    is_text = hint in (str, str | None)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # ValueError: a date that there is not
        if is_text:
            return text
        raise ValueError(f"--{key}: {text!r} is not YAML") from None
    return text if is_text and not isinstance(value, str | None) else value


def typed(value: Any, hint: Any, place: str) -> Any:
    """The value as what the setting is; YAML reads 1e-5 as text, and an integer where a float is meant."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    kind = next(option for option in options if option is not type(None))
    try:
        if kind in (int, float) and isinstance(value, str | int | float) and not isinstance(value, bool):
            number = float(value)
            if kind is float or number == int(number):
                return kind(number)
        elif isinstance(value, kind):
            return value
    except (ValueError, OverflowError):
        pass
    name = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "a mapping"}[kind]
    raise ValueError(f"{place} must be {name}, not {value!r}")


def _check(settings: Settings) -> None:
    choices = {"precision": ("auto", "fp32", "bf16", "fp16"), "bad": ("refuse", "drop"), "critic": ("own", "shared"),
               "tracker": (None, "tensorboard", "trackio"), "pooling": ("last", "mean")}
    for key, allowed in choices.items():
        value = getattr(settings, key, allowed[0])
        if value not in allowed:
            raise ValueError(f"{key} is one of {', '.join(map(str, allowed))}, not {value!r}")
    if isinstance(settings, JudgeSettings) and settings.lora:
        raise ValueError("lora: a reward model has no adapter here; `layers` makes it smaller")


# ---- data and rewards ------------------------------------------------------------------------------------------------


def examples(name: str, settings: Any) -> list:
    """What the algorithm learns from: conversations, preferences or questions, from a world or through `data_sets`."""
    kind = {"sft": "conversations", "dpo": "preferences", "reward_model": "preferences"}.get(name, "questions")
    if settings.data in WORLDS:
        rows = of_world(settings.data, kind, settings.limit)
    elif kind == "questions":
        rows = data_sets.prompts(settings.data, **_options(settings))
    else:
        rows = getattr(data_sets, kind)(settings.data, **_options(settings))
    return rows


def _options(settings: Settings) -> dict:
    return {"limit": settings.limit, "preset": settings.preset, "bad": settings.bad}


def of_world(world: str, kind: str, count: int) -> list:
    """Examples from a world of the course: correct conversations; a right answer and one with a mistake; questions."""
    from course_lib.experiments import grpo as rules
    from course_lib.experiments import preferences, questions, starts
    from course_lib.experiments.reward_model import GROUP
    from course_lib.worlds import atlas, functions, people, sums
    from course_lib.worlds.draw import Draw

    draw = Draw(f"{kind} of {world}")
    if world == "atlas":
        cities = atlas.splits()["train"]
        if kind == "conversations":
            return questions.clean_sft(0, cities, 6, 0, 0)[:count]
        rows = preferences.prompts(0, cities, count)
        if kind == "questions":
            return rows
        named = {city.city: city for city in cities}
        pool = [row | {"answers": [people.answer(draw, named[row["city"]]) for _ in range(8)]} for row in rows]
        return preferences.comparisons(pool, GROUP, count, 0)
    if kind == "conversations":
        return starts.lessons(world, count, 0.0, 0)
    if kind == "questions":
        return rules.rows_of(world, "train", min(count, len(sums.problems(2, "train"))) if world == "sums" else count)
    pairs = []
    for _ in range(count):
        if world == "sums":
            problem = draw.pick(sums.problems(2))
            told, sides = sums.story(problem, draw), (sums.chain(problem), starts.flawed(problem, draw))
        else:
            task = draw.pick(functions.tasks(2))
            told, sides = functions.describe(task, draw), (task.code, starts.miscoded(task, draw))
        if sides[0] != sides[1]:
            pairs.append({"prompt": [{"role": "user", "content": told}], "chosen": sides[0], "rejected": sides[1]})
    return pairs


def reward_of(settings: OnlineSettings):
    """"gold" (the atlas), "maths" (a number behind "#"), "gsm8k" (behind "####"), "code" (unit tests), "module:function" in
    the course's convention, or the folder of a reward model. The worlds have one of their own."""
    from course_lib.rewards.code import CodeReward
    from course_lib.rewards.gold import atlas_gold
    from course_lib.rewards.maths import maths_reward

    name = settings.reward or {"atlas": "gold", "sums": "maths", "functions": "code"}.get(settings.data)
    rules = {"gold": lambda: atlas_gold, "maths": maths_reward, "code": CodeReward,
             "gsm8k": lambda: maths_reward("####", fallback=True)}
    if name is None:
        raise ValueError(f"reward is missing: one of {', '.join(rules)}, module:function, or a reward model's folder")
    if name in rules:
        return rules[name]()
    if Path(name).is_dir():
        from course_lib.lm.reward_head import load_reward_model
        from course_lib.rewards.learned import LearnedReward

        return LearnedReward(*load_reward_model(name))
    module, _, function = name.partition(":")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"reward: {name!r} is none of {', '.join(rules)}, no folder, and no module:function "
                         f"({error})") from None


# ---- training --------------------------------------------------------------------------------------------------------


def connect(settings: Settings):
    """The `Accelerator` of this process where one is needed: with other processes, or for a tracker. Else None."""
    launched = int(os.environ.get("WORLD_SIZE", 1)) > 1 or "ACCELERATE_MIXED_PRECISION" in os.environ
    if not launched and settings.tracker is None:
        return None
    try:
        from accelerate import Accelerator
    except ImportError:
        raise ValueError(f"a run over processes, or with a tracker, {NO_ACCELERATE}") from None
    if settings.tracker and importlib.util.find_spec(settings.tracker) is None:
        raise ValueError(f"tracker: {settings.tracker} is not installed: run `pip install {settings.tracker}`")
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # or transformers would load weights in the first process alone
    accelerator = Accelerator(mixed_precision="no", log_with=settings.tracker, project_dir=settings.output)
    processes.use(accelerator)
    if processes.rank():
        os.environ["COURSE_QUIET"] = "1"
    say(f"training over {processes.size()} process{'es' * (processes.size() > 1)} on {accelerator.device.type}"
        f"{', fully sharded' * processes.sharded()}")
    return accelerator


def train(name: str, settings: Any, config: Any) -> list[dict]:
    """Run the algorithm and write what came of it; returns the history."""
    out = Path(settings.output)
    if (out / "history.json").exists():
        raise ValueError(f"output: the run in '{out}' is over already; choose another folder, or delete it")
    rows = examples(name, settings)
    folder_of(settings.model)  # trained, converted or fetched, if need be, while each process is still alone
    accelerator = connect(settings)
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no") if settings.precision == "auto" else "no"
    precision = asked if asked in ("bf16", "fp16") else settings.precision
    if accelerator and settings.tracker:
        flat = {**dataclasses.asdict(settings), **dataclasses.asdict(config)}
        accelerator.init_trackers(name, {key: v for key, v in flat.items() if isinstance(v, int | float | str)})
    try:
        device = accelerator.device if accelerator else best_device()
        model, tokenizer = load_lm(settings.model, device="cpu" if name == "reward_model" else device)  # see `supervised`
        shape = [settings, config, rows, precision]
        with checkpoint_kept(out / "checkpoint"):
            if name in ("sft", "dpo", "reward_model"):
                trained, history = supervised(name, *shape, model, tokenizer, device)
            else:
                trained, history = online(name, *shape, model, tokenizer)
            if processes.rank() == 0:
                save(out, trained, tokenizer, history)
    finally:
        if accelerator:
            accelerator.end_training()
            processes.use(None)
    if history and not any(entry.get("updates", 1) for entry in history):
        say("NOTHING WAS LEARNT: all answers to a prompt had the same reward, in every batch, so that no step was taken. Does "
            "the prompt say what the reward wants? Are answers cut off (max_new_tokens)? Is the task too hard or too easy?")
    return history


def save(out: Path, trained, tokenizer, history: list[dict]) -> None:
    """Weights and tokenizer, an adapter alone where one was trained, and last the history."""
    out.mkdir(parents=True, exist_ok=True)
    if isinstance(trained, RewardModel):
        trained.save(out, tokenizer)
    elif hasattr(trained, "disable_adapter"):
        from course_lib.lm.lora import save_lora

        save_lora(out, trained)
        tokenizer.save_pretrained(out)
    else:
        save_lm(out, trained, tokenizer)
    save_json(out / "history.json", history)
    say(f"the model and its history are in {out}")


def prepared(settings: Settings, model):
    """The model as it is to be trained: with an adapter, with layers that are computed again."""
    if settings.lora:
        from course_lib.lm.lora import add_lora

        model = add_lora(model, settings.lora)
    if settings.gradient_checkpointing:
        recompute(model)
    return model


def supervised(name: str, settings: Any, config: Any, rows: list, precision: str, model, tokenizer, device: torch.device
               ) -> tuple:
    """SFT, DPO or a reward model: the trained model and the history. A reward model is made out of a copy of its model, which
    is not needed on the device."""
    config = dataclasses.replace(config, precision=precision)
    more = {"checkpoint": Path(settings.output) / "checkpoint"}
    if name == "reward_model":
        judge = RewardModel.on(model, layers=settings.layers, pooling=settings.pooling).to(device)
        if settings.gradient_checkpointing:
            recompute(judge.backbone)
        return judge, reward_model.train(judge, tokenizer, rows, config, **more)
    model = prepared(settings, model)
    return model, {"sft": sft, "dpo": dpo}[name].train(model, tokenizer, rows, config, **more)


def online(name: str, settings: Any, config: Any, rows: list, precision: str, model, tokenizer) -> tuple:
    """An algorithm that learns from its own answers: the trained policy and the history."""
    policy = prepared(settings, model)
    more: dict = {"checkpoint": Path(settings.output) / "checkpoint"}
    if name == "rlhf" or getattr(config, "beta", 0):
        if settings.lora:
            from course_lib.lm.lora import adapter_off

            more["reference"] = adapter_off(policy)
        else:
            more["reference"] = rlhf.frozen(policy)
    if name == "ppo":
        more["critic"] = SharedCritic(policy, precision) if settings.critic == "shared" else LMCritic(
            ValueModel(policy), precision)
    agent = LMAgent(policy, tokenizer, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature,
                    precision=precision)
    environment = Questions(rows, reward_of(settings), settings.unfinished)
    algorithm = {"reinforce": reinforce, "rlhf": rlhf, "ppo": ppo, "grpo": grpo}[name]
    return policy, algorithm.train(agent, environment, config, **more)


# ---- the dry run -----------------------------------------------------------------------------------------------------


def report(name: str, settings: Any, config: Any) -> str:
    """What would run: the model, the tokens, the memory of each role by formula, and whether the device holds it."""
    from transformers import AutoConfig, AutoTokenizer

    from course_lib import artifacts, store

    if settings.model in artifacts.models() and store.status(settings.model) != "ready":
        raise ValueError(f"the model {settings.model} is not in the store, and a dry run trains nothing: "
                         f"`python -m course_lib train {settings.model}` does")
    folder = folder_of(settings.model)
    tokenizer, count = AutoTokenizer.from_pretrained(folder), int(os.environ.get("WORLD_SIZE", 1))
    shape = memory.shape_of(AutoConfig.from_pretrained(folder))
    rows, device = examples(name, settings), best_device()
    half = settings.precision in ("bf16", "fp16") or settings.precision == "auto" and bf16_pays(device.type)
    prompt, answer = lengths(name, settings, tokenizer, rows)
    asked = (batch_of(name, config) // count if hasattr(config, "batch_size") else
             processes.equal_share(config.count, count) * config.samples)
    usage = memory_of(name, settings, config, shape, asked, prompt, answer, "autocast" if half else "fp32")
    if count > 1 and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        usage = {role: sharded(u, count) for role, u in usage.items()}
    steps = config.epochs * -(-len(rows) // config.batch_size) if hasattr(config, "batch_size") else config.steps
    need, room = sum(role.peak for role in usage.values()), room_on(device)
    kind = "trains an adapter" if settings.lora else "trains all weights"
    lines = [
        f"{name}: {settings.model}, {shape.parameters / 1e6:.4g} M parameters, {kind}, in {settings.precision} on {device}",
        f"data: {len(rows)} examples of {settings.data}; prompts up to {prompt} tokens, answers up to {answer}",
        f"steps: {steps} of {batch_of(name, config)} answers over {count} process{'es' * (count > 1)}, at most "
        f"{batch_of(name, config) * (prompt + answer):,} tokens a step; {min(config.micro_batch_size, asked)} rows at once",
        "", memory.table(usage), "",
        f"{'fits' if need < room else 'DOES NOT FIT'}: about {need / 1e9:.3g} GB of the {room / 1e9:.3g} GB of {device}, "
        "an estimate, see course_lib/memory.py for what it leaves out"]
    if need >= room:
        lines.append("what helps: gradient_checkpointing: true; a smaller micro_batch_size; lora: 16; a smaller model")
    if device.type == "cuda" and not bf16_pays("cuda") and settings.precision == "auto":
        lines.append("this GPU has no bfloat16: --precision fp16 halves the activations and is faster")
    return "\n".join(lines)


def sharded(usage: memory.Usage, count: int) -> memory.Usage:
    """Of one of `count` processes with shares of gradients, moments and the weights that the step moves, which are as many
    numbers as there are gradients. The weights to compute with are whole."""
    return dataclasses.replace(usage, gradients=usage.gradients // count,
                               optimizer=(usage.optimizer + usage.gradients) // count)


def room_on(device: torch.device) -> int:
    """Bytes of the device, or of this machine's free memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return memory.free_bytes(device)


def batch_of(name: str, config: Any) -> int:
    """Answers in a step, over all processes."""
    pairs = 2 if name in ("dpo", "reward_model") else 1
    return config.batch_size * pairs if hasattr(config, "batch_size") else config.count * config.samples


def lengths(name: str, settings: Any, tokenizer, rows: list) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest answer among the first examples."""
    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1

    rows = rows[:256]
    if name == "sft":
        said = [(row[:-1], row[-1]["content"]) for row in rows]
        return max(len(encode_prompt(tokenizer, p)) for p, _ in said), max(tokens(a) for _, a in said)
    prompt = max(len(encode_prompt(tokenizer, row["prompt"])) for row in rows)
    if hasattr(settings, "max_new_tokens"):
        return prompt, settings.max_new_tokens
    texts = [a if isinstance(a, str) else a[-1]["content"] for row in rows for a in (row["chosen"], row["rejected"])]
    return prompt, max(map(tokens, texts))


def memory_of(name: str, settings: Any, config: Any, shape: memory.Shape, rows: int, prompt: int, answer: int,
              precision: str) -> dict[str, memory.Usage]:
    """`memory.estimate` for this run and one process."""
    pairs = 2 if name in ("dpo", "reward_model") else 1
    kind = {"sft": "SFT", "reward_model": "SFT", "dpo": "SFT", "ppo": "PPO"}.get(name, "GRPO")
    here = set(memory.ROLES[kind])
    reward = getattr(settings, "reward", None)
    without = set() if reward and Path(reward).is_dir() else here & {"reward"}
    if name != "rlhf" and not getattr(config, "beta", 0):
        without |= here & {"reference"}
    if getattr(settings, "critic", "own") == "shared":
        without |= here & {"value"}
    if name == "reward_model":
        shape = dataclasses.replace(shape, scalar=True, layers=settings.layers or shape.layers)
    usage = memory.estimate(kind, shape, rows=rows, prompt_tokens=prompt, new_tokens=answer, precision=precision,
                            micro_batch=min(config.micro_batch_size * pairs, rows), group=getattr(config, "samples", 1),
                            checkpointing=settings.gradient_checkpointing, without=sorted(without))
    return memory.with_adapter(usage, shape, settings.lora) if settings.lora else usage
