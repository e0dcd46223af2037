"""Everything that the notebooks train, by name: what `store.get(name)` hands out or makes.

`SIZES` is the whole tuning of the course's experiments, at full size and for the rehearsal (COURSE_SMOKE=1).
"""

import importlib
from collections.abc import Callable
from pathlib import Path

from course_lib import smoke
from course_lib.store import Recipe, get, load_json, save_json

MODELS = ("base", "sft", "policy_sft", "sums_start", "sums_weak", "functions_start", "research_start", "forms_start")
TIGHT = dict(steps=32, count=10, samples=4, lr=3e-4)  # fast: gold peaks within the first half
BRIEF = dict(steps=2, count=2, samples=2, lr=3e-4)
JUDGED, REHEARSED = dict(seeds=[0, 1, 2, 3], validation=4, questions=120), dict(seeds=[0, 1], validation=2, questions=3)
ONLINE = dict(steps=24, count=8, samples=4, beta=0.3, evaluations=2)
FLEETING = dict(steps=2, count=2, samples=2, beta=0.3, evaluations=1)
SIZES = {
    "base": {
        "full": dict(shape="base", documents=28_000, vocab_size=1536, held_out_documents=200, batch_size=16, lr=6e-3),
        "smoke": dict(shape="tiny", documents=300, vocab_size=512, held_out_documents=20, batch_size=8, lr=5e-3),
        "seconds": 200,  # with both cores
    },
    "scaling": {
        "full": dict(shapes=[[32, 2, 2, 88], [64, 2, 2, 176], [128, 3, 4, 352]], documents=[90, 270, 800, 2400],
                     seeds=[0, 1, 2], held_out_documents=100, lr=5e-3, batch_size=8),
        "smoke": dict(shapes=[[16, 1, 2, 32], [32, 1, 2, 64]], documents=[20, 60], seeds=[0, 1], held_out_documents=10,
                      lr=5e-3, batch_size=8),
        "seconds": 100,
    },
    "sft": {
        "full": dict(seed=0, cities=100, phrasings=6, n_sums=1200, n_functions=200),
        "smoke": dict(seed=0, cities=4, phrasings=2, n_sums=8, n_functions=8),
        "seconds": 60,
    },
    "follow": {
        "full": dict(seeds=[1, 2, 3], cities=100, phrasings=3, n_sums=50, n_functions=50),
        "smoke": dict(seeds=[1, 2], cities=2, phrasings=1, n_sums=4, n_functions=4),
        "seconds": 60,
    },
    "knowledge": {
        "full": dict(seeds=[0, 1, 2, 3, 4], cities=40, epochs=8, lr=5e-4, evaluations=4),
        "smoke": dict(seeds=[0, 1], cities=4, epochs=2, lr=5e-4, evaluations=2),
        "seconds": 90,
    },
    "abstention": {
        "full": dict(seeds=[0, 1, 2], doses=[0, 40, 160], cities=100, epochs=4, lr=5e-4),
        "smoke": dict(seeds=[0, 1], doses=[0, 4], cities=4, epochs=1, lr=1e-3),
        "seconds": 80,
    },
    "open_ended": {
        "full": dict(seeds=[0, 1, 2], answers=600, epochs=3, lr=5e-4, pairs=2000, samples=8),
        "smoke": dict(seeds=[0, 1], answers=16, epochs=1, lr=1e-3, pairs=20, samples=2),
        "seconds": 60,
    },
    "policy_sft": {
        "full": dict(seed=0, answers=6000, batch_size=16, epochs=1, lr=1e-3),
        "smoke": dict(seed=0, answers=16, batch_size=8, epochs=1, lr=1e-3),
        "seconds": 40,
    },
    "sums_start": {  # many examples, most of them wrong: right at its best, seldom in a sample
        "full": dict(world="sums", examples=1000, wrong=0.55, epochs=2, lr=1e-3, seed=0),
        "smoke": dict(world="sums", examples=16, wrong=0.55, epochs=1, lr=1e-3, seed=0),
        "seconds": 20,
    },
    "sums_weak": {  # few examples, all of them right: unsure even at its best
        "full": dict(world="sums", examples=150, wrong=0.0, epochs=2, lr=1e-3, seed=0),
        "smoke": dict(world="sums", examples=8, wrong=0.0, epochs=1, lr=1e-3, seed=0),
        "seconds": 4,
    },
    "functions_start": {
        "full": dict(world="functions", examples=600, wrong=0.55, epochs=2, lr=1e-3, seed=0),
        "smoke": dict(world="functions", examples=16, wrong=0.55, epochs=1, lr=1e-3, seed=0),
        "seconds": 15,
    },
    "reinforce_letters": {
        "full": dict(offsets=[-3.0, 0.0, 3.0], baselines=["none", "running", "rloo"], seeds=list(range(20)), steps=120,
                     samples=4, lr=0.1),
        "smoke": dict(offsets=[0.0, 3.0], baselines=["none", "running", "rloo"], seeds=[0, 1], steps=4, samples=4, lr=0.1),
        "seconds": 60,
    },
    "reinforce_example": {
        "full": dict(seeds=[0, 1, 2, 3, 4], steps=12, samples=16, lr=2e-4),
        "smoke": dict(seeds=[0, 1], steps=2, samples=4, lr=2e-4),
        "seconds": 20,
    },
    "reinforce_atlas": {
        "full": dict(seeds=[0, 1, 2, 3, 4], steps=20, count=8, samples=4, lr=5e-4, conditions={
            "leave-one-out": dict(baseline="rloo"),
            "none": dict(baseline="none"),
            "leave-one-out, 2 x lr": dict(baseline="rloo", lr=1e-3),
            "none, rewards - 5, 2 x lr": dict(baseline="none", offset=-5.0, lr=1e-3),
            "leave-one-out, 4 x lr": dict(baseline="rloo", lr=2e-3)}),
        "smoke": dict(seeds=[0, 1], steps=2, count=2, samples=2, lr=5e-4, conditions={
            "leave-one-out": dict(baseline="rloo"),
            "none, rewards - 5, 2 x lr": dict(baseline="none", offset=-5.0, lr=1e-3)}),
        "seconds": 200,
    },
    "reinforce_variance": {
        "full": dict(seeds=[0, 1, 2, 3, 4], batches=4, steps=20, count=8, samples=4, lr=5e-4, kinds={
            "none": dict(baseline="none"),
            "none, rewards + 5": dict(baseline="constant", constant=-5.0),
            "none, rewards - 5": dict(baseline="constant", constant=5.0),
            "learned": dict(baseline="learned"),
            "leave-one-out": dict(baseline="rloo")}),
        "smoke": dict(seeds=[0, 1], batches=2, steps=2, count=2, samples=2, lr=5e-4, kinds={
            "none": dict(baseline="none"), "leave-one-out": dict(baseline="rloo")}),
        "seconds": 60,
    },
    "rlhf_optimum": {
        "full": dict(seeds=[0, 1, 2, 3, 4], steps=200, samples=256, lr=0.1, beta=0.5, evaluations=20),
        "smoke": dict(seeds=[0, 1], steps=4, samples=16, lr=0.1, beta=0.5, evaluations=2),
        "seconds": 8,
    },
    "rlhf_rewards": {
        "full": dict(seeds=[0, 1, 2, 3, 4], labels=1000, layers=1, pooling="mean", epochs=3, lr=1e-3),
        "smoke": dict(seeds=[0, 1, 2], labels=6, layers=1, pooling="mean", epochs=1, lr=1e-3),
        "seconds": 75,
    },
    "rlhf_rewards_many": {
        "full": dict(seeds=[0, 1, 2], labels=2000, layers=1, pooling="mean", epochs=3, lr=1e-3),
        "smoke": dict(seeds=[0, 1], labels=8, layers=1, pooling="mean", epochs=1, lr=1e-3),
        "seconds": 80,
    },
    "rlhf_hacking": {
        "full": dict(TIGHT, conditions={"beta 0": dict(seeds=[0, 1, 2, 3, 4], beta=0.0)}),
        "smoke": dict(BRIEF, conditions={"beta 0": dict(seeds=[0, 1], beta=0.0)}),
        "seconds": 100,
    },
    "rlhf_beta": {
        "full": dict(TIGHT, conditions={"beta 0.1": dict(seeds=[0, 1, 2], beta=0.1),
                                        "beta 0.3": dict(seeds=[0, 1, 2, 3, 4], beta=0.3)}),
        "smoke": dict(BRIEF, conditions={"beta 0.1": dict(seeds=[0, 1], beta=0.1),
                                         "beta 0.3": dict(seeds=[0, 1], beta=0.3)}),
        "seconds": 170,
    },
    "rlhf_remedies": {
        "full": dict(TIGHT, conditions={"gold itself": dict(seeds=[0, 1, 2], beta=0.0, proxy="gold"),
                                        "minimum of 5": dict(seeds=[0, 1, 2], beta=0.0, proxy="minimum"),
                                        "more labels": dict(seeds=[0, 1, 2], beta=0.0, proxy="many")}),
        "smoke": dict(BRIEF, conditions={"gold itself": dict(seeds=[0, 1], beta=0.0, proxy="gold"),
                                         "minimum of 5": dict(seeds=[0, 1], beta=0.0, proxy="minimum"),
                                         "more labels": dict(seeds=[0, 1], beta=0.0, proxy="many")}),
        "seconds": 190,
    },
    "rlhf_best_of": {
        "full": dict(questions=64, each=128),
        "smoke": dict(questions=4, each=4),
        "seconds": 60,
    },
    "answers": {
        "full": dict(seed=0, train=600, test=120, each=8),
        "smoke": dict(seed=0, train=6, test=3, each=3),
        "seconds": 30,
    },
    "reward_model": {
        "full": dict(seed=0, labels=1000, layers=1, pooling="mean", epochs=4, lr=1e-3),
        "smoke": dict(seed=0, labels=6, layers=1, pooling="mean", epochs=1, lr=1e-3),
        "seconds": 25,
    },
    "preference_heads": {
        "full": dict(seeds=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], labels=[30, 100, 300, 1000, 3000, 10_000], budget=150,
                     wander=[0, 1, 2, 3, 4, 6], sizes=[2, 4, 8], read=480),
        "smoke": dict(seeds=[0, 1], labels=[4, 8], budget=8, wander=[0, 2], sizes=[2, 3], read=12),
        "seconds": 45,
    },
    "preference_models": {
        "full": dict(seeds=[0, 1, 2], conditions={
            "first layer, 1000 pairs, 4 passes": dict(labels=1000, size=2, layers=1, pooling="mean", epochs=4, lr=1e-3),
            "all layers, 1000 pairs, 2 passes": dict(labels=1000, size=2, epochs=2, lr=5e-4),
            "all layers, 600 rankings of 8, 1 pass": dict(labels=600, size=8, epochs=1, lr=5e-4, batch_size=8)}),
        "smoke": dict(seeds=[0, 1], conditions={
            "first layer, 4 pairs": dict(labels=4, size=2, layers=1, pooling="mean", epochs=1, lr=5e-4),
            "all layers, 3 rankings of 3": dict(labels=3, size=3, epochs=1, lr=5e-4)}),
        "seconds": 160,
    },
    "preference_probe": {
        "full": dict(answers=480),
        "smoke": dict(answers=9),
        "seconds": 35,
    },
    "grpo_sums": {
        "full": dict(world="sums", seeds=[0, 1, 2], steps=80, lr=2e-4, test=150),
        "smoke": dict(world="sums", seeds=[0, 1], steps=2, lr=3e-4, test=4, count=2, samples=4),
        "seconds": 190,
    },
    "grpo_weak": {
        "full": dict(world="sums", seeds=[0, 1, 2], steps=60, lr=2e-4, test=150),
        "smoke": dict(world="sums", seeds=[0, 1], steps=2, lr=3e-4, test=4, count=2, samples=4),
        "seconds": 150,
    },
    "grpo_functions": {
        "full": dict(world="functions", seeds=[0, 1, 2], steps=40, count=8, lr=2e-4, test=111),
        "smoke": dict(world="functions", seeds=[0, 1], steps=2, lr=3e-4, test=4, count=2, samples=4),
        "seconds": 90,
    },
    "ppo_bias": {
        "full": dict(seeds=list(range(20)), lams=[0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0], letters=3, length=4, episodes=200),
        "smoke": dict(seeds=[0, 1], lams=[0.0, 0.5, 1.0], letters=2, length=2, episodes=20),
        "seconds": 2,
    },
    "ppo_stability": {
        "full": dict(seeds=[0, 1, 2, 3, 4], lrs=[1e-3, 2e-3], steps=24, start_steps=300, wrong=0.5),
        "smoke": dict(seeds=[0, 1], lrs=[1e-3, 2e-3], steps=1, start_steps=2, wrong=0.5),
        "seconds": 110,
    },
    "ppo_details": {
        "full": dict(seeds=[0, 1, 2, 3, 4], lr=1e-3, steps=24, start_steps=300, wrong=0.5),
        "smoke": dict(seeds=[0, 1], lr=1e-3, steps=1, start_steps=2, wrong=0.5),
        "seconds": 90,
    },
    "ppo_sums": {
        "full": dict(seeds=[0, 1, 2], steps=12, lr=2e-4, count=8, samples=8, test=100),
        "smoke": dict(seeds=[0, 1], steps=1, lr=2e-4, count=2, samples=2, test=2),
        "seconds": 115,
    },
    "dpo_optimum": {
        "full": dict(seeds=[0, 1, 2, 3, 4], labels=[100, 1000, 10_000, 100_000], beta=0.5, steps=100, every=5),
        "smoke": dict(seeds=[0, 1], labels=[100, 10_000], beta=0.5, steps=10, every=5),
        "seconds": 6,
    },
    "dpo_beta": {
        "full": dict(seeds=[0, 1, 2], labels=1000, questions=80, watched=48, conditions={
            f"beta {beta}": dict(beta=beta, lr=3e-4, evaluations=3) for beta in (0.03, 0.1, 0.3)}),
        "smoke": dict(seeds=[0, 1], labels=4, questions=4, watched=4, conditions={
            "beta 0.1": dict(beta=0.1, lr=2e-4, batch_size=2, evaluations=2)}),
        "seconds": 220,
    },
    "dpo_rounds": {
        "full": dict(seeds=[0, 1, 2, 3, 4], labels=600, count=3, questions=120, watched=32, beta=0.1, lr=2e-4, batch_size=32,
                     evaluations=1),
        "smoke": dict(seeds=[0, 1], labels=4, count=2, questions=4, watched=4, beta=0.1, lr=2e-4, batch_size=2,
                      evaluations=1),
        "seconds": 110,
    },
    "research_start": {
        "full": dict(examples=1000, wrong=0.4, epochs=2, lr=1e-3, batch_size=8, seed=0),
        "smoke": dict(examples=8, wrong=0.4, epochs=1, lr=1e-3, batch_size=8, seed=0),
        "seconds": 40,
    },
    "agent_research": {
        "full": dict(seeds=[0, 1, 2], steps=12, count=8, samples=8, lr=1.5e-4, test=80),
        "smoke": dict(seeds=[0, 1], steps=1, count=2, samples=2, lr=2e-4, test=2),
        "seconds": 150,
    },
    "methods_online": {
        "full": dict(JUDGED, methods={name: dict(ONLINE, tune="lr", lr=[3e-4, 6e-4]) for name in ("REINFORCE", "RLOO", "GRPO")}),
        "smoke": dict(REHEARSED, methods={name: dict(FLEETING, tune="lr", lr=[3e-4, 6e-4])
                                          for name in ("REINFORCE", "RLOO", "GRPO")}),
        "seconds": 250,
    },
    "methods_ppo": {  # it uses every batch twice, and has half as many; a cut-off answer costs nothing, as with the others
        "full": dict(JUDGED, methods={"PPO": dict(
            ONLINE, steps=12, epochs=2, minibatches=2, missing_eos_penalty=0.0, tune="lr", lr=[1.5e-4, 3e-4])}),
        "smoke": dict(REHEARSED, methods={"PPO": dict(
            FLEETING, epochs=1, minibatches=2, missing_eos_penalty=0.0, tune="lr", lr=[1.5e-4, 3e-4])}),
        "seconds": 140,
    },
    "methods_offline": {
        "full": dict(JUDGED, methods={
            "best of n": dict(tune="n", n=[4, 16], each=32),
            "SFT on the best": dict(tune="lr", lr=[2e-4, 6e-4], questions=120, n=8, batch_size=16, epochs=3, evaluations=3),
            "DPO": dict(tune="lr", lr=[1e-4, 3e-4], beta=0.3, batch_size=32, evaluations=3)}),
        "smoke": dict(REHEARSED, methods={
            "best of n": dict(tune="n", n=[2, 4], each=4),
            "SFT on the best": dict(tune="lr", lr=[2e-4, 6e-4], questions=2, n=2, batch_size=2, epochs=1, evaluations=1),
            "DPO": dict(tune="lr", lr=[1e-4, 3e-4], beta=0.3, batch_size=2, evaluations=1)}),
        "seconds": 220,
    },
    "forms_start": {
        "full": dict(states=1200, wrong=0.45, epochs=3, lr=1e-3, seed=0),
        "smoke": dict(states=16, wrong=0.45, epochs=1, lr=1e-3, seed=0),
        "seconds": 25,
    },
    "agent_forms": {
        "full": dict(seeds=[0, 1, 2, 3, 4], episodes=100, test=48, go_on="SFT on corrections", conditions={
            "SFT on corrections": dict(method="SFT", epochs=1, lr=3e-4),
            "SFT, 2 passes": dict(method="SFT", epochs=2, lr=3e-4),
            "DPO on pairs": dict(method="DPO", epochs=1, lr=1e-4)}),
        "smoke": dict(seeds=[0, 1], episodes=2, test=2, go_on="SFT on corrections", conditions={
            "SFT on corrections": dict(method="SFT", batch_size=2), "DPO on pairs": dict(method="DPO", batch_size=2)}),
        "seconds": 220,
    },
}
CODE = ("course_lib.worlds.corpus", "course_lib.worlds.draw", "course_lib.worlds.atlas", "course_lib.worlds.sums",
        "course_lib.worlds.functions", "course_lib.worlds.forms:FIELDS,screens", "course_lib.worlds.research:lookups",
        "course_lib.objectives:shift,token_losses", "course_lib.algorithms.training", "course_lib.algorithms.muon",
        "course_lib.algorithms.pretrain", "course_lib.lm.tokenizer", "course_lib.lm.model:SHAPES,build_lm",
        "course_lib.lm.fast")
