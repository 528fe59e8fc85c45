"""A run's folder: options made of a dataclass, files that are whole or not there, lock, the log in its two forms."""
import contextlib
import dataclasses
import fcntl
import io
import json
import os
import pathlib
import platform
import pty
import re
import resource
import signal
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass

import pytest
import torch

import runs
import sdft
import train
from conftest import ROOT
from runs import BadInput, Log, option
from test_train import TINY, equal, lessons, raise_after, run, saved_by, weights_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_products_on_a_cpu_are_fp32():
    runs.set_up_machine("cpu")
    a, b = torch.randn(300, 200), torch.randn(200, 100)
    assert ((a @ b - (a.double() @ b.double())).norm() / (a @ b).norm()) < 1e-5


@pytest.mark.parametrize("pays", [False, True])
def test_bf16_is_left_out_and_said_where_it_is_no_gain(monkeypatch, capsys, pays):
    monkeypatch.setattr(train, "bf16_pays", lambda: pays)
    done = []
    monkeypatch.setattr(train, "set_up_machine", lambda device, threads, bf16=False: done.append(bf16))
    for resume, kept in ((False, pays), (True, True)):
        config = train.Config(bf16=True, device="cpu", resume=resume)
        train.set_up(config)
        assert config.bf16 == kept == done[-1] and done[-1 - kept] is False
        assert ("products stay fp32" in capsys.readouterr().out) == (not kept)
    assert isinstance(runs.bf16_pays(), bool)


