"""Does a long run need more and more memory? And is what a run says of the time that is left true?

    python tests/long_run.py                          10,000 steps of a tiny run; writes results/memory.json, exit status 1 if the memory grows
    python tests/long_run.py --left out/*/log.jsonl   how far the logs of finished runs were wrong about the time that is left

Tiny, since a leak is a matter of steps, not of size: what each step leaves behind adds up whether the model is large or small. The first 2,000
steps do not count: until then allocator and caches find their size.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

STEPS, EVERY = 10_000, 1_000                               # steps of the run, and steps between two figures of results/memory.json
FROM, MOST = 2_000, 2.0                                    # growth is counted from this step on; more percent than that is a leak
OPTIONS = (f"--tasks 1 --steps {STEPS} --converged 0 --watch-every 100 --guard 0 --n-layer 1 --n-head 2 --n-embd 16 --pretrain-steps 200 --pretrain-docs 16 "
           "--batch-size 8 --threads 1 --device cpu")
MINUTE = 60.0


def lines_of(log) -> list:
    """The lines of the steps in a log: what comes before them is what the run is, and a line that is half written does not count."""
    with open(log) as f:
        return [json.loads(line) for line in f if line.endswith("\n") and '"step"' in line]


def growth(peak: dict, first=FROM) -> float:
    """Percent by which the peak has grown from step `first` to the last.

    >>> growth({1000: 90, 2000: 100, 3000: 103})
    3.0
    """
    return 100 * (peak[max(peak)] - peak[first]) / peak[first]


def errors_of_left(lines) -> list:
    """|told - true| / true of the seconds that are left, at each line of a finished run's log after its first minute and before its last: in
    the first one there is little to tell from, and in the last one a second counts too much.

    >>> errors_of_left([{"seconds": s, "left": left} for s, left in ((30, 500), (100, 90), (140, 45), (200, 0))])
    [0.1]
    """
    end = lines[-1]["seconds"]
    told = [(line["left"], end - line["seconds"]) for line in lines if line["seconds"] > MINUTE]
    return [abs(said - true) / true for said, true in told if true > MINUTE]


def report_left(logs):
    """A line for each log: of how many lines, the median and the worst error."""
    every = []
    for log in logs:
        errors = errors_of_left(lines) if (lines := lines_of(log)) else []
        every += errors
        print(f"{log}: " + (f"{len(errors)} lines, median {median(errors):.0%}, worst {max(errors):.0%}" if errors else "too short: no line counts"))
    if every:
        print(f"all: {len(every)} lines, median {median(every):.0%}, worst {max(every):.0%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", nargs="+", metavar="LOG", help="logs of finished runs: only report how true the time that is left was")
    args = parser.parse_args()
    if args.left:
        return report_left(args.left)
    import train

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, os.path.join(ROOT, "train.py"), *OPTIONS.split(), "--out", "run"]
        if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
            sys.exit(1)
        lines = lines_of(os.path.join(folder, "run", "log.jsonl"))
    peak = {line["step"]: line["peak_mb"] for line in lines if line["step"] % EVERY == 0}
    grown = growth(peak)
    about = train.provenance() | {"command": "python tests/long_run.py"}
    train.write_json(os.path.join(ROOT, "results", "memory.json"), {
        **about, "options": OPTIONS, "peak_mb": peak, "growth_percent": round(grown, 2), "from_step": FROM, "to_step": STEPS})
    print(f"peak MB {peak}: {grown:+.1f} % from step {FROM} to {STEPS}, in {time.perf_counter() - began:.0f} s")
    sys.exit(grown > MOST)


if __name__ == "__main__":
    main()