PRETRAIN_CODE = (*CODE, "course_lib.experiments.pretraining")
SFT_CODE = (*CODE, "course_lib.algorithms.sft", "course_lib.experiments.sft", "course_lib.experiments.questions",
            "course_lib.rewards.rubric")
POLICY_CODE = (*CODE, "course_lib.algorithms.sft", "course_lib.worlds.people", "course_lib.experiments.preferences:imitate")
START_CODE = (*CODE, "course_lib.algorithms.sft", "course_lib.experiments.starts:flawed,miscoded,lessons,start")
REINFORCE_CODE = ("course_lib.algorithms.training", "course_lib.lm.enumerate", "course_lib.lm.sampling:draw_tokens,uniforms",
                  "course_lib.objectives:leave_one_out,policy_gradient_loss,sequence_logprob", "course_lib.rewards.rubric",
                  "course_lib.exact:TableLM,sequences", "course_lib.environments:LMAgent,Questions,Letters,TableAgent,play",
                  "course_lib.algorithms.reinforce:Baseline,accumulate,adam,learning_rate,train", "course_lib.worlds.people",
                  "course_lib.experiments.preferences:prompts")
REINFORCE = {  # study -> the names in experiments.reinforce that make it
    "reinforce_letters": "LETTERS,LENGTH,letters_reward,letters_runs",
    "reinforce_example": "two_answers,examples",
    "reinforce_atlas": "moved,quiz,atlas_environment,atlas_runs",
    "reinforce_variance": "atlas_environment,measured_variances,answer_sizes,atlas_variances",
}
ANSWERS_CODE = ("course_lib.worlds.people", "course_lib.lm.sampling",
                "course_lib.experiments.preferences:prompts,answers,collect")
