"""Claims on made-up runs whose figures and verdicts are known."""
import json
import math
import os

import numpy as np
import pytest

import claims
from evidence import EXPERIMENTS, trials as trials_of
from train import parse

NAN = float("nan")
FAMILIES = ["manipulation", "decision", "facts", "update", "concept"]
T3 = 4.3027                       # 97.5 % point of Student's t for three seeds


def row(experiment, seed, name, tasks=10, learned=0.98, final=0.97, base=0.99, two=0.99, teacher=0.9, neighbours=1.0, seconds=100.0, tokens=7, drift=None):
    """A run that learns each task to `learned` and has it at `final` from the next task on; base skills fall in a straight line to `base`."""
    assert name in EXPERIMENTS[experiment][1], f"evidence.py has no run {experiment}/{name}"
    R = [[0.1 if i <= j else learned if i == j + 1 else final for j in range(tasks)] for i in range(tasks + 1)]
    line = [1 - (1 - base) * i / tasks for i in range(tasks + 1)]
    kinds = {"letters": 1.0, "composed": 1.0, "market": 1.0, "fact": 1.0, "chain": 0.5}
    drift = 1 - base if drift is None else drift
    return {"experiment": experiment, "seed": seed, "name": name, "method": "m", "command": "c", "commit": "d", "R": R, "base_accuracy": line,
            "families": (FAMILIES * 4)[:tasks], "gates": {"new_with_demonstration": teacher, "new_without_demonstration": 0.1}, "voice": line,
            "teacher_accuracy": [teacher] * (tasks + 1), "neighbours": [1.0, *[neighbours] * tasks],
            "drift_base": [drift] * (tasks + 1), "drift_new": [drift] * (tasks + 1),
            "steps": [100] * tasks, "regularised": ["+" in name] * tasks, "generated_tokens": [tokens] * tasks, "guard_trips": 0, "seconds": [seconds / tasks] * tasks,
            "base_by_kind": [kinds, kinds | {"composed": two, "chain": two / 2}]}


SFT, OWN = {"learned": 0.9, "final": 0.4}, {"learned": 0.98, "final": 0.98, "base": 1.0}
GOOD = {"learned": 1.0, "final": 1.0, "base": 1.0}
# A world in which every claim holds: {(experiment, name): what its run finds}
IDEAL = {
    ("twenty", "sft"): SFT | {"tasks": 20, "base": 0.3, "two": 0.2},
    ("twenty", "sdft"): {"tasks": 20, "seconds": 250.0},
    ("twenty", "sdft+self-replay"): OWN | {"tasks": 20},
    ("twenty", "sdft+self-replay where needed"): OWN | {"tasks": 20, "tokens": 6},
    ("ten", "sft"): SFT | {"base": 0.65, "seconds": 50.0}, ("ten", "sdft"): {"base": 0.995}, ("ten", "sdft+self-replay"): OWN,
    **{("baselines", name): {"base": 0.5} for name in claims.REMEDIES},
    ("interference", "sdft f0 0.0001"): {"tasks": 20}, ("interference", "sdft+self-replay f0 0.0001"): OWN | {"tasks": 20},
    ("market", "sft"): {"learned": 0.9, "final": 0.6, "tasks": 5, "neighbours": NAN}, ("market", "sdft"): {"tasks": 5, "neighbours": NAN},
    ("baselines", "off-policy"): {"base": 0.8}, ("variants", "reverse"): {"learned": 0.9}, ("variants", "jsd"): {"learned": 0.9},
    ("variants", "sft own voice"): OWN, ("variants", "sdft own voice"): {},
    ("variants", "sdft 1 other shown"): {"learned": 0.9}, ("variants", "sdft 4 others shown"): {"learned": 0.9},
    ("variants", "sdft all rows alike"): {"learned": 0.8, "base": 0.8},
    ("ema", "ema 1"): {"base": 0.99}, ("ema", "ema 0"): {"learned": 0.3, "final": 0.3, "base": 0.3},
    **{("alpha", f"alpha {a / 10:g}"): {"base": 0.9} for a in range(1, 10)}, ("alpha", "alpha 0.5"): GOOD, ("alpha", "alpha 1"): SFT | {"base": 0.65},
    **{("demonstrations", f"sft {n}"): {"learned": 0.3 + 0.1 * i, "tasks": 5} for i, n in enumerate(claims.DEMONSTRATIONS)},
    **{("demonstrations", f"sdft {n}"): {"learned": 0.42 + 0.1 * i, "tasks": 5} for i, n in enumerate(claims.DEMONSTRATIONS)},
    **{("sizes", f"sdft {size}"): {"tasks": 5} for size in claims.SIZES},
    **{("sizes", f"sft {size}"): {"base": 0.9 - 0.2 * i, "tasks": 5} for i, size in enumerate(claims.SIZES)},
    **{("reading", f"sdft {n}"): {"teacher": 0.2 * (i + 1), "learned": 0.5 + 0.1 * i, "tasks": 5} for i, n in enumerate(claims.READING)},
    **{("reading", f"sft {n}"): {"teacher": 0.2 * (i + 1), "learned": 0.5, "tasks": 5} for i, n in enumerate(claims.READING)},
}


