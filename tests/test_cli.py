"""Every command of the README, in its smallest form, in a copy of the project; and the experiments' command lines."""
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter

import pytest

import evidence
import train
from conftest import ROOT

LESSON = "--steps 2 --batch-size 4 --watch-every 1 --device cpu"           # what --demos takes: the model is that of --init
TINY = ("--pretrain-steps 2 --pretrain-docs 8 --n-layer 1 --n-head 2 --n-embd 16 --tasks 2 --steps 2 --batch-size 4 --demonstrations 8 "
        "--watch-every 1 --device cpu")


def readme_commands():
    with open(os.path.join(ROOT, "README.md")) as f:
        blocks = re.findall(r"```\n(.*?)```", f.read(), flags=re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"make |\.venv/bin/python ", line)]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the project in which `make demo` has been run, smallest form."""
    folder = tmp_path_factory.mktemp("project")
    for name in os.listdir(ROOT):
        if name.endswith((".py", ".md")) or name in ("Makefile", "results", "tests", "examples"):
            (shutil.copytree if os.path.isdir(os.path.join(ROOT, name)) else shutil.copy)(os.path.join(ROOT, name), folder / name)
    done = shell(folder, f"make -o .venv/ready demo PY={sys.executable} ARGS='{TINY}'")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def shell(folder, command):
    env = {k: v for k, v in os.environ.items() if k != "MAKEFLAGS"} | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)


def test_demo_prints_gates_progress_and_table_and_writes_summary_and_picture(copy):
    folder, out = copy
    assert "gate contradicting demonstration" in out and "s left" in out and "ms/step" in out
    for method in ("sft", "sdft", "sdft+self-replay"):
        assert re.search(rf"^\| {re.escape(method)} \|", out, flags=re.M)
    summary = json.loads((folder / "out/demo/summary.json").read_text())
    assert set(summary) >= {"gates", "methods", "R"} and len(summary["R"]["sdft"]) == 3
    assert (folder / "out/demo/forgetting.png").exists()


@pytest.mark.parametrize("command", [c for c in readme_commands() if not re.match(r"make (demo|test|evidence)", c)])
def test_command_of_the_readme_runs(copy, command):
    folder, _ = copy
    if "pytest" in command:
        command += " -k device_compiled"
    if "bench_kernel" in command:
        command += " --help"                                               # minutes of measuring: it has its own run
    if "train.py" in command and "--help" not in command and "--resume" not in command:
        small = TINY + " --steps 1" * ("--preset" in command)              # its 50,304 words: the chunked loss and torch.compile run there
        command += " " + (LESSON if "--demos" in command else small)
    done = shell(folder, command.replace(".venv/bin/python", shlex.quote(sys.executable)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_readme_names_only_files_that_exist():
    with open(os.path.join(ROOT, "README.md")) as f:
        named = set(re.findall(r"\]\(((?!http)[^)]+)\)", f.read()))
    assert named and all(os.path.exists(os.path.join(ROOT, path)) for path in named)


def test_the_loop_of_updates_runs(copy):
    folder, _ = copy
    with open(os.path.join(ROOT, "README.md")) as f:
        (loop,) = re.findall(r"```\n(last=.*?)```", f.read(), flags=re.S)
    shutil.copytree(folder / "out/base-0", folder / "out/base", dirs_exist_ok=True)        # what the README makes before it
    done = shell(folder, loop.replace(".venv/bin/python", shlex.quote(sys.executable)).replace("--init", LESSON + " --init"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(os.listdir(folder / "out/loop")) == ["01-french", "02-german"] and done.stdout.count("kept: base: composed") == 2


@pytest.mark.parametrize("experiment", evidence.EXPERIMENTS)
def test_every_run_of_an_experiment_is_a_valid_command(experiment):
    seeds, runs = evidence.EXPERIMENTS[experiment]
    assert len(seeds) in (1, 3, 6) and len(runs) >= 2
    world = train.World(seeds[0])
    for name, options in runs.items():
        config = train.parse([*options.format(seed=seeds[0]).split(), "--seed", str(seeds[0]), "--out", name])
        assert config.method in ("sft", "sdft", "joint")
        made_first = train.parse(["--method", "base", *evidence.kind_of_base(options).split(), "--seed", str(seeds[0])])
        assert config.init or train.base_path(config, world) == train.base_path(made_first, world)


def test_tuning_gives_each_method_the_same_number_of_trials():
    per_method = Counter(name.split()[0] for name in evidence.trials())
    assert len(per_method) == 9 and set(per_method.values()) == {7}


def test_evidence_runs_what_is_not_done_and_gathers_what_is(copy, monkeypatch, capsys):
    folder, _ = copy
    monkeypatch.chdir(folder)
    monkeypatch.setattr(evidence, "EXPERIMENTS", {"ema": ([0], {"ema 0": f"{TINY} --ema-decay 0", "ema 1": f"{TINY} --ema-decay 1"})})
    monkeypatch.setattr(evidence, "PRETRAINING", {"": 300, TINY: 300})
    (folder / "results" / "runs.json").unlink(missing_ok=True)
    for expected in (2, 0, 1):                                             # the second time all is done; then one was stopped behind its last task
        began = time.time()
        if expected == 1:
            (folder / "out/evidence/ema/0/ema 1/result.json").unlink()
        monkeypatch.setattr(sys, "argv", ["evidence.py", "ema"])
        evidence.main()
        assert sum(os.path.getmtime(folder / f"out/evidence/ema/0/ema {d}/result.json") > began for d in (0, 1)) == expected
    rows = json.loads((folder / "results" / "runs.json").read_text())["runs"]
    assert [(r["experiment"], r["seed"], r["name"], len(r["R"])) for r in rows] == [("ema", 0, "ema 0", 3), ("ema", 0, "ema 1", 3)]
    assert "all tasks were learned before" in (folder / "out/evidence/ema/0/ema 1/output.txt").read_text()
    said = capsys.readouterr().out
    assert "1 base models and 2 of 2 runs to make" in said and "ema/0/ema 1 | about 0 min left" in said and "0 base models and 0 of 2 runs" in said
    assert "0 base models and 1 of 2 runs" in said
    assert evidence.expected([("a", 0, "", ("ema", "ema 0")), ("b", 0, "", ("ema", "new")), ("c", 0, "", "")]) == {
        "a": rows[0]["wall_seconds"], "b": (rows[0]["wall_seconds"] + rows[1]["wall_seconds"]) / 2, "c": evidence.PRETRAINING[""]}


def test_a_result_of_other_options_is_of_an_older_plan(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    made = dataclasses.asdict(train.parse(["--alpha", "0.5", "--seed", "3", "--threads", "1", "--out", "x"]))
    (folder / "result.json").write_text(json.dumps({"settings": made}))
    assert evidence.is_done(str(folder), 3, "--alpha 0.5")
    assert not evidence.is_done(str(folder), 3, "--alpha 0.4") and not folder.exists()


def test_a_run_that_fails_is_told_and_counted(copy, monkeypatch, capsys):
    folder, _ = copy
    monkeypatch.chdir(folder)
    monkeypatch.setattr(evidence, "EXPERIMENTS", {"ema": ([0], {"ema 0": f"{TINY} --ema-decay 0"})})
    monkeypatch.setattr(evidence, "ROOT", str(folder / "fails"))
    monkeypatch.setattr(evidence, "run", lambda *job: 1)
    monkeypatch.setattr(sys, "argv", ["evidence.py"])
    with pytest.raises(SystemExit) as e:
        evidence.main()
    assert e.value.code == 2 and "2 runs ended with an error" in capsys.readouterr().err       # the base model and the run


@pytest.mark.parametrize("arguments, said", [("emma", "no experiment is called emma; there are tune,"), ("ema --seeds 0", "--seeds 0: must be 1 or more"),
                                             ("--jobs 0", "--jobs 0: must be 1 or more"), ("--quick ema", "leave experiments and --seeds out")])
def test_evidence_refuses_what_it_cannot_run(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(sys, "argv", ["evidence.py", *arguments.split()])
    with pytest.raises(SystemExit) as e:
        evidence.main()
    assert e.value.code == 2 and said in capsys.readouterr().err


def test_data_shows_itself():
    done = subprocess.run([sys.executable, "data.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "<|demo|>" in done.stdout and "manipulation" in done.stdout