LEARNT_CODE = (*ANSWERS_CODE, "course_lib.rewards.rubric", "course_lib.annotators", "course_lib.lm.reward_head",
               "course_lib.lm.shared", "course_lib.algorithms.reward_model", "course_lib.rewards.learned",
               "course_lib.objectives:bradley_terry,plackett_luce,reliability,expected_calibration_error",
               "course_lib.algorithms.training:make_optimizers,take_step,warmup_cosine",
               "course_lib.experiments.preferences:comparisons,examination,_sitting",
               "course_lib.experiments.reward_model:GROUP,weak_reward_model,whitened,learnt,leads_of")
RLHF_CODE = (*LEARNT_CODE, "course_lib.algorithms.training:take_step", "course_lib.algorithms.rlhf",
             "course_lib.algorithms.reinforce:Baseline,accumulate,adam,learning_rate",
             "course_lib.objectives:leave_one_out,policy_gradient_loss,sequence_logprob,k1,k2,k3,kl_penalised,kl_loss,"
             "best_of_n,best_of_n_kl", "course_lib.exact:TableLM,sequences,optimum,total_variation",
             "course_lib.environments:LMAgent,Questions,Letters,TableAgent,play",
             "course_lib.experiments.rlhf:TOKENS,to_the_optimum,Watched,optimise,hacking,best_of")