def runs(changes={}, seeds=(0, 1, 2)):
    """The rows of IDEAL with changes {"experiment/name": {figure: number, or a list of one a seed}}."""
    plan = {f"{e}/{name}": (e, name, found) for (e, name), found in IDEAL.items()}
    assert changes.keys() <= plan.keys()
    pick = lambda v, seed: v[seed] if isinstance(v, list) else v
    return [row(e, seed, name, **{k: pick(v, seed) for k, v in (found | changes.get(key, {})).items()})
            for key, (e, name, found) in plan.items() for seed in seeds]


def all_of(experiment, **change):
    return {f"{e}/{name}": change for e, name in IDEAL if e == experiment}


# claim: (what makes it hold only partly, what makes it fail)
CASES = {
    claims.new_tasks: ({"twenty/sft": {"learned": 0.95}}, {"twenty/sft": {"learned": 0.98}}),
    claims.ten_tasks: ({"twenty/sft": {"final": 0.6}}, {"twenty/sft": {"final": 0.9}}),
    claims.twenty_tasks: ({"twenty/sft": {"base": 0.9}}, {"twenty/sdft": {"final": 0.1, "base": 0.3}}),
    claims.gap_grows: ({"twenty/sft": {"base": 0.97}}, {"twenty/sft": {"base": 0.99}}),
    claims.half_demonstrations: ({"demonstrations/sdft 16": {"learned": 0.35}},
                                 all_of("demonstrations", learned=0.9) | {"demonstrations/sdft 16": {"learned": 0.5}}),
    claims.alpha_one_is_sft: ({"alpha/alpha 1": {"base": 0.75}}, {"alpha/alpha 1": {"base": 0.99, "final": 0.9}}),
    claims.best_alpha: ({"alpha/alpha 0.9": GOOD | {"base": 0.99}}, {"alpha/alpha 0.9": GOOD}),
    claims.frozen_teacher: ({"ema/ema 1": {"base": 0.9}}, {"ema/ema 1": {"base": 1.0}}),
    claims.live_teacher: ({"ema/ema 0": {"base": 0.9}}, {"ema/ema 0": GOOD}),
    claims.forward_divergence: ({"variants/jsd": {"learned": 0.975}}, {"variants/jsd": {"learned": 0.98}}),
    claims.same_prompt: ({"variants/sdft 4 others shown": {"learned": 0.975}}, {"variants/sdft 4 others shown": {"learned": 0.99}}),
    claims.own_voice: ({"variants/sft own voice": {"base": [1.0, 0.99, 0.94]}}, {"variants/sft own voice": SFT | {"base": 0.3}}),
    claims.on_policy: ({"baselines/off-policy": {"base": 0.99}}, {"baselines/off-policy": GOOD}),
    claims.rare_rows: ({"variants/sdft all rows alike": {"learned": 0.98}}, {"variants/sdft all rows alike": GOOD}),
    claims.beats_remedies: ({"baselines/sft+lwf": {"base": 0.985}}, {"baselines/sft+ewc": GOOD}),
    claims.costs_more: ({"twenty/sdft": {"seconds": [120, 260, 380]}}, {"twenty/sdft": {"seconds": 80.0}}),
    claims.answer_only: ({"twenty/sft": {"two": 0.7}}, {"twenty/sdft": {"two": 0.2}}),
    claims.model_size: ({"sizes/sft 0.8M": {"base": 0.9}}, {"sizes/sft 3.7M": {"base": 0.9}, "sizes/sft 0.8M": {"base": 0.9}}),
    claims.in_context: ({f"reading/sdft {n}": {"learned": x} for n, x in zip(claims.READING, ([0.5, 0.7, 0.9], 0.6, 0.7, [0.5, 0.9, 0.9], 0.9))},
                        {f"reading/sdft {n}": {"learned": 0.9 - 0.1 * i} for i, n in enumerate(claims.READING)}),
    claims.drift_predicts: (all_of("demonstrations", drift=0.1) | all_of("alpha", drift=0.05) | all_of("reading", drift=0.1),
                            all_of("demonstrations", drift=1) | all_of("reading", drift=1) | all_of("twenty", drift=0.001) | all_of("sizes", drift=0.002)
                            | all_of("interference", drift=2)),
    claims.families: ({"twenty/sdft": {"neighbours": [1.0, 1.0, 0.9]}}, {"twenty/sdft": {"learned": 0.9, "final": 0.3}}),
    claims.market: ({"market/sft": {"final": 0.965}}, {"market/sft": {"final": 0.99}}),
    claims.where_needed: ({"twenty/sdft+self-replay where needed": {"tokens": [5, 6, 9.9]}},
                          {"twenty/sdft+self-replay where needed": {"base": 0.9}}),
    claims.moonshot: ({"twenty/sdft": {"base": [0.90, 0.97, 1.0]}}, {"twenty/sdft": {"base": 0.9}}),
    claims.moonshot_self_replay: ({"twenty/sdft+self-replay": {"base": [0.98, 0.995, 1.0]}}, {"twenty/sdft+self-replay": {"learned": 0.94}}),
    claims.moonshot_held: ({"interference/sdft f0 0.0001": {"base": [0.90, 0.97, 1.0]}}, {"interference/sdft f0 0.0001": {"base": 0.9}}),
    claims.moonshot_held_self_replay: ({"interference/sdft+self-replay f0 0.0001": {"base": [0.98, 0.995, 1.0]}},
                                       {"interference/sdft+self-replay f0 0.0001": {"learned": 0.94}}),
}


