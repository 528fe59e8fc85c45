"""Every experiment behind a figure of this project: a table of runs of train.py, two at a time; what is done is skipped.

    python evidence.py                 all of them, hours on two cores; stop it and start it again as you like
    python evidence.py ema --seeds 1   some of them
    python evidence.py --quick         one seed of a reduced set, some minutes

A run is a folder out/evidence/<experiment>/<seed>/<name>. What the runs found goes to results/runs.json, one line each.
"""
import argparse
import dataclasses
import functools
import glob
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

from data import World
from eval import draw, fail, load_checkpoint, read_json, read_runs
from train import base_path, parse

HEADLINE, ABLATION, TUNING = range(6), range(3), [100]      # seeds of base model, world and stream; nothing tuned is reported on its own seed
RATES = [(0.001, 3), (0.001, 10), (0.001, 30), (0.001, 100), (0.01, 30), (0.03, 30), (0.1, 30)]           # (lr, embed_lr)
STRENGTHS = {"self-replay": [0.01, 0.03, 0.1, 0.3, 1, 3, 10], "lwf": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1],
             "l2": [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1], "ewc": [1e1, 1e2, 3e2, 1e3, 1e4, 1e5, 1e6]}


def trials() -> dict:
    """Seven trials for each method: of its rates or, with a penalty, of its strength at SFT's rates. Five tasks."""
    methods = {"sft": "--method sft", "sdft": "", "off-policy": "--off-policy", "sft+replay": "--method sft --penalty replay"}
    plan = {f"{name} lr {lr:g} embed {embed}": f"{options} --lr {lr} --embed-lr {embed}" for name, options in methods.items() for lr, embed in RATES}
    for method, penalty in [("sdft", "self-replay"), *(("sft", p) for p in STRENGTHS)]:
        plan |= {f"{method}+{penalty} {s:g}": f"--method {method} --penalty {penalty} --strength {s}" for s in STRENGTHS[penalty]}
    return {name: f"{options} --tasks 5" for name, options in plan.items()}