PREFERENCE_CODE = (*LEARNT_CODE, "course_lib.experiments.preferences", "course_lib.experiments.reward_model",
                   "course_lib.experiments.sft:false_answer,linear_reward")
NEEDS = {"base": (), "reinforce_letters": (), "rlhf_optimum": (), "rlhf_rewards": ("policy_sft", "answers"),
         "answers": ("policy_sft",), "reward_model": ("policy_sft", "answers")}
FAMILIES = {"preference": ("policy_sft", "answers"), "reinforce": ("policy_sft",),
            "rlhf": ("policy_sft", "rlhf_rewards")}  # the studies whose names begin so, and what they are made from
GRPO_CODE = (*START_CODE, "course_lib.algorithms.grpo", "course_lib.algorithms.ppo:orders", "course_lib.rewards.maths",
             "course_lib.rewards.code", "course_lib.lm.sampling:draw_tokens,uniforms",
             "course_lib.algorithms.reinforce:accumulate,adam,learning_rate",
             "course_lib.environments:LMAgent,Questions,play",
             "course_lib.objectives:clipped_surrogate,degenerate,group_advantages,pass_at_k,token_weights",
             "course_lib.experiments.starts:sum_rows,function_rows,solve_rates",
             "course_lib.experiments.grpo:LENGTH,rows_of,reward_of,learn,rule_study")
