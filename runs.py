"""One run, one folder: its options, checkpoints, log and lock, where its figures come from, and the errors a user sees.

The command lines of train.py, lab/pretrain.py and lab/world.py are made here from their dataclasses, and checkpoints,
JSON and logs are written here, the first two whole or not at all. Left out: more than one machine.
"""
import argparse
import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import json
import os
import platform
import re
import reprlib
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile

import numpy as np
import torch

ROOT = os.path.dirname(os.path.abspath(__file__))

# ---------------------------------------------------------------------------------------------------------------------
# Errors. What a user can mend is raised as BadInput, from wherever it is found; a `main` prints it and exits with 2.


class BadInput(ValueError):
    """What a user can mend: for each thing that is wrong a line, which names it, its value, and the way out."""

    def __str__(self):
        return "\n".join(self.args)


def first_ten(lines, more) -> list[str]:
    """Ten lines of many, and how many are left out: "... and 3 <more>"."""
    return [*lines[:10], *[f"... and {len(lines) - 10} {more}"] * (len(lines) > 10)]


def quoted(value) -> str:
    """A value in a message: 40 characters at most, control characters escaped, so that a message stays one line."""
    # plain repr() may fail on deep nesting
    text = value if isinstance(value, str) else reprlib.repr(value)
    cut = text[:40] + "..." * (len(text) > 40)
    return repr(cut) if isinstance(value, str) else cut


