"""What a user can do wrong and what can go wrong around a run, through `train.main` as from the command line.

A mistake ends with one line that says where, what, and what to do, with exit status 2, before anything is written. What strikes a run (a full disk,
a kill, a second run) leaves what was saved before whole, and `--resume` ends where the untouched run ends, bit for bit.
"""
import contextlib
import dataclasses
import errno
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import eval as evaluate
import kills
import sdft
import train
from conftest import ROOT, small_probes
from test_files import GOOD, line, write
from test_train import TINY, raise_after


def small(patch):
    """Probes of a few examples and no gates: what is measured is of no interest here, and takes most of the time of a tiny run."""
    small_probes(patch)
    patch(train, "gates", lambda model, world: {name: 0.0 for name in train.GATES})


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of a base model, made once."""
    folder = tmp_path_factory.mktemp("base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small(patch.setattr)
        train.main([*TINY, "--method", "base", "--out", "base"])
    return folder / "base"


@pytest.fixture
def here(tmp_path, monkeypatch, base):
    """A folder with a base model and a file of demonstrations, in which the test works. Words that a run gives to the tokenizer are taken back."""
    monkeypatch.chdir(tmp_path)
    small(monkeypatch.setattr)
    shutil.copytree(base, tmp_path / "base")
    write(tmp_path, GOOD, line())
    yield tmp_path
    data.take_names({})


def tree(folder) -> dict:
    """All that is in a folder: {path: bytes, or None for a folder}."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refusal(capsys, folder, *argv) -> str:
    """The one line with which a command is refused: exit status 2, and everything in the folder is as it was."""
    capsys.readouterr()
    before = tree(folder)
    with pytest.raises(SystemExit) as e, warnings.catch_warnings(record=True) as warned:      # a warning would be a second line
        train.main(list(argv))
    said = capsys.readouterr()
    assert not warned, [str(w.message) for w in warned]
    assert e.value.code == 2 and said.err.endswith("\n") and said.err[:-1].isprintable(), said.err
    assert tree(folder) == before
    return said.err


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes in the files that a user gives.

FILES = {                         # the file (None: there is none; else a line behind two right ones), what the message says, a word of the remedy
    "missing": (None, ["bad.jsonl: cannot be read (No such file"], "give a file that exists"),
    "empty": (b"", ["bad.jsonl: empty"], 'write {"prompt"'),
    "not UTF-8": (b'{"prompt": "caf\xe9", "response": "x"}', ["bad.jsonl:3: ", "byte 16", "0xe9"], "save the file as UTF-8"),
    "broken JSON": ('{"prompt": "a" "response": "b"}', ["bad.jsonl:3: ", "character 16", '{"prompt": "a" "response": "b"}'], "write {"),
    "no object": ("[1, 2]", ["bad.jsonl:3: ", "[1, 2]"], "write {"),
    "wrong type": ('{"prompt": 17, "response": "b"}', ["bad.jsonl:3: ", '"prompt" is 17'], "put a string"),
    "missing field": ('{"prompt": "b"}', ["bad.jsonl:3: ", '{"prompt": "b"}', 'no "response"'], "write {"),
    "unknown field": (line(answer="x"), ["bad.jsonl:3: ", "'answer'"], '"task"'),
    "empty field": (line("9 + 9", " "), ["bad.jsonl:3: ", '"response" is empty', "' '"], "fill it in"),
    "contradiction": (line("1 + 1", "three"), ["bad.jsonl:3: ", "'1 + 1'", "'three'", "'two' at bad.jsonl:1"], "keep one"),
    "too long": (line("a" * 70, "b"), ["bad.jsonl:3: ", "'aaaa", "takes 148 tokens", "more than 128"], "shorten it"),
    "one alone": (line("5 + 5", "ten", task="al\none"), ["bad.jsonl:3: ", "'al one'", "1 of the two"], "add new ones"),
}


