"""The claims about SDFT on a real model: a rule each, written down before its runs, and what the runs of smollm2.py
say of it. claims.py puts them into README.md and TABLES.md, all of this folder.

A rule compares runs of the same seeds: where a run first has learned MATCHED of the trained phrasings, on a straight
line between the points of its curve, or at the ends of both; a run that never learns so much is taken at its end, and
that is said ("at its end"). Left out, as there: any correction for asking many questions of the same runs.
"""
from dataclasses import dataclass

import numpy as np

import smollm2
from eval import continual_metrics
from evidence import markdown
from intervals import FEWEST, spearman, verdict
from report import mean
from skills import SKILLS

# what may be said, the best first
VERDICTS = ["holds", "holds partly", "does not hold here", "not measured"]

# How two figures are compared: (margin, which is at least 0 where it holds; direction, above 0 where at least the sign
# is right; in words). A figure that is to be within some distance has two margins.
BARS = {
    "more": (lambda a, b, by: [a - b - by], lambda a, b: a - b, "{figure} {by:g} more"),
    "less": (lambda a, b, by: [b - a - by], lambda a, b: b - a, "{figure} {by:g} less"),
    "times": (lambda a, b, by: [by * b - a], lambda a, b: b - a, "{figure} at most {by:g} times"),
    "within": (lambda a, b, by: [a - b + by, b - a + by], None, "{figure} within {by:g}"),
    "least": (lambda a, b, by: [a - by], None, "{figure} at least {by:g}"),
}
FORGETS_LESS = ("kept", "more", 0.02), ("drift", "times", 0.5)
SDFT, SFT = ("sentences", "sdft"), ("sentences", "sft")


@dataclass(frozen=True)
class Rule:
    """ours, others: (experiment, method). bars: ways in which the claim may hold, each of (figure, kind of bar, by).
    matched: whether the runs are compared at MATCHED learned, or at their ends; what is learned is that at the end. Of
    ours none is better there that has not learned so much."""

    claim: str
    ours: tuple
    others: tuple
    bars: tuple
    matched: bool = False

    def words(self) -> str:
        def bar(figure, kind, by):
            where = f" at {smollm2.MATCHED:g} learned" * (self.matched and figure != "learned")
            return BARS[kind][2].format(figure=figure.replace("_", " "), by=by) + where

        return ", or ".join(", ".join(bar(*b) for b in way) for way in self.bars)


def of_facts(*names) -> tuple:
    return tuple(("facts", name) for name in names)


# {id: its rule}. Those of lab/claims.py that ask the same have the same id.
RULES = {
    "forgets-less": Rule("SDFT forgets less than SFT at the same learning.", SDFT, (SFT,), (FORGETS_LESS,), True),
    "slowness": Rule("It is no matter of slowness: SFT at a tenth of its rate forgets more.", SDFT,
                     of_facts("sft slow"), (FORGETS_LESS,), True),
    # with the blend as well, since the recipe has one: added after its first two runs, against us
    "beats-remedies": Rule("Nor of self-replay and a blend alone: SFT with them forgets more.", SDFT,
                           of_facts("sft self-replay", "sft self-replay, blend 0.8"), (FORGETS_LESS,), True),
    "new-tasks": Rule("SDFT learns new tasks better than SFT, by at least 5 points (of unseen phrasings: SFT learns "
                      "all that it trains on).", SDFT, (SFT,), ((("unseen_phrasing", "more", 0.05),),)),
    "on-policy": Rule("Learning from one's own samples matters: it is better than from the teacher's.",
                      ("facts", "student samples"), of_facts("teacher samples"),
                      ((("kept", "more", 0.02),), (("learned", "more", 0.05),)), True),
    "frozen-teacher": Rule("A moving teacher is better than a frozen one.", SDFT, of_facts("ema 1"),
                           ((("learned", "more", 0.05),),)),
    "live-teacher": Rule("A moving teacher is better than a live one.", SDFT, of_facts("ema 0"),
                         ((("learned", "more", 0.05),),)),
    "forward-divergence": Rule("KL(teacher ‖ student) learns more than the other two divergences.", SDFT,
                               of_facts("reverse", "jsd"), ((("learned", "more", 0.05),),)),
    "best-alpha": Rule("A share of supervision hurts.", SDFT, of_facts("alpha 0.25", "alpha 0.5", "alpha 0.75"),
                       ((("kept", "more", 0.02),), (("drift", "times", 0.8),)), True),
    "contrast": Rule("Contrast does more than nothing, and than skipping the first three tokens.", SDFT,
                     of_facts("contrast 0", "no contrast, skip 3"), ((("drift", "times", 0.75),),), True),
    "contrast-row": Rule("Another row as contrast takes out what the rows of a task share as well: less is learned.",
                         of_facts("contrast with another row")[0], (SDFT,), ((("learned", "less", 0.05),),)),
    "families": Rule("SDFT learns skills as it learns facts, and forgets less.",
                     ("skills", "sdft"), (("skills", "sft"),),
                     ((("learned", "least", 0.8), ("kept", "more", 0.02)),), True),
    "five-tasks": Rule("Five tasks in turn are learned and kept.", ("sequence", "sdft"), (("sequence", "sft"),),
                       ((("average_accuracy", "least", 0.8), ("kept", "least", 0.9), ("drift", "times", 0.125)),)),
    "trl": Rule("TRL's trainer, by its defaults and set to the paper, learns and keeps as much with as many samples.",
                of_facts("sdft plain, official words")[0], (("trl", "trl"), ("trl", "trl paper")),
                ((("learned", "within", 0.05), ("kept", "within", 0.05)),)),
}
# Those of lab/claims.py that no run here can decide.
NOT_HERE = {
    "ten-tasks": "five tasks", "twenty-tasks": "five tasks", "gap-grows": "one length",
    "half-demonstrations": "twenty facts have sixty rows", "alpha-one-is-sft": "true of the code",
    "same-prompt": "another fact does not hold the answer", "own-voice": "the facts are invented",
    "rare-rows": "AdamW has one rate for all", "answer-only": "no skill of two steps", "model-size": "one model",
    "in-context": "one model", "market": "no market", "where-needed": "five tasks",
    "moonshot": "a mark of the small world", "moonshot-self-replay": "a mark of the small world",
    "moonshot-held": "a mark of the small world", "moonshot-held-self-replay": "a mark of the small world",
}