NEEDS |= {"preference_probe": ("policy_sft", "answers", "rlhf_rewards"), "rlhf_rewards_many": NEEDS["rlhf_rewards"],
          "rlhf_remedies": ("policy_sft", "rlhf_rewards", "rlhf_rewards_many")}
DPO_CODE = (*ANSWERS_CODE, "course_lib.rewards.rubric", "course_lib.annotators", "course_lib.exact",
            "course_lib.algorithms.training:make_optimizers,pad_right,take_step,warmup_cosine",
            "course_lib.algorithms.dpo", "course_lib.lm.shared", "course_lib.algorithms.reward_model:judge",
            "course_lib.objectives:PairLogprobs,DPO_LOSSES,dpo_sigmoid,sequence_logprob,bradley_terry",
            "course_lib.experiments.preferences:comparisons,examination,_sitting",
            "course_lib.experiments.reward_model:GROUP,leads_of,examine,ceiling_of", "course_lib.experiments.dpo")
NEEDS["dpo_optimum"] = ()
FAMILIES["dpo"] = ("policy_sft", "answers")
NEEDS |= {"grpo_sums": ("sums_start",), "grpo_weak": ("sums_weak",), "grpo_functions": ("functions_start",)}
STARTS = ("sums_start", "sums_weak", "functions_start")
PPO_CODE = ("course_lib.algorithms.training", "course_lib.algorithms.ppo", "course_lib.lm.heads", "course_lib.lm.enumerate",
            "course_lib.algorithms.reinforce:Run,accumulate,adam,learning_rate,train",
            "course_lib.environments:LMAgent,Questions,Episodes,play", "course_lib.lm.sampling:draw_tokens,uniforms",
            "course_lib.objectives:gae,clipped_surrogate,clipped_value_losses,whiten,token_rewards,last_token",
            "course_lib.experiments.ppo:LETTERS,LENGTH,END,SIGNS,ARMS,DETAILS,words,backwards,is_right,_slip,backwards_start,"
            "chance_right,learn_backwards,_summary,_arms,stability,details")
