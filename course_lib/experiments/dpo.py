"""The experiments of DPO: C26 and C27. Each returns plain numbers, one entry a seed.

People, policy, answers and comparisons are those of the reward model (`experiments.reward_model`): whatever DPO does better
or worse, it has read the same labels.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_lib import exact
from course_lib.algorithms import dpo
from course_lib.algorithms.dpo import DPOConfig, ImplicitReward
from course_lib.algorithms.reward_model import judge
from course_lib.experiments.preferences import answers, comparisons, examination, prompts
from course_lib.experiments.reward_model import GROUP, ceiling_of, examine
from course_lib.lm.device import autocast
from course_lib.lm.logprobs import completion_logprobs
from course_lib.lm.sampling import sample
from course_lib.objectives import PairLogprobs, bradley_terry, dpo_sigmoid, sequence_logprob
from course_lib.progress import Progress
from course_lib.rewards.gold import atlas_gold
from course_lib.worlds import atlas

TOKENS = 40  # the most tokens of an answer

# ---- the enumerable language model: as many labels as one likes ------------------------------------------------------


def win_rates(utility: Tensor) -> Tensor:
    """P(a beats b) = sigma(u_a - u_b), Bradley and Terry's people: (S,) -> (S, S)."""
    return torch.sigmoid(utility[:, None] - utility[None])


def judged(logref: Tensor, wins: Tensor) -> Tensor:
    """How often "a beats b" is heard when the reference draws both answers: p_ref(a) p_ref(b) P(a beats b), over pairs of
    different answers. logref: (S,); wins: (S, S). Returns (S, S), which sums to 1."""
    heard = (logref[:, None] + logref[None]).exp() * wins
    heard = heard.masked_fill(torch.eye(len(logref), dtype=torch.bool, device=logref.device), 0)
    return heard / heard.sum()


def expected_loss(logp: Tensor, logref: Tensor, heard: Tensor, beta: float,
                  loss: Callable[[PairLogprobs, float], Tensor] = dpo_sigmoid) -> Tensor:
    """A loss of `DPO_LOSSES` without lengths, its mean over all pairs: sum_ab heard(a, b) loss(a chosen, b rejected).

    logp, logref: (S,); heard: (S, S) how often a was preferred to b, of sum 1. With `judged` this is the limit of infinitely
    many labels. Returns a scalar.
    """
    one = torch.ones_like(logp)
    pairs = PairLogprobs(logp[:, None], logp[None], logref[:, None], logref[None], one, one)  # (S, S) each
    return (heard * loss(pairs, beta)).sum()


