"""The claims about SDFT, and what the runs of lab/evidence.py say about each: figures, a verdict by a rule, pictures.

    python lab/claims.py                reads results/runs.json; writes results/evidence.json, results/*.png, and the
                                        blocks of README.md, lab/*.md and examples/README.md
    python lab/claims.py --readme       these blocks alone, from what lies in results/

A claim is a function of the runs. The first paragraph of its docstring is the claim, the rest the rule of its verdict,
written down before. It returns the seeds that have all runs of the comparison, its figures, its
margins (how far beyond the claim's bound: at least 0 where it holds) and its directions (above 0 where at least the
sign is right); `verdict` decides. A figure is an array, one number a seed, or a pair (mean, half of its 95 % interval).
Figures are fractions. "Better", "more" and "grows" mean by at least one point (0.01), "no less" and "as good" by at
most one. Left out: any correction for asking many questions of the same runs.
"""
import argparse
import functools
import math
import os
import re
import sys
import textwrap
from collections import Counter

import numpy as np

sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import smollm2
import smollm2_claims
from eval import continual_metrics
from evidence import ABLATION, EXPERIMENTS, READING, SIZES, markdown
from intervals import FEWEST, NAN, interval, rank_correlation, verdict
from pretrain import AT_MOST, GATES
from runs import BadInput, ends_in_one_line, read_json, replacing, write_json

POINT = 0.01
# A wanted run: (experiment, name[, after how many tasks]). A longer stream begins with the shorter one, so twenty tasks
# give ten as well.
SFT, SDFT, REPLAY, NEEDED = [("twenty", name) for name in EXPERIMENTS["twenty"][1]]
HELD, HELD_REPLAY = [("interference", f"{name} f0 0.0001") for name in ("sdft", "sdft+self-replay")]
# To be compared with other runs of ten tasks: the same tests.
SFT10, SDFT10, REPLAY10 = [("ten", name) for name in EXPERIMENTS["ten"][1]]
TEN = {"sft": SFT10, "sdft": SDFT10}
FIRST_TEN, TWENTY = [{"sft": (*SFT, n), "sdft": (*SDFT, n)} for n in (10, 20)]
REMEDIES = [name for name in EXPERIMENTS["baselines"][1] if name.startswith("sft+")]
DEMONSTRATIONS = (16, 32, 64, 128, 256, 512)

# ---------------------------------------------------------------------------------------------------------------------
# Figures of a run, paired runs, intervals, the verdict.


class NotMeasured(Exception):
    """Too few seeds have all the runs of a comparison; args[0] are those that have."""


def ratio(last, first):
    return last / first if first else NAN


def after(row, n=0) -> dict:
    """The figures of a run after its first n tasks (0: all).

    NaN is what was measured at the end of a longer run alone. performance: what is left of all that it could do once,
    half tasks (retention), half base skills (base retention). score: what it can do, half tasks (average accuracy),
    half base skills (base retention).
    """
    R = np.array(row["R"], dtype=float)
    n = n or R.shape[1]
    f = continual_metrics(R[: n + 1, :n])
    kept = {"base_retention": "base_accuracy", "voice_retention": "voice", "teacher_retention": "teacher_accuracy",
            "neighbours_kept": "neighbours"}
    f |= {name: ratio(row[key][n], row[key][0]) for name, key in kept.items()}
    f["performance"] = (f["retention"] + f["base_retention"]) / 2
    f["score"] = (f["average_accuracy"] + f["base_retention"]) / 2
    f["before"] = R[range(n), range(n)].mean()
    f["past_tasks"] = R[n, : n - 1].mean() if n > 1 else NAN
    f["new_with_demonstration"] = row["gates"]["new_with_demonstration"]
    f |= {key: sum(row[key][:n]) for key in ("steps", "generated_tokens", "seconds")}
    f["regularised"] = np.mean(row["regularised"][:n])
    at_end = {
        "two_step_skills_kept": kinds_kept(row, "composed", "chain"),
        "one_step_skills_kept": kinds_kept(row, "letters", "market", "fact"),
        "guard_trips": row["guard_trips"],
    }
    f |= at_end if n == R.shape[1] else dict.fromkeys(at_end, NAN)
    return f | {"row": row}


def kinds_kept(row, *kinds):
    """What is left at the end of a run of some kinds of base skills."""
    first, last = row["base_by_kind"]
    return np.mean([ratio(last[kind], first[kind]) for kind in kinds if kind in first] or [NAN])


def of(runs, experiment, name, n=0, seeds=None) -> dict:
    """{seed: figures} of the runs with this name that learned at least n tasks."""
    found = [row for row in runs if (row["experiment"], row["name"]) == (experiment, name) and len(row["steps"]) >= n]
    return {row["seed"]: after(row, n) for row in found if seeds is None or row["seed"] in seeds}


def paired(runs, wanted: dict):
    """The seeds that have every wanted run, and {label: {figure: array over these seeds}}."""
    found = {label: of(runs, *run) for label, run in wanted.items()}
    seeds = sorted(set.intersection(*map(set, found.values())))
    if len(seeds) < FEWEST:
        raise NotMeasured(seeds)

    def over_seeds(by_seed):
        return {name: np.array([by_seed[seed][name] for seed in seeds]) for name in by_seed[seeds[0]]}

    return seeds, {label: over_seeds(by_seed) for label, by_seed in found.items()}


def show(found, *names) -> dict:
    return {f"{k}, {label}".replace("_", " "): figures[k] for k in names for label, figures in found.items()}


def better(runs, ours, others, names, by=POINT, sign=None, also=()):
    """A claim that our run has more than each of the others, in each of the named figures.

    Margin: ours - other - by. Direction: ours - other (in `sign`, or in the named figures). `also`: figures that are
    only reported.
    """
    seeds, found = paired(runs, ours | others)
    (mine,) = ours

    def more(name):
        return [found[mine][name] - found[other][name] for other in others]

    margins = [m - by for name in names for m in more(name)]
    directions = [m for name in ([sign] if sign else names) for m in more(name)]
    return seeds, show(found, *names, *also), margins, directions


# ---------------------------------------------------------------------------------------------------------------------
# The claims.


