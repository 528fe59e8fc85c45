"""The runs of a real model, with a tiny random one in its place: they are made, made once, and told."""
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

import train
from conftest import ROOT
from runs import BadInput, read_json
from test_chat_train import here  # noqa: F401

sys.path.insert(1, os.path.join(ROOT, "lab"))
import smollm2
import trl_smollm2

OPTIONS = "--batch-size 4 --guard 0 --device cpu --steps 2 --measure-every 1"
METHODS = {"sft": "--method sft", "sdft plain": "--contrast 0 --max-new-tokens 4",
           "sdft": "--sampler teacher --contrast 1 --max-new-tokens 4"}


@pytest.fixture
def tiny(here, monkeypatch):  # noqa: F811
    """Two seeds of three methods; the model is there already."""
    os.makedirs("out")
    os.rename("base", "out/smollm2")
    monkeypatch.setattr(smollm2, "EXPERIMENTS", {"sentences": (range(2), METHODS), "demo": (range(1), METHODS)})
    monkeypatch.setattr(smollm2, "HEADLINE", ("sentences",))
    monkeypatch.setattr(smollm2, "ALL", OPTIONS)
    return here


def refuse(*_, **__):
    raise AssertionError("a run that is done is made again")


def test_a_demo_makes_its_runs_once_and_prints_table_and_answers(tiny, monkeypatch, capfd):
    smollm2.demo()
    said = capfd.readouterr().out
    for name, options in METHODS.items():
        assert f"--out 'out/smollm2-runs/demo/0/{name}'".replace("'", "'" * (" " in name)) in said
        assert f"\n| {name} | " in said and f"{OPTIONS} {options}" in said
        assert os.listdir(f"out/smollm2-runs/demo/0/{name}/model")
        assert not os.path.exists(f"out/smollm2-runs/demo/0/{name}/checkpoint.pt")
    assert "\n| base | 0.00 | " in said and said.count("\n  base ") == said.count("\n  sft ") == 7
    assert os.path.getsize("out/smollm2-runs/learning.png") > 1000
    monkeypatch.setattr(smollm2, "teach", refuse)
    smollm2.demo()
    # other options are another run
    monkeypatch.setattr(smollm2, "ALL", OPTIONS + " --lr 0.5")
    with pytest.raises(AssertionError, match="made again"):
        smollm2.demo()


def test_evidence_has_every_seed_its_mean_and_its_interval(tiny, monkeypatch):
    methods = {name: METHODS[name] for name in ("sft", "sdft")}
    monkeypatch.setattr(smollm2, "EXPERIMENTS", {"sentences": (range(2), methods)})
    os.makedirs("results")
    smollm2.evidence("results", ["sentences"], None)
    with open("results/smollm2.json") as f:
        found = json.load(f)
    assert found.keys() == {"command", "commit", "versions", "machine", "sentences", "answers"}
    assert found["sentences"].keys() == {"base", "sft", "sdft"}
    for name, row in found["sentences"].items():
        for figure in ("learned", "unseen_phrasing", "general", "drift", "open_words"):
            seeds = row[figure]["seeds"]
            assert len(seeds) == 2 and row[figure]["mean"] == pytest.approx(np.mean(seeds))
            # of two: 12.7 times the error of the mean, which is half of their distance
            assert row[figure]["ci95"] == pytest.approx(12.706 * abs(seeds[0] - seeds[1]) / 2, rel=1e-4)
        if name != "base":
            assert [len(curve) for curve in row["curves"]] == [3, 3] and row["steps"]["mean"] == 2
            assert row["curves"][0][0]["drift"] == 0 < row["drift"]["seeds"][0] == row["curves"][0][-1]["drift"]
    assert found["sentences"]["sft"]["ceiling"] is None and found["sentences"]["sdft"]["ceiling"]["mean"] == 0
    assert len(found["answers"]) == 7 and found["answers"][0].keys() == {"prompt", "right", "base", *methods}
    assert os.path.getsize("results/smollm2.png") > 1000


def test_a_row_stands_for_its_run_until_the_plan_is_another(tiny, monkeypatch):
    plan = {"trials": ([100], {"sft lr 0.1": "--method sft --lr 0.1", "sdft lr 0.1": "--lr 0.1"})}
    monkeypatch.setattr(smollm2, "EXPERIMENTS", plan)
    monkeypatch.setattr(smollm2, "HEADLINE", ())
    os.makedirs("results")
    smollm2.evidence("results", ["trials"], 1)
    rows = smollm2.read_rows("results")
    assert list(rows) == [("trials", 100, "sft lr 0.1"), ("trials", 100, "sdft lr 0.1")]
    row = rows["trials", 100, "sdft lr 0.1"]
    assert len(row["curve"]) == 3 and row["command"].startswith("python train.py --init out/smollm2 --demos ")
    assert row["said"][0].keys() == {"prompt", "right", "base", "model"} and len(row["said"]) == 7
    # its folder may go; of another run the row goes
    shutil.rmtree("out/smollm2-runs")
    plan["trials"][1]["sft lr 0.1"] = "--method sft --lr 0.2"
    made, teach = [], smollm2.teach
    monkeypatch.setattr(smollm2, "teach", lambda job: made.append(job.key) or teach(job))
    smollm2.evidence("results", ["trials"], 1)
    assert made == [("trials", 100, "sft lr 0.1")]
    again = smollm2.read_rows("results")
    assert again["trials", 100, "sdft lr 0.1"] == row and "--lr 0.2" in again[made[0]]["command"]
    # where its files and its folder lay is no matter, nor what was said before the last word on it
    told = row["command"].replace("/trials/100/", "/other/1/").replace("--lr 0.1", "--lr 0.2 --lr 0.1")
    moved = {**row, "command": told}
    assert moved["command"].count("/other/1/") == 5
    smollm2.write_rows("results", [again[made[0]], moved])
    smollm2.evidence("results", ["trials"], 1)
    assert len(made) == 1 and smollm2.read_rows("results")["trials", 100, "sdft lr 0.1"] == moved
    # another program's is another run
    assert smollm2.options(told) != smollm2.options(told.replace("train.py", "lab/trl_smollm2.py"))