def printable(text) -> str:
    """What a terminal can show: all else is escaped, since a path, or a token, may hold anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def fail(*lines):
    """Prints each line on standard error and exits with 2."""
    for line in lines:
        print(printable(line), file=sys.stderr)
    sys.exit(2)


@contextlib.contextmanager
def ends_in_one_line(out="", go_on=""):
    """Around the body of a `main`: what a user can mend, or what strikes a run, ends in one line and exit status 2.

    out: the folder in which the run works. go_on: the command that goes on with it.
    """
    try:
        yield
    except BadInput as e:
        fail(*e.args)
    except FloatingPointError as e:
        fail(str(e))
    except OSError as e:
        remedy = "; make room there, or choose another folder with --out; what was saved before is whole"
        fail(f"{e.filename or out}: {e.strerror or e}{remedy * bool(out)}")
    except (MemoryError, RuntimeError) as e:
        # the last is what torch says on a CPU
        of_memory = isinstance(e, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(e)
        if not of_memory:
            raise
        fail("the model or its batch does not fit into memory; take a smaller model, or a smaller batch "
             "(--batch-size, --micro-batch)")
    except KeyboardInterrupt:
        saved = out and os.path.exists(os.path.join(out, "checkpoint.pt"))
        # after the ^C of the terminal
        print(file=sys.stderr)
        fail("interrupted; " + (f"go on with: {go_on}" if saved else "nothing was saved yet"))


# ---------------------------------------------------------------------------------------------------------------------
# Options: a field of a dataclass is an option of the command line, with what it means and what it may be beside it.


MANY = 10**9


def option(default, about, group=None, choices=None, within=None, only=None, machine=False):
    """A field of a Config. `about` is what --help says of it.

    group: the heading that --help shows above this option and those after it. within: (least, largest) of a number.
    only: {another option: the values beside which this one means something}. machine: a resumed run may change it.
    """
    rules = {"group": group, "choices": choices, "within": within, "only": only, "machine": machine}
    return dataclasses.field(default=default, metadata={"help": about} | rules)


def flag(name) -> str:
    return "--" + name.replace("_", "-")


def make_parser(Config, doc) -> argparse.ArgumentParser:
    """The command line of a Config; what it refuses is raised as BadInput."""
    wide = functools.partial(argparse.RawDescriptionHelpFormatter, width=100, max_help_position=26)
    parser = argparse.ArgumentParser(description=doc, formatter_class=wide, argument_default=argparse.SUPPRESS,
                                     allow_abbrev=False, usage="%(prog)s [options]")

    def refuse(message):
        raise BadInput(f"{parser.prog}: {message}; all options: python {command_name()} --help")

    parser.error = refuse
    group = parser
    for f in dataclasses.fields(Config):
        about = f.metadata
        if about["group"]:
            group = parser.add_argument_group(about["group"])
        default = "none" if f.default in ("", ()) else f.default
        kind = {"help": f"{about['help']} (default: {default})".replace("%", "%%")}
        if f.type is bool:
            kind |= {"action": "store_true"}
        elif f.type is tuple:
            kind |= {"nargs": "+", "metavar": "FILE"}
        elif about["choices"]:
            kind |= {"choices": about["choices"]}
        else:
            kind |= {"type": f.type, "metavar": {str: "TEXT", int: "N", float: "X"}[f.type]}
        group.add_argument(flag(f.name), **kind)
    return parser


def given_options(Config, doc, argv=None) -> dict:
    """{name: value} of the options that a command line gives; raises BadInput."""
    parser = make_parser(Config, doc)
    given = vars(parser.parse_args(argv))
    for name, value in given.items():
        if value == []:
            # what argparse makes of --name=-- before Python 3.13
            parser.error(f"argument {flag(name)}: expected one argument")
        if isinstance(value, list):
            given[name] = tuple(value)
    return given


def check_options(config):
    """Raises BadInput for a number out of its range, and for an option that means nothing beside the others."""
    refused = f"{os.path.basename(command_name())}: "
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        low, high = f.metadata["within"] or (value, value)
        if not low <= value <= high:
            # NaN fails this too
            raise BadInput(f"{refused}{flag(f.name)} {value}: must be from {low} to {high}")
        for other, values in (f.metadata["only"] or {}).items():
            if value != f.default and getattr(config, other) not in values:
                raise BadInput(f"{refused}{flag(f.name)} {value} goes with {flag(other)} {in_words(values)}: "
                               "leave it out, or add that")


def check_out(folder):
    """Raises BadInput for a folder that messages could not name."""
    if not folder or not folder.isprintable():
        program = os.path.basename(command_name())
        raise BadInput(f"{program}: --out {folder!r}: not the name of a folder that can be printed; choose another")


def in_words(names) -> str:
    """
    >>> in_words(["l2"]), in_words(["l2", "ewc", "lwf"])
    ('l2', 'l2, ewc or lwf')
    """
    *before, last = names
    return ", ".join(before) + " or " * bool(before) + last


def command_name() -> str:
    """The program as a user called it, without what stands before the project: train.py, lab/pretrain.py, ..."""
    path = os.path.abspath(sys.argv[0])
    return os.path.relpath(path, ROOT) if path.startswith(ROOT + os.sep) else os.path.basename(path)


def set_up_machine(device, threads=0, bf16=False):
    """Sets the number of threads, the precision of matrix products and, on a CPU, what becomes of freed memory.

    Products stay fp32. On a CPU "medium" hands them to oneDNN, on AMD more than twice as fast as MKL. It may round the
    factors to bf16 where the processor has units for that; a trial tells, and then MKL keeps the work. With `bf16` the
    factors may be rounded, and sums and results are fp32 still (on a GPU: TF32).
    """
    if threads:
        torch.set_num_threads(threads)
    if device != "cpu":
        torch.set_float32_matmul_precision("high" if bf16 else "highest")
        return
    keep_memory()
    torch.set_float32_matmul_precision("medium")
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    if not bf16 and (a @ a - a.double() @ a.double()).norm() > 1e-5 * (a @ a).norm():
        torch.set_float32_matmul_precision("highest")


def bf16_pays() -> bool:
    """Whether this processor multiplies matrices faster in bf16 than in fp32 as `set_up_machine` has left that without
    bf16; one without units for it takes twice as long. The best of some trials in turn, lest other work decide."""
    factors = {dtype: torch.ones(512, 1024, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = {dtype: [] for dtype in factors}
    for _ in range(5):
        for dtype, a in factors.items():
            began = time.perf_counter()
            a @ a.T
            seconds[dtype].append(time.perf_counter() - began)
    return min(seconds[torch.bfloat16]) < min(seconds[torch.float32])


def keep_memory():
    """Memory that is freed stays with the process. glibc gives large blocks back at once, and the system clears them
    anew, page by page, for each temporary of a step: of a loss over a large vocabulary that is half of the time. Other
    systems are left alone."""
    with contextlib.suppress(OSError, AttributeError):
        set_option = ctypes.CDLL("libc.so.6").mallopt
        # M_MMAP_MAX: no block is mapped apart; M_TRIM_THRESHOLD: the heap does not shrink
        set_option(-4, 0)
        set_option(-1, -1)


def give_back_memory():
    """What is free goes back to the system, now and then: with `keep_memory` it lies in pieces in which a large tensor
    finds no place. A chat model's run of 5.4 GB has 7.5 after a step, and after twenty more than 11 (SmolLM2, batch 8).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def find_device(device) -> str:
    """The device that is meant: "auto" is cuda where there is one. Raises BadInput for one that is not here."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with warnings.catch_warnings(action="ignore"):
            # "meta" has tensors, but nothing in them
            torch.zeros(1, device=device).item()
    except Exception:
        # RuntimeError, AssertionError, ImportError: each has its own
        raise BadInput(f"{os.path.basename(command_name())}: --device {device}: this machine or this build of torch "
                       "has no such device; choose --device cpu")
    # torch.load does not know cpu:0
    return "cpu" if torch.device(device).type == "cpu" else device


# ---------------------------------------------------------------------------------------------------------------------
# Files: written beside and renamed, so that a crash or a full disk leaves the previous one whole.

# What a run of train.py writes into its folder, beside its model.
OF_A_RUN = ("checkpoint.pt", "result.json", "answers.jsonl", "log.jsonl")


def read_json(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


@contextlib.contextmanager
def replacing(path, mode="w", **how):
    """A file to write into, which takes the place of `path` when it is whole."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, mode, **how) as f:
            yield f
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def write_json(path, value):
    with replacing(path) as f:
        json.dump(value, f, indent=1)
        f.write("\n")


