"""Time and memory of the divergence operator and of the chunked linear loss; prints a table and writes it as JSON.

    python tests/bench_kernel.py [--out results/kernel_cpu.json]

On a GPU: the operator, forward and backward, beside the formulas in eager PyTorch, the same under torch.compile, and
Liger's JSD kernel where it is installed; bytes a second are those of reading both logits once and writing the gradient,
over what a plain copy moves. On a CPU: the operator beside the formulas at the size of train.py, and the chunked linear
loss beside the loss on whole logits.
"""
import argparse
import functools
import json
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

def milliseconds(function, rounds=20):
    for _ in range(3):
        function()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


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


def copy_bandwidth():
    """GB/s of a plain copy, reading and writing."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / milliseconds(functools.partial(target.copy_, source)) / 1e6


def bench_gpu():
    bandwidth = copy_bandwidth()
    print(f"copy {bandwidth:.0f} GB/s; {'no Liger' if liger_jsd('jsd') is None else 'Liger is installed'}\n")
    print("   divergence  dtype        V       N   method       ms    of copy   peak / inputs")
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for columns in (512, 4096, 32000, 50257, 50304, 128256, 262144):
            tokens = max(64, 2**28 // columns)
            student, teacher = logits(tokens, columns, 1.0, device="cuda", dtype=dtype)
            weight = torch.rand(tokens, device="cuda")
            size = student.numel() * student.element_size()
            for kind in KINDS:
                torch._dynamo.reset()

                def plain(s, t, kind=kind):
                    return divergence_reference(s.float(), t.float(), kind)

                methods = {
                    "kernel": lambda s, t, kind=kind: token_divergence(s, t, kind),
                    "eager": plain,
                    "compiled": torch.compile(plain),
                    "liger": liger_jsd(kind),
                }
                for name, function in methods.items():
                    if function is None:
                        continue
                    try:
                        ms = milliseconds(functools.partial(forward_backward, function, student, teacher, weight))
                        student.grad = None
                        torch.cuda.reset_peak_memory_stats()
                        before = torch.cuda.memory_allocated()
                        forward_backward(function, student, teacher, weight)
                        peak = (torch.cuda.max_memory_allocated() - before) / (2 * size)
                    except torch.cuda.OutOfMemoryError:
                        print(f"   {kind} {dtype} {columns} {name}: out of memory")
                        continue
                    share = 3 * size / ms / 1e6 / bandwidth
                    case = {"divergence": kind, "dtype": str(dtype)[6:], "V": columns, "N": tokens, "method": name}
                    rows.append(case | {"ms": ms, "share_of_copy": share, "peak_over_inputs": peak})
                    print(f"   {kind:<11}{str(dtype)[6:]:<9}{columns:>7}{tokens:>8}   "
                          f"{name:<9}{ms:7.2f}{share:9.2f}{peak:12.2f}")
    return {"copy_gb_per_s": bandwidth, "liger": liger_jsd("jsd") is not None, "rows": rows}


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