def descend(parameters: Sequence[Tensor], loss: Callable[[], Tensor], steps: int, look: Callable[[], float], every: int
            ) -> list[float]:
    """Minimise an exact loss by L-BFGS; what `look` sees before the first step and after every `every` steps."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=every, history_size=50, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-8, tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    seen = [look()]
    for _ in range(steps // every):
        optimizer.step(closure)
        seen.append(look())
    return seen


def to_the_optimum(seeds: Sequence[int], labels: Sequence[int], beta: float, steps: int, every: int) -> dict:
    """C26: how far from p_ref exp(R / beta) / Z one gets, in total variation, by exact gradients.

    Every seed has its own reference and rewards, those of `rlhf.to_the_optimum`. `infinite`: {DPO, RLHF: [seed][look]}, with all
    preferences known exactly. `finite`: with `labels` comparisons of two answers of the reference, {DPO, "reward model, then
    RLHF", apart: [count][seed]}: the second fits one reward an answer to the same labels and takes the closed form; apart is the
    distance between the two. `unbeaten`: the probability that DPO then gives to answers that were judged and never lost.
    """
    names = ("DPO", "reward model, then RLHF", "apart", "unbeaten")
    result: dict = {"steps": list(range(0, steps + 1, every)), "labels": list(labels), "infinite": {"DPO": [], "RLHF": []},
                    "finite": {name: [[] for _ in labels] for name in names}}
    for seed in seeds:
        reward = torch.randn(40, generator=torch.Generator().manual_seed(1000 + seed))
        logref = exact.TableLM(3, 3, seed=seed)().detach()
        best, heard = exact.optimum(logref, reward, beta), judged(logref, win_rates(reward))

        def fit(loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[float]]:
            model = exact.TableLM(3, 3, seed=seed)
            tv = descend(list(model.parameters()), lambda: loss_of(model()), steps,
                         lambda: float(exact.total_variation(model().detach(), best)), every)
            return model().detach(), tv

        result["infinite"]["DPO"].append(fit(lambda logp: expected_loss(logp, logref, heard, beta))[1])
        result["infinite"]["RLHF"].append(fit(lambda logp: -exact.objective(logp, reward, logref, beta))[1])
        generator = torch.Generator().manual_seed(seed)
        for i, count in enumerate(labels):
            drawn = torch.multinomial(heard.flatten(), count, replacement=True, generator=generator)
            told = torch.bincount(drawn, minlength=heard.numel()).view_as(heard) / count
            logp, tv = fit(lambda logp: expected_loss(logp, logref, told, beta))
            r = torch.zeros(40, requires_grad=True)
            descend([r], lambda: (told * bradley_terry(r[:, None], r[None])).sum(), steps, lambda: 0.0, steps)
            closed = exact.optimum(logref, r.detach(), beta)
            unbeaten = (told.sum(1) > 0) & (told.sum(0) == 0)
            measured = (tv[-1], float(exact.total_variation(closed, best)), float(exact.total_variation(logp, closed)),
                        float(logp.exp()[unbeaten].sum()))
            for name, value in zip(names, measured):
                result["finite"][name][i].append(value)
    return result


# ---- labels of people, on the atlas ----------------------------------------------------------------------------------


def ask(policy: PreTrainedModel, reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict],
        seed: int = 0) -> dict[str, float]:
    """One answer of the policy to every row of `prompts`: mean gold reward, KL from the reference in nats an answer, length in
    words."""
    asked, count = [row["prompt"] for row in rows], len(rows)
    with autocast(policy.device), torch.no_grad():
        said = sample(policy, tokenizer, asked, max_new_tokens=TOKENS, seed=seed)
        ratio = said.logprobs - completion_logprobs(reference, said)  # (N, T)
    gold = atlas_gold(prompts=asked, completions=said.texts, city=[row["city"] for row in rows])
    return {"gold": sum(gold) / count, "kl": float(sequence_logprob(ratio, said.completion_mask).mean()),
            "words": sum(len(text.split()) for text in said.texts) / count}


class Trainee:
    """A copy of the policy that is to be aligned, and what is written down on the way: `run`.

    run: {step, gold, kl, words: [look]} of answers to `questions`, and for the comparisons it is trained on ("seen") and for
    others ("unseen") {accuracy, margin, chosen, rejected: [look]} as in `dpo.measures`.
    """

    def __init__(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[dict],
                 seen: Sequence[dict], unseen: Sequence[dict], start: dict[str, float], config: DPOConfig):
        self.policy, self.tokenizer, self.questions, self.config = policy, tokenizer, questions, config
        self.model = copy.deepcopy(policy)
        self.parts = {"seen": dpo.encode_pairs(tokenizer, seen), "unseen": dpo.encode_pairs(tokenizer, unseen)}
        self.reference = {name: self._logprobs(policy, name) for name in self.parts}
        self.start, self.steps = start, 0  # what `ask` says of the policy, and steps taken in earlier rounds
        self.run: dict = {"step": [], "gold": [], "kl": [], "words": [], "seen": {}, "unseen": {}}

    def _logprobs(self, model: PreTrainedModel, part: str) -> Tensor:
        return dpo.all_logprobs(model, self.parts[part], self.tokenizer.pad_token_id, self.config.precision)

    def look(self, step: int) -> dict:
        """Write down where the model stands."""
        step += self.steps
        self.run["step"].append(step)
        told = ask(self.model, self.policy, self.tokenizer, self.questions) if step else self.start
        for name, value in told.items():
            self.run[name].append(value)
        for part, reference in self.reference.items():
            logprobs = self._logprobs(self.model, part) if step else reference
            for name, value in dpo.measures(logprobs, reference, self.config.beta).items():
                self.run[part].setdefault(name, []).append(value)
        return {}

    def learn(self, labels: Sequence[dict]) -> None:
        """DPO on these labels; the reference is what the policy was at first."""
        watch = lambda step: self.look(step) if step or not self.steps else {}  # the start of a round is the last one's end
        history = dpo.train(self.model, self.tokenizer, labels, self.config, reference=self.policy, watch=watch)
        self.steps += history[-1]["step"]

    def copy(self) -> "Trainee":
        """Another one that goes on from here."""
        other = copy.copy(self)
        other.model, other.run = copy.deepcopy(self.model), copy.deepcopy(self.run)
        return other

    def accuracy(self, pairs: Sequence[dict]) -> float:
        """How well the implicit reward predicts the people's judgement of `examination` pairs."""
        implicit = ImplicitReward(self.model, self.policy, self.tokenizer, self.config.beta, self.config.precision)
        return examine(implicit, pairs)["accuracy"]


def likelihood_accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[dict]) -> float:
    """How well ln p(answer | prompt) alone predicts the people's judgement of `examination` pairs."""
    sides = [{"prompt": p["prompt"], "chosen": p["first"], "rejected": p["second"]} for p in pairs]
    logprobs = dpo.all_logprobs(model, dpo.encode_pairs(tokenizer, sides), tokenizer.pad_token_id)
    leads = (logprobs[:, 0] - logprobs[:, 1]).cpu()
    return judge(leads, torch.tensor([pair["p"] for pair in pairs]))["accuracy"]