@pytest.mark.parametrize("began", [False, True])
def test_the_products_of_a_run_on_a_cpu_stay_what_its_trial_chose(tmp_path, monkeypatch, began):
    """--resume behind the same command line, --bf16 in it."""
    saved = dataclasses.asdict(train.Config(init="base", demos=["a.jsonl"], device="cpu", bf16=began))
    monkeypatch.setattr(train, "began_with", lambda folder: saved)
    again = ["--out", str(tmp_path), "--resume", "--bf16"]
    assert train.parse(again).bf16 == began
    # where it began elsewhere, nothing was tried
    saved["device"] = "cuda"
    assert train.parse([*again, "--device", "cpu"]).bf16


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_is_used_again_and_not_cleared_anew():
    faults = """
import resource, torch, runs
torch.ones(2**24)
SET_UP
torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    counted = [int(subprocess.run([sys.executable, "-c", faults.replace("SET_UP", line)], cwd=ROOT, check=True,
                                  capture_output=True, text=True).stdout)
               for line in ("", 'runs.set_up_machine("cpu", threads=1)')]
    assert counted[0] > 100 and counted[1] <= counted[0] / 5, counted     # a block or two may be new


# ---------------------------------------------------------------------------------------------------------------------
# Options.


@dataclass
class Config:
    kind: str = option("plain", "the kind, 100 % of it", "what", choices=["plain", "odd", "even"])
    share: float = option(0.5, "a share", within=(0, 1), only={"kind": ["odd", "even"]})
    count: int = option(3, "a count", "how", within=(1, 10), machine=True)
    files: tuple = option((), "files")
    loud: bool = option(False, "loudly", only={"kind": ["odd"]})
    name_of_it: str = option("", "a name")


def given(*argv) -> dict:
    return runs.given_options(Config, "What it is.", list(argv))


def test_options_are_made_of_the_fields():
    assert given() == {}
    argv = ["--kind", "odd", "--share", "0.25", "--count", "4", "--files", "a", "b", "--loud", "--name-of-it", "x y"]
    found = given(*argv)
    assert found == {"kind": "odd", "share": 0.25, "count": 4, "files": ("a", "b"), "loud": True, "name_of_it": "x y"}
    runs.check_options(Config(**found))


def test_the_help_says_what_an_option_means_its_heading_and_its_default():
    text = runs.make_parser(Config, "What it is.").format_help()
    assert "What it is." in text and "\nwhat:\n" in text and "\nhow:\n" in text
    assert "the kind, 100 % of it (default: plain)" in text and "{plain,odd,even}" in text
    assert "--name-of-it TEXT" in text and "a name (default: none)" in text and "--files FILE [FILE ...]" in text
    assert text.index("--share X") < text.index("\nhow:\n") < text.index("--count N")


def test_help_ends_with_status_0(capsys):
    with pytest.raises(SystemExit) as e:
        given("--help")
    assert e.value.code == 0 and "--share" in capsys.readouterr().out


@pytest.mark.parametrize("argv, message", [
    ("--kind other", "invalid choice: 'other'"), ("--count x", "invalid int value: 'x'"), ("--bogus", "--bogus"),
    ("--cou 3", "unrecognized arguments: --cou 3"), ("stray", "stray"), ("--kind=--", "--kind"), ("--files", "--files"),
    ("--loud=yes", "--loud")])
def test_a_command_line_that_is_not_understood(argv, message):
    with pytest.raises(BadInput) as e:
        given(*argv.split())
    assert message in str(e.value) and len(e.value.args) == 1 and " --help" in str(e.value)


@pytest.mark.parametrize("more, message", [
    ({"count": 0}, "--count 0: must be from 1 to 10"), ({"count": 11}, "--count 11: must be from 1 to 10"),
    ({"kind": "odd", "share": 1.5}, "--share 1.5: must be from 0 to 1"),
    ({"kind": "odd", "share": float("nan")}, "--share nan: must be from 0 to 1"),
    ({"share": 0.2}, "--share 0.2 goes with --kind odd or even: leave it out, or add that"),
    ({"kind": "even", "loud": True}, "--loud True goes with --kind odd: leave it out")])
def test_what_is_out_of_range_or_means_nothing_here(more, message):
    with pytest.raises(BadInput) as e:
        runs.check_options(Config(**more))
    assert message in str(e.value) and len(e.value.args) == 1
    runs.check_options(Config())
    runs.check_options(Config(kind="odd", share=1.0, loud=True, count=10))


def test_messages_name_the_program_that_was_called(monkeypatch, tmp_path):
    for path, name in {os.path.join(ROOT, "lab", "world.py"): "lab/world.py", "/else/mine.py": "mine.py"}.items():
        monkeypatch.setattr(sys, "argv", [path])
        assert runs.command_name() == name
    with pytest.raises(BadInput, match=r"mine.py: .*; all options: python mine.py --help"):
        given("--bogus")


def test_no_such_device():
    assert runs.find_device("cpu:0") == "cpu" and runs.find_device("auto") in ("cpu", "cuda")
    for name in ("meta", "nonsense", ""):
        with pytest.raises(BadInput, match=f"--device {name}: .* no such device; choose --device cpu"):
            runs.find_device(name)


# ---------------------------------------------------------------------------------------------------------------------
# What a user can mend, or what strikes a run, ends in one line.


TOO_LARGE = "the model or its batch does not fit into memory; take a smaller model, or "


@pytest.mark.parametrize("error, lines", [
    (BadInput("a; b"), ["a; b"]), (BadInput("a; b", "c; d"), ["a; b", "c; d"]), (BadInput("a\nb\x1b"), ["a\\nb\\x1b"]),
    (FloatingPointError("loss nan"), ["loss nan"]),
    (OSError(28, "No space"), ["there: No space; make room there, or "]),
    (FileNotFoundError(2, "No such file", "name"), ["name: No such file; make room there, or "]),
    (MemoryError(), [TOO_LARGE]), (torch.OutOfMemoryError("x"), [TOO_LARGE]),
    (RuntimeError("[enforce fail] can't allocate memory: you tried"), [TOO_LARGE]),
    (KeyboardInterrupt(), ["", "interrupted; nothing was saved yet"])])
def test_what_ends_in_one_line(capsys, error, lines):
    with pytest.raises(SystemExit) as e, runs.ends_in_one_line("there", "go on"):
        raise error
    found = capsys.readouterr().err
    assert e.value.code == 2 and found.endswith("\n") and found.count("\n") == len(lines)
    assert all(said.startswith(line) for said, line in zip(found.split("\n"), lines))


def test_what_is_a_fault_of_the_code_stays_one():
    for error in (RuntimeError("shapes differ"), ValueError("x"), KeyError("x")):
        with pytest.raises(type(error)), runs.ends_in_one_line():
            raise error


def test_an_interrupted_run_says_how_to_go_on(here, capsys):
    (here / "checkpoint.pt").touch()
    with pytest.raises(SystemExit), runs.ends_in_one_line(str(here), "python x.py"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "\ninterrupted; go on with: python x.py\n"


# ---------------------------------------------------------------------------------------------------------------------
# Files.


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_previous_checkpoint_whole(here, monkeypatch):
    runs.save_checkpoint("c.pt", {"x": torch.ones(3)})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        runs.save_checkpoint("c.pt", {"x": torch.zeros(3)})
    assert torch.load("c.pt", weights_only=True)["x"].sum() == 3 and os.listdir(".") == ["c.pt"]


def test_a_disk_that_fills_within_a_checkpoint_leaves_the_previous_one_whole(here):
    runs.save_checkpoint("c.pt", {"x": torch.ones(3)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            runs.save_checkpoint("c.pt", {"x": torch.zeros(2**20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.load("c.pt", weights_only=True)["x"].sum() == 3 and os.listdir(".") == ["c.pt"]


def test_a_full_disk_leaves_the_previous_result_whole(here, monkeypatch):
    runs.write_json("a/result.json", {"x": 1})
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        runs.write_json("a/result.json", {"x": 2})
    assert runs.read_json("a/result.json") == {"x": 1} and os.listdir("a") == ["result.json"]


def test_what_cannot_be_written_as_json_leaves_the_previous_file_whole(here):
    runs.write_json("result.json", {"x": 1})
    with pytest.raises(TypeError):
        runs.write_json("result.json", {"x": 1, "y": {1, 2}})
    assert runs.read_json("result.json") == {"x": 1} and os.listdir(".") == ["result.json"]


def test_the_log_begins_with_what_the_run_is(here):
    run("--out", "a", "--seed", "3")
    first = json.loads(open("a/log.jsonl").readline())
    assert first["settings"]["seed"] == 3 and {"command", "commit", "versions", "machine"} <= first.keys()


def test_a_result_and_its_checkpoint_say_where_they_come_from(here):
    result = run("--out", "a")
    assert {"command", "commit", "versions", "machine"} <= result.keys()
    kept = json.loads(open("a/result.json").read())
    assert kept["settings"] == json.loads(json.dumps(result["settings"]))
    assert result["settings"] == dataclasses.asdict(train.parse([*lessons(), *TINY, "--out", "a"]))
    assert set(torch.load("a/checkpoint.pt", weights_only=True)) == {
        "settings", "student", "teacher", "optimizer", "good", "penalty", "history", "task", "step", "recent", "rate",
        "asked", "form", "before", "own", "lessons", "log_bytes", "python_rng", "torch_rng", "cuda_rng"}
    # beside the weights: the words, and what the pretraining handed on
    left, base = (here / "a" / "model"), (pathlib.Path(lessons()[1]) / "model")
    assert sorted(p.name for p in left.iterdir()) == ["config.json", "model.safetensors", "pretraining.json",
                                                      "words.json"]
    assert (left / "pretraining.json").read_bytes() == (base / "pretraining.json").read_bytes()
    assert equal(weights_of("a"), saved_by("a", "student"))


# ---------------------------------------------------------------------------------------------------------------------
# The lock.


def test_two_runs_in_one_folder_and_a_folder_that_cannot_be_written(here, capsys):
    with runs.locked("a"), pytest.raises(SystemExit):
        train.main([*lessons(), *TINY, "--out", "a"])
    assert "another run is at work" in capsys.readouterr().err
    open("file", "w").close()
    with pytest.raises(SystemExit) as e:
        train.main([*lessons(), *TINY, "--out", "file/run"])
    assert e.value.code == 2 and capsys.readouterr().err.startswith("file/run: Not a directory")


def test_a_lock_ends_with_its_block_and_what_a_killed_process_left_is_removed(here):
    os.mkdir("a")
    for name in ("checkpoint.pt.17.part", "result.json.17.part", "checkpoint.pt"):
        (here / "a" / name).touch()
    with pytest.raises(KeyError), runs.locked("a"):
        assert sorted(os.listdir("a")) == ["checkpoint.pt", "lock"]
        with pytest.raises(BadInput, match="a: another run is at work"), runs.locked("a"):
            pass
        raise KeyError
    with runs.locked("a"), open("a/lock") as f, pytest.raises(BlockingIOError):
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---------------------------------------------------------------------------------------------------------------------
# The log: for programs a line of JSON a step; for people a line that renews itself on a terminal, or, in a file or a
# pipe, a line every tenth of a task.


class Terminal(io.StringIO):
    def isatty(self):
        return True


RECORD = {"task": 1, "step": 5, "loss": 0.5, "tokens": 100}


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(os, "get_terminal_size", lambda: os.terminal_size((40, 24)))
    return Terminal()


@pytest.fixture(autouse=True)
def interrupts():
    """A log takes Ctrl-C over; afterwards it is the tests' again."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_on_a_terminal_a_line_renews_itself_and_what_is_said_stays(here, terminal):
    with contextlib.redirect_stdout(terminal):
        log = Log("a", "sdft", {})
        for step in (1, 2):
            log.step(RECORD, f"step {step} " + "x" * 100, step, 10, due=False)
        log.say("task done")
    assert terminal.getvalue() == "".join(
        f"\r\x1b[K{f'sdft             step {n} ' + 'x' * 100:.39}" for n in (1, 2)) + (
            "\r\x1b[Ksdft             task done\n")