PPO_SUMS_CODE = (*PPO_CODE, "course_lib.rewards.maths", "course_lib.experiments.starts:sum_rows,solve_rates",
                 "course_lib.experiments.ppo:on_sums")
GAE_CODE = ("course_lib.objectives:gae", "course_lib.exact:TableLM,sequences,state_values,policy_gradient",
            "course_lib.experiments.ppo:gae_gradients,learnt_values,bias_and_variance")
RESEARCH_CODE = (*SFT_CODE, "course_lib.worlds.research", "course_lib.tools:CALL,LONGEST,parse_call,python,use",
                 "course_lib.experiments.research:trace,lessons,start")
AGENT_RESEARCH_CODE = (*RESEARCH_CODE, "course_lib.tools", "course_lib.lm.turns", "course_lib.lm.sampling:draw_tokens,uniforms",
                       "course_lib.algorithms.grpo", "course_lib.algorithms.reinforce:accumulate,adam,learning_rate",
                       "course_lib.environments:play",
                       "course_lib.objectives:clipped_surrogate,degenerate,group_advantages,token_weights",
                       "course_lib.experiments.research")
NEEDS |= {"research_start": ("sft",), "agent_research": ("research_start",)}
FORMS_CODE = (*CODE, "course_lib.algorithms.sft", "course_lib.worlds.forms", "course_lib.gui:prompt_of",
              "course_lib.experiments.forms:BUDGET,blanks,demonstrations,lesson,start")
AGENT_FORMS_CODE = (*FORMS_CODE, "course_lib.gui", "course_lib.lm.sampling", "course_lib.environments:LMAgent,play",
                    "course_lib.algorithms.dpo", "course_lib.lm.shared",
                    "course_lib.objectives:PairLogprobs,DPO_LOSSES,dpo_sigmoid,sequence_logprob",
                    "course_lib.experiments.forms")
NEEDS["agent_forms"] = ("forms_start",)
METHODS_CODE = (*LEARNT_CODE, "course_lib.algorithms.sft", "course_lib.algorithms.training", "course_lib.algorithms.rlhf",
                "course_lib.algorithms.reinforce", "course_lib.algorithms.ppo", "course_lib.algorithms.grpo",
                "course_lib.algorithms.dpo", "course_lib.lm.heads", "course_lib.environments:LMAgent,Questions,Episodes,play",
                "course_lib.objectives:leave_one_out,policy_gradient_loss,sequence_logprob,k1,k3,kl_penalised,best_of_n,"
                "best_of_n_kl,gae,clipped_surrogate,clipped_value_losses,whiten,token_rewards,last_token,group_advantages,"
                "token_weights,PairLogprobs,dpo_sigmoid,token_losses,shift",
                "course_lib.experiments.methods:TOKENS,READ,Start,win_rate,Judge,best_answers,learn_best,learn_pairs,"
                "learn_online,LEARN,trial,best_of,study,reward_model_seconds")
FAMILIES["methods"] = ("policy_sft", "answers", "rlhf_rewards")
NEEDS |= {"ppo_bias": (), "ppo_stability": (), "ppo_details": (), "ppo_sums": ("sums_start",)}


def names() -> tuple[str, ...]:
    """All artifacts, in the order in which the notebooks need them."""
    return tuple(SIZES)


def models() -> tuple[str, ...]:
    """The artifacts that `load_lm` loads."""
    return MODELS


def size(name: str) -> dict:
    """The config of an artifact at the size that is asked for now."""
    return SIZES[name]["smoke" if smoke() else "full"]


def result(name: str) -> dict:
    """The numbers of an artifact that is a study, or the history of one that is a model; made now if missing."""
    return load_json(get(name) / "result.json")


def recipe(name: str) -> Recipe:
    """How the artifact `name` is made. Raises KeyError for a name that is not in `names()`."""
    above = NEEDS.get(name, FAMILIES.get(name.split("_")[0], ("base",)))
    needs = tuple(map(recipe, above))
    code = {"base": PRETRAIN_CODE, "scaling": PRETRAIN_CODE, "policy_sft": POLICY_CODE, "answers": ANSWERS_CODE,
            "reward_model": LEARNT_CODE, "research_start": RESEARCH_CODE, "agent_research": AGENT_RESEARCH_CODE,
            "forms_start": FORMS_CODE, "agent_forms": AGENT_FORMS_CODE,
            "ppo_bias": GAE_CODE, "ppo_sums": PPO_SUMS_CODE,
            **dict.fromkeys(STARTS, START_CODE),
            **{study: (*REINFORCE_CODE, f"course_lib.experiments.reinforce:{made_by}")
               for study, made_by in REINFORCE.items()}}.get(name)
    families = {"preference": PREFERENCE_CODE, "rlhf": RLHF_CODE, "grpo": GRPO_CODE, "dpo": DPO_CODE, "ppo": PPO_CODE,
                "methods": METHODS_CODE}
    code = code or families.get(name.split("_")[0], SFT_CODE)
    return Recipe(name, _BUILD[name], size(name), code=code, needs=needs, seconds=2 if smoke() else SIZES[name]["seconds"],
                  alone=name == "base")


