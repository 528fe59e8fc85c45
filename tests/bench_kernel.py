"""Time and memory of the divergence operator and of the chunked linear loss; prints a table and writes it as JSON.

    python tests/bench_kernel.py [--out results/kernel_cpu.json]

On a GPU: the operator, forward and backward, beside the formulas in eager PyTorch, the same under torch.compile, and
Liger's JSD kernel where it is installed; bytes a second are those of reading both logits once and writing the gradient,
over what a plain copy moves. On a CPU: the operator beside the formulas at the size of train.py, and the chunked linear
loss beside the loss on whole logits.
"""
import argparse
import functools
import itertools
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import torch

from divergence import divergence_reference, linear_distill_loss, token_divergence, triton

KINDS = ("forward", "reverse", "jsd")

# Of the linear loss on a CPU: its size, and the chunks by vocabulary; 0 is the loss on whole logits.
N, D = 2048, 128
CHUNKS = {50257: (0, 128, 256, 512, 1024), 8192: (0, 256), 1024: (0, 256)}

# Of the operator on a GPU: methods, vocabularies (GPT-2's padded, Llama 3's, Qwen's, GPT-2's as it is), tokens.
METHODS = ("kernel", "eager", "liger", "compiled")
COLUMNS, TOKENS = (50304, 128256, 151936, 50257), (8192, 2048)


def logits(rows, columns, noise, **options):
    torch.manual_seed(0)
    teacher = torch.randn(rows, columns, **options) * 3
    return (teacher + noise * torch.randn(rows, columns, **options)).requires_grad_(), teacher


def forward_backward(function, student, teacher, weight):
    student.grad = None
    (function(student, teacher) * weight).sum().backward()


# ---- CPU ----

def time_operator_on_cpu(kind, noise, rounds=60):
    """Milliseconds of both at 600 tokens of 960 words, taken in turns so that a busy machine slows both alike."""
    student, teacher = logits(600, 960, noise)
    weight = torch.rand(600)
    functions = {
        "eager": lambda s, t: divergence_reference(s, t, kind),
        "operator": lambda s, t: token_divergence(s, t, kind),
    }
    times = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            forward_backward(function, student, teacher, weight)
            times[name].append(1e3 * (time.perf_counter() - start))
    with torch.no_grad():
        mean = token_divergence(student, teacher, kind).mean().item()
    medians = {f"{name}_ms": statistics.median(t[5:]) for name, t in times.items()}
    return {"divergence": kind, "mean_divergence": mean} | medians


