"""What a user can do wrong and what can go wrong around a run, through each `main` as from the command line.

A mistake ends with one line that says where, what, and what to do, with exit status 2, before anything is written. What
strikes a run (a full disk, a kill, a second run) leaves what was saved before whole, and `--resume` (of pretraining:
the same command) ends where the untouched run ends, bit for bit.
"""
import contextlib
import dataclasses
import errno
import io
import json
import os
import pathlib
import pickle
import re
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

import eval as evaluate
import kills
import model
import penalties
import pretrain
import runs
import sdft
import train
import world as world_module
from conftest import ROOT
from runs import BadInput, flag
from test_data import GOOD, line, write
from test_train import TINY, TINY_BASE, lessons, no_gates, raise_after, tiny_base

PROGRAMS = {"train.py": train, "lab/pretrain.py": pretrain, "lab/world.py": world_module}
NEW = ["--init", "base", "--demos", "sums.jsonl", "--out", "run"]  # what `here` holds is taught


def small(patch):
    """No gates, and few answers for EWC: what is measured is of no interest here, and takes most of the time."""
    no_gates(patch)
    patch(penalties, "FISHER", 4)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a base model and a file of demonstrations, in which the test works; messages name train.py."""
    monkeypatch.chdir(tmp_path)
    small(monkeypatch.setattr)
    monkeypatch.setattr(sys, "argv", [os.path.join(ROOT, "train.py")])
    shutil.copytree(tiny_base(), tmp_path / "base")
    write(tmp_path, GOOD, line())
    return tmp_path


def tree(folder) -> dict:
    """All that is in a folder: {path: bytes, or None for a folder}."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refusal(capsys, folder, *argv, main=train.main, lines=1) -> str:
    """The line with which a command is refused: exit status 2, and everything in the folder is as it was."""
    capsys.readouterr()
    before = tree(folder)
    with pytest.raises(SystemExit) as e, warnings.catch_warnings(record=True) as warned:   # it would be a second line
        main(list(argv))
    said = capsys.readouterr()
    assert not warned, [str(w.message) for w in warned]
    assert e.value.code == 2 and said.err.endswith("\n") and said.err.count("\n") == lines, said.err
    assert all(part.isprintable() for part in said.err.split("\n")), said.err
    assert tree(folder) == before
    return said.err


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes in the files that a user gives.

# the file (None: there is none; else a line behind two right ones), what the message says, a word of the remedy
FILES = {
    "missing": (None, ["bad.jsonl: cannot be read (No such file"], "give a file that exists"),
    "empty": (b"", ["bad.jsonl: empty"], 'write {"prompt"'),
    "not UTF-8": (b'{"prompt": "caf\xe9", "response": "x"}', ["bad.jsonl:3: ", "byte 16", "0xe9"],
                  "save the file as UTF-8"),
    "broken JSON": ('{"prompt": "a" "response": "b"}',
                    ["bad.jsonl:3: ", "character 16", '{"prompt": "a" "response": "b"}'], "write {"),
    "no object": ("[1, 2]", ["bad.jsonl:3: ", "[1, 2]"], "write {"),
    "wrong type": ('{"prompt": 17, "response": "b"}', ["bad.jsonl:3: ", '"prompt" is 17'], "put a string"),
    "missing field": ('{"prompt": "b"}', ["bad.jsonl:3: ", "('prompt')", 'no "response"'], "write {"),
    "misspelled field": ('{"prompt": "b", "respons": "c"}', ["bad.jsonl:3: ", "mean it by 'respons'"], "rename that"),
    "unknown grader": (line(grader="fuzzy"), ["bad.jsonl:3: ", "\"grader\" is 'fuzzy'"], "choose one of exact,"),
    "unknown part": (line(split="dev"), ["bad.jsonl:3: ", "\"split\" is 'dev'"], 'write "train"'),
    "answer a number": (line(answer=4), ["bad.jsonl:3: ", '"answer" is 4'], "put a string"),
    "no returns": (line(grader="return"), ["bad.jsonl:3: ", '"answer" is None'], "for the grader return list"),
    "empty field": (line("9 + 9", " "), ["bad.jsonl:3: ", '"response" is empty', "' '"], "fill it in"),
    "contradiction": (line("1 + 1", "three"), ["bad.jsonl:3: ", "'1 + 1'", "'three'", "'two' at bad.jsonl:1"],
                      "keep one"),
    "too long": (line("a" * 70, "b"), ["bad.jsonl:3: ", "'aaaa", "takes 148 tokens", "more than 128"], "shorten it"),
    "one alone": (line("5 + 5", "ten", task="al\none"), ["bad.jsonl:3: ", "'al one'", "1 of the two"], "add new ones"),
}