def test_each_claim_has_its_cases():
    assert set(CASES) == set(claims.CLAIMS)
    assert all(source and e in EXPERIMENTS for source, experiments in claims.CLAIMS.values() for e in experiments.split())


@pytest.mark.parametrize("claim", CASES, ids=lambda c: c.__name__)
def test_each_verdict_in_every_direction(claim):
    partly, broken = CASES[claim]
    found = claims.judge(claim, runs())
    assert found["verdict"] == "holds" and found["seeds"] == [0, 1, 2] and found["figure"] and found["claim"] and found["rule"]
    assert claims.judge(claim, runs(partly))["verdict"] == "holds partly"
    assert claims.judge(claim, runs(broken))["verdict"] == "does not hold here"


@pytest.mark.parametrize("claim, run, figure, inside, outside", [
    (claims.new_tasks, "twenty/sft", "learned", 0.93, 0.931),                                 # 5 points below 98 %
    (claims.ten_tasks, "twenty/sft", "final", 0.48, 0.481), (claims.ten_tasks, "twenty/sdft", "final", 0.87, 0.869),
    (claims.twenty_tasks, "twenty/sft", "base", 0.355, 0.356),                                # (0.4 / 0.9 + base) / 2 = 0.4
    (claims.twenty_tasks, "twenty/sdft", "final", 0.696, 0.695),                              # (final / 0.98 + 0.99) / 2 = 0.85
    (claims.alpha_one_is_sft, "alpha/alpha 1", "base", 0.7, 0.701), (claims.alpha_one_is_sft, "alpha/alpha 1", "base", 0.6, 0.599),
    (claims.frozen_teacher, "ema/ema 1", "base", 0.9926, 0.9928),                             # loss 1 - (0.97 / 0.98 + base) / 2: 1.15 times sdft's
    (claims.frozen_teacher, "ema/ema 1", "base", 0.9882, 0.9881),                             # 1.45 times
    (claims.live_teacher, "ema/ema 0", "base", 0.682, 0.684),                                 # (0.3 + base) / 2 is half of (0.971 + 0.995) / 2
    (claims.forward_divergence, "variants/jsd", "learned", 0.97, 0.971), (claims.same_prompt, "variants/sdft 1 other shown", "learned", 0.97, 0.971),
    (claims.own_voice, "variants/sft own voice", "base", 0.965, 0.9645),                      # loss (1 - base) / 2: 1 point above sdft's, 0.76 %
    (claims.on_policy, "baselines/off-policy", "base", 0.975, 0.9751), (claims.rare_rows, "variants/sdft all rows alike", "learned", 0.97, 0.971),
    (claims.beats_remedies, "baselines/sft+l2", "base", 0.975, 0.9751), (claims.costs_more, "twenty/sdft", "seconds", 300, 301),
    (claims.answer_only, "twenty/sft", "two", 0.5, 0.501), (claims.answer_only, "twenty/sdft", "two", 0.9, 0.899),
    (claims.model_size, "sizes/sft 0.3M", "base", 0.72, 0.719),                               # the next size has 0.7
    (claims.families, "twenty/sdft", "final", 0.95, 0.949), (claims.families, "twenty/sdft", "neighbours", 0.95, 0.949),
    (claims.where_needed, "twenty/sdft+self-replay where needed", "base", 0.99, 0.989),
    (claims.where_needed, "twenty/sdft+self-replay where needed", "tokens", 7, 7.1),
    (claims.moonshot, "twenty/sdft", "final", 0.8331, 0.8329), (claims.moonshot, "twenty/sdft", "base", 0.95, 0.949),
    (claims.moonshot_self_replay, "twenty/sdft+self-replay", "final", 0.9311, 0.9309),
    (claims.moonshot_self_replay, "twenty/sdft+self-replay", "base", 0.99, 0.989),
    (claims.moonshot_self_replay, "twenty/sdft+self-replay", "learned", 0.95, 0.949),
    (claims.moonshot_held, "interference/sdft f0 0.0001", "base", 0.95, 0.949),
    (claims.moonshot_held_self_replay, "interference/sdft+self-replay f0 0.0001", "base", 0.99, 0.989)])
