"""The day when a GPU is there: all of this project that waits for one, in one command of at most eight minutes.

    python tests/gpu.py                 or make gpu; needs torch with CUDA, triton, numpy, tiktoken, pytest, no network
    python tests/gpu.py kernel step     some parts of it; what the others have left in results/gpu stays
    python tests/gpu.py --small         all of it at tiny sizes on a CPU, as tests/test_gpu.py runs it

The parts, in their order; each is a process of its own, so that what harms one leaves the others alone:

    speed     of a copy and of matrix products, against which the others are measured
    tests     those that are marked gpu
    kernel    the divergence beside its formulas, eager and compiled (bench_kernel.py)
    step      a step of training: the small world, the preset for a GPU, random models with the shapes of real ones
    demo      the programs themselves: pretraining, teaching, going on, a chat model, the preset compiled

Each has a share of the time, and what an earlier one has not used. It writes PART.json as it goes, so that a day that
is cut off leaves what it has; what fails, out of memory for one, is noted there. The last thing printed is a table;
the exit status is 0 only if all tests passed.
"""
import argparse
import functools
import gc
import glob
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "lab"), os.path.join(ROOT, "tests")]

import bench_kernel
import chat
import pretrain
import sdft
import train
from bench_kernel import copy_bandwidth, milliseconds
from data import Batch
from divergence import triton
from model import GPT, GPTConfig, Sampler, frozen_copy
from runs import provenance, read_json, remove, set_up_machine, write_json

SHARES = {"speed": 0.04, "tests": 0.23, "kernel": 0.27, "step": 0.20, "demo": 0.26}      # of the whole time
LEAST = 5                         # seconds without which nothing is begun; as many more has a part to end by itself


# ---------------------------------------------------------------------------------------------------------------------
# Speed. What "share of the speed" means further down.

# of the factors of a product, and torch's precision of fp32 products: "high" rounds the factors to TF32
PRODUCTS = {"fp32": (torch.float32, "highest"), "tf32": (torch.float32, "high"), "bf16": (torch.bfloat16, "highest")}


def speed(keep, left, small):
    """GB/s of a plain copy, read and written, and TFLOP/s of a large square product in each type."""
    device, n, tflops = ("cpu", 64, {}) if small else ("cuda", 8192, {})
    copied = copy_bandwidth(device, 2**20 if small else 2**30)
    for name, (dtype, precision) in PRODUCTS.items():
        torch.set_float32_matmul_precision(precision)
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in "ab")
        tflops[name] = 2 * n**3 / milliseconds(functools.partial(torch.mm, a, b), device) / 1e9
        keep(copy_gb_per_s=copied, product=n, tflops=tflops)


# ---------------------------------------------------------------------------------------------------------------------
# Tests.