@pytest.mark.parametrize("option", ["demos", "keep", "neighbours", "reading"])
@pytest.mark.parametrize("content, said, remedy", FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_used(here, capsys, option, content, said, remedy):
    if content is not None:
        write(here, *[GOOD, line(), content] if content else [], name="bad.jsonl")
    files = ["--demos", "bad.jsonl"] if option == "demos" else ["--demos", "sums.jsonl", f"--{option}", "bad.jsonl"]
    # what is read stands for itself, and of what is measured one row is enough
    if option == "reading" and remedy == "keep one" or option != "demos" and remedy == "add new ones":
        assert len(getattr(train.read_lessons(train.parse([*NEW, *files])), option)) == 3
        return
    message = refusal(capsys, here, "--init", "base", *files, "--out", "run")
    assert all(part in message for part in said) and remedy in message.split("; ", 1)[1], message


def test_all_bad_lines_are_told_and_of_many_the_first_ten(here, capsys):
    write(here, GOOD, "[]", line(), '{"prompt": 1}', line(response=""), name="bad.jsonl")
    message = refusal(capsys, here, *NEW, "--demos", "bad.jsonl", lines=3)
    assert [text[:12] for text in message.splitlines()] == ["bad.jsonl:2:", "bad.jsonl:4:", "bad.jsonl:5:"]
    write(here, GOOD, line(), *["[]"] * 25, name="bad.jsonl")
    message = refusal(capsys, here, *NEW, "--demos", "bad.jsonl", lines=11).splitlines()
    assert message[9].startswith("bad.jsonl:12: ")
    assert message[10] == "... and 15 more things like these; mend them as well"


def test_one_demonstration(here, capsys):
    write(here, line(), line(), name="bad.jsonl")
    assert "bad.jsonl:1: task 'bad' has 1 of the two" in refusal(capsys, here, *NEW, "--demos", "bad.jsonl")


def test_a_task_of_one_part(here, capsys):
    write(here, *(line(str(i), "x", split="train") for i in range(3)), name="bad.jsonl")
    assert "bad.jsonl:1: all of task 'bad' is \"split\": \"train\"; mark some lines" in refusal(
        capsys, here, *NEW, "--demos", "bad.jsonl")


def test_a_file_whose_name_holds_a_line_break(here, capsys):
    assert "'no\\nfile': " in refusal(capsys, here, *NEW, "--demos", "no\nfile")
    assert "no\\nmodel: no model there" in refusal(capsys, here, *NEW, "--init", "no\nmodel")


def test_order_of_tasks(here, capsys):
    message = refusal(capsys, here, *NEW, "--task-order", "sums,more")
    assert "'sums,more'" in message and "they are sums" in message


# ---------------------------------------------------------------------------------------------------------------------
# Models' folders and checkpoints that are none, or of something else.


def without(weights, name):
    return {k: v for k, v in weights.items() if k != name}


def flipped(raw, at):
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def saying(**more):
    """What changes a file of JSON."""
    return lambda raw: json.dumps(json.loads(raw) | more).encode()


def of_each(change):
    """What changes each weight of a file."""

    def changed(raw):
        n = 8 + int.from_bytes(raw[:8], "little")
        return raw[:n] + change(torch.frombuffer(bytearray(raw[n:]), dtype=torch.float32)).numpy().tobytes()

    return changed


def renamed(raw):
    return raw.replace(b"model.norm.weight", b"model.nose.weight")


WEIGHTS, CONFIG, WORDS, BEFORE = "model.safetensors", "config.json", "words.json", "pretraining.json"
MORE_WORDS = [f"more{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(720)]
NO_FORM = "of no form that is known here"
# the file, what stands in it (made from a sound one's bytes; None: there is none), what the message says
FOLDERS = {
    "no weights": (WEIGHTS, None, "tensors are missing"),
    "empty": (WEIGHTS, lambda raw: b"", "0 bytes, which its header does not fit"),
    "truncated": (WEIGHTS, lambda raw: raw[: len(raw) // 2], "header does not fit"),
    "truncated by a byte": (WEIGHTS, lambda raw: raw[:-1], "header does not fit"),
    "a bit of the header is another": (WEIGHTS, lambda raw: flipped(raw, 20), ""),
    "text": (WEIGHTS, lambda raw: b"weights", "header does not fit"),
    "a pickle that runs code": (WEIGHTS, lambda raw: pickle.dumps(Trap()), "header does not fit"),
    "a weight has another name": (WEIGHTS, renamed, "have no place in this class"),
    "a weight is not finite": (WEIGHTS, of_each(lambda w: w * NOT_FINITE), "not finite"),
    "settings that are none": (CONFIG, lambda raw: b"{", NO_FORM),
    "settings not in UTF-8": (CONFIG, lambda raw: b"\xff", NO_FORM),
    "settings are a list": (CONFIG, lambda raw: b"[1]", NO_FORM),
    "nothing of the model": (CONFIG, lambda raw: b"{}", "config.json has no 'model_type'"),
    "the model is of another kind": (CONFIG, saying(model_type="mixtral"), "model_type is 'mixtral'"),
    "other shapes": (CONFIG, saying(hidden_size=32), "has the shape"),
    "more layers": (CONFIG, saying(num_hidden_layers=2), "tensors are missing"),
    "heads that do not part the width": (CONFIG, saying(num_attention_heads=3), "must be a multiple of the second"),
    "no heads": (CONFIG, saying(num_attention_heads=0), "0 is among the model's numbers"),
    "no words": (WORDS, None, "tokenizer.json: cannot be read"),
    "words are numbers": (WORDS, saying(words=[1]), "words.json: is not of the form"),
    "a word stands twice": (WORDS, saying(words=["a", "a"], spare=[]), "words.json: is not of the form"),
    "a tokenizer of another kind": (WORDS, saying(merges=[]), "words.json: is not of the form"),
    "half of the words": (WORDS, lambda raw: raw[: len(raw) // 2], "words.json: is not of the form"),
    "more words than rows": (WORDS, saying(words=MORE_WORDS, spare=[]), "the model has 960 rows for them"),
    "half of what pretraining said": (BEFORE, lambda raw: raw[: len(raw) // 2], "pretraining.json: is not of the form"),
    "a frequency of other tokens": (BEFORE, saying(frequency=[0.5]), "pretraining.json: is not of the form"),
    "no frequency": (BEFORE, lambda raw: b"{}", "pretraining.json: is not of the form"),
}


@pytest.mark.parametrize("name, make, said", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_cannot_be_started_from(here, capsys, name, make, said):
    file = here / "base" / "model" / name
    file.write_bytes(make(file.read_bytes())) if make else file.unlink()
    for init in ("base", "base/model"):
        message = refusal(capsys, here, *NEW, "--init", init)
        assert "base" in message and said in message and ";" in message and not (here / "sprung").exists(), message


def test_a_folder_that_says_nothing_of_its_pretraining_can_be_started_from(here):
    """Whoever pretrained it: what it must have is a model and its words."""
    os.remove("base/model/pretraining.json")
    train.main([*NEW, *TINY])
    assert os.path.exists("run/result.json") and sorted(os.listdir("run/model")) == [CONFIG, WEIGHTS, WORDS]


def test_no_model(here, capsys):
    for path in ("none", "a\0b", "sums.jsonl", "base/model/config.json", "base/checkpoint.pt"):
        message = refusal(capsys, here, *NEW, "--init", path)
        assert message.startswith(path.replace("\0", "\\x00") + ": no model there") and "; check the path" in message


def test_no_model_yet(here, capsys, monkeypatch):
    killed_before_anything_is_saved(monkeypatch)
    message = refusal(capsys, here, *NEW, "--init", "run", "--out", "next")
    assert message.startswith("run: no model yet") and "python train.py --out run --resume" in message


@pytest.mark.parametrize("init", ["base", "base/model", "./base/../base", "link", "link/model"])
@pytest.mark.parametrize("out", ["base", "base/.", "base/model"])
def test_never_over_the_model_that_a_run_starts_from(here, capsys, init, out):
    os.symlink("base", "link")
    assert "would be written over the old one" in refusal(capsys, here, *NEW, "--init", init, "--out", out)


@pytest.mark.parametrize("name", ["answers.jsonl", "log.jsonl"])
@pytest.mark.parametrize("option", ["--demos", "--keep"])
def test_never_over_a_file_that_a_run_reads(here, capsys, name, option):
    """Such as an older run's answers, to be learned from: of another name, or in another folder, they are welcome."""
    os.makedirs("mine")
    path = os.path.join("mine", name)
    shutil.copy("sums.jsonl", path)
    message = refusal(capsys, here, *NEW, "--init", "base", option, path, "--out", "./mine")
    assert message.startswith(f"--out ./mine: {path} is among the files that a run writes anew")
    assert os.path.getsize(path) == os.path.getsize("sums.jsonl")


@pytest.mark.parametrize("name", ["answers.jsonl", "log.jsonl", "checkpoint.pt", "model/config.json"])
def test_never_over_what_no_run_has_made(here, capsys, name):
    """A log.jsonl of other things, beside it, does not make it a run's."""
    path = pathlib.Path("mine", name)
    path.parent.mkdir(parents=True)
    for file in {path, pathlib.Path("mine/log.jsonl")}:
        file.write_text('{"role": "user"}\n')
    pathlib.Path("mine/lock").touch()
    message = refusal(capsys, here, *NEW, *TINY, "--out", "mine")
    assert message.startswith("--out mine: ") and name.split("/")[0] in message
    assert "no run has made that; choose another folder" in message and path.read_text() == '{"role": "user"}\n'


def test_a_run_whose_log_was_cut_at_once_may_be_begun_anew(here):
    os.makedirs("run")
    pathlib.Path("run/log.jsonl").write_text('{"setti')
    train.main([*NEW, *TINY, "--steps", "1"])
    assert os.path.exists("run/result.json")


class Trap:
    """Unpickled, it would make a folder."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


NOT_FINITE = float("nan")
# what stands in the file, made from a sound checkpoint's bytes or entries; what the message says
CHECKPOINTS = {
    "empty": (lambda raw, state: b"", "not a checkpoint, or damaged"),
    "truncated": (lambda raw, state: raw[: len(raw) // 2], "not a checkpoint, or damaged"),
    "truncated by a byte": (lambda raw, state: raw[:-1], "not a checkpoint, or damaged"),
    "one byte of a weight is another": (lambda raw, state: flipped(raw, len(raw) // 2), "not a checkpoint, or damaged"),
    "text": (lambda raw, state: b"weights", "not a checkpoint, or damaged"),
    "a pickle that runs code": (lambda raw, state: pickle.dumps(Trap()), "not a checkpoint, or damaged"),
    "a checkpoint that runs code": (lambda raw, state: {**state, "settings": Trap()}, "not a checkpoint, or damaged"),
    "a list": (lambda raw, state: [1, 2], "not a checkpoint"),
    "a tensor": (lambda raw, state: torch.ones(2), "not a checkpoint"),
    "other entries": (lambda raw, state: {"model": state["student"]}, "not a checkpoint of train.py"),
    "no settings": (lambda raw, state: without(state, "settings"), "not a checkpoint of train.py"),
}


@pytest.mark.parametrize("make, said", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_checkpoint_that_cannot_be_gone_on_with(here, capsys, make, said):
    train.main([*NEW, *TINY])
    path = here / "run" / "checkpoint.pt"
    content = make(path.read_bytes(), torch.load(path, weights_only=True))
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    message = refusal(capsys, here, "--out", "run", "--resume")
    assert message.startswith("run/checkpoint.pt: ") and said in message and ";" in message, message
    assert not (here / "sprung").exists()


def test_random_bytes_are_no_checkpoint(here, capsys):
    """As a file, or in a sound archive as what is unpickled: bytes are commands there, and lead to any exception there
    is."""
    kinds = Counter()
    os.mkdir("run")

    commands = st.lists(st.sampled_from(list(b"\x80\x02()}]qu.sKMJXtlNc\x85\x86\x8c\x94R")), max_size=20).map(bytes)

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(st.binary(max_size=30) | commands, st.booleans())
    def check(content, archived):
        if archived:
            with zipfile.ZipFile("run/checkpoint.pt", "w") as file:
                file.writestr("bad/data.pkl", content)
                file.writestr("bad/version", "3")
        else:
            (here / "run" / "checkpoint.pt").write_bytes(content)
        message = refusal(capsys, here, "--out", "run", "--resume")
        assert message.startswith("run/checkpoint.pt: not a checkpoint")
        kinds[message.partition("(")[2].partition(")")[0]] += 1

    check()
    assert len(kinds) >= 5, kinds


def test_resume_of_nothing_of_rubbish_and_of_another_version(here, capsys):
    said = refusal(capsys, here, "--out", "run", "--resume")
    assert "run/checkpoint.pt: no such checkpoint; begin the run first, without --resume" in said
    write(here, "[]", name="log.jsonl")
    assert "./checkpoint.pt: no such checkpoint" in refusal(capsys, here, "--out", ".", "--resume")
    train.main([*NEW, *TINY, "--out", "old"])
    state = torch.load("old/checkpoint.pt", weights_only=True)
    for of_it in ({}, [], {**state["settings"], "magic": 1}, without(state["settings"], "lr")):
        torch.save({**state, "settings": of_it}, "old/checkpoint.pt")
        assert "begun by another version" in refusal(capsys, here, "--out", "old", "--resume", "--lr", "1")
    assert "begun by another version" in refusal(capsys, here, "--out", "base", "--resume", "--lr", "1")
    torch.save(state | {"form": 1}, "old/checkpoint.pt")
    log = open("old/log.jsonl").read()
    assert "begun by another version" in refusal(capsys, here, "--out", "old", "--resume")
    assert open("old/log.jsonl").read() == log


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes on the command line. tests/test_train.py holds the words of each message; here nothing may be written,
# whatever stands beside it.

OPTIONS = {
    "train.py": [
        "--bogus", "--bogus 3", "stray", "--ste 3", "--method ppo", "--method", "--penalty dropout", "--when never",
        "--grader fuzzy", "--resume=yes", "--method sft --alpha 0.5", "--method sft --sampler teacher", "--beta 0.3",
        "--strength 0.1", "--penalty replay --strength 2", "--when needed", "--task-order a,b", "--demos", "--tasks 3",
        "--method base", "--stream market", "--shown 9", "--demonstrations 3", "--n-embd 30", "--device nonsense",
        "--device meta", "--device hpu", "--device mkldnn", "--device ", "--preset gpu", "--seed 1.5", "--lr one",
        "--steps 1e3", "--alpha=--", "--method=--", "--init="],
    "lab/pretrain.py": [
        "--n-embd 30 --n-head 4", "--preset tpu", "--device nonsense", "--device meta", "--seed 1.5", "--method base",
        "--resume", "--tasks 3", "--bogus", "stray", "--step 3", "--preset=--", "--bf16=yes"],
    "lab/world.py": [
        "--stream market --tasks 3", "--stream bear", "--tasks 28", "--voice loud", "--demonstrations 1", "--seed 1.5",
        "--method base", "--bogus", "stray", "--task 3", "--voice=--"]}


@pytest.mark.parametrize("program, options", [(name, o) for name, found in OPTIONS.items() for o in found])
def test_an_option_that_is_unknown_or_contradicts(here, capsys, monkeypatch, program, options):
    monkeypatch.setattr(sys, "argv", [os.path.join(ROOT, program)])
    argv, begins = options.split(" "), NEW if program == "train.py" else ["--out", "run"]
    message = refusal(capsys, here, *begins, *argv, main=PROGRAMS[program].main)
    assert any(part.split("=")[0] in message for part in argv if part.startswith("--") or part == "stray"), message


@pytest.mark.parametrize("options", ["--keep sums.jsonl", "--holdout 0.5", "--init base", "--task-order a,b",
                                     "--demos sums.jsonl", "", "--method sft"])
def test_what_is_taught_must_be_said(here, capsys, options):
    message = refusal(capsys, here, "--out", "run", *options.split())
    missing = "--demos" if "--init" in options else "--init"
    assert message.startswith(f"train.py: {missing} is missing: ") and "lab/pretrain.py --out" in message


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_number_out_of_range(here, capsys, monkeypatch, program):
    monkeypatch.setattr(sys, "argv", [os.path.join(ROOT, program)])
    module, refused = PROGRAMS[program], os.path.basename(program)
    numbers = [f for f in dataclasses.fields(module.Config) if f.metadata["within"]]
    for f in numbers:
        low, high = f.metadata["within"]
        of_float = f.type is float
        wrong = [low - 1] + [high + 1] * (high < float("inf")) + [float("nan"), float("-inf")] * of_float
        for value in wrong:
            value = str(f.type(value))
            message = refusal(capsys, here, flag(f.name) + "=" + value, "--out", "run", main=module.main)
            assert message.startswith(f"{refused}: {flag(f.name)} {value}: must be from {low} to {high}")
        for text in ["", "nothing", "0x10", "1,5", "\0"] + ["nan", "inf", "1.5"] * (not of_float):
            message = refusal(capsys, here, flag(f.name) + "=" + text, "--out", "run", main=module.main)
            assert flag(f.name) in message
    assert numbers == [f for f in dataclasses.fields(module.Config) if f.type in (int, float)]


OUTS = [("sums.jsonl", "sums.jsonl: File exists"), ("sums.jsonl/run", "sums.jsonl/run: Not a directory"),
        ("", "--out ''"), ("x" * 300, "File name too long"), ("a\0b", "--out 'a\\x00b'"), ("a\nb", "--out 'a\\nb'"),
        ("a\udcff", "--out 'a\\udcff'")]


@pytest.mark.parametrize("out, said", OUTS)
@pytest.mark.parametrize("program", ["train.py", "lab/pretrain.py"])
def test_an_output_folder_that_cannot_be_made(here, capsys, program, out, said):
    argv = [*NEW, *TINY] if program == "train.py" else TINY_BASE
    message = refusal(capsys, here, *argv, "--out", out, main=PROGRAMS[program].main)
    assert said in message and (";" in message)


def test_what_shows_only_once_the_run_has_begun(here, capsys):
    """More memory than there is, more others than there are, a base model on disk that is damaged: one line as
    well."""

    def ends(main, *argv):
        with pytest.raises(SystemExit) as e:
            main(list(argv))
        err = capsys.readouterr().err
        assert e.value.code == 2 and err.count("\n") == 1 and ";" in err
        return err

    large = ["--vocab-size", "1000000000", "--n-embd", "100000"]
    assert "does not fit into memory" in ends(pretrain.main, *TINY_BASE, *large, "--out", "large")
    nine = [*lessons(demonstrations=9), *TINY, "--out", "run"]
    assert "--shown 8" in ends(train.main, *nine, "--shown", "8")
    path = here / "base" / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    assert "remove base/model" in ends(pretrain.main, *TINY_BASE, "--out", "base")


# ---------------------------------------------------------------------------------------------------------------------
# Whatever the command line: it runs, or one line says why not.

SPECIAL = {
    "out": st.sampled_from(["run", "old", "a/b", "é 🌍"]), "init": st.sampled_from(["base", "base/model"]),
    "device": st.sampled_from(["cpu", "auto", "cpu:0"]), "task_order": st.sampled_from(["sums", "", "sums,"]),
    "guard": st.just(-1.0) | st.floats(0, 1), "converged": st.just(-1.0) | st.floats(0, 1e3),
    "context": st.just(0)}
SPECIAL |= {name: st.just("sums.jsonl") for name in ("demos", "keep", "reading", "neighbours")}
ODD = ["", " ", "\0", "\n", "a\nb", "\x1b[2J", "\ud800", "\udcff", "é🌍", "\u2028", "%s %(prog)s", "nan", "-nan", "inf",
       "-inf", "1e999", "-1", "0", "1", "0.5", "1_0", "1e9", "9" * 5000, "١", "-", "--", "-h", "--help", "--no-bf16",
       "None", "sums.jsonl", "base", "none.jsonl", "sums.jsonl/x", "x" * 300, ".", "log.jsonl"]
NO_SLASH = st.characters(codec=None, exclude_characters="/")       # no path that leaves the folder
WILD = st.sampled_from(ODD) | st.text(NO_SLASH, max_size=6)


def right(f):
    """Values that an option may have, alone."""
    if f.metadata["choices"]:
        return st.sampled_from(f.metadata["choices"])
    if f.type in (int, float) and f.name not in SPECIAL:
        low, high = f.metadata["within"]
        return st.integers(low, high) if f.type is int else st.floats(low, min(high, 1e9))
    return SPECIAL.get(f.name, st.just(""))


def pair(f):
    def spelled(value):
        name = flag(f.name)
        return st.sampled_from([[name]] if f.type is bool else [[name, value], [name, value], [f"{name}={value}"]])

    values = right(f).map(str)
    return st.one_of(values, values, values, WILD).flatmap(spelled)


FRAMES = {
    train: [[], [], ["--out", "run"], ["--out", "old", "--resume"], *[NEW] * 8],
    pretrain: [[], ["--out", "run"], ["--out", "old"], TINY_BASE]}
STRAY = st.one_of(st.just([]), st.just([]), st.lists(WILD, max_size=1))
STRIKES = [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
           BadInput("file.jsonl:7: no answer; write one"), MemoryError(), FloatingPointError("task 1 step 3: loss nan")]
HAPPENS = st.sampled_from([None] * 12 + STRIKES)


def arguments(module):
    pairs = st.sampled_from(dataclasses.fields(module.Config)).flatmap(pair)
    frames, more = st.sampled_from(FRAMES[module]), st.lists(pairs, max_size=3)
    return st.builds(lambda frame, more, stray: frame + sum(more, []) + stray, frames, more, STRAY)


@pytest.mark.parametrize("module, work, bounds", [
    (train, "begin", {"ran": 100, "refused": 300, "struck": 10}),
    (pretrain, "base_model", {"ran": 100, "refused": 200, "struck": 10})])
def test_any_command_line_runs_or_is_refused_in_one_line(here, monkeypatch, module, work, bounds):
    train.main([*NEW, *TINY, "--steps", "1", "--out", "kept"])
    outcomes, happens, reached = Counter(), [], []

    def run(config, *_, **__):
        reached.append(config)
        if happens[0]:
            raise happens[0]

    monkeypatch.setattr(module, work, run)
    monkeypatch.setattr(train, "learn", lambda *_: None)
    monkeypatch.setattr(module, "set_up_machine", lambda *_: None)
    before = tree(here)

    @settings(max_examples=1000, deadline=None, derandomize=True, database=None)
    @given(arguments(module), HAPPENS)
    def check(argv, what):
        shutil.copytree("kept", "old")                     # a run in old/ may remove its checkpoint
        try:
            one_command_line(argv, what)
        finally:                                           # as it was
            for p in sorted(tree(here).keys() - before.keys(), reverse=True):
                os.rmdir(p) if os.path.isdir(p) else os.remove(p)

    def one_command_line(argv, what):
        happens[:], reached[:] = [what], []
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            with warnings.catch_warnings(record=True) as warned:
                try:
                    module.main(argv)
                except SystemExit as e:
                    code = e.code
        said = err.getvalue()
        if isinstance(what, KeyboardInterrupt) and reached:  # behind the ^C of the terminal the line begins anew
            assert said.startswith("\n")
            said = said[1:]
        assert code in (0, 2) and not warned
        if code:
            told = said.removesuffix("\n").split("\n")
            assert all(x.isprintable() for x in told) and said.endswith("\n") and len(said) > 20, (code, said)
            each = r"sums\.jsonl:\d+: |.*cannot be read"       # a line for each row, or each file, that is bad
            assert len(told) == 1 or all(re.match(each, x) for x in told), said
        else:
            assert not said
        now = tree(here)
        assert all(now[p] == content for p, content in before.items())
        made = {p for p in now.keys() - before.keys() if p != "old" and not p.startswith("old" + os.sep)}
        if reached:
            folder = os.path.normpath(reached[0].out)
            lock = os.path.normpath(os.path.join(folder, "lock"))
            assert all(p == lock or folder.startswith(p) for p in made), made
        else:
            assert not made and tree(here / "old") == tree(here / "kept")
        ended = "refused" if not reached else "ran" if code == 0 else "struck"
        outcomes["asked for help" if "usage" in out.getvalue() else ended] += 1

    check()
    assert all(outcomes[name] >= least for name, least in bounds.items()), outcomes


# ---------------------------------------------------------------------------------------------------------------------
# What strikes a run. The straight run is the one that nothing has struck.

PRETRAINING = [*TINY_BASE, "--steps", "12", "--save-every", "5"]


def command(program, *options) -> list:
    """The options of a tiny run in folder run, but for what differs from test to test."""
    return [*PRETRAINING, *options, "--out", "run"] if program is pretrain else [
        *lessons(), *TINY, *options, "--out", "run"]


def go_on(program, *options):
    """What a user does after a kill."""
    program.main(command(program, *options) if program is pretrain else ["--out", "run", "--resume"])


def straight_run(folder, program, *options):
    """A run in folder/run; all that it leaves, see kills.everything."""
    os.mkdir(folder)
    with contextlib.chdir(folder):
        program.main(command(program, *options))
    return kills.everything(folder)


def at_call(n, real, strike, of=""):
    """`real`, but for its n-th call (of those whose first argument holds `of`), which does `strike` instead."""
    calls = [0]

    def counted(*args, **kwargs):
        calls[0] += of in str(args[:1])
        return strike(*args) if calls[0] == n and of in str(args[:1]) else real(*args, **kwargs)

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


# where there is no space left: in which program, what is called there, at which call and of which file, what it does
FULL = {
    "a checkpoint of pretraining": (pretrain, os, "fsync", 2, "", no_space),
    "the base model": (pretrain, os, "fsync", 3, "", no_space),
    "the words of a base model": (pretrain, model, "open", 1, "words.json", Unwritable),
    "the gates of a base model": (pretrain, model, "open", 1, "pretraining.json", Unwritable),
    "the first line of the log": (train, runs, "open", 2, "log.jsonl", Unwritable),
    "the first checkpoint": (train, os, "fsync", 1, "", no_space),
    "a checkpoint of a task": (train, os, "fsync", 3, "", no_space),
    "the model of a task": (train, os, "fsync", 4, "", no_space),
    "the words of a task": (train, model, "open", 1, "words.json", Unwritable),
    "the last checkpoint": (train, os, "fsync", 10, "", no_space),
    "the log": (train, runs, "open", 4, "log.jsonl", no_space),
    "the result": (train, runs, "open", 1, "result.json", Unwritable)}


@pytest.mark.parametrize("program, module, name, call, of, strike", FULL.values(), ids=FULL)
def test_no_space_left(here, monkeypatch, capsys, program, module, name, call, of, strike):
    straight = straight_run("straight", program)
    os.mkdir("full")
    monkeypatch.chdir("full")
    capsys.readouterr()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as e:
        real = getattr(module, name, open)
        patch.setattr(module, name, at_call(call, real, strike, of), raising=False)
        program.main(command(program))
    said = ("run: No space left on device; make room there, or choose another folder with --out; what was saved before "
            "is whole\n")
    assert e.value.code == 2 and capsys.readouterr().err == said
    assert not [path for path in tree(here) if path.endswith(".part")]
    if os.path.exists("run/checkpoint.pt"):
        runs.load_checkpoint("run/checkpoint.pt")          # what was saved before
    else:
        assert (name, call) in [("fsync", 1), ("open", 2)]
    if (name, call) == ("open", 2):                        # nothing was written, of which a run could be resumed
        program.main(command(program))
    else:
        go_on(program)
    assert kills.differences(straight, kills.everything(".")) == []


# phase: (program, what is called there, at which call the process is killed, the run's options)
MOMENTS = {
    "pretraining": (pretrain, torch.nn.functional, "cross_entropy", 8, []),
    "its gates": (pretrain, pretrain, "gates", 1, ["--save-every", "4"]),
    "before the first task": (train, evaluate, "accuracy", 1, []),
    "in a task": (train, sdft, "sdft_step", 4, ["--method", "sft", "--penalty", "ewc"]),
    "saving": (train, os, "fsync", 6, ["--shown", "1"]),
    "evaluating a task": (train, evaluate, "accuracy", 3,
                          ["--method", "sft", "--penalty", "replay", "--strength", "0.2", "--save-every", "2"]),
    "ending": (train, train, "result_of", 1, ["--penalty", "lwf"])}


def child(action, *argv):
    """A function of this file in a process of its own: die or be_at_work."""
    path = os.pathsep.join([ROOT, os.path.join(ROOT, "lab"), os.path.dirname(__file__)])
    env = os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": "random", "OMP_NUM_THREADS": "1"}
    code = "import sys, test_faults; getattr(test_faults, sys.argv[1])(*sys.argv[2:])"
    return subprocess.Popen([sys.executable, "-c", code, action, *argv], env=env, stdout=subprocess.DEVNULL)


def be_at_work(*argv, program=train):
    small(setattr)
    program.main(list(argv))


def die(moment, *argv):
    program, module, name, call, _ = MOMENTS[moment]
    small(setattr)
    real = getattr(module, name)
    setattr(module, name, at_call(call, real, lambda *_: os.kill(os.getpid(), signal.SIGKILL)))
    program.main(list(argv))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_process_resumed_equals_the_straight_run(here, monkeypatch, moment):
    program, *_, options = MOMENTS[moment]
    straight = straight_run("straight", program, *options)
    os.mkdir("killed")
    monkeypatch.chdir("killed")
    began = time.time()
    assert child("die", moment, *command(program, *options)).wait() == -signal.SIGKILL
    assert kills.phase(".", began) == moment
    go_on(program, *options)
    assert kills.differences(straight, kills.everything(".")) == []


def test_tasks_from_files_resumed_equal_the_straight_run(here, monkeypatch):
    """New words keep the tokens that they were given: a process that resumes begins with a tokenizer that does not know
    them."""
    write(here, *(line(f"{word} in English", "year") for word in "année anno Jahr año".split()), name="words.jsonl")
    options = (f"--init {here}/base --demos {here}/words.jsonl --steps 6 --save-every 2 --guard 0 --threads 1 "
               "--device cpu --out run").split()
    for folder in ("straight", "killed"):
        os.mkdir(folder)
        struck = folder == "killed"
        with contextlib.chdir(folder), monkeypatch.context() as patch:
            with pytest.raises(SystemError) if struck else contextlib.nullcontext():
                if struck:
                    raise_after(patch, 3, SystemError("killed"))
                train.main(options)
    monkeypatch.chdir("killed")
    train.main(["--out", "run", "--resume"])
    left = kills.everything(".")
    assert kills.differences(kills.everything("../straight"), left) == []
    assert {"année", "anno", "Jahr", "año"} <= set(left["words.json"]["words"])


def killed_before_anything_is_saved(monkeypatch, *options):
    """A run that dies between the first line of its log and its first checkpoint."""

    def killed(*_, **options):
        raise SystemError("killed")

    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(train, "Probe", killed)
        train.main(command(train, *options))


def test_killed_before_anything_was_saved(here, monkeypatch):
    """The first line of the log is all there is: --resume begins again with the settings in it."""
    straight = straight_run("straight", train, "--batch-size", "7")
    os.mkdir("killed")
    monkeypatch.chdir("killed")
    killed_before_anything_is_saved(monkeypatch, "--batch-size", "7")
    assert sorted(os.listdir("run")) == ["lock", "log.jsonl"]
    train.main(["--out", "run", "--resume"])
    assert kills.differences(straight, kills.everything(".")) == []


def test_killed_in_the_folder_of_an_older_run(here, monkeypatch):
    """--resume goes on with the run that was killed, not with the older one, whose checkpoint would still lie there."""
    straight = straight_run("straight", train, "--seed", "5")
    os.mkdir("killed")
    monkeypatch.chdir("killed")
    train.main(command(train))
    killed_before_anything_is_saved(monkeypatch, "--seed", "5")
    train.main(["--out", "run", "--resume"])
    resumed = kills.everything(".")
    assert resumed["checkpoint"]["settings"]["seed"] == 5
    assert kills.differences(straight, resumed) == []


def test_a_log_that_was_lost_begins_again(here):
    """A checkpoint remembers how long its log was; a shorter one is not filled up with zeros."""
    train.main(command(train))
    os.remove("run/log.jsonl")
    train.main(["--out", "run", "--resume"])
    assert b"\0" not in (here / "run" / "log.jsonl").read_bytes()


def test_differences_are_found():
    state = {"w": torch.tensor([1.0, float("nan")]), "R": [[0.5, float("nan")]], "n": (1, "a"), "seconds": 1}
    other = {"w": torch.tensor([1.0, float("nan")]), "R": [[0.5, float("nan")]], "n": (1, "a"), "seconds": 2}
    assert kills.differences(state, other) == []
    for key, value in {"w": torch.tensor([1.0, 2.0]), "R": [[0.5, 1.0]], "n": (2, "a"), "new": 1}.items():
        assert len(kills.differences(state, {**other, key: value})) == 1
    assert kills.differences({"w": torch.tensor([0.0])}, {"w": torch.tensor([-0.0])})
    assert kills.differences(state, without(other, "n"))


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
    process = child("be_at_work", *lessons(), *TINY, "--steps", "100000", "--out", "runs/a")
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
            train.main([*lessons(), *TINY, "--out", "runs/a"])
        said = capsys.readouterr().err
        assert e.value.code == 2
        assert "runs/a: another run is at work in this folder; wait for it, or choose" in said
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    train.main([*lessons(), *TINY, "--out", "runs/a"])
    assert "| a |" in looked_at(capsys, monkeypatch, "runs")


def test_a_run_is_looked_at_in_each_of_its_stages(here, capsys, monkeypatch):
    run = here / "runs" / "a"
    run.mkdir(parents=True)
    (run / "lock").touch()                                 # no log yet: it is not worth a line
    monkeypatch.setattr(sys, "argv", ["eval.py", "runs"])
    with pytest.raises(BadInput, match="runs: no run in it"):          # one line, from the command line: see below
        evaluate.main()
    for text in ("", '{"sett', '{"settings": {}}\n', '{"settings": {}}\n{"task": 1, "st'):
        (run / "log.jsonl").write_text(text)
        assert looked_at(capsys, monkeypatch, "runs") == "a: not finished; before its first task\n"
    step = {"task": 2, "step": 30, "loss": 0.25}
    for half in ("", '{"task": 2', json.dumps(step)):
        (run / "log.jsonl").write_text('{"settings": {}}\n' + json.dumps(step) + "\n" + half)
        assert looked_at(capsys, monkeypatch, "runs") == "a: not finished; task 2, step 30, loss 0.2500\n"
    train.main([*lessons(), *TINY, "--out", "runs/a"])
    (run / "result.json").unlink()                         # a checkpoint of all tasks, and no result yet
    train.main([*lessons(), *TINY, "--out", "runs/b"])
    said = looked_at(capsys, monkeypatch, "runs")
    assert said.startswith("a: not finished; task 2, step 4") and "| b |" in said
    assert set(json.loads((here / "runs" / "summary.json").read_text())["methods"]) == {"b"}


def test_a_folder_without_a_run_is_told_in_one_line(here):
    os.mkdir("runs")
    done = subprocess.run([sys.executable, os.path.join(ROOT, "eval.py"), "runs"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("runs: no run in it") and done.stderr.count("\n") == 1