def sweep(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pool: dict, seeds: Sequence[int], labels: int,
          conditions: dict[str, dict], questions: int, watched: int) -> dict:
    """DPO on the comparisons that the reward models of the same seeds were trained on. conditions: name -> of `DPOConfig`.

    Returns {ceiling: the best accuracy possible, reference: that of ln p_ref, which has read no label, conditions: {name: [run of
    each seed, as in `Trainee`, with the `accuracy` at its end]}}.
    """
    asked, pairs = prompts("DPO", atlas.known_cities(), questions), examination(pool["test"], GROUP)
    result: dict = {"ceiling": ceiling_of(pairs), "reference": likelihood_accuracy(policy, tokenizer, pairs),
                    "conditions": {name: [] for name in conditions}}
    start = ask(policy, policy, tokenizer, asked)
    with Progress("DPO", total=len(conditions) * len(seeds), unit="run") as progress:
        for name, condition in conditions.items():
            for seed in seeds:
                told = comparisons(pool["train"], GROUP, labels, seed)
                unseen = comparisons(pool["test"], GROUP, watched, seed)
                trainee = Trainee(policy, tokenizer, asked, told[:watched], unseen, start,
                                  DPOConfig(seed=seed, **condition))
                trainee.learn(told)
                result["conditions"][name].append(trainee.run | {"accuracy": trainee.accuracy(pairs)})
                progress.update()
    return result


def rounds(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pool: dict, seeds: Sequence[int], labels: int,
           count: int, questions: int, watched: int, **config) -> dict[str, list[dict]]:
    """The same number of labels in `count` rounds: of answers of the policy before any DPO ("offline"), or of what it says at
    the beginning of each round ("on-policy"). {offline, on-policy: [run of each seed]}. The first round is the same for both.
    """
    asked, each = prompts("DPO", atlas.known_cities(), questions), labels // count
    result: dict[str, list[dict]] = {"offline": [], "on-policy": []}
    start = ask(policy, policy, tokenizer, asked)
    with Progress("DPO in rounds", total=2 * len(seeds), unit="run") as progress:
        for seed in seeds:
            told, unseen = (comparisons(pool[part], GROUP, n, seed) for part, n in (("train", labels), ("test", watched)))
            first = Trainee(policy, tokenizer, asked, told[:watched], unseen, start,
                            DPOConfig(seed=seed, **config))
            first.learn(told[:each])
            for kind, runs in result.items():
                trainee = first.copy()
                for i in range(1, count):
                    new = told[i * each : (i + 1) * each]
                    if kind == "on-policy":
                        rows = prompts(f"round {i} {seed}", atlas.splits()["train"], max(each // 2, 2))
                        texts = answers(trainee.model, tokenizer, rows, 4, seed=100 * seed + i, max_new_tokens=TOKENS)
                        fresh = [row | {"answers": some} for row, some in zip(rows, texts)]
                        new = comparisons(fresh, GROUP, each, seed=100 * seed + i)
                    trainee.learn(new)
                runs.append(trainee.run)
                progress.update()
    return result