class Recorder:
    """What pytest reports, kept as it comes: a device that faults may take the process with it."""

    def __init__(self, keep):
        self.keep, self.tests = keep, []

    def pytest_collection_finish(self, session):
        self.keep(collected=len(session.items))

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            told = {} if report.outcome == "passed" else {"told": str(report.longrepr)[-2000:]}
            self.tests.append({"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration} | told)
            self.keep(tests=self.tests)


def marked_gpu() -> list:
    """The files with tests that are marked so; the others may need what is not installed."""
    def text(path):
        with open(path, encoding="utf-8") as f:
            return f.read()

    return [path for path in sorted(glob.glob(os.path.join(ROOT, "tests", "test_*.py"))) if "mark.gpu" in text(path)]


def tests(keep, left, small):
    """`passed`: every test that was collected ran and passed; one that is skipped has not."""
    import pytest

    recorder = Recorder(keep)
    which = ["-m", "not gpu", "-k", "few_rows", os.path.join(ROOT, "tests", "test_divergence.py")]
    which = which if small else ["-m", "gpu", *marked_gpu()]
    status = pytest.main(["-q", "-p", "no:cacheprovider", "--rootdir", ROOT, *which], plugins=[recorder])
    right = [test for test in recorder.tests if test["outcome"] == "passed"]
    keep(passed=status == 0 and len(right) == len(recorder.tests))


# ---------------------------------------------------------------------------------------------------------------------
# The kernel.


def kernel(keep, left, small):
    tiny = {"device": "cpu", "columns": (70, 64), "tokens": (8, 4), "copied": 2**16}
    keep(**bench_kernel.bench_gpu(seconds=left(), keep=lambda results: keep(**results), **tiny if small else {}))


# ---------------------------------------------------------------------------------------------------------------------
# A step.

QWEN = {"vocab_size": 151_936, "n_kv_head": 2, "gated": True, "qkv_bias": True, "tied": True, "theta": 1e6, "eps": 1e-6}
# {model: its GPTConfig}, as their config.json say
SHAPES = {
    "small world": {"vocab_size": 960},
    "preset gpu": {k: v for k, v in pretrain.GPU.items() if k not in ("bf16", "compile")},
    "SmolLM2-135M": {"vocab_size": 49_152, "n_layer": 30, "n_head": 9, "n_kv_head": 3, "n_embd": 576, "n_mlp": 1536,
                     "gated": True, "tied": True, "theta": 1e5, "eps": 1e-5},
    "Qwen2.5-0.5B": QWEN | {"n_layer": 24, "n_head": 14, "n_embd": 896, "n_mlp": 4864},
    "Qwen2.5-1.5B": QWEN | {"n_layer": 28, "n_head": 12, "n_embd": 1536, "n_mlp": 8960},
}
# rows, tokens of a prompt, of a prompt behind its demonstration, of an answer
FEW, MANY = (16, 48, 112, 24), (64, 48, 112, 64)
# (model, rows and tokens, bf16, AdamW as a chat model, compiled); what has to be compiled comes last
STEPS = [
    ("small world", (32, 8, 29, 16), False, False, False),
    ("preset gpu", (256, 8, 29, 16), True, False, False),
    *((name, work, True, True, False) for name in list(SHAPES)[2:] for work in (FEW, MANY)),
    ("preset gpu", (256, 8, 29, 16), True, False, True),
]
TINY = {"vocab_size": 96, "n_layer": 1, "n_head": 2, "n_kv_head": 1, "n_embd": 16, "n_mlp": 32}


def random_model(config, device) -> GPT:
    """Made on the device; every matrix matters, as in a model that was trained."""
    torch.manual_seed(0)
    with torch.device(device):
        model = GPT(config)
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.02)
    return model.eval()


def random_batch(work, words, device) -> Batch:
    B, P, Q, R = work
    shown = torch.randint(words, (B, Q), device=device)
    short, long = (torch.full((B,), n, device=device) for n in (P, Q))
    return Batch(shown[:, :P], short, shown, long, shown[:, :R], torch.ones_like(shown[:, :R], dtype=torch.bool))


def forward_flops(model, T, R) -> int:
    """Operations of a forward pass over one row of T tokens, R of which the head reads: 2 for each number of a matrix
    and each token that it reads, and 2 for each number of a head's query and of its value, for each pair of a token
    and one that it may look at:

        2 (numbers of the blocks' matrices) T + 2 D V R + 2 * 2 L H K T (T + 1) / 2
    """
    c = model.config
    blocks = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    return 2 * blocks * T + 2 * c.n_embd * c.vocab_size * R + 2 * c.n_layer * c.n_head * c.head_dim * T * (T + 1)


def step_flops(model, work) -> tuple[int, int]:
    """Operations of sampling, and of training: the teacher forwards, the student forwards and twice that backwards.
    The head counts where an answer stands. What is no product of matrices (norms, loss, optimiser, EMA) counts nothing,
    though it takes time; nor does what a cache makes sampling read in vain."""
    B, P, Q, R = work
    bare, shown = forward_flops(model, P + R - 1, R), forward_flops(model, Q + R - 1, R)
    return B * bare, B * (3 * bare + shown)


def one_step(name, work, low, adamw, compiled, tflops, small) -> dict:
    """Medians of a whole step of SDFT and of its sampling, in milliseconds; training is the rest: two models, loss,
    optimiser, EMA. Tokens a second are those of the answers. Shares are of the measured speed of a product in the type
    of most products; the head's are in TF32 beside bf16. Peak: of all that is allocated, in GB (None on a CPU)."""
    device = "cpu" if small else "cuda"
    set_up_machine(device, int(small), low)
    student = random_model(GPTConfig(**(SHAPES[name] | TINY if small else SHAPES[name])), device)
    teacher, V = frozen_copy(student), student.config.vocab_size
    # so small that a random model stays what it is
    optimizer = train.adamw(student, 1e-7) if adamw else train.sgd(
        student, 1e-7, 1e-7, train.row_scale(None, 1e-3, student))
    batch, sampler = random_batch(work, V, device), Sampler(-1, bf16=low and adamw)
    loss_fn = train.compiled(sdft.on_policy_loss) if compiled else None
    losses = []

    def autocast():
        # it casts a weight once, so each step has one of its own, as in train.py
        return torch.autocast(device, torch.bfloat16, enabled=low)

    def sample(model, prompt, length):
        return sampler(model, prompt, length, work[3])

    def sampling():
        with autocast():
            sample(student, batch.prompt, batch.length)

    def step():
        with autocast():
            figures = sdft.sdft_step(student, teacher, optimizer, batch, sample, linear=V >= train.LINEAR_FROM,
                                     loss_fn=loss_fn)
        losses.append(figures["loss"])

    if not small:
        torch.cuda.reset_peak_memory_stats()
    step_ms, sampling_ms = milliseconds(step, device, seconds=3), milliseconds(sampling, device, seconds=2)
    training_ms, tokens, kind = step_ms - sampling_ms, work[0] * work[3], "bf16" if low else "fp32"
    flops, rate = step_flops(student, work), 1e9 * (tflops or {}).get(kind, float("nan"))         # a millisecond
    return {"parameters": sum(p.numel() for p in student.parameters()), "loss": losses[-1],
            "step_ms": step_ms, "sampling_ms": sampling_ms, "training_ms": training_ms,
            "sampled_per_s": 1e3 * tokens / sampling_ms, "trained_per_s": 1e3 * tokens / training_ms,
            "share_of_speed": sum(flops) / step_ms / rate, "share_sampling": flops[0] / sampling_ms / rate,
            "share_training": flops[1] / training_ms / rate,
            "peak_gb": None if small else torch.cuda.max_memory_allocated() / 1e9}


def step(keep, left, small, tflops=None):
    rows = []
    for name, work, low, adamw, compiled in STEPS:
        B, P, Q, R = work = (2, 4, 6, 3) if small else work
        row = {"model": name, "rows": B, "prompt": P, "shown": Q, "answer": R, "type": "bf16" if low else "fp32",
               "compiled": compiled}
        try:
            if left() < LEAST:
                raise TimeoutError("the time was up")
            row |= one_step(name, work, low, adamw, compiled, tflops, small)
        except Exception as e:
            row["error"] = in_one_line(e)
        # models hold one another in circles
        gc.collect()
        if not small:
            torch.cuda.empty_cache()
        rows.append(row)
        keep(rows=rows)
        print(line_of(row), flush=True)


def line_of(row) -> str:
    text = f"{row['model'] + ' compiled' * row['compiled']:21}{row['type']:5}{row['rows']:5}{row['answer']:4}"
    if "error" in row:
        return f"{text}  {row['error'][:100]}"
    peak = "" if row["peak_gb"] is None else f"{row['peak_gb']:7.1f}"
    return (f"{text}{row['step_ms']:9.1f}{row['sampling_ms']:10.1f}{row['sampled_per_s']:11,.0f}"
            f"{row['trained_per_s']:11,.0f}{row['share_of_speed']:8.1%}{row['share_training']:9.1%}{peak}")


# ---------------------------------------------------------------------------------------------------------------------
# The demo.

CHAT = SHAPES["SmolLM2-135M"] | {"vocab_size": 16_384, "n_layer": 2, "context": 1024}
TEMPLATE = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}
{{- '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
FOUND = ("learning_accuracy", "average_accuracy", "base_retention", "guard_trips", "steps", "seconds")
# commands in the order in which they run, and the file in which they leave figures
COMMANDS = [
    ("lab/pretrain.py --seed 0 --steps 400 --out base", "base/model/pretraining.json"),
    ("lab/world.py --seed 0 --tasks 2 --out world", ""),
    ("train.py --init base --demos world/tasks/*.jsonl --keep world/keep.jsonl --reading world/reading.jsonl "
     "--neighbours world/neighbours.jsonl --method sdft --steps 60 --out demo/sdft", "demo/sdft/result.json"),
    ("train.py --out demo/sdft --resume", "demo/sdft/result.json"),
    ("eval.py demo", "demo/summary.json"),
    ("train.py --init chat --demos world/tasks/01*.jsonl --bf16 --sampler 0.5 --contrast 1 --blend 0.7 --guard 0 "
     "--steps 12 --batch-size 16 --converged 0 --save-every 6 --out chat-runs/sdft", "chat-runs/sdft/result.json"),
    ("train.py --out chat-runs/sdft --resume", "chat-runs/sdft/result.json"),
    ("lab/pretrain.py --preset gpu --steps 40 --out wide", "wide/model/pretraining.json"),
    ("train.py --init wide --demos world/tasks/01*.jsonl --bf16 --compile --batch-size 256 --guard 0 --converged 0 "
     "--steps 20 --out wide-runs/sdft", "wide-runs/sdft/result.json"),
]
# what makes them tiny
OPTIONS = {
    "lab/pretrain.py": "--steps 1 --docs 8 --n-layer 1 --n-head 2 --n-embd 16 --threads 1 --device cpu",
    "lab/world.py": "--demonstrations 8 --tests 4 --kept 16",
    "train.py": "--steps 2 --batch-size 4 --watch-every 1 --threads 1 --device cpu",
    "eval.py": "",
}


def write_chat_model(folder, config):
    """A chat model of random weights, whose tokens are the bytes."""
    random_model(config, "cpu").save_pretrained(folder)
    vocab = {character: i for i, character in enumerate(chat.BYTE)}
    special = [{"id": len(vocab) + i, "content": token, "special": True}
               for i, token in enumerate(("<|im_start|>", "<|im_end|>"))]
    write_json(os.path.join(folder, "tokenizer.json"), {
        "model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}})
    with open(os.path.join(folder, "chat_template.jinja"), "w") as f:
        f.write(TEMPLATE)


def demo(keep, left, small):
    """Each command: seconds, error, what it said last, and its figures."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        shape = CHAT | TINY | {"vocab_size": 320} if small else CHAT
        write_chat_model(os.path.join(folder, "chat"), GPTConfig(**shape))
        for command, figures in COMMANDS:
            program, options = command.split(" ", 1)
            row = {"command": f"python {command}{' ' + OPTIONS[program] if small else ''}"}
            try:
                row |= run_command(row["command"].removeprefix("python "), folder, left())
                if figures:
                    row |= figures_of(os.path.join(folder, figures))
            except Exception as e:
                row["error"] = in_one_line(e)
            rows.append(row)
            keep(rows=rows)
            print(f"{row.get('seconds', 0):6.1f} s  {command}\n{row.get('error', '')}".rstrip(), flush=True)


def run_command(command, folder, seconds) -> dict:
    """Runs a command of this project in a folder. Raises TimeoutError, and ChildProcessError with what it said last."""
    if seconds < LEAST:
        raise TimeoutError("the time was up")
    began = time.perf_counter()
    # exec: what is killed when the time is up is the command, not a shell
    line = f"exec {shlex.quote(sys.executable)} {shlex.quote(ROOT)}/{command}"
    try:
        done = subprocess.run(line, shell=True, cwd=folder, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"stopped after {seconds:.0f} s")
    if done.returncode:
        raise ChildProcessError(f"status {done.returncode}: {done.stderr.strip()[-1500:]}")
    return {"seconds": time.perf_counter() - began, "said": done.stdout.strip().splitlines()[-3:]}


def figures_of(path) -> dict:
    found = read_json(path)
    if "gates" in found and "R" not in found:
        return {"gates": found["gates"]}
    return {"found": {name: found[name] for name in FOUND if name in found}}


# ---------------------------------------------------------------------------------------------------------------------
# The day.

PARTS = {"speed": speed, "tests": tests, "kernel": kernel, "step": step, "demo": demo}


def in_one_line(error) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:2000]


def source() -> str:
    """A hash of all the code, which tells the version where there is no git."""
    found = hashlib.sha256()
    for path in sorted(path for part in ("", "lab", "tests") for path in glob.glob(os.path.join(ROOT, part, "*.py"))):
        with open(path, "rb") as f:
            found.update(os.path.relpath(path, ROOT).encode() + b"\0" + f.read())
    return found.hexdigest()[:16]


def work(part, out, seconds, small):
    """One part, in this process."""
    began = time.perf_counter()
    versions = {"triton": triton.__version__ if triton else None, "cuda": torch.version.cuda}
    found = provenance() | {"command": f"python tests/gpu.py{' --small' * small}", "source": source()}
    found["versions"] |= versions
    path = os.path.join(out, f"{part}.json")

    def keep(**more):
        found.update(more, seconds=round(time.perf_counter() - began, 1))
        write_json(path, found)

    def left():
        return seconds - (time.perf_counter() - began)

    if small:
        # in this process nothing is compiled to machine code, which takes minutes
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
    keep()
    try:
        more = {"tflops": read(out, "speed").get("tflops")} if part == "step" else {}
        PARTS[part](keep, left, small, **more)
        keep()
    except Exception as e:
        traceback.print_exc()
        keep(error=in_one_line(e))
        sys.exit(1)


def run_part(part, out, seconds, small):
    """One part in a process of its own, ended when its time is up. What it did not say itself is noted in its file."""
    print(f"\n---- {part}: {seconds:.0f} s at most", flush=True)
    command = [sys.executable, os.path.abspath(__file__), part, "--worker", "--out", out, "--seconds", str(seconds)]
    process = subprocess.Popen([*command, *["--small"] * small], process_group=0)
    try:
        status = process.wait(seconds + LEAST)
        error = f"ended with status {status}" if status else ""
    except subprocess.TimeoutExpired:
        error = f"stopped after {seconds:.0f} s"
    finally:
        # its children too
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    note_error(out, part, error)


def note_error(out, part, error):
    found = read(out, part)
    if error and "error" not in found:
        write_json(os.path.join(out, f"{part}.json"), found | {"error": error})


def read(out, part) -> dict:
    """What a part has left, if anything."""
    path = os.path.join(out, f"{part}.json")
    return read_json(path) if os.path.exists(path) else {}


def table(out) -> str:
    """All that was found, of these parts and of those of another time."""
    found = {part: read(out, part) for part in PARTS}
    machine = next((f"{f['machine']}, torch {f['versions']['torch']}, triton {f['versions']['triton']}, commit "
                    f"{f['commit']}, source {f['source']}" for f in found.values() if "machine" in f), "nothing ran")
    lines = [machine]
    for part, f in found.items():
        lines.append(f"\n{part}: " + (f.get("error") or (f"{f['seconds']} s" if f else "not run")))
        lines += SHOWN[part](f) if len(f) > 1 else []
    return "\n".join(lines)


def show_speed(f):
    products = ", ".join(f"{name} {rate:,.1f}" for name, rate in f.get("tflops", {}).items())
    return [f"   copy {f.get('copy_gb_per_s', 0):,.0f} GB/s; products of {f.get('product')}², TFLOP/s: {products}"]


def show_tests(f):
    ran = f.get("tests", [])
    bad = [f"   {test['outcome']}: {test['test']}" for test in ran if test["outcome"] != "passed"]
    return [f"   {len(ran) - len(bad)} of {f.get('collected', 0)} passed", *bad]


def show_kernel(f):
    """A line a size: milliseconds of each method, and the kernel's share of the copy."""
    names, sizes = bench_kernel.METHODS, {}
    for row in f.get("rows", []):
        size = f"   {row['divergence']:11}{row['dtype']:10}{row['V']:>7}{row['N']:>6}"
        sizes.setdefault(size, {})[row["method"]] = row
    lines = [f"   {'divergence':11}{'dtype':10}{'V':>7}{'N':>6}{''.join(f'{name:>10}' for name in names)}   of copy"]
    for size, rows in sizes.items():
        times = (f"{rows[n]['ms']:10.2f}" if "ms" in rows.get(n, {}) else f"{'error' if n in rows else '-':>10}"
                 for n in names)
        lines.append(f"{size}{''.join(times)}{rows.get('kernel', {}).get('share_of_copy', float('nan')):10.2f}")
    return lines + [f"   {f.get('skipped')} cases were skipped: the time was up"] * bool(f.get("skipped"))


def show_step(f):
    head = "   model                type  rows new  step ms  sampling  sampled/s  trained/s   speed training     GB"
    return [head, *("   " + line_of(row) for row in f.get("rows", []))]


def show_demo(f):
    lines = []
    for row in f.get("rows", []):
        figures = ", ".join(f"{name} {value}" for name, value in row.get("found", {}).items())
        lines.append(f"   {row.get('seconds', 0):6.1f} s  {row['command'][:90]}")
        lines += [f"{'':12}{text}" for text in (row.get("error"), figures) if text]
    return lines


SHOWN = {"speed": show_speed, "tests": show_tests, "kernel": show_kernel, "step": show_step, "demo": show_demo}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; none: all of them")
    parser.add_argument("--out", default=os.path.join(ROOT, "results", "gpu"), help="where the JSON goes")
    parser.add_argument("--minutes", type=float, default=7.9, help="for all that is run (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"{', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    if args.worker:
        return work(args.parts[0], args.out, args.seconds, args.small)
    if not (args.small or torch.cuda.is_available()):
        parser.error("torch finds no CUDA device here; --small runs everything at tiny sizes on a CPU")

    chosen = [part for part in PARTS if part in (args.parts or PARTS)]
    remove(args.out, *(f"{part}.json" for part in chosen))
    ends = time.perf_counter()
    for part in chosen:
        ends += 60 * args.minutes * SHARES[part] / sum(SHARES[p] for p in chosen)
        if (seconds := ends - time.perf_counter()) > LEAST:
            run_part(part, args.out, seconds, args.small)
        else:
            note_error(args.out, part, "not begun: the time was up")
    print(f"\n{table(args.out)}\nwritten to {args.out}")
    sys.exit(0 if read(args.out, "tests").get("passed") else 1)


if __name__ == "__main__":
    main()