def write_rows(path, rows):
    """JSONL: an object a line."""
    with replacing(path, encoding="utf-8") as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def save_checkpoint(path, value):
    """A checkpoint: tensors and plain values."""
    with replacing(path, "wb") as f:
        try:
            torch.save(value, f)
        except RuntimeError as e:
            # torch closes its archive after a write that failed, and says that alone
            raise e.__context__ if isinstance(e.__context__, OSError) else e
        f.flush()
        os.fsync(f.fileno())


def remove(folder, *names):
    """What an older run has left in a folder, so that nobody takes it for a newer one's."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))


def remove_run(folder):
    """Takes away what an earlier run has left in its folder; raises BadInput for anything of these names that no run
    has made."""
    there = [name for name in (*OF_A_RUN, "model") if os.path.lexists(os.path.join(folder, name))]
    begins, line, model = '{"settings": {', "", os.path.join(folder, "model")
    if "log.jsonl" in there:
        with contextlib.suppress(OSError), open(os.path.join(folder, "log.jsonl"), errors="replace") as f:
            line = f.readline()
    # a full disk or a kill may have cut the line
    made = "log.jsonl" in there and (line.startswith(begins) or begins.startswith(line))
    if there and not made or "model" in there and not os.path.exists(os.path.join(model, "config.json")):
        raise BadInput(f"--out {folder}: {', '.join(there)} in it: no run has made that; choose another folder")
    remove(folder, *OF_A_RUN)
    if "model" in there:
        shutil.rmtree(model)


def load_checkpoint(path) -> dict:
    """A checkpoint of train.py or lab/pretrain.py. Raises BadInput.

    Tensors and plain values alone are read (weights_only): a file that would execute code is refused.
    """
    try:
        with zipfile.ZipFile(path) as file:
            # torch.load compares no checksums: a damaged weight is a weight
            if file.testzip():
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action="ignore"):
            # the unpickler's, on what is refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
        whole = {"settings", "student"} <= state.keys()
    except Exception as e:
        # bytes that are no checkpoint raise whatever they mean to pickle
        raise BadInput(f"{path}: not a checkpoint, or damaged ({type(e).__name__}); restore it, or remove it and train "
                       "again")
    if not whole:
        raise BadInput(f"{path}: not a checkpoint of train.py or lab/pretrain.py; remove it and train again")
    return state


def random_states(rng) -> dict:
    # to ask a GPU that is not at work would wake it
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"python_rng": rng.getstate(), "torch_rng": torch.get_rng_state(), "cuda_rng": cuda}


def set_random_states(rng, saved):
    rng.setstate(saved["python_rng"])
    torch.set_rng_state(saved["torch_rng"])
    # there may be fewer here than where it began
    torch.cuda.set_rng_state_all(saved["cuda_rng"][: torch.cuda.device_count()])


@contextlib.contextmanager
def locked(folder):
    """Two runs in one folder would write over one another: the second is refused. The lock ends with its process."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{folder}: another run is at work in this folder; wait for it, or choose another with "
                           "--out")
        for name in os.listdir(folder):
            # half-written files of a process that was killed, and the folder that it was about to replace
            path = os.path.join(folder, name)
            if os.path.isdir(path) and re.fullmatch(r"model\.\d+\.(part|old)", name):
                shutil.rmtree(path)
            elif os.path.isfile(path) and re.fullmatch(r".+\.\d+\.part", name):
                os.remove(path)
        yield