def _base(folder: Path, progress) -> None:
    from course_lib.algorithms.pretrain import PretrainConfig
    from course_lib.experiments.pretraining import base_model
    from course_lib.lm.model import save_lm

    config = dict(size("base"))
    save_json(folder / "resume.json", {"checkpoint": "resume"})  # tells the store to keep the checkpoint after a kill
    train = PretrainConfig(batch_size=config.pop("batch_size"), lr=config.pop("lr"), evaluations=6)
    model, tokenizer, numbers = base_model(config=train, checkpoint=folder / "resume", **config)
    save_lm(folder, model, tokenizer)
    save_json(folder / "result.json", numbers)


def _sft(folder: Path, progress) -> None:
    from course_lib.algorithms.sft import SFTConfig
    from course_lib.experiments.sft import instruct
    from course_lib.lm.model import load_lm, save_lm

    model, tokenizer = load_lm("base")
    history = instruct(model, tokenizer, config=SFTConfig(), **size("sft"))
    save_lm(folder, model, tokenizer)
    save_json(folder / "result.json", {"history": history})


def _policy_sft(folder: Path, progress) -> None:
    from course_lib.algorithms.sft import SFTConfig
    from course_lib.experiments.preferences import imitate
    from course_lib.lm.model import load_lm, save_lm

    config = dict(size("policy_sft"))
    seed, answers = config.pop("seed"), config.pop("answers")
    model, tokenizer = load_lm("base")
    history = imitate(model, tokenizer, seed, answers, SFTConfig(seed=seed, **config))
    save_lm(folder, model, tokenizer)
    save_json(folder / "result.json", {"history": history})


def _answers(folder: Path, progress) -> None:
    from course_lib.experiments.preferences import collect
    from course_lib.lm.model import load_lm

    save_json(folder / "result.json", collect(*load_lm("policy_sft"), **size("answers")))


def _reward_model(folder: Path, progress) -> None:
    from course_lib.experiments.reward_model import weak_reward_model
    from course_lib.lm.model import load_lm

    policy, tokenizer = load_lm("policy_sft")
    model, numbers = weak_reward_model(policy, tokenizer, result("answers"), **size("reward_model"))
    model.save(folder, tokenizer)
    save_json(folder / "result.json", numbers)


def _start(name: str) -> Callable[[Path, object], None]:
    def build(folder: Path, progress) -> None:
        from course_lib.experiments.starts import start
        from course_lib.lm.model import load_lm, save_lm

        model, tokenizer = load_lm("base")
        history = start(model, tokenizer, **size(name))
        save_lm(folder, model, tokenizer)
        save_json(folder / "result.json", {"history": history})

    return build


def _grpo(name: str) -> Callable[[Path, object], None]:
    def build(folder: Path, progress) -> None:
        from course_lib.experiments.grpo import rule_study
        from course_lib.lm.model import load_lm

        save_json(folder / "result.json", rule_study(*load_lm(*NEEDS[name]), **size(name)))

    return build


def _study(name: str) -> Callable[[Path, object], None]:
    def build(folder: Path, progress) -> None:
        from course_lib.experiments import pretraining, sft
        from course_lib.lm.model import load_lm

        model, tokenizer = load_lm("base")
        numbers = {
            "scaling": lambda: pretraining.scaling(tokenizer, **size(name)),
            "follow": lambda: sft.follow_study(model, tokenizer, **size(name)),
            "knowledge": lambda: sft.knowledge(model, tokenizer, **size(name)),
            "abstention": lambda: sft.abstention(model, tokenizer, **size(name)),
            "open_ended": lambda: sft.open_ended(model, tokenizer, **size(name)),
        }[name]()
        save_json(folder / "result.json", numbers)

    return build


def _reinforce_study(name: str) -> Callable[[Path, object], None]:
    def build(folder: Path, progress) -> None:
        from course_lib.experiments import reinforce
        from course_lib.lm.model import load_lm

        numbers = {
            "reinforce_letters": lambda: reinforce.letters_runs(**size(name)),
            "reinforce_example": lambda: reinforce.examples(*load_lm("policy_sft"), **size(name)),
            "reinforce_atlas": lambda: reinforce.atlas_runs(*load_lm("policy_sft"), **size(name)),
            "reinforce_variance": lambda: reinforce.atlas_variances(*load_lm("policy_sft"), **size(name)),
        }[name]()
        save_json(folder / "result.json", numbers)

    return build


def _preference_study(name: str) -> Callable[[Path, object], None]:
    def build(folder: Path, progress) -> None:
        from course_lib.experiments import reward_model, rlhf
        from course_lib.lm.model import load_lm

        policy, tokenizer = load_lm("policy_sft")
        if name == "preference_probe":
            numbers = reward_model.unnatural(rlhf.load_rewards(get("rlhf_rewards")), tokenizer, result("answers"), **size(name))
        else:
            study = {"preference_heads": reward_model.heads, "preference_models": reward_model.whole_models}[name]
            numbers = study(policy, tokenizer, result("answers"), **size(name))
        save_json(folder / "result.json", numbers)

    return build


