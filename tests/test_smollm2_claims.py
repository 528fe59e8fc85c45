"""The rules for a real model on made-up runs whose verdicts are known."""
import pytest

import claims
import smollm2
import smollm2_claims as real


def row(experiment, name, seed, learned=0.9, kept=0.9, drift=0.1, ceiling=0.9, seconds=100.0, machine="a CPU (m)",
        bf16=False):
    """A run whose figures go in a straight line from the base's to these."""
    end = {"learned": learned, "kept": kept, "drift": drift, "unseen_phrasing": learned}
    base = {"learned": 0.0, "kept": 1.0, "drift": 0.0, "unseen_phrasing": 0.0}
    return {"experiment": experiment, "name": name, "seed": seed, **end, "ceiling": ceiling, "seconds": seconds,
            "machine": machine, "bf16": bf16, "steps": 100, "R": [[0.0], [learned]],
            "curve": [{"step": 0, **base}, {"step": 100, **end}]}


def file(*rows):
    return {"runs": rows}


def seeds_of(experiment, name, values=((), (), ()), **figures):
    return [row(experiment, name, seed, **figures | dict(zip(("kept",), v))) for seed, v in enumerate(values)]


def test_methods_are_compared_where_they_have_learned_as_much():
    """SFT ends at 0.7 kept with 1.0 learned: at 0.8 that is 0.76; SDFT's 0.9 with 0.8 are there 0.9."""
    rule = real.RULES["forgets-less"]
    runs = seeds_of("sentences", "sdft", learned=0.8, kept=0.9, drift=0.1)
    runs += seeds_of("sentences", "sft", learned=1.0, kept=0.7, drift=1.0)
    seeds, figures, late, found = real.judge(rule, file(*runs))
    assert seeds == [0, 1, 2] and not late and found == "holds"
    assert figures["kept"]["sft"] == pytest.approx([0.76] * 3) and figures["drift"]["sft"] == pytest.approx([0.8] * 3)
    assert figures["kept"]["sdft"] == pytest.approx([0.9] * 3)
    # what never learns so much is taken at its end, and named
    runs[3:] = seeds_of("sentences", "sft", learned=0.5, kept=0.7, drift=1.0)
    _, figures, late, _ = real.judge(rule, file(*runs))
    assert late == ["sft"] and figures["kept"]["sft"] == pytest.approx([0.7] * 3)


def test_one_seed_is_no_verdict_and_neither_are_runs_of_other_seeds():
    rule = real.RULES["new-tasks"]
    runs = seeds_of("sentences", "sdft") + [row("sentences", "sft", 2, learned=0.5)]
    assert real.judge(rule, file(*runs)) == ([2], {}, [], "not measured")


@pytest.mark.parametrize("mine, other, expected", [
    ({"learned": 0.90}, {"learned": 0.80}, "holds"),
    ({"learned": 0.82}, {"learned": 0.80}, "holds partly"),     # the sign is sure, the five points are not
    ({"learned": 0.80}, {"learned": 0.82}, "does not hold here"),
    # the second way in which it may hold
    ({"learned": 0.80, "kept": 0.95}, {"learned": 0.80, "kept": 0.9}, "holds"),
    # who has learned little has kept more, which is no merit
    ({"learned": 0.20, "kept": 0.99}, {"learned": 0.90, "kept": 0.9}, "does not hold here"),
])
def test_a_claim_holds_in_one_way_or_another(mine, other, expected):
    rule = real.RULES["on-policy"]
    runs = seeds_of("facts", "student samples", **mine) + seeds_of("facts", "teacher samples", **other)
    assert real.judge(rule, file(*runs))[-1] == expected


def test_against_several_it_must_hold_against_each():
    rule = real.RULES["forward-divergence"]
    runs = seeds_of("sentences", "sdft") + seeds_of("facts", "reverse", learned=0.5)
    assert real.judge(rule, file(*runs))[-1] == "not measured"
    for learned, expected in ((0.6, "holds"), (0.95, "does not hold here")):
        both = file(*runs, *seeds_of("facts", "jsd", learned=learned))
        assert real.judge(rule, both)[-1] == expected


def test_within_is_missed_on_either_side():
    rule = real.RULES["trl"]
    for learned, expected in ((0.9, "holds"), (0.8, "does not hold here"), (1.0, "does not hold here")):
        runs = seeds_of("trl", "trl", learned=learned) + seeds_of("facts", "sdft plain, official words", learned=0.9)
        runs += seeds_of("trl", "trl paper", learned=0.9)
        assert real.judge(rule, file(*runs))[-1] == expected