def test_bounds_are_where_the_claim_says(claim, run, figure, inside, outside):
    assert claims.judge(claim, runs({run: {figure: inside}}))["verdict"] == "holds"
    assert claims.judge(claim, runs({run: {figure: outside}}))["verdict"] != "holds"


@pytest.mark.parametrize("claim", CASES, ids=lambda c: c.__name__)
def test_missing_runs_are_not_measured(claim):
    nothing = claims.judge(claim, [])
    assert (nothing["verdict"], nothing["seeds"], nothing["figure"]) == ("not measured", [], {})
    if claim is not claims.drift_predicts:                                                    # its points are runs, not seeds
        one = claims.judge(claim, runs(seeds=[0]))
        assert (one["verdict"], one["seeds"], one["figure"]) == ("not measured", [0], {})
    used = claims.CLAIMS[claim][1].split()
    others = [r for r in runs() if r["experiment"] not in used]
    assert claims.judge(claim, others)["verdict"] == "not measured" or claim is claims.drift_predicts


def test_drift_needs_ten_runs():
    assert claims.judge(claims.drift_predicts, runs()[:9])["verdict"] == "not measured"
    assert claims.judge(claims.drift_predicts, runs()[:10])["seeds"] == [0, 1, 2]


def test_drift_leaves_tuning_out():
    tuning = [row("tune", 100, "sft lr 0.001 embed 10", 5, base=base, drift=1 - base / 2) for base in (0.1, 0.4, 0.2, 0.8)] * 20
    assert claims.judge(claims.drift_predicts, runs() + tuning) == claims.judge(claims.drift_predicts, runs())


