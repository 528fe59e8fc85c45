"""Does a long run need more and more memory? And is what a run says of the time that is left true?

    python tests/long_run.py                          10,000 steps of a tiny run; writes results/memory.json, exit
                                                      status 1 if its memory grows
    python tests/long_run.py --left out/*/log.jsonl   how far the logs of finished runs were wrong about the time that
                                                      was left

Tiny, since a leak is a matter of steps, not of size: what each step leaves behind adds up whether the model is large or
small. The first 2,000 steps do not count: until then the caches find their size (oneDNN's grow with every new shape of
a batch).

The peak, which the log holds, is what a run needs. Alone it could hide a leak: what the allocator has kept is filled
before the peak moves. So every 1,000 steps the allocator is told to give back what is free, and what the process holds
then is measured as well; of that 10 KB a step show at once.
"""
import argparse
import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from statistics import median

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "lab")]

STEPS, EVERY = 10_000, 1_000      # steps of the run, and steps between two figures of results/memory.json
FROM, MOST = 2_000, 2.0           # growth is counted from this step on; more percent than that is a leak
BASE = "--n-layer 1 --n-head 2 --n-embd 16 --steps 200 --docs 16 --threads 1 --device cpu --out base"
OPTIONS = ("--init base --demos world/tasks/01-update.jsonl --keep world/keep.jsonl --reading world/reading.jsonl "
           f"--steps {STEPS} --converged 0 --watch-every 100 --guard 0 --batch-size 8 --threads 1 --device cpu "
           "--out run")
MINUTE = 60.0


def held_mb():
    """What the process holds when all that is free has been given back; None where there is no glibc to be told so."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/statm") as f:
            return round(int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024**2, 1)
    except (AttributeError, OSError):
        return None


def growth(mb: dict, first=FROM) -> float:
    """Percent by which memory has grown from step `first` to the last.

    >>> growth({1000: 90, 2000: 100, 3000: 103})
    3.0
    """
    return round(100 * (mb[max(mb)] - mb[first]) / mb[first], 2)


def lines_of(log) -> list:
    """The lines of the steps in a log: those before say what the run is; one that is half written does not count."""
    with open(log) as f:
        return [json.loads(line) for line in f if line.endswith("\n") and '"step"' in line]


def long_run() -> dict:
    """{"peak_mb" and, where it can be measured, "held_mb": {step: MB}}."""
    import pretrain
    import runs
    import train
    import world

    held, step = {}, runs.Log.step

    def measured(log, record, *rest):
        step(log, record, *rest)
        if record["step"] % EVERY == 0:
            held[record["step"]] = held_mb()

    world.main(["--tasks", "1", "--out", "world"])
    pretrain.main(BASE.split())
    runs.Log.step = measured
    train.main(OPTIONS.split())
    peak = {line["step"]: line["peak_mb"] for line in lines_of("run/log.jsonl") if line["step"] % EVERY == 0}
    return {"peak_mb": peak} | ({"held_mb": held} if all(held.values()) else {})


def errors_of_left(lines) -> list:
    """|told - true| / true of the seconds that are left, at each line of a finished run's log after its first minute
    and before its last: in the first one there is little to tell from, and in the last one a second counts too much.

    >>> errors_of_left([{"seconds": s, "left": left} for s, left in ((30, 500), (100, 90), (140, 45), (200, 0))])
    [0.1]
    """
    end = lines[-1]["seconds"]
    told = [(line["left"], end - line["seconds"]) for line in lines if line["seconds"] > MINUTE]
    return [abs(said - true) / true for said, true in told if true > MINUTE]


def report_left(logs):
    """A line for each log of a finished run, and one for all."""
    every = []
    for log in logs:
        if os.path.exists(os.path.join(os.path.dirname(log), "result.json")):
            errors = errors_of_left(lines_of(log))
            every += errors
            print(f"{log}: {in_words(errors)}")
    print(f"all: {in_words(every)}")


def in_words(errors) -> str:
    if not errors:
        return "too short: no line counts"
    return f"{len(errors)} lines, median {median(errors):.0%}, worst {max(errors):.0%}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", nargs="+", metavar="LOG",
                        help="only report how true the time that is left was, in these logs")
    parser.add_argument("--out", default=os.path.join(ROOT, "results", "memory.json"), help="the file that is written")
    args = parser.parse_args()
    if args.left:
        return report_left(args.left)
    out = os.path.abspath(args.out)
    began, home = time.perf_counter(), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        measured = long_run()
        os.chdir(home)
    import runs

    grown = {name: growth(mb) for name, mb in measured.items()}
    runs.write_json(out, {
        **runs.provenance(), "command": "python tests/long_run.py", "base": BASE, "options": OPTIONS, **measured,
        "growth_percent": grown, "from_step": FROM, "to_step": STEPS})
    print(f"{measured}: growth {grown} % from step {FROM} to {STEPS}, in {time.perf_counter() - began:.0f} s")
    sys.exit(any(percent > MOST for percent in grown.values()))


if __name__ == "__main__":
    main()