def runs_of(file, experiment, name) -> dict:
    """{seed: its runs}: one, or of skills one a skill."""
    found = {}
    for row in file["runs"]:
        called = row["name"].split(" ", 1)[1] if row["experiment"] == "skills" else row["name"]
        if (row["experiment"], called) == (experiment, name):
            found.setdefault(row["seed"], []).append(row)
    return found


def figures_of(row, matched) -> dict:
    """What a run is compared by; "late" is whether it is taken at its end though it never learned so much."""
    there = smollm2.at_learned(row["curve"], smollm2.MATCHED) if matched else {}
    end = {"learned": row["learned"], "late": matched and not there}
    return continual_metrics(row["R"]) | row | there | end


def judge(rule, file) -> tuple:
    """(seeds, {figure: {run: one a seed}}, runs that were taken at their ends, verdict) of one rule."""
    wanted = [rule.ours, *rule.others]
    found = [runs_of(file, *run) for run in wanted]
    whole = [len(SKILLS) if experiment == "skills" else 1 for experiment, _ in wanted]
    seeds = sorted(set.intersection(*({seed for seed, rows in runs.items() if len(rows) == n}
                                      for runs, n in zip(found, whole))))
    if len(seeds) < FEWEST:
        return seeds, {}, [], "not measured"
    figures = {figure: {} for way in rule.bars for figure, *_ in way}
    late = []
    for (_, name), runs in zip(wanted, found):
        each = [[figures_of(row, rule.matched) for row in runs[seed]] for seed in seeds]
        for figure, by_run in figures.items():
            by_run[name] = np.array([mean([row[figure] for row in rows]) for rows in each])
        late += [name] * any(row["late"] for rows in each for row in rows)
    verdicts = []
    for way in rule.bars:
        if rule.ours[1] in late and all(figure != "learned" for figure, *_ in way):
            # it may have kept more because it has learned less
            verdicts.append("does not hold here")
            continue
        margins, directions = [], []
        for figure, kind, by in way:
            ours, *others = figures[figure].values()
            margin, direction, _ = BARS[kind]
            for other in others:
                margins += margin(ours, other, by)
                directions += [direction(ours, other)] if direction else []
        # a sign says something only where all bars have one
        signs = directions if len(directions) == len(margins) else ()
        verdicts.append(verdict(margins, signs))
    return seeds, figures, late, min(verdicts, key=VERDICTS.index)