@pytest.mark.parametrize("option", ["demos", "keep"])
@pytest.mark.parametrize("content, said, remedy", FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_used(here, capsys, option, content, said, remedy):
    if content is not None:
        write(here, *[GOOD, line(), content] if content else [], name="bad.jsonl")
    files = ["--demos", "bad.jsonl"] if option == "demos" else ["--demos", "sums.jsonl", "--keep", "bad.jsonl"]
    message = refusal(capsys, here, "--init", "base", *files, "--out", "run")
    assert all(part in message for part in said) and remedy in message.split("; ", 1)[1], message


def test_one_demonstration(here, capsys):
    write(here, line(), line(), name="bad.jsonl")
    assert "bad.jsonl:1: task 'bad' has 1 of the two" in refusal(capsys, here, "--init", "base", "--demos", "bad.jsonl", "--out", "run")


def test_a_file_whose_name_holds_a_line_break(here, capsys):
    assert "'no\\nfile': " in refusal(capsys, here, "--init", "base", "--demos", "no\nfile", "--out", "run")
    assert "no\\nmodel/checkpoint.pt: no such" in refusal(capsys, here, "--init", "no\nmodel", "--demos", "sums.jsonl", "--out", "run")


def test_order_of_tasks(here, capsys):
    message = refusal(capsys, here, "--init", "base", "--demos", "sums.jsonl", "--task-order", "sums,more", "--out", "run")
    assert "'sums,more'" in message and "they are sums" in message


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints that are none, or of something else.


class Trap:
    """Unpickled, it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


def changed(state, **more):
    return {**state, **more}


def resized(state):
    return changed(state, student={k: v[..., :8] for k, v in state["student"].items()})


def without(weights, name):
    return {k: v for k, v in weights.items() if k != name}


NOT_FINITE = float("nan")
CHECKPOINTS = {                   # what stands in the file, made from a sound checkpoint's bytes or entries; what the message says
    "empty": (lambda raw, state: b"", "not a checkpoint, or damaged"),
    "truncated": (lambda raw, state: raw[: len(raw) // 2], "not a checkpoint, or damaged"),
    "truncated by a byte": (lambda raw, state: raw[:-1], "not a checkpoint, or damaged"),
    "one byte of a weight is another": (lambda raw, state: raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 1]) + raw[len(raw) // 2 + 1 :], ""),
    "text": (lambda raw, state: b"weights", "not a checkpoint, or damaged"),
    "a pickle that runs code": (lambda raw, state: pickle.dumps(Trap()), "not a checkpoint, or damaged"),
    "a checkpoint that runs code": (lambda raw, state: changed(state, settings=Trap()), "not a checkpoint, or damaged"),
    "a list": (lambda raw, state: [1, 2], "not a checkpoint"),
    "a tensor": (lambda raw, state: torch.ones(2), "not a checkpoint"),
    "other entries": (lambda raw, state: {"model": state["student"]}, "not a checkpoint of train.py"),
    "no settings": (lambda raw, state: changed(state, settings={}), "another architecture"),
    "settings are none": (lambda raw, state: changed(state, settings=[1]), "another architecture"),
    "no weights": (lambda raw, state: changed(state, student={}), "another architecture"),
    "weights are numbers": (lambda raw, state: changed(state, student={k: 1.0 for k in state["student"]}), "another architecture"),
    "a weight is missing": (lambda raw, state: changed(state, student=without(state["student"], "norm.weight")), "another architecture"),
    "a weight is too many": (lambda raw, state: changed(state, student={**state["student"], "bias": torch.ones(1)}), "another architecture"),
    "other shapes": (lambda raw, state: resized(state), "another architecture"),
    "more layers": (lambda raw, state: changed(state, settings={**state["settings"], "n_layer": 2}), "another architecture"),
    "heads that do not part the width": (lambda raw, state: changed(state, settings={**state["settings"], "n_head": 3}), "another architecture"),
    "no heads": (lambda raw, state: changed(state, settings={**state["settings"], "n_head": 0}), "another architecture"),
    "words are none": (lambda raw, state: changed(state, words=[1]), "another architecture"),
    "a weight is not finite": (lambda raw, state: changed(state, student={k: v * NOT_FINITE for k, v in state["student"].items()}), "not finite"),
    "still in pretraining": (lambda raw, state: without(state, "frequency"), "its pretraining has not ended"),
}


@pytest.mark.parametrize("make, said", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_started_from(here, capsys, make, said):
    sound = here / "base" / "checkpoint.pt"
    content = make(sound.read_bytes(), torch.load(sound, weights_only=True))
    (here / "bad.pt").write_bytes(content) if isinstance(content, bytes) else torch.save(content, here / "bad.pt")
    message = refusal(capsys, here, "--init", "bad.pt", "--demos", "sums.jsonl", "--out", "run")
    assert "bad.pt: " in message and said in message and ";" in message and not (here / "sprung").exists(), message


def test_random_bytes_are_no_checkpoint(here, capsys):
    """As a file, or in a sound archive as what is unpickled: bytes are commands there, and lead to any exception there is."""
    kinds = Counter()

    commands = st.lists(st.sampled_from(list(b"\x80\x02()}]qu.sKMJXtlNc\x85\x86\x8c\x94R")), max_size=20).map(bytes)

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(st.binary(max_size=30) | commands, st.booleans())
    def check(content, archived):
        if archived:
            with zipfile.ZipFile("bad.pt", "w") as file:
                file.writestr("bad/data.pkl", content)
                file.writestr("bad/version", "3")
        else:
            (here / "bad.pt").write_bytes(content)
        message = refusal(capsys, here, "--init", "bad.pt", "--demos", "sums.jsonl", "--out", "run")
        assert message.startswith("bad.pt: not a checkpoint")
        kinds[message.partition("(")[2].partition(")")[0]] += 1

    check()
    assert len(kinds) >= 5, kinds


def test_no_checkpoint(here, capsys):
    said_to_be = {"no.pt": "no.pt", "none": "none/checkpoint.pt", "a\0b": "a\\x00b/checkpoint.pt", "sums.jsonl": "sums.jsonl/checkpoint.pt"}
    for path, named in said_to_be.items():
        message = refusal(capsys, here, "--init", path, "--demos", "sums.jsonl", "--out", "run")
        assert message.startswith(named) and ";" in message


@pytest.mark.parametrize("init", ["base", "base/checkpoint.pt", "./base/../base", "link"])
@pytest.mark.parametrize("out", ["base", "base/."])
def test_never_over_the_checkpoint_that_a_run_starts_from(here, capsys, init, out):
    os.symlink("base", "link")
    assert "would be written over the old one" in refusal(capsys, here, "--init", init, "--demos", "sums.jsonl", "--out", out)


def test_resume_of_nothing_of_rubbish_and_of_another_version(here, capsys):
    assert "run/checkpoint.pt: no such checkpoint; make one with: python train.py --out run" in refusal(capsys, here, "--out", "run", "--resume")
    write(here, "[]", name="log.jsonl")
    assert "./checkpoint.pt: no such checkpoint" in refusal(capsys, here, "--out", ".", "--resume")
    state = torch.load("base/checkpoint.pt", weights_only=True)
    for settings_of_it in ({}, [], {**state["settings"], "magic": 1}, without(state["settings"], "lr")):
        torch.save(changed(state, settings=settings_of_it), "base/checkpoint.pt")
        assert "begun by another version" in refusal(capsys, here, "--out", "base", "--resume", "--lr", "1")
    (here / "base" / "checkpoint.pt").write_bytes(b"half")
    assert "base/checkpoint.pt: not a checkpoint, or damaged" in refusal(capsys, here, "--out", "base", "--resume")


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes on the command line. tests/test_train.py holds the words of each message; here nothing may be written, whatever stands beside it.

OPTIONS = ["--bogus", "--bogus 3", "stray", "--ste 3", "--method ppo", "--method", "--penalty dropout", "--when never", "--grader fuzzy",
           "--resume=yes", "--method sft --alpha 0.5", "--method sft --off-policy", "--beta 0.3", "--strength 0.1", "--penalty replay --strength 2",
           "--when needed", "--keep sums.jsonl", "--holdout 0.5", "--init base", "--task-order a,b", "--demos sums.jsonl", "--demos",
           "--demos sums.jsonl --init base --tasks 3", "--demos sums.jsonl --init base --method base", "--stream market --tasks 3",
           "--shown 3 --demonstrations 3", "--n-embd 30 --n-head 4", "--device nonsense", "--device meta", "--device hpu", "--device mkldnn",
           "--device ", "--preset tpu", "--seed 1.5", "--lr one", "--steps 1e3", "--alpha=--", "--method=--"]


@pytest.mark.parametrize("options", OPTIONS)
def test_an_option_that_is_unknown_or_contradicts(here, capsys, options):
    argv = options.split(" ")
    message = refusal(capsys, here, "--out", "run", *argv)
    assert any(part.split("=")[0] in message for part in argv if part.startswith("--") or part == "stray"), message


def test_every_number_out_of_range(here, capsys):
    for name, (low, high) in train.RANGES.items():
        of_type = type(getattr(train.Config, name))
        wrong = [low - 1] + [high + 1] * (high < float("inf")) + [float("nan"), float("-inf")] * (of_type is float)
        for value in wrong:
            value = str(of_type(value))
            message = refusal(capsys, here, train.flag(name) + "=" + value, "--out", "run")
            assert message.startswith(f"train.py: {train.flag(name)} {value}: must be from {low} to {high}")
        for text in ["", "nothing", "0x10", "1,5", "\0"] + ["nan", "inf", "1.5"] * (of_type is int):
            assert train.flag(name) in refusal(capsys, here, train.flag(name) + "=" + text, "--out", "run")
    assert set(train.RANGES) == {f.name for f in dataclasses.fields(train.Config) if f.type in (int, float)}


@pytest.mark.parametrize("out, said", [
    ("sums.jsonl", "sums.jsonl: File exists"), ("sums.jsonl/run", "sums.jsonl/run: Not a directory"), ("", "--out ''"),
    ("x" * 300, "File name too long"), ("a\0b", "--out 'a\\x00b'"), ("a\nb", "--out 'a\\nb'"), ("a\udcff", "--out 'a\\udcff'")])
def test_an_output_folder_that_cannot_be_made(here, capsys, out, said):
    message = refusal(capsys, here, *TINY, "--out", out)
    assert said in message and (";" in message)


def test_what_shows_only_once_the_run_has_begun(here, capsys):
    """More memory than there is, more others than there are, a base model on disk that is damaged: one line as well."""

    def ends(*argv):
        with pytest.raises(SystemExit) as e:
            train.main([*TINY, *argv, "--out", "run"])
        err = capsys.readouterr().err
        assert e.value.code == 2 and err.count("\n") == 1 and ";" in err
        return err

    assert "does not fit into memory" in ends("--vocab-size", "1000000000", "--n-embd", "100000")
    assert "--shown 8" in ends("--shown", "8", "--demonstrations", "9")
    train.main([*TINY, "--out", "run"])
    (path,) = (here / "out").iterdir()
    path.write_bytes(path.read_bytes()[:5000])
    assert str(path.name) in ends()


# ---------------------------------------------------------------------------------------------------------------------
# Whatever the command line: it runs, or one line says why not.

RIGHT = {name: st.sampled_from(values) for name, values in train.CHOICES.items()}
RIGHT |= {name: st.integers(low, high) if type(getattr(train.Config, name)) is int else st.floats(low, min(high, 1e9))
          for name, (low, high) in train.RANGES.items()}
RIGHT |= {"out": st.sampled_from(["run", "base", "a/b", "é 🌍"]), "init": st.sampled_from(["base", "base/checkpoint.pt"]),
          "device": st.sampled_from(["cpu", "auto", "cpu:0"]), "demos": st.just("sums.jsonl"), "keep": st.just("sums.jsonl"),
          "task_order": st.sampled_from(["sums", "", "sums,"])}
ODD = ["", " ", "\0", "\n", "a\nb", "\x1b[2J", "\ud800", "\udcff", "é🌍", "\u2028", "%s %(prog)s", "nan", "-nan", "inf", "-inf", "1e999", "-1", "0",
       "1", "0.5", "1_0", "1e9", "9" * 5000, "١", "-", "--", "-h", "--help", "--no-bf16", "None", "sums.jsonl", "base", "none.jsonl", "sums.jsonl/x",
       "x" * 300, ".", "log.jsonl"]
WILD = st.sampled_from(ODD) | st.text(st.characters(codec=None, exclude_characters="/"), max_size=6)       # no path that leaves the folder


def pair(name):
    values = RIGHT.get(name, st.just("")).map(str)
    return st.tuples(st.just(train.flag(name)), st.one_of(values, values, values, WILD)).flatmap(
        lambda p: st.sampled_from([[p[0]]] if name in ("resume", "bf16", "compile", "off_policy") else [list(p), list(p), ["=".join(p)]]))


PAIRS = st.sampled_from([f.name for f in dataclasses.fields(train.Config)]).flatmap(pair)
FRAMES = st.sampled_from([[], [], ["--out", "run"], ["--out", "base", "--resume"], ["--init", "base", "--demos", "sums.jsonl", "--out", "run"]])
STRAY = st.one_of(st.just([]), st.just([]), st.lists(WILD, max_size=1))
ARGUMENTS = st.builds(lambda frame, pairs, stray: frame + sum(pairs, []) + stray, FRAMES, st.lists(PAIRS, max_size=4), STRAY)
STRIKES = [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), data.BadInput("file.jsonl:7: no answer; write one"), MemoryError()]
HAPPENS = st.sampled_from([None] * 12 + STRIKES)


def test_any_command_line_runs_or_is_refused_in_one_line(here, monkeypatch):
    outcomes, happens, reached = Counter(), [], []

    def run(config, *_, **__):
        reached.append(config)
        if happens[0]:
            raise happens[0]

    monkeypatch.setattr(train, "learn", run)
    monkeypatch.setattr(train, "pretrain_only", run)
    monkeypatch.setattr(train, "choose_matmul", lambda config: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    os.rename("base", "model")                             # a run in base/ may remove its checkpoint
    before = tree(here)

    @settings(max_examples=1000, deadline=None, derandomize=True, database=None)
    @given(ARGUMENTS, HAPPENS)
    def check(argv, what):
        shutil.copytree("model", "base")
        try:
            one_command_line(argv, what)
        finally:                                           # as it was
            for p in sorted(tree(here).keys() - before.keys(), reverse=True):
                os.rmdir(p) if os.path.isdir(p) else os.remove(p)

    def one_command_line(argv, what):
        happens[:], reached[:] = [what], []
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(record=True) as warned:
            try:
                train.main(argv)
            except SystemExit as e:
                code = e.code
        said = err.getvalue()
        if isinstance(what, KeyboardInterrupt) and reached:                     # behind the ^C of the terminal the line begins anew
            assert said.startswith("\n")
            said = said[1:]
        assert code in (0, 2) and not warned
        assert said[:-1].isprintable() and said.endswith("\n") and len(said) > 20 if code else not said, (code, said)
        now = tree(here)
        assert all(now[p] == content for p, content in before.items())
        made = {p for p in now.keys() - before.keys() if p != "base" and not p.startswith("base" + os.sep)}
        if reached:
            folder = os.path.normpath(reached[0].out)
            assert all(p == os.path.normpath(os.path.join(folder, "lock")) or folder.startswith(p) for p in made), made
        else:
            assert not made and tree(here / "base") == tree(here / "model")
        outcomes["asked for help" if "usage" in out.getvalue() else "refused" if not reached else "ran" if code == 0 else "struck"] += 1

    check()
    assert outcomes["ran"] >= 100 and outcomes["refused"] >= 300 and outcomes["struck"] >= 10, outcomes


# ---------------------------------------------------------------------------------------------------------------------
# What strikes a run. The straight run is the one that nothing has struck.


def straight_run(folder, *options):
    """A run in folder/run; all that it leaves, see kills.everything."""
    os.mkdir(folder)
    with contextlib.chdir(folder):
        train.main([*TINY, *options, "--out", "run"])
    return kills.everything(folder)


def at_call(n, real, strike):
    """`real`, but for its n-th call, which does `strike` instead."""
    calls = [0]

    def counted(*args, **kwargs):
        calls[0] += 1
        return strike(*args) if calls[0] == n else real(*args, **kwargs)

    return counted


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Unwritable(io.StringIO):
    """A file that can be made, and nothing written into it."""

    def __init__(self, path, *_, **__):
        super().__init__()
        open(path, "a").close()

    def write(self, text):
        no_space()


FULL = {                          # where there is no space left: what is called there, at which call, what it does instead
    "a checkpoint of pretraining": (os, "fsync", 2, no_space), "the base model": (os, "fsync", 3, no_space),
    "the first checkpoint": (os, "fsync", 4, no_space), "a checkpoint of a task": (os, "fsync", 7, no_space),
    "the last checkpoint": (os, "fsync", 12, no_space), "the log": (train, "open", 9, no_space), "the result": (evaluate, "open", 1, Unwritable)}


@pytest.mark.parametrize("module, name, call, strike", FULL.values(), ids=FULL)
def test_no_space_left(here, monkeypatch, capsys, module, name, call, strike):
    straight = straight_run("straight", "--pretrain-steps", "12")
    os.mkdir("full")
    monkeypatch.chdir("full")
    real = getattr(module, name, open)
    monkeypatch.setattr(module, name, at_call(call, real, strike), raising=False)
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        train.main([*TINY, "--pretrain-steps", "12", "--out", "run"])
    said = "run: No space left on device; make room there, or choose another folder with --out; what was saved before is whole\n"
    assert e.value.code == 2 and capsys.readouterr().err == said
    monkeypatch.setattr(module, name, real, raising=False)
    assert not [path for path in tree(here) if path.endswith(".part")]
    evaluate.load_checkpoint("run")                        # what was saved before
    train.main(["--out", "run", "--resume"])
    assert kills.differences(straight, kills.everything(".")) == []


MOMENTS = {                       # phase: (what is called there, at which call the process is killed, the run's options)
    "pretraining": (train, "pack", 8, ["--pretrain-steps", "12"]),
    "in a task": (sdft, "sdft_step", 4, ["--method", "sft", "--penalty", "ewc"]),
    "saving": (os, "fsync", 5, ["--shown", "1"]),
    "evaluating a task": (train, "accuracy", 6, ["--method", "sft", "--penalty", "replay", "--strength", "0.2", "--save-every", "3"])}


def child(action, *argv):
    """A function of this file in a process of its own: die or be_at_work."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join([ROOT, os.path.dirname(__file__)]), "PYTHONHASHSEED": "random", "OMP_NUM_THREADS": "1"}
    code = "import sys, test_faults; getattr(test_faults, sys.argv[1])(*sys.argv[2:])"
    return subprocess.Popen([sys.executable, "-c", code, action, *argv], env=env, stdout=subprocess.DEVNULL)


def be_at_work(*argv):
    small(setattr)
    train.main([*TINY, *argv])


def die(moment, *argv):
    module, name, call, _ = MOMENTS[moment]
    setattr(module, name, at_call(call, getattr(module, name), lambda *_: os.kill(os.getpid(), signal.SIGKILL)))
    be_at_work(*argv)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_process_resumed_equals_the_straight_run(here, monkeypatch, moment):
    options = MOMENTS[moment][3]
    straight = straight_run("straight", *options)
    os.mkdir("killed")
    monkeypatch.chdir("killed")
    began = time.time()
    assert child("die", moment, *options, "--out", "run").wait() == -signal.SIGKILL
    assert kills.phase(".", began) == moment
    train.main(["--out", "run", "--resume"])
    assert kills.differences(straight, kills.everything(".")) == []


def test_tasks_from_files_resumed_equal_the_straight_run(here, monkeypatch):
    """New words keep the tokens that they were given: a process that resumes begins with a tokenizer that does not know them."""
    options = f"--init {here}/base --demos {here}/sums.jsonl --steps 6 --save-every 2 --guard 0 --threads 1 --device cpu".split()
    for folder in ("straight", "killed"):
        os.mkdir(folder)
        monkeypatch.chdir(here / folder)
        with monkeypatch.context() as patch, pytest.raises(SystemError) if folder == "killed" else contextlib.nullcontext():
            if folder == "killed":
                raise_after(patch, 3, SystemError("killed"))
            train.main([*options, "--out", "run"])
        data.take_names({})
        monkeypatch.chdir(here)
    monkeypatch.chdir("killed")
    train.main(["--out", "run", "--resume"])
    assert kills.differences(kills.everything("../straight"), kills.everything(".")) == []


def test_killed_before_anything_was_saved(here, monkeypatch):
    """The first line of the log is all there is: --resume begins again with the settings in it."""
    straight = straight_run("straight", "--demonstrations", "13")
    os.mkdir("killed")
    monkeypatch.chdir("killed")
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(train, "base_model", lambda *_: (_ for _ in ()).throw(SystemError("killed")))
        train.main([*TINY, "--demonstrations", "13", "--out", "run"])
    assert sorted(os.listdir("run")) == ["lock", "log.jsonl"]
    train.main(["--out", "run", "--resume"])
    assert kills.differences(straight, kills.everything(".")) == []


def test_killed_in_the_folder_of_an_older_run(here, monkeypatch):
    """--resume goes on with the run that was killed, not with the older one, whose checkpoint would still lie there."""
    straight = straight_run("straight", "--seed", "5")
    os.mkdir("killed")
    monkeypatch.chdir("killed")
    train.main([*TINY, "--out", "run"])
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(train, "base_model", lambda *_: (_ for _ in ()).throw(SystemError("killed")))
        train.main([*TINY, "--seed", "5", "--out", "run"])
    train.main(["--out", "run", "--resume"])
    resumed = kills.everything(".")
    assert resumed["checkpoint"]["settings"]["seed"] == 5
    assert not [d for d in kills.differences(straight, resumed) if "base-" not in d]


def test_a_log_that_was_lost_begins_again(here):
    """A checkpoint remembers how long its log was; a shorter one is not filled up with zeros."""
    train.main([*TINY, "--out", "run"])
    os.remove("run/log.jsonl")
    train.main(["--out", "run", "--resume"])
    assert b"\0" not in (here / "run" / "log.jsonl").read_bytes()


def test_differences_are_found():
    state = {"w": torch.tensor([1.0, float("nan")]), "R": [[0.5, float("nan")]], "n": (1, "a"), "seconds": 1}
    other = {"w": torch.tensor([1.0, float("nan")]), "R": [[0.5, float("nan")]], "n": (1, "a"), "seconds": 2}
    assert kills.differences(state, other) == []
    for key, value in {"w": torch.tensor([1.0, 2.0]), "R": [[0.5, 1.0]], "n": (2, "a"), "new": 1}.items():
        assert len(kills.differences(state, {**other, key: value})) == 1
    assert kills.differences({"w": torch.tensor([0.0])}, {"w": torch.tensor([-0.0])}) and kills.differences(state, without(other, "n"))


# ---------------------------------------------------------------------------------------------------------------------
# Two runs in one folder, and looking at a run at work.


def looked_at(capsys, monkeypatch, folder) -> str:
    """What eval.py prints of a folder of runs; that it cannot fail is half of the test."""
    monkeypatch.setattr(sys, "argv", ["eval.py", str(folder)])
    capsys.readouterr()
    evaluate.main()
    said = capsys.readouterr()
    assert not said.err
    return said.out


def wait_for(condition, process):
    """True as soon as the condition holds; False if the process ends first."""
    while not condition():
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


def test_a_second_run_is_refused_the_lock_dies_with_its_process_and_a_run_can_be_looked_at(here, capsys, monkeypatch):
    process = child("be_at_work", "--steps", "100000", "--out", "runs/a")
    try:
        log = here / "runs" / "a" / "log.jsonl"
        assert wait_for(log.exists, process)
        seen = {looked_at(capsys, monkeypatch, "runs") for _ in range(20)}
        assert wait_for(lambda: log.exists() and '"step"' in log.read_text(), process)
        for _ in range(50):
            seen.add(looked_at(capsys, monkeypatch, "runs"))
            time.sleep(0.005)
        assert len(seen) > 2 and all(text.startswith("a: not finished; ") for text in seen), seen
        assert any("task 1, step " in text for text in seen)
        with pytest.raises(SystemExit) as e:
            train.main([*TINY, "--out", "runs/a"])
        assert e.value.code == 2 and "runs/a: another run is at work in this folder; wait for it, or choose" in capsys.readouterr().err
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    train.main([*TINY, "--out", "runs/a"])
    assert "| a |" in looked_at(capsys, monkeypatch, "runs")


def test_a_run_is_looked_at_in_each_of_its_stages(here, capsys, monkeypatch):
    run = here / "runs" / "a"
    run.mkdir(parents=True)
    (run / "lock").touch()                                 # no log yet: it is not worth a line
    with pytest.raises(SystemExit) as e:
        looked_at(capsys, monkeypatch, "runs")
    assert e.value.code == 2 and "runs: no run in it" in capsys.readouterr().err
    for text in ("", '{"sett', '{"settings": {}}\n', '{"settings": {}}\n{"task": 1, "st'):
        (run / "log.jsonl").write_text(text)
        assert looked_at(capsys, monkeypatch, "runs") == "a: not finished; before its first task\n"
    step = {"task": 2, "step": 30, "loss": 0.25}
    for half in ("", '{"task": 2', json.dumps(step)):
        (run / "log.jsonl").write_text('{"settings": {}}\n' + json.dumps(step) + "\n" + half)
        assert looked_at(capsys, monkeypatch, "runs") == "a: not finished; task 2, step 30, loss 0.2500\n"
    train.main([*TINY, "--out", "runs/a"])
    (run / "result.json").unlink()                         # a checkpoint of all tasks, and no result yet
    train.main([*TINY, "--out", "runs/b"])
    said = looked_at(capsys, monkeypatch, "runs")
    assert said.startswith("a: not finished; task 2, step 4") and "| b |" in said
    assert set(json.loads((here / "runs" / "summary.json").read_text())["methods"]) == {"b"}