def test_skills_are_a_mean_over_all_of_them():
    runs = [row("skills", f"{skill} {method}", seed, learned=learned, kept=kept) for seed in (0, 1)
            for method, kept in (("sdft", 0.9), ("sft", 0.8)) for skill, learned in zip(real.SKILLS, (1.0, 0.7, 0.85))]
    _, figures, _, found = real.judge(real.RULES["families"], file(*runs))
    assert figures["learned"]["sdft"] == pytest.approx([0.85] * 2) and found == "holds"
    # a seed that has not all of them is none
    assert real.judge(real.RULES["families"], file(*runs[:-1]))[0] == [0]


def test_a_rule_says_where_it_compares():
    assert real.RULES["on-policy"].words() == "kept 0.02 more at 0.8 learned, or learned 0.05 more"
    assert real.RULES["five-tasks"].words() == (
        "average accuracy at least 0.8, kept at least 0.9, drift at most 0.125 times")


def test_templates_drift_and_cost():
    read = {("sentences", "sdft"): 0.9, ("facts", "earlier turn"): 0.5, ("facts", "asked for a sentence"): 0.7}
    for worse, expected in ((0, "holds"), (1, "holds partly"), (2, "does not hold here"), (3, "does not hold here")):
        runs = [row(*run, seed, ceiling=ceiling, learned=1 - ceiling if seed < worse else ceiling)
                for run, ceiling in read.items() for seed in range(3)]
        assert real.templates(file(*runs))[-1] == expected
    runs = [row("sentences", name, seed, kept=kept, drift=drift) for seed in range(2)
            for name, kept, drift in (("a", 0.9, 0.1), ("b", 0.8, 0.2), ("c", 0.7, 0.3))]
    assert real.drift_predicts(file(*runs))[-1] == "holds"
    assert real.drift_predicts(file(*runs[:1]))[-1] == "not measured"
    plain = seeds_of("sentences", "sdft plain", seconds=250.0)
    found = real.costs_more(file(*plain, *seeds_of("sentences", "sft", seconds=100.0)))
    assert found[1]["times"]["sdft plain"].tolist() == [2.5] * 3 and found[-1] == "holds"
    # seconds of two processors are not compared, nor of products that differ or are not known
    for other in {"machine": "a CPU (n)"}, {"bf16": True}, {"bf16": None}:
        assert real.costs_more(file(*plain, *seeds_of("sentences", "sft", **other)))[-1] == "not measured"
    named = seeds_of("sentences", "sft", machine="a CPU") + seeds_of("sentences", "sdft plain", machine="a CPU")
    assert real.costs_more(file(*named))[-1] == "not measured"


def test_every_rule_is_of_planned_runs_and_every_claim_of_the_small_world_is_answered():
    for rule in real.RULES.values():
        for experiment, name in (rule.ours, *rule.others):
            names = smollm2.EXPERIMENTS[experiment][1]
            assert name in names or any(n.endswith(f" {name}") for n in names)
    ids = {claim.__name__.replace("_", "-") for claim in claims.CLAIMS}
    here, there = {*real.RULES, *real.OTHERS}, set(real.NOT_HERE)
    assert ids <= here | there and there <= ids and not here & there


def test_tables_have_a_row_a_claim_and_the_verdicts_of_both_worlds():
    evidence = {"claims": [{"id": claim.__name__.replace("_", "-"), "claim": "words", "verdict": f"world {i}"}
                           for i, claim in enumerate(claims.CLAIMS)]}
    runs = file(*seeds_of("sentences", "sdft"), *seeds_of("sentences", "sft", learned=0.5))

    def rows_of(text):
        return dict(line.strip("| ").split(" | ", 1) for line in text.splitlines()[2:])

    rows = rows_of(real.table(runs))
    assert rows.keys() == {*real.RULES, *real.OTHERS} and rows["new-tasks"].endswith("| 3 | holds")
    assert "unseen phrasing: sdft = 0.90 ± 0.00, sft = 0.50 ± 0.00" in rows["new-tasks"]
    both = rows_of(real.verdicts(runs, evidence))
    assert both.keys() == {*real.RULES, *real.OTHERS, *real.NOT_HERE}
    assert both["new-tasks"] == f"words | world 0 | holds: {real.RULES['new-tasks'].claim}"
    assert both["model-size"].endswith("not here: one model")
    assert both["forgets-less"] == f"{real.RULES['forgets-less'].claim} | – | holds partly"