def templates(file) -> tuple:
    """What the teacher reads before the training, and what is learned, by the template."""
    named = {"official words": SDFT, "earlier turn": ("facts", "earlier turn"),
             "asked for a sentence": ("facts", "asked for a sentence")}
    found = {name: runs_of(file, *run) for name, run in named.items()}
    seeds = sorted(set.intersection(*map(set, found.values())))
    if len(seeds) < FEWEST:
        return seeds, {}, [], "not measured"
    figures = {f: {name: np.array([runs[seed][0][f] for seed in seeds]) for name, runs in found.items()}
               for f in ("ceiling", "learned")}
    read, learned = (np.stack(list(by_run.values())) for by_run in figures.values())                # (template, seed)
    pairs = [(a, b) for a in range(len(named)) for b in range(len(named))]
    same = sum(all(learned[a, i] >= learned[b, i] for a, b in pairs if read[a, i] > read[b, i])
               for i in range(len(seeds)))
    return seeds, figures, [], VERDICTS[0 if same == len(seeds) else 1 if same > len(seeds) / 2 else 2]


def drift_predicts(file) -> tuple:
    """Rank correlation of drift and kept over all points of all runs, of each seed."""
    by_seed = {}
    for row in file["runs"]:
        if row["experiment"] in ("sentences", "facts"):
            # longer and shorter runs of one method share points
            by_seed.setdefault(row["seed"], set()).update((p["drift"], p["kept"]) for p in row["curve"] if p["step"])
    seeds = sorted(by_seed)
    if len(seeds) < FEWEST:
        return seeds, {}, [], "not measured"
    rho = np.array([spearman(*map(np.array, zip(*sorted(by_seed[seed])))) for seed in seeds])
    return seeds, {"rho": {"all points": rho}}, [], verdict([-0.7 - rho], [-rho])


def costs_more(file) -> tuple:
    """Seconds a step of plain SDFT in those of SFT, of the seeds whose two runs are of one known processor and of the
    same products."""
    found = [runs_of(file, "sentences", name) for name in ("sft", "sdft plain")]
    pairs = {seed: [runs[seed][0] for runs in found] for seed in sorted(set.intersection(*map(set, found)))}
    pairs = {seed: (a, b) for seed, (a, b) in pairs.items() if a["machine"] == b["machine"] and "(" in a["machine"]
             and a.get("bf16") is not None and a.get("bf16") == b.get("bf16")}
    if len(pairs) < FEWEST:
        return list(pairs), {}, [], "not measured"
    times = np.array([b["seconds"] / b["steps"] / (a["seconds"] / a["steps"]) for a, b in pairs.values()])
    return list(pairs), {"times": {"sdft plain": times}}, [], verdict([times - 2, 3 - times], [times - 1])


# Those whose rule is no comparison of figures: {id: (claim, rule in words, its function)}
OTHERS = {
    "template": ("The template matters: what is not read is not learned.",
                 "of two templates the one that is read better before training teaches no less, in each seed "
                 "(partly: in most)", templates),
    "drift-predicts": ("Drift predicts what is lost.", "rank correlation of drift and kept below -0.7, all points of "
                       "`sentences` and `facts`", drift_predicts),
    "costs-more": ("A step of SDFT costs about two and a half times one of SFT.",
                   "plain SDFT, on the same processor, 2 to 3 times", costs_more),
}


def judged(file) -> dict:
    """{id: (claim, rule in words, (seeds, figures, runs that were taken at their ends, verdict))}."""
    found = {name: (rule.claim, rule.words(), judge(rule, file)) for name, rule in RULES.items()}
    return found | {name: (claim, words, judge_by(file)) for name, (claim, words, judge_by) in OTHERS.items()}


def table(file) -> str:
    """A row a claim: its rule, what was found, and what that says."""
    rows = []
    for name, (claim, words, (seeds, figures, late, found)) in judged(file).items():
        told = [f"{figure.replace('_', ' ')}: " + ", ".join(f"{run} = {smollm2.cell(v)}" for run, v in by_run.items())
                for figure, by_run in figures.items()] + [f"at its end: {', '.join(late)}"] * bool(late)
        rows.append([name, claim, words, "; ".join(told) or "–", str(len(seeds)), found])
    header = ["id", "claim", "holds if", "found", "seeds", "verdict"]
    return markdown(header, rows, left=len(header))


def verdicts(file, evidence) -> str:
    """A row a claim: its verdict in the small world and on the real model, or why it cannot be tested there."""
    here = {name: (claim, found[-1]) for name, (claim, _, found) in judged(file).items()}
    there = {claim["id"]: claim for claim in evidence["claims"]}
    # what is asked of the real model is not always the same
    said = {name: found if found == VERDICTS[-1] else f"{found}: {claim}" for name, (claim, found) in here.items()}
    said |= {name: f"not here: {why}" for name, why in NOT_HERE.items()}
    rows = [[name, claim["claim"], claim["verdict"], said[name]] for name, claim in there.items()]
    rows += [[name, claim, "–", found] for name, (claim, found) in here.items() if name not in there]
    header = ["id", "claim", "in the small world", "on SmolLM2"]
    return markdown(header, rows, left=len(header))