def test_the_gap_must_grow_at_every_length():
    flat = [r | {"base_accuracy": [1.0, *[0.7] * 10, *[0.3] * 10]} if (r["experiment"], r["name"]) == claims.SFT else r for r in runs()]
    assert claims.judge(claims.gap_grows, flat)["verdict"] == "holds partly"


def test_half_the_demonstrations_is_no_news_where_half_is_enough_for_sft():
    assert claims.judge(claims.half_demonstrations, runs(all_of("demonstrations", learned=0.9)))["verdict"] == "holds partly"


def test_both_kinds_with_a_written_step_count():
    kinds = [{"composed": 1.0, "chain": 0.5, "fact": 0.5}, {"composed": 0.9, "chain": 0.1, "fact": 0.4}]
    found = claims.after(row("twenty", 0, "sft") | {"base_by_kind": kinds})
    assert found["two_step_skills_kept"] == pytest.approx((0.9 + 0.2) / 2) and found["one_step_skills_kept"] == pytest.approx(0.8)


def test_seeds_are_paired():
    rows = [r for r in runs(seeds=range(6)) if (r["name"], r["seed"]) not in [("sft", 1), ("sdft", 4)]]
    assert claims.judge(claims.new_tasks, rows)["seeds"] == [0, 2, 3, 5]
    short = [row("twenty", s, m, tasks=5) for s in (0, 1) for m in ("sft", "sdft")]
    assert claims.judge(claims.new_tasks, short)["seeds"] == []                               # five tasks tell nothing about ten


def test_figures_and_intervals_by_hand():
    rows = runs({"twenty/sft": {"learned": [0.8, 0.9, 1.0]}})
    found = claims.judge(claims.new_tasks, rows)
    assert found["figure"] == {"learning accuracy, sdft": 0.98, "learning accuracy, sft": 0.9}
    assert found["ci95"] == {"learning accuracy, sdft": 0.0, "learning accuracy, sft": pytest.approx(T3 * 0.1 / 3**0.5, abs=1e-3)}
    assert found["verdict"] == "holds partly" and found["command"] == "python evidence.py twenty"        # the mean is beyond, the interval not
    found = claims.judge(claims.twenty_tasks, runs())["figure"]
    assert found["performance, sft"] == pytest.approx((0.4 / 0.9 + 0.3) / 2, abs=1e-4) and found["base retention, sdft"] == 0.99
    found = claims.judge(claims.gap_grows, runs())["figure"]                                  # base skills of sft after 5 of 20 tasks: 1 - 0.7 / 4
    assert found["performance, sdft - sft after 5"] == pytest.approx((0.97 / 0.98 - 0.4 / 0.9 + 0.9975 - 0.825) / 2, abs=1e-4)
    found = claims.judge(claims.half_demonstrations, runs())["figure"]
    assert found["sdft(16) - sft(32)"] == 0.02 and found["mean of sdft(n/2) - sft(n/2)"] == 0.12
    found = claims.judge(claims.best_alpha, runs())["figure"]
    assert found == {"score, alpha 0.5": 1.0, "score, alpha 0": pytest.approx((0.971 + 0.995) / 2)}
    found = claims.judge(claims.answer_only, runs())["figure"]
    assert found["two step skills kept, sft"] == 0.2 and found["one step skills kept, sft"] == 1.0
    found = claims.judge(claims.market, runs())["figure"]
    assert found["average accuracy, sft"] == pytest.approx((4 * 0.6 + 0.9) / 5) and found["past tasks, sft"] == 0.6 and found["before, sft"] == 0.1
    assert claims.judge(claims.own_voice, runs())["figure"]["loss, sft own voice"] == 0.0
    assert claims.judge(claims.where_needed, runs())["figure"]["regularised, always"] == 1.0