def test_in_a_pipe_and_where_a_terminal_is_dumb_only_lines_that_are_due(here, terminal, monkeypatch):
    dumb = Terminal()
    for out, term in ((io.StringIO(), "xterm"), (dumb, "dumb")):
        monkeypatch.setenv("TERM", term)
        with contextlib.redirect_stdout(out):
            log = Log("a", "sdft", {})
            for step in range(1, 5):
                log.step(RECORD, f"step {step}", step, 10, due=step % 2 == 0)
        lines = out.getvalue().splitlines()
        assert [re.match(r"sdft             step (\d) \| \d+ ms/step, [\d,]+ tokens/s \| \d+ s left$", x)[1]
                for x in lines] == ["2", "4"]
        assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue()


def test_the_file_has_a_line_of_each_step_whoever_looks(here, terminal):
    with contextlib.redirect_stdout(terminal):
        log = Log("a", "sdft", {"settings": {"seed": 1}})
        for step in range(1, 4):
            log.step(RECORD | {"step": step}, "x", step, 10, due=False)
    lines = [json.loads(x) for x in open("a/log.jsonl")]
    assert lines[0] == {"settings": {"seed": 1}} and [x["step"] for x in lines[1:]] == [1, 2, 3]
    assert all(x.keys() == RECORD.keys() | {"ms", "peak_mb", "seconds", "left"} for x in lines[1:])
    assert all(x["peak_mb"] > 10 for x in lines[1:])