def linear_in_this_process(V, chunk):
    """Runs in a process of its own: memory that one loss has touched stays with the process. chunk 0: whole logits."""
    torch.manual_seed(0)
    hidden, head = torch.randn(N, D, requires_grad=True), torch.randn(V, D) / D**0.5
    head.requires_grad_()
    teacher_hidden, mask = hidden.detach() + 0.1 * torch.randn(N, D), torch.ones(N)

    def reference(s, t):
        return (divergence_reference(s, t) * mask[: len(s)]).sum() / len(s)

    def step(n):
        hidden.grad = head.grad = None
        if chunk:
            loss = linear_distill_loss(hidden[:n], head, teacher_hidden[:n], head.detach(), mask[:n], chunk=chunk)
        else:
            with torch.no_grad():
                target = teacher_hidden[:n] @ head.T
            loss = reference(hidden[:n] @ head.T, target)
        loss.backward()
        return loss.item()

    # The first step loads the libraries and allocates both gradients' buffers once.
    step(8)
    hidden.grad = head.grad = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    loss = step(N)
    return {"V": V, "chunk": chunk, "seconds": time.perf_counter() - start, "loss": loss,
            "extra_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def bench_cpu(rounds=3):
    operator = [time_operator_on_cpu(kind, noise) for kind in KINDS for noise in (1.0, 0.05)]
    print("operator, 600 tokens of 960 words, forward and backward\n\n   divergence   mean      eager ms  operator ms")
    for r in operator:
        print(f"   {r['divergence']:<11}{r['mean_divergence']:9.2e}{r['eager_ms']:10.2f}{r['operator_ms']:12.2f}")
    print(f"\nlinear loss, {N} tokens, width {D}, forward and backward: best of {rounds}, a process each\n")
    print("   words   chunk   seconds   extra MB   memory of eager / this")
    linear = []
    runs = {(V, chunk): [] for V, chunks in CHUNKS.items() for chunk in chunks}
    for _ in range(rounds):
        for V, chunk in runs:  # in turns, again
            command = [sys.executable, os.path.abspath(__file__), "--linear", str(V), str(chunk)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[V, chunk].append(json.loads(done.stdout))
    for (V, chunk), results in runs.items():
        seconds, extra_mb = min(r["seconds"] for r in results), max(r["extra_mb"] for r in results)
        linear.append({"V": V, "chunk": chunk, "loss": results[0]["loss"], "seconds": seconds, "extra_mb": extra_mb})
        whole = next(r for r in linear if r["V"] == V)
        saving = whole["extra_mb"] / max(extra_mb, 1e-9)
        print(f"   {V:<8}{chunk or 'whole':<8}{seconds:7.2f}{extra_mb:11.0f}{saving:14.1f}")
    return {"operator": operator, "linear": linear}


# ---- GPU ----

def milliseconds(function, device="cuda", seconds=0.3, most=20):
    """Median time of a call, after two to warm up: of at most `most` calls, at least 3, in about so many seconds.

    On a GPU by its own clock, and it is waited for at the end alone: what Python takes to launch a call then hides
    behind the call before.
    """
    function()
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    rounds = max(3, min(most, int(seconds / (time.perf_counter() - start))))
    if torch.device(device).type == "cpu":
        times = [time.perf_counter()]
        for _ in range(rounds):
            function()
            times.append(time.perf_counter())
        return 1e3 * statistics.median(b - a for a, b in zip(times, times[1:]))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in zip(events, events[1:]))


def wait(device):
    if torch.device(device).type != "cpu":
        torch.cuda.synchronize()


def liger_jsd(kind):
    """Liger's kernel takes log-probabilities; its beta 0 is KL(teacher ‖ student), 1 the other.

    None where it is not installed.
    """
    try:
        from liger_kernel.transformers import LigerJSD
    except ImportError:
        return None
    loss = LigerJSD(beta={"forward": 0.0, "reverse": 1.0, "jsd": 0.5}[kind])
    return lambda s, t: loss(s.float().log_softmax(-1), t.float().log_softmax(-1))


def method(name, kind):
    """A function of both logits -> (N,), or Liger's scalar; None for what is not installed."""
    def plain(s, t):
        return divergence_reference(s.float(), t.float(), kind)

    if name == "compiled":
        # a graph for each kind and width: kept, they would soon be too many, and torch would compile no more
        torch._dynamo.reset()
        return torch.compile(plain)
    return {"kernel": lambda s, t: token_divergence(s, t, kind), "eager": plain, "liger": liger_jsd(kind)}[name]


def copy_bandwidth(device="cuda", size=2**30):
    """GB/s of a plain copy of `size` bytes, reading and writing."""
    # written to: what never was is no memory yet
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / milliseconds(functools.partial(target.copy_, source), device) / 1e6


def measured(function, student, teacher, weight, bandwidth):
    """Of one method at one size: milliseconds of forward and backward, the share of the copy's speed, and the peak of
    memory beside what was there, over both inputs (None on a CPU)."""
    device, size = student.device, student.numel() * student.element_size()
    run = functools.partial(forward_backward, function, student, teacher, weight)
    ms, peak = milliseconds(run, device), None
    if student.is_cuda:
        student.grad = None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        peak = (torch.cuda.max_memory_allocated() - before) / (2 * size)
    return {"ms": ms, "share_of_copy": 3 * size / ms / 1e6 / bandwidth, "peak_over_inputs": peak}


def bench_gpu(device="cuda", columns=COLUMNS, tokens=TOKENS, copied=2**30, seconds=math.inf,
              keep=lambda results: None):
    """Every method, vocabulary, type, divergence and number of tokens, until `seconds` are over; the most important
    method comes first, the one that has to be compiled last. keep(results) is called after each row. A method that
    fails, out of memory for one, leaves its error in its row. A compiled graph serves all numbers of tokens."""
    ends = time.perf_counter() + seconds
    bandwidth = copy_bandwidth(device, copied)
    results = {"copy_gb_per_s": bandwidth, "liger": liger_jsd("jsd") is not None, "skipped": 0, "rows": []}
    print(f"copy {bandwidth:.0f} GB/s; {'Liger is installed' if results['liger'] else 'no Liger'}\n")
    print("   divergence  dtype        V       N   method       ms    of copy   peak / inputs", flush=True)
    for name, V, dtype, kind in itertools.product(METHODS, columns, (torch.float32, torch.bfloat16), KINDS):
        if (function := method(name, kind)) is None:
            continue
        for N in tokens:
            if time.perf_counter() > ends:
                results["skipped"] += 1
                continue
            case = {"divergence": kind, "dtype": str(dtype)[6:], "V": V, "N": N, "method": name}
            try:
                student, teacher = logits(N, V, 1.0, device=device, dtype=dtype)
                for x in (student, teacher):
                    torch._dynamo.maybe_mark_dynamic(x, 0)
                case |= measured(function, student, teacher, torch.rand(N, device=device), bandwidth)
            except Exception as e:
                # of whichever compiler or allocator
                case["error"] = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"[:200]
            student = teacher = None
            results["rows"].append(case)
            keep(results)
            print(row_of(case), flush=True)
    if results["skipped"]:
        print(f"   the time is up: {results['skipped']} cases were skipped")
    return results


def row_of(case):
    """A row of bench_gpu as a line."""
    text = f"   {case['divergence']:<11}{case['dtype']:<9}{case['V']:>7}{case['N']:>8}   {case['method']:<9}"
    if "error" in case:
        return text + f"   {case['error']}"
    peak = "" if case["peak_over_inputs"] is None else f"{case['peak_over_inputs']:12.2f}"
    return text + f"{case['ms']:7.2f}{case['share_of_copy']:9.2f}{peak}"


def main():
    device = "gpu" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=f"results/kernel_{device}.json",
                        help="where the JSON goes (default: %(default)s)")
    parser.add_argument("--linear", type=int, nargs=2, metavar=("V", "CHUNK"),
                        help="measure one linear loss here (used by the program itself)")
    args = parser.parse_args()
    if args.linear:
        print(json.dumps(linear_in_this_process(*args.linear)))
        return

    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
                            cwd=os.path.dirname(os.path.abspath(__file__))).stdout.strip()
    if device == "gpu":
        machine = torch.cuda.get_device_name()
    else:
        machine = f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    about = {
        "command": "python tests/bench_kernel.py",
        "commit": commit or "unknown",
        "machine": machine,
        "torch": torch.__version__,
        "triton": triton.__version__ if triton else None,
        "python": platform.python_version(),
    }
    print(f"{machine}, torch {torch.__version__}\n")
    results = about | (bench_gpu() if device == "gpu" else bench_cpu())
    os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
    with open(args.out, "w") as f:
        json.dump(results, f, indent=1)
    print(f"\nwritten to {args.out}")


if __name__ == "__main__":
    main()