def test_the_first_tasks_of_a_longer_stream():
    ten, all_twenty = claims.after(row("twenty", 0, "sft", 20, 0.9, 0.4, 0.3), 10), claims.after(row("twenty", 0, "sft", 20, 0.9, 0.4, 0.3))
    assert ten["base_retention"] == pytest.approx(0.65) and ten["forgetting"] == pytest.approx(0.5) and ten["steps"] == 1000
    assert ten["average_accuracy"] == pytest.approx((9 * 0.4 + 0.9) / 10) and ten["past_tasks"] == pytest.approx(0.4)
    assert math.isnan(ten["two_step_skills_kept"]) and all_twenty["two_step_skills_kept"] > 0                    # of ten: unknown
    assert all(ten[k] == pytest.approx(all_twenty[k] / 2) for k in ("seconds", "generated_tokens"))
    assert math.isnan(claims.after(row("twenty", 0, "sft", 20), 1)["performance"])
    assert math.isnan(claims.after(row("twenty", 0, "sft", 20) | {"voice": [0.0] * 21})["voice_retention"])


def test_neighbours_may_be_nan():
    one = claims.judge(claims.families, runs({"twenty/sdft": {"neighbours": [NAN, 0.96, 0.98]}}))
    assert one["figure"]["neighbours kept, sdft"] == 0.97 and one["figure"]["update, sdft"] == pytest.approx(0.97)
    none = claims.judge(claims.families, runs({"twenty/sdft": {"neighbours": NAN}}))
    assert none["verdict"] == "not measured" and none["figure"]["neighbours kept, sdft"] is None and none["ci95"]["neighbours kept, sdft"] is None


def test_interval():
    assert claims.interval([0.8, 0.9, 1.0]) == (pytest.approx(0.9), pytest.approx(T3 * 0.1 / 3**0.5, abs=1e-3))
    assert claims.interval([0.8, NAN, 0.9, 1.0]) == claims.interval([0.8, 0.9, 1.0])
    assert claims.interval((0.3, 0.1)) == (0.3, 0.1)
    assert claims.interval([0.5])[0] == 0.5 and math.isnan(claims.interval([0.5])[1]) and np.isnan(claims.interval([])).all()


@pytest.mark.parametrize("margins, directions, expected", [
    ([(0.2, 0.1), (0.1, 0.1)], [], "holds"),
    ([(0.2, 0.1), (0.1, 0.2)], [], "holds partly"),                                           # means beyond, an interval not
    ([(0.2, 0.1), (-0.1, 0.2)], [], "does not hold here"),
    ([(-0.1, 0.0)], [(0.2, 0.1)], "holds partly"),                                            # the sign is right
    ([(-0.1, 0.0)], [(0.2, 0.1), (0.1, 0.1)], "does not hold here"),                          # an interval with 0 in it
    ([(-0.1, 0.0)], [(0.0, 0.0)], "does not hold here"),
    ([(0.1, 0.0), (NAN, NAN)], [(1.0, 0.0)], "not measured"),
    ([(0.1, NAN)], [], "not measured")])
def test_verdict(margins, directions, expected):
    assert claims.verdict(margins, directions) == expected