def _rlhf_study(name: str) -> Callable[[Path, object], None]:
    def build(folder: Path, progress) -> None:
        from course_lib.experiments import rlhf
        from course_lib.lm.model import load_lm

        if name == "rlhf_optimum":
            numbers = rlhf.to_the_optimum(**size(name))
        elif name.startswith("rlhf_rewards"):
            numbers = rlhf.reward_models(folder, *load_lm("policy_sft"), result("answers"), **size(name))
        else:
            few, *many = (rlhf.load_rewards(get(need)) for need in recipe(name).needs
                           if need.name.startswith("rlhf_rewards"))
            start = (*load_lm("policy_sft"), few)
            numbers = rlhf.best_of(*start, **size(name)) if name == "rlhf_best_of" else rlhf.hacking(
                *start, many=many[0] if many else (), **size(name))
        save_json(folder / "result.json", numbers)

    return build


def _ppo_study(name: str) -> Callable[[Path, object], None]:
    def build(folder: Path, progress) -> None:
        from course_lib.experiments import ppo
        from course_lib.lm.model import load_lm

        numbers = {
            "ppo_bias": lambda: ppo.bias_and_variance(**size(name)),
            "ppo_stability": lambda: ppo.stability(**size(name)),
            "ppo_details": lambda: ppo.details(**size(name)),
            "ppo_sums": lambda: ppo.on_sums(*load_lm("sums_start"), **size(name)),
        }[name]()
        save_json(folder / "result.json", numbers)

    return build


def _dpo_study(name: str) -> Callable[[Path, object], None]:
    def build(folder: Path, progress) -> None:
        from course_lib.experiments import dpo
        from course_lib.lm.model import load_lm

        if name == "dpo_optimum":
            numbers = dpo.to_the_optimum(**size(name))
        else:
            study = {"dpo_beta": dpo.sweep, "dpo_rounds": dpo.rounds}[name]
            numbers = study(*load_lm("policy_sft"), result("answers"), **size(name))
        save_json(folder / "result.json", numbers)

    return build


def _agent_start(world: str, model: str) -> Callable[[Path, object], None]:
    """SFT of `model` on the traces of `experiments.<world>`: where that world's agent starts."""
    def build(folder: Path, progress) -> None:
        from course_lib.lm.model import load_lm, save_lm

        policy, tokenizer = load_lm(model)
        history = _experiments(world).start(policy, tokenizer, **size(f"{world}_start"))
        save_lm(folder, policy, tokenizer)
        save_json(folder / "result.json", {"history": history})

    return build


def _agent_study(world: str) -> Callable[[Path, object], None]:
    def build(folder: Path, progress) -> None:
        from course_lib.lm.model import load_lm

        save_json(folder / "result.json", _experiments(world).study(*load_lm(f"{world}_start"), **size(f"agent_{world}")))

    return build


def _experiments(world: str):
    return importlib.import_module(f"course_lib.experiments.{world}")


def _methods_study(name: str) -> Callable[[Path, object], None]:
    def build(folder: Path, progress) -> None:
        from course_lib.experiments import methods, rlhf
        from course_lib.lm.model import load_lm

        learnt = dict(size("rlhf_rewards"))
        seeds, labels = learnt.pop("seeds"), learnt.pop("labels")
        start = methods.Start(*load_lm("policy_sft"), result("answers"), rlhf.load_rewards(get("rlhf_rewards")), labels)
        numbers = methods.study(start, **size(name))
        if name == "methods_offline":
            numbers["reward_model_seconds"] = methods.reward_model_seconds(start, seeds[0], **learnt)
        save_json(folder / "result.json", numbers)

    return build


_BUILD = {"base": _base, "sft": _sft, "policy_sft": _policy_sft, "answers": _answers, "reward_model": _reward_model,
          **{name: _start(name) for name in STARTS}}
_BUILD |= {name: _reinforce_study(name) for name in SIZES if name.startswith("reinforce")}
_BUILD |= {name: _preference_study(name) for name in SIZES if name.startswith("preference")}
_BUILD |= {name: _rlhf_study(name) for name in SIZES if name.startswith("rlhf")}
_BUILD |= {name: _grpo(name) for name in SIZES if name.startswith("grpo")}
_BUILD |= {name: _ppo_study(name) for name in SIZES if name.startswith("ppo")}
_BUILD |= {name: _dpo_study(name) for name in SIZES if name.startswith("dpo")}
_BUILD |= {"research_start": _agent_start("research", "sft"), "forms_start": _agent_start("forms", "base"),
           **{f"agent_{world}": _agent_study(world) for world in ("research", "forms")}}
_BUILD |= {name: _methods_study(name) for name in SIZES if name.startswith("methods")}
_BUILD |= {name: _study(name) for name in SIZES if name not in _BUILD}