def test_a_resumed_log_forgets_what_stands_behind_the_checkpoint(here, capsys):
    log = Log("a", "sdft", {"settings": {}})
    log.write({"step": 1})
    at = log.bytes()
    log.write({"step": 2})
    log = Log("a", "sdft", {"settings": "again"}, at)
    assert [json.loads(x) for x in open("a/log.jsonl")] == [{"settings": {}}, {"step": 1}]
    log.write({"step": 2})
    Log("a", "sdft", {"settings": "new"})
    assert [json.loads(x) for x in open("a/log.jsonl")] == [{"settings": "new"}]


def test_the_first_ctrl_c_is_remembered_and_the_second_one_ends_all(here):
    log = Log("a", "sdft", {})
    log.leave()
    os.kill(os.getpid(), signal.SIGINT)
    assert log.stop
    with pytest.raises(KeyboardInterrupt):
        log.leave()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_time_that_is_left_is_told_from_the_time_that_was_taken(here, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runs.time, "perf_counter", lambda: now[0])
    log = Log("a", "sdft", {})
    log.start(seconds=20.0, step=10)                       # of before a resume
    now[0] += 20
    log.step(RECORD, "x", 20, 50, due=False)
    last = json.loads(open("a/log.jsonl").read().splitlines()[-1])
    assert (last["ms"], last["seconds"], last["left"]) == (2000.0, 40.0, 60.0)


def tenths(said) -> list:
    """(task, step) of the lines of progress."""
    return [tuple(map(int, x)) for x in re.findall(r"task (\d)/2 \S+ step (\d+)/", said)]


LONGER = ["--steps", "40", "--watch-every", "1", "--save-every", "5"]


def test_a_run_tells_each_tenth_of_a_task_once_also_when_it_is_resumed(here, capsys, monkeypatch):
    run(*LONGER, "--out", "straight")
    straight = tenths(capsys.readouterr().out)
    assert straight == [(task, step) for task in (1, 2) for step in range(4, 41, 4)]
    step = sdft.sdft_step
    raise_after(monkeypatch, 17, SystemError("killed"))
    with pytest.raises(SystemError):
        run(*LONGER, "--out", "killed")
    monkeypatch.setattr(sdft, "sdft_step", step)
    before = tenths(capsys.readouterr().out)
    assert before == straight[:4]                          # 17 steps were made, 15 of them saved
    run(*LONGER, "--out", "killed", "--resume")
    assert tenths(capsys.readouterr().out) == straight[3:]
    assert len(open("killed/log.jsonl").readlines()) == 81


def test_a_task_that_ends_early_is_told_too(here, capsys):
    run(*LONGER, "--out", "a", "--converged", "100")
    assert tenths(capsys.readouterr().out) == [(t, n) for t in (1, 2) for n in (4, 8, 12, 16, 20)]


def test_the_command_on_a_terminal_and_in_a_pipe(here):
    """As a user runs it: a terminal of 60 columns, then a pipe."""
    command = [sys.executable, os.path.join(ROOT, "train.py"), *lessons(), *TINY, "--out", "run", "--watch-every", "1"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    with subprocess.Popen(command, stdout=theirs, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):                 # the end of a terminal is an error
            while part := os.read(ours, 10_000):
                said += part
    os.close(ours)
    assert process.returncode == 0
    renewed = [x for x in said.decode().split("\r\x1b[K") if re.search(r"step \d", x) and "\n" not in x]
    assert len(renewed) == 8 and all(len(x) <= 59 for x in renewed)
    piped = subprocess.run(command, capture_output=True, text=True)
    assert piped.returncode == 0 and "\r" not in piped.stdout and len(tenths(piped.stdout)) == 8