def test_rank_correlation_by_hand():
    assert claims.ranks([10, 30, 20, 20, 5]).tolist() == [2, 5, 3.5, 3.5, 1]
    # ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4 less their mean 2.5: 4.5 / sqrt(4.5 * 5)
    assert claims.spearman([1, 2, 2, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / 22.5**0.5)
    assert claims.spearman([1, 2, 2, 9], [4, 3, 2, 1]) == pytest.approx(-4.5 / 22.5**0.5)
    assert math.isnan(claims.spearman([1, 1, 1], [1, 2, 3]))
    x, noise = np.arange(40.0), np.random.default_rng(1).normal(size=40)
    rho, half = claims.rank_correlation(x, np.exp(x))
    assert rho == pytest.approx(1) and half == pytest.approx(0)                               # of ranks: the shape of a curve is nothing to it
    wide, narrow = claims.rank_correlation(x[:10], noise[:10])[1], claims.rank_correlation(x, noise)[1]
    assert 0.1 < narrow < wide and claims.rank_correlation(x, noise) == claims.rank_correlation(x, noise)


def test_constant_accuracy_with_a_demonstration_tells_nothing():
    same = {f"reading/sdft {n}": {"teacher": 1.0} for n in claims.READING}
    assert claims.judge(claims.in_context, runs(same))["verdict"] == "not measured"


def test_matched():
    trial = lambda name, learned, base: row("tune", 100, name, 5, learned, learned, base)
    rows = [trial("sft lr 0.001 embed 10", 0.99, 0.5), trial("sft lr 0.001 embed 30", 0.96, 0.7), trial("sft lr 0.001 embed 100", 0.9, 0.9),
            trial("sdft lr 0.01 embed 30", 0.8, 1.0), *runs()]
    found = claims.matched(rows)
    assert list(found) == ["sft", "sdft"] and found["sft"][0] == 3 and found["sdft"][3] is None
    assert found["sft"][1:] == tuple((name, *map(pytest.approx, figures)) for name, *figures in (
        ("lr 0.001 embed 10", 0.99, 0.99, 0.5), ("lr 0.001 embed 100", 0.9, 0.9, 0.9), ("lr 0.001 embed 30", 0.96, 0.96, 0.7)))
    assert claims.matched_text(rows).splitlines()[2:] == [
        "| sft | 3 | lr 0.001 embed 10: 99.0 / 99.0 / 50.0 | lr 0.001 embed 100: 90.0 / 90.0 / 90.0 | lr 0.001 embed 30: 96.0 / 96.0 / 70.0 |",
        "| sdft | 1 | lr 0.01 embed 30: 80.0 / 80.0 / 100.0 | lr 0.01 embed 30: 80.0 / 80.0 / 100.0 | – |"]


def test_what_is_reported_runs_with_what_tuning_chose():
    """Rates: the trial that learned best. A penalty's strength (replay: its rates): the best score. Where trials are equal, one of them."""
    with open(os.path.join(os.path.dirname(claims.__file__), "results", "runs.json")) as f:
        trials = [(r["name"], claims.after(r)) for r in json.load(f)["runs"] if r["experiment"] == "tune"]
    options = dict(trials_of())
    for name, figure, command in [("sft", "learning_accuracy", "--method sft"), ("sdft", "learning_accuracy", ""), ("off-policy", "learning_accuracy", "--off-policy"),
                                  ("sdft+self-replay", "score", "--penalty self-replay"),
                                  *((name.removesuffix(" 5%"), "score", EXPERIMENTS["baselines"][1][name])
                                    for name in ("sft+replay 5%", "sft+self-replay", "sft+lwf", "sft+l2", "sft+ewc"))]:
        found = {key: m[figure] for key, m in trials if key.split()[0] == name}
        (used,) = (key for key in found if parse(options[key].split()) == parse([*command.split(), "--tasks", "5"]))
        assert len(found) == 7 and found[used] == max(found.values()), (name, used, found)


def test_tables():
    rows = [*[r for r in runs() if r["name"] not in claims.REMEDIES], *[row("baselines", s, name, base=0.8) for s in (0, 1) for name in ("sft+replay 5%", "joint")]]
    lines = claims.baselines_text(rows).splitlines()
    assert lines[2:4] == ["| base | – | 10.0 ± 0.0 | – | – | – | – | – | – | 3 |",
                          "| base, shown a demonstration | – | 90.0 ± 0.0 | – | – | – | – | – | – | 3 |"]
    del lines[2:4]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| sft", "| sft+replay 5%", "| off-policy", "| joint", "| sdft", "| sdft+self-replay"]
    assert lines[2] == "| sft | 90.0 ± 0.0 | 45.0 ± 0.0 | 50.0 ± 0.0 | 65.0 ± 0.0 | 65.0 ± 0.0 | 1,000 ± 0 | 70 ± 0 | 50 ± 0 | 3 |"
    assert lines[3].endswith("| 80.0 ± 0.0 | 80.0 ± 0.0 | 1,000 ± 0 | 70 ± 0 | 100 ± 0 | 2 |")
    lines = claims.ablation_text(runs(seeds=range(6)), "ema").splitlines()
    assert len(lines) == 5 and all(line.endswith("| 3 |") for line in lines[2:])              # the default beside it, on the same seeds
    assert claims.ablation_text(runs(seeds=[0]), "market").splitlines()[2].startswith("| sft | 90.0 | 66.0 | 30.0 | 66.7 |")    # one seed
    lines = claims.families_text(runs({"twenty/sft": {"neighbours": 0.5}})).splitlines()
    assert len(lines) == 8 and lines[3] == "| decision | 90.0 ± 0.0 | 40.0 ± 0.0 | 98.0 ± 0.0 | 97.0 ± 0.0 | 98.0 ± 0.0 | 97.0 ± 0.0 |"
    assert lines[7] == "| neighbours kept | – | 50.0 ± 0.0 | – | 100.0 ± 0.0 | – | 100.0 ± 0.0 |"
    assert claims.families_text([r for r in runs() if r["name"] == "sdft"]).splitlines()[3] == "| decision | – | – | 98.0 ± 0.0 | 97.0 ± 0.0 | – | – |"


def test_cells_tell_their_unit():
    assert claims.cell("learning accuracy, sft", 0.123, 0.01) == "12.3 ± 1.0" and claims.cell("steps, sft", 1234.4, 2) == "1,234 ± 2"
    assert claims.cell("rho, new names", 0.5, 0.125) == "0.50 ± 0.12" and claims.cell("seconds", 12.0, NAN) == "12"
    assert claims.cell("x", -1e-9) == "0.0" and claims.cell("x", 1.0, 0.0) == "100.0 ± 0.0"
    assert claims.cell("x", None) == claims.cell("x", NAN) == "–"


def run_main(folder, rows, monkeypatch):
    (folder / "runs.json").write_text(json.dumps({"versions": {"numpy": "1"}, "machine": "m", "runs": rows}))
    monkeypatch.setattr("sys.argv", ["claims.py", str(folder)])
    claims.main()
    strict = lambda word: pytest.fail(f"{word} is not JSON")
    return json.loads((folder / "evidence.json").read_text(), parse_constant=strict)


def test_command_writes_evidence_and_pictures(tmp_path, monkeypatch, capsys):
    rows = [*runs({"twenty/sdft": {"neighbours": NAN}}), row("tune", 100, "sft lr 0.001 embed 10", 5, **SFT), row("baselines", 0, "sft+replay 5%")]
    evidence = run_main(tmp_path, rows, monkeypatch)
    assert [c["id"] for c in evidence["claims"]] == [c.__name__.replace("_", "-") for c in claims.CLAIMS]
    assert evidence["versions"] == {"numpy": "1"} and evidence["commit"] == "d"
    assert {"id", "claim", "source", "figure", "ci95", "seeds", "verdict", "command"} <= evidence["claims"][0].keys()
    assert capsys.readouterr().out.strip() == claims.claims_text(evidence)
    assert "| ten-tasks | After ten tasks SFT has forgotten at least 42 %, SDFT at most 11 %. | summary | forgetting: sft = 50.0 ± 0.0, sdft = 1.0 ± 0.0; " \
           "base retention: sft = 65.0 ± 0.0, sdft = 99.5 ± 0.0 | 3 | holds |" in claims.claims_text(evidence)
    for name in ("pareto", "drift", "demonstrations", "alpha", "interference", "reading"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_command_copes_with_almost_nothing(tmp_path, monkeypatch):
    evidence = run_main(tmp_path, [], monkeypatch)
    assert {c["verdict"] for c in evidence["claims"]} == {"not measured"} and not list(tmp_path.glob("*.png"))
    assert claims.claims_text(evidence).count("| – | 0 | not measured |") == len(claims.CLAIMS)
    run_main(tmp_path, [row("twenty", 0, "sdft", 20)], monkeypatch)
    assert sorted(p.stem for p in tmp_path.glob("*.png")) == ["drift"]
    texts = [text(json.loads((tmp_path / f"{source}.json").read_text())) for source, text in claims.BLOCKS.values()]
    assert all("| " in text for text in texts)


def test_no_pictures_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    run_main(tmp_path, runs(), monkeypatch)
    assert "matplotlib is missing" in capsys.readouterr().out and not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("content", [None, "{"])
def test_without_runs_one_line(tmp_path, monkeypatch, capsys, content):
    if content:
        (tmp_path / "runs.json").write_text(content)
    monkeypatch.setattr("sys.argv", ["claims.py", str(tmp_path)])
    with pytest.raises(SystemExit) as e:
        claims.main()
    err = capsys.readouterr().err
    assert e.value.code == 2 and "runs.json" in err and "python evidence.py" in err and err.count("\n") == 1