def new_tasks(runs):
    """SDFT learns new tasks better than SFT, by at least 5 points.

    Learning accuracy, ten tasks. Margin: sdft - sft - 5 points. Direction: sdft - sft.
    """
    return better(runs, {"sdft": FIRST_TEN["sdft"]}, {"sft": FIRST_TEN["sft"]}, ["learning_accuracy"], by=0.05)


def ten_tasks(runs):
    """After ten tasks SFT has forgotten at least 42 %, SDFT at most 11 %.

    Forgetting of the tasks (Chaudhry). Margins: sft - 42 points; 11 points - sdft. Direction: sft - sdft.
    """
    seeds, found = paired(runs, FIRST_TEN)
    sft, sdft = (m["forgetting"] for m in found.values())
    return seeds, show(found, "forgetting", "base_retention"), [sft - 0.42, 0.11 - sdft], [sft - sdft]


def twenty_tasks(runs):
    """After twenty tasks SDFT keeps at least 85 % of its performance, SFT less than 40 %.

    Performance: half retention of the tasks, half base retention. Margins: sdft - 85 points; 40 points - sft.
    Direction: sdft - sft.
    """
    seeds, found = paired(runs, TWENTY)
    sft, sdft = (m["performance"] for m in found.values())
    figures = show(found, "performance", "retention", "base_retention")
    return seeds, figures, [sdft - 0.85, 0.40 - sft], [sdft - sft]


def gap_grows(runs):
    """The longer the stream, the larger the gap between SDFT and SFT.

    Gap in performance (half retention, half base retention) after 5, 10, 20 tasks. Margins: 10 - 5 and 20 - 10, - 1
    point. Direction: 20 - 5.
    """
    methods, lengths = {"sft": SFT, "sdft": SDFT}, (5, 10, 20)
    seeds, found = paired(runs, {(name, n): (*run, n) for n in lengths for name, run in methods.items()})
    gap = {n: found["sdft", n]["performance"] - found["sft", n]["performance"] for n in lengths}
    figures = {f"performance, sdft - sft after {n}": g for n, g in gap.items()}
    return seeds, figures, [gap[10] - gap[5] - POINT, gap[20] - gap[10] - POINT], [gap[20] - gap[5]]


