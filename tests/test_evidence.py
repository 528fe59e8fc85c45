"""The list of experiments: its commands, what it skips, what it gathers."""
import dataclasses
import doctest
import json
import os
import sys
import time
from collections import Counter

import pytest

import evidence
import pretrain
import train
import world
from conftest import BASE
from runs import BadInput


def test_doctests():
    failed, tried = doctest.testmod(evidence)
    assert failed == 0 and tried >= 1


@pytest.mark.parametrize("experiment", evidence.EXPERIMENTS)
def test_every_run_of_an_experiment_is_a_valid_command(experiment):
    seeds, runs = evidence.EXPERIMENTS[experiment]
    assert len(seeds) in (1, 3, 6) and len(runs) >= 2
    for name, options in runs.items():
        base, files, taught = evidence.jobs_of("out", experiment, seeds[0], name, options)
        of_world = world.Config(**world.given_options(world.Config, "", files.words()))
        world.check_options(of_world)
        # patterns of files that are not here yet are left out
        given = ["--demos", "x"] * ("--demos" not in taught.words())
        config = train.parse([*taught.words(), *given, "--out", name])
        assert config.method in ("sft", "sdft", "joint") and config.init == base.folder
        assert config.seed == of_world.seed == pretrain.parse(base.words()).seed == seeds[0]
        assert base.key[1] in evidence.PRETRAINING
        assert files.folder in taught.options


def test_two_runs_share_a_base_model_or_a_world_only_where_its_options_are_the_same():
    made = {}
    for row in evidence.plan(evidence.EXPERIMENTS, quick=False):
        for job in evidence.jobs_of("out", *row)[:2]:
            assert made.setdefault(job.folder, job) == job


def test_tuning_gives_each_method_the_same_number_of_trials():
    per_method = Counter(name.split()[0] for name in evidence.trials())
    assert len(per_method) == 9 and set(per_method.values()) == {7}


@pytest.fixture
def small_plan(project, monkeypatch):
    """Two runs that differ in one option, on a base model and a world of the smallest kind."""
    folder, _ = project
    monkeypatch.chdir(folder)
    base = BASE.replace("--steps", "--pretrain-steps").replace(" --docs 8", "").replace("--threads 1 --device cpu", "")
    monkeypatch.setattr(evidence, "HOUSE", str(folder))
    monkeypatch.setitem(evidence.PRETRAINING, " ".join(base.split()), 300)
    options = f"{base} --tasks 2 --demonstrations 8 --steps 2 --batch-size 4 --watch-every 1"
    runs = {f"ema {d}": f"{options} --ema-decay {d}" for d in (0, 1)}
    monkeypatch.setattr(evidence, "EXPERIMENTS", {"ema": ([0], runs)})
    monkeypatch.setattr(pretrain, "gates", lambda model, world: dict.fromkeys(pretrain.GATES, 0.0))
    return folder


def test_evidence_runs_what_is_not_done_and_gathers_what_is(small_plan, monkeypatch, capsys):
    folder = small_plan
    # the copy's code is other than this process's, which must find its base models all the same
    monkeypatch.setattr(pretrain, "made_by", lambda config, world: "the same")
    text = (folder / "lab" / "pretrain.py").read_text()
    (folder / "lab" / "pretrain.py").write_text(text.replace("made = made_by(config, world)", "made = 'the same'"))
    (folder / "results" / "runs.json").unlink(missing_ok=True)
    for expected in (2, 0, 1):     # the second time all is done; then one was stopped at its end
        began = time.time()
        if expected == 1:
            (folder / "out/evidence/ema/0/ema 1/result.json").unlink()
        monkeypatch.setattr(sys, "argv", ["evidence.py", "ema"])
        evidence.main()
        results = [folder / f"out/evidence/ema/0/ema {d}/result.json" for d in (0, 1)]
        assert sum(os.path.getmtime(path) > began for path in results) == expected
    rows = json.loads((folder / "results" / "runs.json").read_text())["runs"]
    found = [(r["experiment"], r["seed"], r["name"], len(r["R"])) for r in rows]
    assert found == [("ema", 0, "ema 0", 3), ("ema", 0, "ema 1", 3)]
    families = {"manipulation", "decision", "facts", "update", "concept"}
    assert set(rows[0]["families"]) <= families and "--ema-decay 0" in rows[0]["command"]
    assert "all tasks were learned before" in (folder / "out/evidence/ema/0/ema 1/output.txt").read_text()
    said = capsys.readouterr().out
    assert "1 base models and 2 of 2 runs to make" in said and "ema/0/ema 1 | about 0 min left" in said
    assert "0 base models and 0 of 2 runs" in said and "0 base models and 1 of 2 runs" in said

    def job(folder, *key):
        return evidence.Job(folder, "train.py", "", key)

    seconds = [row["wall_seconds"] for row in rows]
    guess = evidence.expected([job("a", "ema", "ema 0"), job("b", "ema", "new"), job("c", "base", "")])
    assert guess == {"a": seconds[0], "b": sum(seconds) / 2, "c": evidence.PRETRAINING[""]}


def test_a_result_of_other_options_is_of_an_older_plan(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()

    def job(options):
        return evidence.Job(str(folder), "train.py", f"--init i --demos d {options} --seed 3", ("x", "y"))

    made = train.parse([*job("--alpha 0.5").words(), "--threads", "1", "--out", "x"])
    (folder / "result.json").write_text(json.dumps({"settings": dataclasses.asdict(made)}))
    assert evidence.is_done(job("--alpha 0.5"))
    # what another machine has made is done as well
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"settings": result["settings"] | {"device": "cuda:1"}}))
    assert evidence.is_done(job("--alpha 0.5 --save-every 7"))
    # and what was made before there was an option that is left alone
    older = {name: value for name, value in result["settings"].items() if name not in ("skip", "contrast")}
    (folder / "result.json").write_text(json.dumps({"settings": older}))
    assert evidence.is_done(job("--alpha 0.5"))
    assert not evidence.is_done(job("--alpha 0.4")) and not folder.exists()


def test_a_run_that_fails_is_told_and_counted(small_plan, monkeypatch):
    monkeypatch.setattr(evidence, "run", lambda job: 1)
    monkeypatch.setattr(evidence, "is_done", lambda job: False)
    monkeypatch.setattr(sys, "argv", ["evidence.py"])
    with pytest.raises(BadInput, match="3 runs ended with an error"):          # the base model and the two runs
        evidence.main()


@pytest.mark.parametrize("arguments, said", [
    ("emma", "no experiment is called emma; there are tune,"), ("ema --seeds 0", "--seeds 0: must be 1 or more"),
    ("--jobs 0", "--jobs 0: must be 1 or more"), ("--quick ema", "leave experiments and --seeds out")])
def test_evidence_refuses_what_it_cannot_run(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(sys, "argv", ["evidence.py", *arguments.split()])
    with pytest.raises(SystemExit) as e:
        evidence.main()
    assert e.value.code == 2 and said in capsys.readouterr().err