@pytest.mark.parametrize("experiment", smollm2.EXPERIMENTS)
def test_every_run_of_the_plan_is_a_command_that_train_takes(experiment):
    for name in smollm2.EXPERIMENTS[experiment][1]:
        job = smollm2.job(experiment, 0, name)
        words = [*job.options.split(), "--out", "run"]
        config = trl_smollm2.parse(words)[0] if experiment == "trl" else train.parse(words)
        assert config.batch_size in (8, 16) and config.keep and config.max_new_tokens in (0, 24, 32)


def test_tasks_that_were_not_asked_count_for_nothing():
    nothing = dict.fromkeys(smollm2.FIGURES.values(), 0.0)
    assert smollm2.point(nothing | {"R": [0.25, 0.75, float("nan")]})["unseen_phrasing"] == 0.5


def curve(*learned):
    """Ten steps and 0.1 nats of drift from point to point."""
    return [{"step": 10 * i, "learned": x, "drift": 0.1 * i, "kept": 1 - 0.1 * i} for i, x in enumerate(learned)]


def test_methods_are_compared_where_they_have_learned_as_much():
    found = smollm2.at_learned(curve(0, 0.6, 1, 0.9), 0.8)
    assert found == {"step": 15, "learned": 0.8, "drift": pytest.approx(0.15), "kept": pytest.approx(0.85)}
    assert smollm2.at_learned(curve(0, 0.6), 0.8) == {}


def test_a_table_says_of_how_many_seeds_a_figure_is(monkeypatch):
    monkeypatch.setattr(smollm2, "EXPERIMENTS", {"facts": ([0, 1], {"slow": "", "sdft": "", "not run": ""})})
    end = {"learned": 0.5, "unseen_phrasing": 0.25, "general": 0.7, "kept": 0.9, "neighbours_kept": 0.8,
           "drift": 0.1, "open_words": 49.6, "seconds": 7.2}
    rows = [{"experiment": "facts", "seed": seed, "name": "sdft", **end, "curve": curve(0, learned)}
            for seed, learned in enumerate((0.5, 1))]
    head, _, row = smollm2.experiment_table({"runs": rows}, ["facts"]).splitlines()
    assert row == ("| sdft | 0.50 ± 0.00 | 0.25 ± 0.00 | 0.70 ± 0.00 | 0.90 ± 0.00 | 0.80 ± 0.00 | "
                   "0.10 ± 0.00 | 50 ± 0 | 7 ± 0 | "
                   "8 (1 of 2) | 0.92 (1 of 2) | 0.08 (1 of 2) | 2 |")
    assert head.count("|") == row.count("|")


def test_a_sequence_is_told_task_by_task(tiny, monkeypatch):
    monkeypatch.setattr(smollm2, "EXPERIMENTS", {"sequence": (range(1), {"sft": "--method sft"})})
    monkeypatch.setattr(smollm2, "HEADLINE", ())
    os.makedirs("results")
    smollm2.evidence("results", ["sequence"], None)
    row = smollm2.read_rows("results")["sequence", 0, "sft"]
    assert "sequence/*.jsonl" in row["command"]
    assert np.shape(row["R"]) == (6, 5) and row["steps"] == 10
    assert [p["step"] for p in row["curve"]] == list(range(11))
    assert row["unseen_phrasing"] == row["curve"][-1]["unseen_phrasing"] == pytest.approx(np.mean(row["R"][-1]))
    table = smollm2.sequence_table({"runs": [row]}).splitlines()
    assert len(table) == 3 and table[2].startswith(f"| sft | {np.mean(row['R'][-1]):.2f} | ")
    # three general questions and an open prompt; what is taught is another thing with each task
    assert len(row["said"]) == 4


def test_a_run_that_fails_is_named_and_the_others_are_made(tiny, monkeypatch):
    methods = {"sdft": "--guard 0.9", "sft": METHODS["sft"]}
    monkeypatch.setattr(smollm2, "EXPERIMENTS", {"sentences": (range(1), methods), "demo": (range(1), methods)})
    os.makedirs("results")
    with pytest.raises(BadInput, match="out/smollm2-runs/sentences/0/sdft: the run ended with an error"):
        smollm2.evidence("results", ["sentences"], None)
    assert list(smollm2.read_rows("results")) == [("sentences", 0, "sft")]
    assert list(read_json("results/smollm2.json")["sentences"]) == ["base", "sft"]
    with pytest.raises(BadInput, match="demo/0/sdft: the run ended with an error"):
        smollm2.demo()


def test_a_run_that_is_stopped_saves_itself_first(tmp_path):
    """Ctrl-C reaches the run and the command around it; a step and a checkpoint take longer than a moment."""
    (tmp_path / "run.py").write_text("import time\ntry:\n    print('at work', flush=True)\n    time.sleep(60)\n"
                                     "except KeyboardInterrupt:\n    time.sleep(1)\n    open('saved', 'w').close()\n")
    code = f"""
import sys
sys.path[:0] = {sys.path}
import evidence, smollm2
smollm2.HOUSE = "."
smollm2.teach(evidence.Job("out", "run.py", "", ()))"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, start_new_session=True) as process:
        while "at work" not in process.stdout.readline():
            pass
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate()[1]
    assert "BadInput: stopped; the same command goes on" in said and os.path.exists(tmp_path / "saved")