SIZES = {"0.3M": "--n-embd 64 --n-head 2", "0.8M": "", "3.7M": "--n-layer 4 --n-embd 256 --n-head 8"}
# models that read demonstrations less and less badly
READING = {f"{n} steps": f"--pretrain-steps {n}" for n in (100, 150, 200, 400, 1800)}
# {what makes a base model, besides its seed: seconds that it takes beside another}
PRETRAINING = {"": 300, SIZES["0.3M"]: 150, SIZES["3.7M"]: 1200} | {f"--pretrain-steps {n}": n / 6 for n in (100, 150, 200, 400)}
ROOT = os.path.join("out", "evidence")
CALENDAR = f"--init {ROOT}/base/{{seed}} --demos " + " ".join(sorted(glob.glob("examples/calendar/*.jsonl")))
# experiment: (seeds, {name of the run: options of train.py})
EXPERIMENTS = {
    "tune": (TUNING, trials()),
    "tune-f0": (TUNING, {f"{method} f0 {f0:g}": f"--method {method} --lr 0.001 --f0 {f0} --tasks 20" for method in ("sdft", "sft") for f0 in (1e-2, 1e-3, 1e-4, 1e-5)}),
    "twenty": (HEADLINE, {
        "sft": "--method sft --tasks 20",
        "sdft": "--tasks 20",
        "sdft+self-replay": "--penalty self-replay --tasks 20",
        "sdft+self-replay where needed": "--penalty self-replay --when needed --tasks 20"}),
    "rates": (HEADLINE, {f"{method} lr {lr:g} embed {embed}": f"--method {method} --lr {lr} --embed-lr {embed} --tasks 20"
                         for method, lr, embed in (("sft", 0.001, 30), ("sft", 0.001, 10), ("sdft", 0.03, 30), ("sdft", 0.001, 10))}),        # each other's, and slower ones
    "ten": (ABLATION, {"sft": "--method sft", "sdft": "", "sdft+self-replay": "--penalty self-replay"}),       # what the runs of ten tasks below differ from
    "market": (HEADLINE, {"sft": "--method sft --stream market", "sdft": "--stream market"}),
    "baselines": (ABLATION, {
        **{f"sft+replay {share:.0%}": f"--method sft --penalty replay --strength {share} --lr 0.1" for share in (0.01, 0.05, 0.1)},
        **{f"sft+{penalty}": f"--method sft --penalty {penalty}" for penalty in STRENGTHS},
        "off-policy": "--off-policy",
        "joint": "--method joint"}),
    "variants": (ABLATION, {
        "reverse": "--divergence reverse",
        "jsd": "--divergence jsd",
        "sft own voice": "--method sft --voice own",
        "sdft own voice": "--voice own",
        "sdft 1 other shown": "--shown 1 --guard 0",        # a teacher that cannot answer is what is tested here
        "sdft 4 others shown": "--shown 4 --guard 0",
        "sdft all rows alike": "--f0 inf"}),
    "interference": (HEADLINE, {                            # twenty tasks, in which what the tasks share moves less
        "sft lr 0.001 f0 0.0001": "--method sft --lr 0.001 --f0 0.0001 --tasks 20",
        "sdft f0 0.0001": "--f0 0.0001 --tasks 20",
        "sdft+self-replay f0 0.0001": "--penalty self-replay --f0 0.0001 --tasks 20",
        "sdft lr 0.0001": "--lr 0.0001 --tasks 20"}),
    "ema": (ABLATION, {f"ema {decay:g}": f"--ema-decay {decay}" for decay in (0, 0.9, 0.95, 0.99, 0.995, 1)}),
    "calendar": (ABLATION, {f"{method} lr {lr:g} embed {embed} f0 {f0:g}": f"--method {method} {CALENDAR} --lr {lr} --embed-lr {embed} --f0 {f0}"
                            for method in ("sft", "sdft") for lr, embed, f0 in ((0.001, 30, 0.001), (0.0001, 100, 0.0001))}
                 | {"sdft frozen teacher": f"{CALENDAR} --lr 0.0001 --embed-lr 100 --f0 0.0001 --ema-decay 1"}),
    "demonstrations": (ABLATION, {f"{method} {n}": f"--method {method} --demonstrations {n} --tasks 5"
                                  for n in (16, 32, 64, 128, 256, 512) for method in ("sft", "sdft")}),
    "alpha": (ABLATION, {f"alpha {a / 10:g}": f"--alpha {a / 10}" for a in range(1, 10)} | {"alpha 1": "--alpha 1 --steps 300 --lr 0.03"}),     # SFT's
    "sizes": (ABLATION, {f"{method} {size}": f"--method {method} --lr 0.001 --tasks 5 {options}"
                         for size, options in SIZES.items() for method in ("sft", "sdft")}),
    "reading": (ABLATION, {f"{method} {steps}": f"--method {method} --lr 0.001 --tasks 5 --guard 0 {options}"
                           for steps, options in READING.items() for method in ("sft", "sdft")}),
}
PICTURE = ["sft", "sdft", "sdft+self-replay"]               # the runs in the README's first picture
QUICK = {"twenty": ["sft", "sdft", "sdft+self-replay"], "market": ["sft", "sdft"], "baselines": ["off-policy"], "variants": ["sft own voice"]}


def plan(names, quick, seeds=None) -> list:
    """[(experiment, seed, name, options)], in the order in which they run."""
    if quick:
        return [(e, 0, name, EXPERIMENTS[e][1][name].replace("--tasks 20", "") + " --tasks 5" * (e != "market")) for e, chosen in QUICK.items() for name in chosen]
    return [(e, seed, name, options) for e in names for seed in EXPERIMENTS[e][0][:seeds] for name, options in EXPERIMENTS[e][1].items()]