def provenance() -> dict:
    """What a figure must be kept with: command, versions, commit, kind of machine."""
    git = ["git", "-C", ROOT]
    try:
        # results and pictures change as they are made
        questions = ["describe", "--always"], ["diff", "--name-only", "HEAD", "--", "*.py", "*.jsonl"]
        commit, changed = (subprocess.run([*git, *q], capture_output=True, text=True).stdout.strip() for q in questions)
        commit += "-dirty" * bool(changed)
    except OSError:
        # no git here
        commit = ""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": shlex.join(["python", command_name(), *sys.argv[1:]]),
        "commit": commit or "unknown",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "machine": gpu or f"{os.cpu_count()}-core {platform.machine()} CPU{processor()}",
    }


def processor() -> str:
    """" (AMD EPYC, family 25, model 1)", as Linux tells it: clouds give many processors one name. "" elsewhere."""
    told = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as f:
        told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in f)}
    if "model name" not in told:
        return ""
    return f" ({told['model name']}, family {told.get('cpu family', '?')}, model {told.get('model', '?')})"


# ---------------------------------------------------------------------------------------------------------------------
# The log: lines for people, and a line of JSON for programs at each logged step.


def peak_mb() -> int:
    """The most memory that this process has held, in MB. macOS counts it in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1024**2)


class Log:
    """log.jsonl in the folder of a run, and what the terminal shows.

    Lines that last are said; the progress of the work is one line that renews itself on a terminal, and in a file or
    a pipe (or where TERM is dumb) a line every tenth of a task. Ctrl-C sets `stop`: the loop finishes its step,
    saves, and calls `leave`; a second Ctrl-C ends the run at once.
    """

    def __init__(self, folder, name, about, at=0):
        """name: stands before each line for people. about: the file's first line. at: bytes to keep of an older one."""
        self.path, self.name, self.stop = os.path.join(folder, "log.jsonl"), name, False
        self.renews = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        os.makedirs(folder, exist_ok=True)
        with open(self.path, "ab") as f:
            # on resume: lines after the checkpoint are written again
            f.truncate(min(at, f.tell()))
        self.start()
        if at == 0:
            self.write(about)
        signal.signal(signal.SIGINT, self.interrupt)

    def interrupt(self, *_):
        self.stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def leave(self):
        if self.stop:
            raise KeyboardInterrupt

    def start(self, seconds=0.0, step=0):
        """The clock: `seconds` and `step` (of the whole run) are behind us."""
        self.began = time.perf_counter() - seconds
        self.last = time.perf_counter(), step

    def seconds(self) -> float:
        return time.perf_counter() - self.began

    def bytes(self) -> int:
        return os.path.getsize(self.path)

    def write(self, record):
        with open(self.path, "a") as f:
            f.write(json.dumps(record) + "\n")

    def say(self, text):
        print("\r\x1b[K" * self.renews + f"{self.name:16s} {text}", flush=True)

    def progress(self, text, due):
        """due: whether this line is one of those that a file or a pipe gets."""
        if self.renews:
            columns = os.get_terminal_size().columns or 80
            print("\r\x1b[K" + f"{self.name:16s} {text}"[: columns - 1], end="", flush=True)
        elif due:
            self.say(text)

    def step(self, record, text, step, steps, due):
        """A logged step, the run's `step`-th of about `steps`: written with its speed, and shown after `text`."""
        now = time.perf_counter()
        ms = 1000 * (now - self.last[0]) / max(1, step - self.last[1])
        self.last = now, step
        left = self.seconds() / step * max(0, steps - step)
        about = {"ms": round(ms, 1), "peak_mb": peak_mb(), "seconds": round(self.seconds(), 1), "left": round(left, 1)}
        self.write(record | about)
        speed = f"{ms:.0f} ms/step, {record['tokens'] / ms * 1000:,.0f} tokens/s"
        self.progress(f"{text} | {speed} | {left:.0f} s left", due)