def half_demonstrations(runs):
    """SDFT needs half of SFT's demonstrations: with n/2 it learns as well as SFT with n, n from 32 to 512.

    Learning accuracy. Margins: the mean over n of sdft(n/2) - sft(n) + 1 point; at each n the mean over seeds of the
    same; and, for half to be enough because of SDFT, the mean over n of sdft(n/2) - sft(n/2) - 1 point. Direction: the
    first margin.
    """
    methods = ("sft", "sdft")
    wanted = {(method, n): ("demonstrations", f"{method} {n}") for method in methods for n in DEMONSTRATIONS}
    seeds, found = paired(runs, wanted)
    sft, sdft = ({n: found[method, n]["learning_accuracy"] for n in DEMONSTRATIONS} for method in methods)
    ahead = {n: sdft[n // 2] - sft[n] for n in DEMONSTRATIONS[1:]}
    mean = np.mean(list(ahead.values()), axis=0)
    beside = np.mean([sdft[n // 2] - sft[n // 2] for n in ahead], axis=0)
    figures = {"mean of sdft(n/2) - sft(n)": mean, "mean of sdft(n/2) - sft(n/2)": beside}
    figures |= {f"sdft({n // 2}) - sft({n})": a for n, a in ahead.items()}
    at_each = [(interval(a)[0] + POINT, 0.0) for a in ahead.values()]
    return seeds, figures, [mean + POINT, *at_each, beside - POINT], [mean + POINT]


def alpha_one_is_sft(runs):
    """Without distillation (alpha = 1) SDFT falls to SFT.

    Margins: learning accuracy, average accuracy and base retention within 5 points of sft's. Direction: its score is
    nearer to sft's than sdft's. (With as many steps it is SFT's step, so this tests the code; a test compares the
    weights.)
    """
    seeds, found = paired(runs, {"alpha 1": ("alpha", "alpha 1")} | TEN)
    one, sft, sdft = found.values()
    names = ("learning_accuracy", "average_accuracy", "base_retention")
    nearer = abs(one["score"] - sdft["score"]) - abs(one["score"] - sft["score"])
    margins = [0.05 + sign * (one[name] - sft[name]) for name in names for sign in (1, -1)]
    return seeds, show(found, *names), margins, [nearer]


def best_alpha(runs):
    """The best supervised share alpha is between 0.4 and 0.6.

    Score: half average accuracy, half base retention. Margin: the best of 0.4 to 0.6 (by the mean over seeds) - the
    best of the others - 1 point. Direction: the same without the point.
    """
    seeds, found = paired(runs, {0: SDFT10} | {a: ("alpha", f"alpha {a / 10:g}") for a in range(1, 11)})

    def best(alphas):
        return max(alphas, key=lambda a: found[a]["score"].mean())

    inside, outside = best([4, 5, 6]), best([0, 1, 2, 3, 7, 8, 9, 10])
    figures = {f"score, alpha {a / 10:g}": found[a]["score"] for a in (inside, outside)}
    ahead = found[inside]["score"] - found[outside]["score"]
    return seeds, figures, [ahead - POINT], [ahead]


def frozen_teacher(runs):
    """A frozen teacher raises forgetting by about 30 %.

    Loss: 1 - performance (half retention, half base retention). Margins: frozen - 1.15 moving; 1.45 moving - frozen.
    Direction: frozen - moving.
    """
    seeds, found = paired(runs, {"frozen": ("ema", "ema 1"), "moving": SDFT10})
    frozen, moving = (1 - m["performance"] for m in found.values())
    figures = {"loss, frozen": frozen, "loss, moving": moving} | show(found, "forgetting", "learning_accuracy")
    return seeds, figures, [frozen - 1.15 * moving, 1.45 * moving - frozen], [frozen - moving]


def live_teacher(runs):
    """A live teacher (the student's own weights) collapses.

    Score: half average accuracy, half base retention. Margin: half of the moving teacher's score - the live one's.
    Direction: moving - live.
    """
    seeds, found = paired(runs, {"live": ("ema", "ema 0"), "moving": SDFT10})
    live, moving = (m["score"] for m in found.values())
    figures = show(found, "score") | {"guard trips, live": found["live"]["guard_trips"]}
    return seeds, figures, [moving / 2 - live], [moving - live]


def forward_divergence(runs):
    """KL(teacher ‖ student) converges best: it learns more than KL(student ‖ teacher) and the Jensen-Shannon
    divergence.

    Learning accuracy. Margins: forward - reverse - 1 point; forward - jsd - 1 point. Directions: the same without the
    point.
    """
    others = {name: ("variants", name) for name in ("reverse", "jsd")}
    return better(runs, {"forward": SDFT10}, others, ["learning_accuracy"], also=["steps"])


def same_prompt(runs):
    """The demonstration of the same prompt teaches better than those of other prompts.

    Learning accuracy. Margins: same - 1 other - 1 point; same - 4 others - 1 point. Directions: the same without the
    point.
    """
    others = {name: ("variants", f"sdft {name} shown") for name in ("1 other", "4 others")}
    return better(runs, {"same": SDFT10}, others, ["learning_accuracy"], also=["base_retention"])


def own_voice(runs):
    """With demonstrations in the model's own voice SFT forgets no more than SDFT.

    Loss: 1 - performance (half retention, half base retention). Margins: loss of sdft, in its own voice and in the
    experts', - that of sft in its own voice + 1 point.
    """
    own = {f"{method} own voice": ("variants", f"{method} own voice") for method in ("sft", "sdft")}
    seeds, found = paired(runs, own | TEN)
    lost = {label: 1 - m["performance"] for label, m in found.items()}
    figures = {f"loss, {label}": loss for label, loss in lost.items()} | show(found, "learning_accuracy")
    margins = [lost[label] - lost["sft own voice"] + POINT for label in ("sdft own voice", "sdft")]
    return seeds, figures, margins, []


def on_policy(runs):
    """Learning from one's own samples matters: on the teacher's samples SDFT is worse.

    Score: half average accuracy, half base retention. Margin: on-policy - off-policy - 1 point. Direction: the same
    without the point.
    """
    also = ["learning_accuracy", "average_accuracy", "base_retention"]
    return better(runs, {"on-policy": SDFT10}, {"off-policy": ("baselines", "off-policy")}, ["score"], also=also)


def beats_remedies(runs):
    """SDFT learns and keeps more than SFT with what is known against forgetting: replay, self-replay, LwF, L2, EWC.

    Score: half average accuracy, half base retention, ten tasks. Margins: sdft - each - 1 point. Directions: the same
    without the point.
    """
    return better(runs, {"sdft": SDFT10}, {name: ("baselines", name) for name in REMEDIES}, ["score"])


def costs_more(runs):
    """A step of SDFT costs about two and a half times one of SFT.

    Ratio of seconds a step, twenty tasks. Margins: ratio - 2; 3 - ratio. Direction: ratio - 1.
    """
    seeds, found = paired(runs, TWENTY)
    sft, sdft = (m["seconds"] / m["steps"] for m in found.values())
    times = sdft / sft
    return seeds, {"times": times} | show(found, "steps", "seconds"), [times - 2, 3 - times], [times - 1]


def rare_rows(runs):
    """One learning rate for all rows of the embedding costs learning and base skills.

    Margins: learning accuracy and base retention, rates by rarity - all alike - 1 point. Direction: score (average
    accuracy and base retention).
    """
    others = {"alike": ("variants", "sdft all rows alike")}
    return better(runs, {"by rarity": SDFT10}, others, ["learning_accuracy", "base_retention"], sign="score")


def answer_only(runs):
    """Demonstrations of the answer alone: skills that need a written intermediate step survive twenty tasks of SDFT
    (90 %), not of SFT (50 %).

    Share kept of the accuracy on base skills of two steps. Margins: sdft - 90 points; 50 points - sft. Direction: sdft
    - sft.
    """
    seeds, found = paired(runs, TWENTY)
    sft, sdft = (m["two_step_skills_kept"] for m in found.values())
    figures = show(found, "two_step_skills_kept", "one_step_skills_kept")
    return seeds, figures, [sdft - 0.90, 0.50 - sft], [sdft - sft]


def advantages(runs, experiment, names, figure):
    """Of SDFT over SFT: the seeds, {name: figures of sdft}, {name: sdft - sft, one number a seed}."""
    methods = ("sft", "sdft")
    seeds, found = paired(runs, {(m, name): (experiment, f"{m} {name}") for name in names for m in methods})
    ahead = {name: found["sdft", name][figure] - found["sft", name][figure] for name in names}
    return seeds, {name: found["sdft", name] for name in names}, ahead


def model_size(runs):
    """The larger the model, the larger SDFT's advantage over SFT.

    Advantage: score (half average accuracy, half base retention) of sdft - sft. Margins: each size - the next smaller
    - 1 point. Direction: largest - smallest. (Both methods at lr 0.001, tuned for no size but 0.8M.)
    """
    seeds, found, ahead = advantages(runs, "sizes", SIZES, "score")
    small, *_, large = steps = list(ahead.values())
    figures = {f"advantage, {size}": a for size, a in ahead.items()} | show(found, "new_with_demonstration")
    return seeds, figures, [b - a - POINT for a, b in zip(steps, steps[1:])], [large - small]


def in_context(runs):
    """The better a model uses a demonstration before it is taught, the larger SDFT's advantage over SFT.

    Models whose pretraining was stopped early use it less well. Advantage: learning accuracy of sdft - sft, no guard,
    both at lr 0.001 (base skills, of which some of these models have hardly any, are left out). Rank correlation over
    models with the accuracy on new tasks, shown a demonstration. Margin: rho - 0.5. Direction: rho.
    """
    seeds, found, ahead = advantages(runs, "reading", READING, "learning_accuracy")
    read = np.concatenate([m["new_with_demonstration"] for m in found.values()])
    rho = rank_correlation(read, np.concatenate(list(ahead.values())))
    figures = {"rho": rho} | show(found, "new_with_demonstration")
    figures |= {f"advantage, {name}": a for name, a in ahead.items()}
    return seeds, figures, [(rho[0] - 0.5, rho[1])], [rho]


def drifts(runs):
    """[(row, drift on the last task's prompts, drift on base prompts, share of the base skills lost)] of all runs but
    those for tuning."""
    reported = [row for row in runs if not row["experiment"].startswith("tune")]
    points = [(row, row["drift_new"][-1], row["drift_base"][-1], 1 - after(row)["base_retention"]) for row in reported]
    return [point for point in points if not np.isnan(point[1:]).any()]


def drift_predicts(runs):
    """Drift predicts forgetting: the farther the answers to new prompts have moved, KL(base ‖ model), the more base
    skills are lost.

    Spearman's rank correlation over all runs but those for tuning, at least ten. Margin: rho - 0.7. Direction: rho.
    (The interval takes runs as independent, though those of a seed share their base model.)
    """
    points = drifts(runs)
    seeds = sorted({row["seed"] for row, *_ in points})
    if len(points) < 10:
        raise NotMeasured(seeds)
    _, new, base, lost = zip(*points)
    rho, half = rank_correlation(new, lost)
    figures = {"rho": (rho, half), "rho, base prompts": rank_correlation(base, lost)}
    # Within a kind of method: between them it mostly tells which is which.
    for name in ("sft", "sdft"):
        some = [point[1:] for point in points if point[0]["method"].startswith(name)]
        if len(some) >= 10:
            new, base, lost = zip(*some)
            figures[f"rho, {name} alone"] = rank_correlation(new, lost)
            figures[f"rho, {name} alone on base prompts"] = rank_correlation(base, lost)
    return seeds, figures, [(rho - 0.7, half)], [(rho, half)]


def by_family(rows) -> dict:
    """{family: [accuracy when learned, accuracy at the end]}, each an array over the runs."""

    def mean_at(row, family, when):
        found = [row["R"][j + 1 if when == "learned" else -1][j] for j, f in enumerate(row["families"]) if f == family]
        return np.mean(found or [NAN])

    names = dict.fromkeys(f for row in rows for f in row["families"])
    return {name: [np.array([mean_at(row, name, when) for row in rows]) for when in ("learned", "end")]
            for name in names}


def families(runs):
    """SDFT learns skills, decisions and facts alike: 95 % in every family after twenty tasks, and an update spares its
    neighbours.

    Margins: final accuracy of sdft in each family - 95 points; neighbours kept - 95 points.
    """
    seeds, found = paired(runs, TWENTY)
    sdft = {family: end for family, (_, end) in by_family(found["sdft"]["row"]).items()}
    kept = found["sdft"]["neighbours_kept"]
    figures = {f"{family}, sdft": end for family, end in sdft.items()} | show(found, "neighbours_kept")
    return seeds, figures, [*[end - 0.95 for end in sdft.values()], kept - 0.95], []


def market(runs):
    """From a calm market to a crash: SDFT earns more than SFT at the end, in all regimes and in those that are past.

    Share of the best return. Margins: sdft - sft - 1 point, over all regimes; over all but the last. Directions: the
    same without the point.
    """
    names = ["average_accuracy", "past_tasks"]
    return better(runs, {"sdft": ("market", "sdft")}, {"sft": ("market", "sft")}, names, also=["before"])


def where_needed(runs):
    """To regularise only where forgetting shows is as good as to regularise always, and costs less.

    SDFT with self-replay, twenty tasks. Margins: where needed - always + 1 point, in average accuracy and in base
    retention; tokens generated less.
    """
    seeds, found = paired(runs, {"never": (*SDFT, 20), "needed": (*NEEDED, 20), "always": (*REPLAY, 20)})
    needed, always = found["needed"], found["always"]
    names = ("average_accuracy", "base_retention")
    margins = [*[needed[name] - always[name] + POINT for name in names],
               always["generated_tokens"] - needed["generated_tokens"]]
    return seeds, show(found, *names, "generated_tokens", "regularised"), margins, []


def at_least(runs, method, **bounds):
    seeds, found = paired(runs, {method[1]: (*method, 20)})
    margins = [found[method[1]][name] - bound for name, bound in bounds.items()]
    return seeds, show(found, *bounds), margins, []


MARK = {"retention": 0.85, "base_retention": 0.95, "learning_accuracy": 0.95}
HIGHER_MARK = MARK | {"retention": 0.95, "base_retention": 0.99}


def moonshot(runs):
    """Twenty tasks of plain SDFT keep 85 % of the tasks and 95 % of the base skills, and 95 % is learned.

    Margins: retention - 85 points; base retention - 95 points; learning accuracy - 95 points.
    """
    return at_least(runs, SDFT, **MARK)


def moonshot_self_replay(runs):
    """Twenty tasks of SDFT with self-replay keep 95 % of the tasks and 99 % of the base skills, and 95 % is learned.

    Margins: retention - 95 points; base retention - 99 points; learning accuracy - 95 points.
    """
    return at_least(runs, REPLAY, **HIGHER_MARK)


def moonshot_held(runs):
    """With --f0 0.0001, tuned on another stream, twenty tasks of plain SDFT keep 85 % of the tasks and 95 % of the
    base skills, and 95 % is learned.

    Margins: retention - 85 points; base retention - 95 points; learning accuracy - 95 points.
    """
    return at_least(runs, HELD, **MARK)


def moonshot_held_self_replay(runs):
    """With --f0 0.0001 twenty tasks of SDFT with self-replay keep 95 % of the tasks and 99 % of the base skills, and
    95 % is learned.

    Margins: retention - 95 points; base retention - 99 points; learning accuracy - 95 points.
    """
    return at_least(runs, HELD_REPLAY, **HIGHER_MARK)


# Who made a claim. SUMMARY: a summary of the paper, by others; it says more than the paper does.
PAPER, CODE, SUMMARY, OURS = "paper", "its code", "summary", "ours"
# claim: who made it, and the experiments of lab/evidence.py that it rests on (none named: all)
CLAIMS = {
    new_tasks: (SUMMARY, "twenty"),
    ten_tasks: (SUMMARY, "twenty"),
    twenty_tasks: (SUMMARY, "twenty"),
    gap_grows: (SUMMARY, "twenty"),
    half_demonstrations: (SUMMARY, "demonstrations"),
    alpha_one_is_sft: (SUMMARY, "ten alpha"),
    best_alpha: (SUMMARY, "ten alpha"),
    frozen_teacher: (SUMMARY, "ten ema"),
    live_teacher: (PAPER, "ten ema"),
    forward_divergence: (CODE, "ten variants"),
    same_prompt: (PAPER, "ten variants"),
    own_voice: (OURS, "ten variants"),
    on_policy: (PAPER, "ten baselines"),
    beats_remedies: (OURS, "ten baselines"),
    costs_more: (PAPER, "twenty"),
    rare_rows: (OURS, "ten variants"),
    answer_only: (PAPER, "twenty"),
    model_size: (PAPER, "sizes"),
    in_context: (PAPER, "reading"),
    drift_predicts: ("Shenfeld et al. 2025, arXiv 2509.04259", ""),
    families: (OURS, "twenty"),
    market: (OURS, "market"),
    where_needed: (OURS, "twenty"),
    moonshot: (OURS, "twenty"),
    moonshot_self_replay: (OURS, "twenty"),
    moonshot_held: (OURS, "interference"),
    moonshot_held_self_replay: (OURS, "interference"),
}


def judge(claim, runs) -> dict:
    """One claim, as it goes to results/evidence.json; null is what was not measured."""
    try:
        seeds, figures, margins, directions = claim(runs)
        found = verdict(margins, directions)
    except NotMeasured as e:
        seeds, figures, found = e.args[0], {}, "not measured"
    intervals = {name: [None if math.isnan(x) else round(x, 6) for x in interval(v)] for name, v in figures.items()}
    text, rule = (" ".join(part.split()) for part in claim.__doc__.split("\n\n", 1))
    source, experiments = CLAIMS[claim]
    return {
        "id": claim.__name__.replace("_", "-"),
        "claim": text,
        "source": source,
        "rule": rule,
        "figure": {name: mean for name, (mean, _) in intervals.items()},
        "ci95": {name: half for name, (_, half) in intervals.items()},
        "seeds": seeds,
        "verdict": found,
        "command": f"python lab/evidence.py {experiments}".strip(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Tables.

# Endings of the names of what is counted.
COUNTS = ("steps", "tokens", "seconds", "trips")


def cell(name, mean, half=None) -> str:
    """A figure as text; – is what was not measured.

    Its name tells the unit: counts and seconds, rho, and how many times something is; all else in percent.
    """
    if mean is None or math.isnan(mean):
        return "–"
    scale, digits = 100, 1
    if name.split(",")[0].endswith(COUNTS):
        scale, digits = 1, 0
    elif name.startswith(("rho", "times")):
        scale, digits = 1, 2
    # + 0.0: no minus before a zero
    text = f"{round(mean * scale, digits) + 0.0:,.{digits}f}"
    return text if half is None or math.isnan(half) else f"{text} ± {half * scale:,.{digits}f}"


def found_text(claim) -> str:
    """Its figures; those of the same name ("name, run") behind that name."""
    named = {}
    for key, mean in claim["figure"].items():
        name, _, run = key.partition(", ")
        named.setdefault(name, []).append(f"{run} = " * bool(run) + cell(name, mean, claim["ci95"][key]))
    return "; ".join(f"{name}: {', '.join(figures)}" for name, figures in named.items()) or "–"


def claims_text(evidence) -> str:
    rows = [[c["id"], c["claim"], c["source"], found_text(c), str(len(c["seeds"])), c["verdict"]]
            for c in evidence["claims"]]
    return markdown(["id", "claim", "source", "found", "seeds", "verdict"], rows, left=6)


# Joint training learns all tasks at once: none is "just learned".
NOT_OF_JOINT = ("learning_accuracy", "forgetting")


def methods_text(runs, wanted, columns, seeds=None) -> str:
    """A row for each wanted run that there is: mean ± half of the interval, and the number of seeds."""
    rows = []
    for run in wanted:
        name, found = run[1], of(runs, *run, seeds=seeds).values()
        told = [c for c in columns if name != "joint" or c not in NOT_OF_JOINT]
        known = {c: [m[c] for m in found if m[c] == m[c]] for c in told}
        cells = [cell(c, *interval(known[c])) + f" ({len(known[c])} of {len(found)})" * (len(known[c]) < len(found))
                 if c in told else "–" for c in columns]
        if found:
            rows.append([name, *cells, str(len(found))])
    return markdown(["method", *[c.replace("_", " ") for c in columns], "seeds"], rows)


BASELINES = [SFT10, *[("baselines", name) for name in EXPERIMENTS["baselines"][1]], SDFT10, REPLAY10]
# What an experiment is compared with, on its seeds.
BESIDE = {
    "interference": [SFT, ("rates", "sft lr 0.001 embed 30"), SDFT],
    "rates": [SFT, SDFT],
    "variants": [SFT10, SDFT10],
    "ema": [SDFT10],
    "alpha": [SDFT10, SFT10],
}
# What its table shows more than others.
MORE = {"twenty": ["regularised", "generated_tokens", "seconds"]}
MORE |= dict.fromkeys(("variants", "calendar", "market", "alpha"), ["guard_trips"])
SHORT = ["learning_accuracy", "average_accuracy", "forgetting", "retention", "base_retention", "voice_retention",
         "teacher_retention"]


def demo_text(runs, n, columns) -> str:
    """The three methods of the demo after n tasks."""
    return methods_text(runs, [(*run, n) for run in (SFT, SDFT, REPLAY)], columns)


def headline_text(runs) -> str:
    columns = [*SHORT[:3], *SHORT[4:], "steps", "seconds"]
    return "\n\n".join(f"After {n} tasks:\n\n{demo_text(runs, n, columns)}" for n in (10, 20))


def headline_three_text(runs) -> str:
    """What the top README tells: three methods, ten tasks, four figures."""
    return demo_text(runs, 10, ["learning_accuracy", "average_accuracy", "forgetting", "base_retention"])


def gates_text(runs) -> str:
    """The gates of all base models behind the headline: the seed that is nearest to missing each."""
    found = [row["gates"] for row in runs if (row["experiment"], row["name"]) == SDFT]
    rows = []
    for name, bound in GATES.items():
        if found and name in found[0]:
            words, worst = ("at most", max) if name in AT_MOST else ("at least", min)
            rows.append([name.replace("_", " "), f"{words} {bound:.0%}", f"{worst(g[name] for g in found):.1%}"])
    return markdown(["gate", "bound", f"worst of {len(found)} seeds"], rows)


def baselines_text(runs) -> str:
    """All methods on the same seeds, ten tasks.

    Before them the bounds: the base model asked about what is taught, without and with a demonstration.
    """
    columns = [*SHORT[:3], "base_retention", "voice_retention", "steps", "generated_tokens", "seconds"]
    header, line, *rows = methods_text(runs, BASELINES, columns, ABLATION).splitlines()
    base = [m["row"]["gates"] for m in of(runs, *SDFT10, seeds=ABLATION).values()]
    bounds = {"base": "new_without_demonstration", "base, shown a demonstration": "new_with_demonstration"}
    above = []
    for name, gate in bounds.items():
        accuracy = cell("average_accuracy", *interval([g[gate] for g in base]))
        cells = [accuracy if c == "average_accuracy" else "–" for c in columns]
        above.append(f"| {' | '.join([name, *cells, str(len(base))])} |")
    return "\n".join([header, line, *above, *rows])


def ablation_text(runs, experiment) -> str:
    """All runs of an experiment, behind those that it is compared with."""
    seeds, options = EXPERIMENTS[experiment]
    columns = [*SHORT, "steps", *MORE.get(experiment, [])]
    wanted = [*BESIDE.get(experiment, []), *[(experiment, name) for name in options]]
    return methods_text(runs, wanted, columns, seeds)


def families_text(runs) -> str:
    """Twenty tasks: accuracy when learned and at the end, by family.

    The last row is what is left of the neighbours of updated facts.
    """
    found = {label: of(runs, *run).values() for label, run in (TWENTY | {HELD[1]: (*HELD, 20)}).items()}
    figures = {label: by_family([m["row"] for m in ms]) for label, ms in found.items()}
    names = [*dict.fromkeys(name for f in figures.values() for name in f), "neighbours kept"]
    for label, ms in found.items():
        figures[label]["neighbours kept"] = [[], [m["neighbours_kept"] for m in ms]]
    nothing = [[], []]
    rows = [[name, *[cell(name, *interval(v)) for f in figures.values() for v in f.get(name, nothing)]]
            for name in names]
    return markdown(["family", *[f"{label}, {when}" for label in found for when in ("when learned", "at the end")]],
                    rows)


def matched(runs) -> dict:
    """{method: (number of trials, learned best, best score, at matched learning)}.

    Of a method's trials of tuning, (setting, learning accuracy, average accuracy, base retention): the one that learned
    most; that with the highest score; and, of those that learned at least 95 %, the one that kept most base skills
    (None: none did).
    """
    trials = {}
    for row in (row for row in runs if row["experiment"] == "tune"):
        (method, _, setting), m = row["name"].partition(" "), after(row)
        trial = (setting, m["learning_accuracy"], m["average_accuracy"], m["base_retention"])
        trials.setdefault(method, []).append(trial)
    return {method: chosen(of_method) for method, of_method in trials.items()}


def chosen(trials) -> tuple:
    most = max(trials, key=lambda t: (t[1], t[3]))
    best = max(trials, key=lambda t: t[2] + t[3])
    learned = [t for t in trials if t[1] >= 0.95]
    return len(trials), most, best, max(learned, key=lambda t: (t[3], t[1]), default=None)


def matched_text(runs) -> str:
    def told(trial):
        return f"{trial[0]}: {' / '.join(cell('', x) for x in trial[1:])}" if trial else "–"

    header = ["method", "trials", "learned best", "best score", "kept most base skills of those that learned ≥ 95 %"]
    rows = [[method, str(n), *map(told, best)] for method, (n, *best) in matched(runs).items()]
    return markdown(header, rows, left=5)


# ---------------------------------------------------------------------------------------------------------------------
# Blocks of the READMEs: what stands between <!-- NAME --> and <!-- end -->.


def commits_text(file) -> str:
    """One sentence: how many runs the figures come from, of which commits, on what."""
    counts = Counter(row["commit"] for row in file["runs"])
    if not counts:
        return "No run has been made yet."
    *before, last = [f"`{commit}` ({n})" for commit, n in counts.items()]
    text = (f"The figures come from {counts.total():,} runs, of these commits (in brackets the runs of each): "
            f"{', '.join(before)}{' and ' * bool(before)}{last}")
    if any(commit.endswith("-dirty") for commit in counts):
        text += "; `-dirty` says that the code had changes that were not committed"
    versions = ", ".join(f"{name} {version}" for name, version in file["versions"].items())
    text += f"; machine and versions, as runs.json has them: {file['machine']}, {versions}."
    return textwrap.fill(text, 120, break_on_hyphens=False)


def step_text(figures) -> str:
    """Of each model the parts of a step, what they must do, and TRL's step."""
    texts = []
    for name, what in ("small", "the small world"), ("real", "SmolLM2 (plain SDFT, 16 rows, 24 tokens)"):
        if not (found := figures.get(name)):
            continue
        lines = [f"| part of a step of {what}, each timed apart | ms | GFLOP | GB | at these speeds, ms | share |",
                 "|---|---:|---:|---:|---:|---:|"]
        for part, row in found["parts"].items():
            part = "**whole step**" if part == "step" else part
            lines.append(f"| {part} | {row['ms']:,.1f} | {row['gflop']:,.1f} | {row['gb']:.2f} | "
                         f"{row['floor_ms']:,.1f} | {row['floor_ms'] / row['ms']:.0%} |")
        text = (f"Timed on a {figures['machine']}, which multiplies large matrices in "
                f"{'bf16' if found['bf16'] else 'fp32'} at {found['gflop_per_s']:,.0f} GFLOP/s and copies "
                f"{found['gb_per_s']:.0f} GB/s: the share is what the slower of the two would take of the time, if "
                "nothing were fused or lay in a cache.")
        if "trl" in found:
            low, high = min(found["times_faster_than_trl"]), max(found["times_faster_than_trl"])
            text += (f" Alternately in one run: a step of ours takes {found['step_ms']:,.0f} ms, one of TRL "
                     f"{found['trl']['version']} {found['trl']['step_ms']:,.0f} ms, {low:.2f} to {high:.2f} times it")
            text += (f", in {found['trl_peak_mb']:,} MB at most where ours takes {found['peak_mb']:,}"
                     if "peak_mb" in found else "") + "."
        texts.append("\n".join(lines) + "\n\n" + textwrap.fill(text, 120))
    return "\n\n".join(texts)


def kernel_text(figures) -> str:
    lines = ["| linear loss, 2,048 tokens, width 128 | words | seconds | extra memory, MB |", "|---|---:|---:|---:|"]
    for r in figures["linear"]:
        how = "whole logits, eager" if r["chunk"] == 0 else f"chunk {r['chunk']}"
        lines.append(f"| {how} | {r['V']:,} | {r['seconds']:.2f} | {r['extra_mb']:,.0f} |")
    lines += ["", "| operator, 600 tokens x 960 words | mean divergence, nats | eager, ms | operator, ms |",
              "|---|---:|---:|---:|"]
    lines += [f"| {r['divergence']} | {r['mean_divergence']:.1g} | {r['eager_ms']:.1f} | {r['operator_ms']:.1f} |"
              for r in figures["operator"]]
    return "\n".join(lines)


def growth_text(figures) -> str:
    lines = ["| grows | from | to | sampling, slope | training, slope | memory, slope | last step: sampling | training "
             "| memory |", "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for name, axis in figures["axes"].items():
        points, measured = axis["points"], ("sampling_ms", "training_ms", "peak_mb")
        cells = [f"{axis['slope'][m]:.2f}" for m in measured] + [f"{axis['last_doubling'][m]:.2f}" for m in measured]
        lines.append(f"| {name}, by {points[-1]['x'] / points[-2]['x']:.1f} at last | {points[0]['x']:,} | "
                     f"{points[-1]['x']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_runs(text):
    """A text made of the rows of runs.json, as one made of the file."""
    return lambda file: text(file["runs"])


# name of a block: (its JSON under results/, or several, its text)
TEXTS = {"headline": headline_text, "headline-three": headline_three_text, "gates": gates_text,
         "baselines": baselines_text, "matched": matched_text, "families": families_text}
TEXTS |= {name: functools.partial(ablation_text, experiment=name) for name in EXPERIMENTS
          if name not in ("tune", "baselines")}
BLOCKS = {name: ("runs", of_runs(text)) for name, text in TEXTS.items()}
BLOCKS |= {"claims": ("evidence", claims_text), "commits": ("runs", commits_text), "step": ("step_cpu", step_text),
           "kernel": ("kernel_cpu", kernel_text), "growth": ("growth_cpu", growth_text),
           "smollm2-answers": ("smollm2", smollm2.answers_table)}
BLOCKS |= {"smollm2-sentences": ("smollm2", functools.partial(smollm2.headline_table, kind="sentences")),
           "smollm2-terse": ("smollm2", functools.partial(smollm2.headline_table, kind="terse", short=True))}
BLOCKS |= {f"smollm2-{name}": ("smollm2-runs", functools.partial(smollm2.experiment_table, experiments=experiments))
           for name, experiments in (("trials", ["trials"]), ("facts", ["sentences", "facts"]), ("skills", ["skills"]),
                                     ("trl", ["trl"]))}
BLOCKS |= {"smollm2-sequence": ("smollm2-runs", smollm2.sequence_table),
           "smollm2-claims": ("smollm2-runs", smollm2_claims.table),
           "verdicts": ("smollm2-runs evidence", smollm2_claims.verdicts)}
# What makes each JSON.
MADE_BY = {"runs": "lab/evidence.py", "evidence": "lab/claims.py", "step_cpu": "tests/bench_step.py",
           "kernel_cpu": "tests/bench_kernel.py", "growth_cpu": "tests/bench_growth.py",
           "smollm2": "lab/smollm2.py all", "smollm2-runs": "lab/smollm2.py all"}
READMES = ("README.md", *(os.path.join("lab", name) for name in ("README.md", "TABLES.md")),
           os.path.join("examples", "README.md"))


def read_result(results, name):
    """A JSON under results/; raises BadInput."""
    path = os.path.join(results, f"{name}.json")
    try:
        return read_json(path)
    except (OSError, ValueError) as e:
        raise BadInput(f"{path}: {e}; make it with: python {MADE_BY[name]}")


def write_readme(readme, results="results"):
    """Replaces what stands in the blocks of a README by what their JSON under results/ says; raises BadInput."""
    with open(readme) as f:
        text = f.read()

    def fill(match):
        name = match[1]
        if name not in BLOCKS:
            raise BadInput(f"{readme}: no block is called {name}; there are {', '.join(BLOCKS)}")
        source, make = BLOCKS[name]
        return f"<!-- {name} -->\n{make(*(read_result(results, s) for s in source.split()))}\n<!-- end -->"

    new = re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.S)
    with replacing(readme) as f:
        f.write(new)


# ---------------------------------------------------------------------------------------------------------------------
# Pictures: each function draws on an axis, and returns whether there was anything to draw.

METHODS = ["sft", "sdft", "sdft+self-replay", "off-policy", "sft+replay", "sft+self-replay", "sft+lwf", "sft+l2",
           "sft+ewc", "joint"]
COLOR = {method: f"C{i}" for i, method in enumerate(METHODS)}
COLOR |= {"sft + a penalty": "C4", "sdft + a share of sft": "C6"}


def percents(values):
    """Mean and half of the interval; one number has none to draw."""
    mean, half = interval(values)
    return 100 * mean, 100 * np.nan_to_num(half)


def pareto(ax, runs):
    """Joint training is not in it: it learns all tasks at once, so none of them is "just learned"."""
    there = set()
    for row in (row for row in runs if row["experiment"] == "tune"):
        m, method = after(row), row["name"].split()[0]
        ax.plot(100 * m["learning_accuracy"], 100 * m["base_retention"], ".", color=COLOR[method], alpha=0.5,
                markersize=5)
        there.add(method)
    for run in BASELINES:
        found, method = of(runs, *run, seeds=ABLATION).values(), run[1].split()[0]
        if found and method != "joint":
            x, dx = percents([m["learning_accuracy"] for m in found])
            y, dy = percents([m["base_retention"] for m in found])
            ax.errorbar(x, y, dy, dx, "o", color=COLOR[method], markersize=7, capsize=2, linewidth=1)
            there.add(method)
    for method in (m for m in METHODS if m in there):
        ax.plot([], [], "o", color=COLOR[method], label=method)
    ax.set(xlabel="learning accuracy, percent", ylabel="base skills kept, percent",
           title="small: trials of tuning; large: ten tasks, 95 % intervals")
    ax.set_xlim(max(-3, ax.get_xlim()[0]), min(103, ax.get_xlim()[1]))
    return bool(there)


def group(row) -> str:
    name = row["name"].split()[0]
    if name.startswith("sft+"):
        return "sft + a penalty"
    if name == "alpha":
        return "sdft + a share of sft"
    return name if name in METHODS else "sdft"


def drift(ax, runs, of_base=False):
    """A point a run; no drift at all stands at 0.0001."""
    points = drifts(runs)
    for name in COLOR:
        xy = [(max(base if of_base else new, 1e-4), 100 * lost)
              for row, new, base, lost in points if group(row) == name]
        if xy:
            ax.plot(*zip(*xy), "o", color=COLOR[name], markersize=3.5, alpha=0.6, label=name)
    ax.set(xscale="log", xlabel="KL(base ‖ model), nats a token", ylabel="base skills lost, percent",
           title=f"drift on {'base' if of_base else 'new'} prompts")
    return bool(points)


def curve(ax, runs, points, name, color, label, seeds=None):
    """A figure over x: means over seeds, and their intervals as a band; points: [(x, wanted run)]."""
    found = [(x, [m[name] for m in of(runs, *run, seeds=seeds).values()]) for x, run in points]
    drawn = [(x, *percents(values)) for x, values in found if values]
    if drawn:
        x, mean, half = map(np.array, zip(*drawn))
        ax.plot(x, mean, "o-", color=color, markersize=3.5, linewidth=1.2, label=label)
        ax.fill_between(x, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
    return bool(drawn)


def demonstrations(ax, runs):
    drawn = []
    for method in ("sft", "sdft"):
        points = [(n, ("demonstrations", f"{method} {n}")) for n in DEMONSTRATIONS]
        drawn.append(curve(ax, runs, points, "learning_accuracy", COLOR[method], method))
    ax.set(xscale="log", xlabel="demonstrations a task", ylabel="learning accuracy, percent",
           title="five tasks, 95 % intervals")
    ax.set_xticks(DEMONSTRATIONS, map(str, DEMONSTRATIONS))
    ax.minorticks_off()
    return any(drawn)


def alpha(ax, runs):
    points = [(0, SDFT10), *[(a / 10, ("alpha", f"alpha {a / 10:g}")) for a in range(1, 11)]]
    for name, color in (("average_accuracy", "C1"), ("base_retention", "C7")):
        curve(ax, runs, points, name, color, name.replace("_", " "), ABLATION)
    ax.set(xlabel="alpha, the supervised share (0: SDFT, 1: SFT)", ylabel="percent",
           title="ten tasks, 95 % intervals")
    return any(row["experiment"] == "alpha" for row in runs)


def interference(ax, runs):
    """SFT and SDFT, and with less movement of what the tasks share."""
    held = [("interference", name) for name in EXPERIMENTS["interference"][1]]
    drawn = []
    for i, run in enumerate([SFT, SDFT, *held]):
        points = [(n, (*run, n)) for n in range(2, 21)]
        drawn.append(curve(ax, runs, points, "performance", f"C{i}", run[1]))
    ax.set(xlabel="tasks learned", ylabel="performance kept, percent", xticks=range(2, 21, 2),
           title="half tasks, half base skills; 95 % intervals")
    return any(drawn[2:])


def reading(ax, runs):
    """A point a model: how much it reads before it is taught, and what SDFT learns more than SFT from there."""
    try:
        _, found, ahead = advantages(runs, "reading", READING, "learning_accuracy")
    except NotMeasured:
        return False
    for name, advantage in ahead.items():
        ax.plot(100 * found[name]["new_with_demonstration"], 100 * advantage, "o", markersize=5,
                label=f"{name} of pretraining")
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set(xlabel="accuracy on new tasks, shown a demonstration, percent",
           ylabel="learning accuracy, sdft - sft, points", title="five tasks, no guard")
    return True


def drift_base(ax, runs):
    return drift(ax, runs, of_base=True)


# A picture: its panels; the first gives it its name.
PICTURES = [[pareto], [drift, drift_base], [demonstrations], [alpha], [interference], [reading]]


def draw(runs, results):
    """<results>/<picture>.png, of each picture that there are runs for."""
    try:
        import matplotlib
    except ImportError:
        print("no pictures: matplotlib is missing (pip install matplotlib); all figures are in evidence.json")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for panels in PICTURES:
        size = (3.6 + 3.6 * len(panels), 4)
        fig, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
        if all([panel(ax, runs) for panel, ax in zip(panels, axes[0])]):
            for ax in axes[0]:
                # An interval may be wider than what there is to have.
                if ax.get_ylabel().endswith("percent"):
                    ax.set_ylim(max(-3, ax.get_ylim()[0]), min(103, ax.get_ylim()[1]))
                ax.grid(alpha=0.3)
            ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
            fig.savefig(os.path.join(results, f"{panels[0].__name__}.png"), dpi=110)
        plt.close(fig)


# ---------------------------------------------------------------------------------------------------------------------
# The command.


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", default="results",
                        help="folder of runs.json, beside the READMEs (default: results)")
    parser.add_argument("--readme", action="store_true",
                        help="only write the blocks of the READMEs, without judging and drawing anew")

    def refuse(message):
        raise BadInput(f"{parser.prog}: {message}; all options: python lab/claims.py --help")

    parser.error = refuse
    return parser.parse_args(argv)


def write_evidence(results):
    """Judges and draws: <results>/evidence.json and the pictures."""
    file = read_result(results, "runs")
    evidence = {
        "command": "python lab/claims.py",
        "claims": [judge(claim, file["runs"]) for claim in CLAIMS],
        "versions": file["versions"],
        "commit": ", ".join(sorted({row["commit"] for row in file["runs"]})),
    }
    write_json(os.path.join(results, "evidence.json"), evidence)
    draw(file["runs"], results)
    print(claims_text(evidence))


def main(argv=None):
    with ends_in_one_line():
        args = parse(argv)
    with ends_in_one_line(args.results):
        if not args.readme:
            write_evidence(args.results)
        # The READMEs beside the results: figures of another folder are not for those of this project.
        root = os.path.dirname(os.path.abspath(args.results))
        for readme in (os.path.join(root, name) for name in READMES):
            if os.path.exists(readme):
                write_readme(readme, args.results)


if __name__ == "__main__":
    # A terminal that does not know a character is no reason to stop.
    sys.stdout.reconfigure(errors="backslashreplace")
    main()