def is_done(folder, seed, options) -> bool:
    """Whether what a run makes is there: a result or, of a base model, the model. What was made with other options than these is of an older plan, and
    removed."""
    result, checkpoint = (os.path.join(folder, name) for name in ("result.json", "checkpoint.pt"))
    for path, read in ((result, read_json), (checkpoint, load_checkpoint)):
        if os.path.exists(path):
            if settings(read(path)["settings"]) != planned(options, seed):
                shutil.rmtree(folder)
            break
    config = as_planned(options, seed)
    if config.method == "base":
        return os.path.exists(checkpoint) and "pretraining" not in load_checkpoint(checkpoint) and os.path.exists(base_path(config, World(seed)))
    return os.path.exists(result)


def run(folder, seed, options) -> int:
    """The exit status of one run, in a process of its own with one thread: two of them side by side are faster than one with two. It goes on from its checkpoint."""
    os.makedirs(folder, exist_ok=True)
    resume = ["--resume"] if os.path.exists(os.path.join(folder, "checkpoint.pt")) else [*options.format(seed=seed).split(), "--seed", str(seed)]
    with open(os.path.join(folder, "output.txt"), "a") as output:
        done = subprocess.run([sys.executable, "train.py", *resume, "--out", folder, "--threads", "1"], stdout=output, stderr=output)
    if done.returncode:
        print(f"{folder}: exit status {done.returncode}, see output.txt in it; the others go on", file=sys.stderr, flush=True)
    return done.returncode


def expected(jobs) -> dict:
    """{folder: seconds that its run should take beside another}: what the same run took when results/runs.json was made; of one that is not in it, the
    mean of all; of base models, by their size."""
    path = os.path.join("results", "runs.json")
    took = {}
    for row in read_json(path)["runs"] if os.path.exists(path) else []:
        took.setdefault((row["experiment"], row["name"]), []).append(row["wall_seconds"])
    usual = statistics.mean([s for times in took.values() for s in times] or [100])
    return {folder: PRETRAINING.get(key) or statistics.mean(took.get(key, [usual])) for folder, _, _, key in jobs}


def settings(config: dict) -> dict:
    """What tells one run from another, as JSON has it (no tuples)."""
    return json.loads(json.dumps(config | {"out": "", "resume": False, "threads": 0}))


def as_planned(options, seed):
    """The Config of a run in the plan."""
    return parse([*options.format(seed=seed).split(), "--seed", str(seed)])


@functools.cache                                           # `gather` asks for all of them after every run
def planned(options, seed) -> dict:
    return settings(dataclasses.asdict(as_planned(options, seed)))


def kind_of_base(options) -> str:
    """The options that a base model depends on, besides the seed."""
    return next((kind for kind in PRETRAINING if kind and kind in options), "")


def digest(result) -> dict:
    """What the tables and claims need of a result, in one line of JSON."""

    def short(x):
        return [short(v) for v in x] if isinstance(x, list) else {k: short(v) for k, v in x.items()} if isinstance(x, dict) else \
            round(x, 4) if isinstance(x, float) else x

    kept = ("method", "commit", "families", "gates", "R", "base_accuracy", "voice", "teacher_accuracy", "neighbours", "drift_base", "drift_new",
            "steps", "regularised", "generated_tokens", "guard_trips", "seconds", "wall_seconds")
    return short({k: result[k] for k in kept} | {"base_by_kind": [result["base_by_kind"][0], result["base_by_kind"][-1]]})


def gather(root, results):
    """results/runs.json: what all finished runs under `root` found; rows of runs that are not here any more stay. And the first picture."""
    path = os.path.join(results, "runs.json")
    rows = {(r["experiment"], r["seed"], r["name"]): r for r in (read_json(path)["runs"] if os.path.exists(path) else [])}
    about = {}
    for experiment, (seeds, options) in EXPERIMENTS.items():
        for key in ((experiment, seed, name) for seed in seeds for name in options):
            done = os.path.join(root, *map(str, key), "result.json")
            if os.path.exists(done):
                result = read_json(done)
                if settings(result["settings"]) != planned(options[key[2]], key[1]):
                    rows.pop(key, None)                    # of an older plan: the command would not make it
                    continue
                rows[key] = {"experiment": experiment, "seed": key[1], "name": key[2], **digest(result),
                             "command": f"python train.py {options[key[2]].format(seed=key[1])} --seed {key[1]}"}       # also of a run that was resumed
                about = {k: result[k] for k in ("versions", "machine")}
    order = [(e, seed, name) for e, (seeds, options) in EXPERIMENTS.items() for seed in seeds for name in options]
    if not rows:
        return
    about = about or {k: read_json(path)[k] for k in ("versions", "machine")}
    lines = ",\n".join(json.dumps(rows[key]) for key in order if key in rows)
    with open(path + ".part", "w") as f:
        f.write(json.dumps({"command": "python evidence.py", **about})[:-1] + f', "runs": [\n{lines}\n]}}\n')
    os.replace(path + ".part", path)
    folder = os.path.join(root, "twenty", "0")
    if all(os.path.exists(os.path.join(folder, name, "result.json")) for name in PICTURE):
        draw({name: run for name, run in read_runs(folder).items() if name in PICTURE}, os.path.join(results, "forgetting.png"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"which of {', '.join(EXPERIMENTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="one seed of a reduced set")
    parser.add_argument("--seeds", type=int, help="the first so many seeds of each experiment (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs side by side, a thread each (default: the cores)")
    args = parser.parse_args()
    if unknown := set(args.experiments) - set(EXPERIMENTS):
        parser.error(f"no experiment is called {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    if args.quick and (args.experiments or args.seeds is not None):
        parser.error("--quick is a set of its own: leave experiments and --seeds out")
    for name in ("seeds", "jobs"):
        if (given := getattr(args, name)) is not None and given < 1:
            parser.error(f"--{name} {given}: must be 1 or more")
    root = os.path.join("out", "quick") if args.quick else ROOT
    todo = [(os.path.join(root, e, str(seed), name), seed, options, (e, name))
            for e, seed, name, options in plan(args.experiments or list(EXPERIMENTS), args.quick, args.seeds)]
    waiting = [job for job in todo if not is_done(*job[:3])]
    # Base models first: two runs must not make the same one twice.
    kinds = list(dict.fromkeys((seed, kind_of_base(options)) for _, seed, options, _ in waiting))
    bases = [(os.path.join(root, "base", f"{seed} {kind}".strip()), seed, f"--method base {kind}", kind) for seed, kind in kinds]
    bases = [job for job in bases if not is_done(*job[:3])]
    guess = expected([*bases, *waiting])
    print(f"{len(bases)} base models and {len(waiting)} of {len(todo)} runs to make, {args.jobs} side by side: about {sum(guess.values()) / args.jobs / 60:.0f} min "
          "where results/runs.json was made", flush=True)
    pool, began, finished, failed = ThreadPoolExecutor(args.jobs), time.perf_counter(), 0, 0
    try:
        for jobs in (bases, waiting):
            futures = {pool.submit(run, *job[:3]): job for job in jobs}
            for future in as_completed(futures):
                folder = futures[future][0]
                failed += future.result() != 0
                finished += guess[folder]
                left = max(0, sum(guess.values()) - finished)
                print(f"{os.path.relpath(folder, root)} | about {(time.perf_counter() - began) * left / finished / 60:.0f} min left", flush=True)
                if jobs is waiting and not args.quick:
                    gather(root, "results")
        if not (args.quick or waiting):
            gather(root, "results")
    except KeyboardInterrupt:                              # the runs at work have saved themselves; those that wait must not begin
        fail("stopped; what is done stays, and the same command goes on")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if failed:
        fail(f"{failed} runs ended with an error (above); the same command tries them again")


if __name__ == "__main__":
    main()
