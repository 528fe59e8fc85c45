"""Every experiment behind a figure of this project: a table of runs of train.py; what is done is skipped.

    python lab/evidence.py                 all of them, hours on two cores; stop it and start it again as you like
    python lab/evidence.py ema --seeds 1   some of them
    python lab/evidence.py --quick         one seed of a reduced set, some minutes

A run is a folder out/evidence/<experiment>/<seed>/<name>; the base models and worlds that they share lie beside them.
What the runs found goes to results/runs.json, one line each; lab/claims.py makes verdicts, tables and pictures of it.
"""
import argparse
import dataclasses
import functools
import glob
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

HOUSE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(1, HOUSE)
import pretrain
import train
import world
from eval import draw, read_runs
from runs import BadInput, ends_in_one_line, load_checkpoint, read_json, replacing

# ---------------------------------------------------------------------------------------------------------------------
# The plan. A run's options are those of train.py and, mixed with them, those of lab/world.py for its files and of
# lab/pretrain.py for its base model; `part` tells them apart.

HEADLINE, ABLATION = range(6), range(3)                     # seeds of base model, world and training
TUNING = [100]                                              # nothing tuned is reported on its own seed
RATES = [(0.001, 3), (0.001, 10), (0.001, 30), (0.001, 100), (0.01, 30), (0.03, 30), (0.1, 30)]  # (lr, embed_lr)
STRENGTHS = {"self-replay": [0.01, 0.03, 0.1, 0.3, 1, 3, 10], "lwf": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1],
             "l2": [1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1], "ewc": [1e1, 1e2, 3e2, 1e3, 1e4, 1e5, 1e6]}
OF_THE_WORLD = ("--tasks", "--stream", "--demonstrations", "--voice")
OF_THE_BASE = {"--n-layer": "--n-layer", "--n-head": "--n-head", "--n-embd": "--n-embd", "--pretrain-steps": "--steps"}


def trials() -> dict:
    """Seven trials for each method: of its rates or, with a penalty, of its strength at SFT's rates. Five tasks."""
    methods = {"sft": "--method sft", "sdft": "", "off-policy": "--sampler teacher",
               "sft+replay": "--method sft --penalty replay"}
    plan = {}
    for name, options in methods.items():
        for lr, embed in RATES:
            plan[f"{name} lr {lr:g} embed {embed}"] = f"{options} --lr {lr} --embed-lr {embed}"
    for method, penalty in [("sdft", "self-replay"), *(("sft", p) for p in STRENGTHS)]:
        for s in STRENGTHS[penalty]:
            plan[f"{method}+{penalty} {s:g}"] = f"--method {method} --penalty {penalty} --strength {s}"
    return {name: f"{options} --tasks 5" for name, options in plan.items()}


SIZES = {"0.3M": "--n-embd 64 --n-head 2", "0.8M": "", "3.7M": "--n-layer 4 --n-embd 256 --n-head 8"}
# They read less and less badly; 1,800 steps are what all other base models have.
READING = {f"{n} steps": f"--pretrain-steps {n}" for n in (100, 150, 200, 400)} | {"1800 steps": ""}
CALENDAR = "--tasks 0 --demos " + " ".join(sorted(glob.glob("examples/calendar/*.jsonl")))
CALENDAR_RATES = [(0.001, 30, 0.001), (0.0001, 100, 0.0001)]                                # (lr, embed_lr, f0)
OTHER_RATES = [("sft", 0.001, 30), ("sft", 0.001, 10), ("sdft", 0.03, 30), ("sdft", 0.001, 10)]
METHODS = ("sft", "sdft")

# experiment: (seeds, {name of the run: its options})
EXPERIMENTS = {
    "tune": (TUNING, trials()),
    "tune-f0": (TUNING, {
        f"{method} f0 {f0:g}": f"--method {method} --lr 0.001 --f0 {f0} --tasks 20"
        for method in ("sdft", "sft") for f0 in (1e-2, 1e-3, 1e-4, 1e-5)}),
    "twenty": (HEADLINE, {
        "sft": "--method sft --tasks 20",
        "sdft": "--tasks 20",
        "sdft+self-replay": "--penalty self-replay --tasks 20",
        "sdft+self-replay where needed": "--penalty self-replay --when needed --tasks 20"}),
    "rates": (HEADLINE, {                                   # each other's, and slower ones
        f"{method} lr {lr:g} embed {embed}": f"--method {method} --lr {lr} --embed-lr {embed} --tasks 20"
        for method, lr, embed in OTHER_RATES}),
    "ten": (ABLATION, {                                     # what the runs of ten tasks below differ from
        "sft": "--method sft",
        "sdft": "",
        "sdft+self-replay": "--penalty self-replay"}),
    "market": (HEADLINE, {
        "sft": "--method sft --stream market",
        "sdft": "--stream market"}),
    "baselines": (ABLATION, {
        **{f"sft+replay {share:.0%}": f"--method sft --penalty replay --strength {share} --lr 0.1"
           for share in (0.01, 0.05, 0.1)},
        **{f"sft+{penalty}": f"--method sft --penalty {penalty}" for penalty in STRENGTHS},
        "off-policy": "--sampler teacher",
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
    "calendar": (ABLATION, {
        **{f"{method} lr {lr:g} embed {embed} f0 {f0:g}":
           f"--method {method} {CALENDAR} --lr {lr} --embed-lr {embed} --f0 {f0}"
           for method in METHODS for lr, embed, f0 in CALENDAR_RATES},
        "sdft frozen teacher": f"{CALENDAR} --lr 0.0001 --embed-lr 100 --f0 0.0001 --ema-decay 1"}),
    "demonstrations": (ABLATION, {
        f"{method} {n}": f"--method {method} --demonstrations {n} --tasks 5"
        for n in (16, 32, 64, 128, 256, 512) for method in METHODS}),
    "alpha": (ABLATION, {
        **{f"alpha {a / 10:g}": f"--alpha {a / 10}" for a in range(1, 10)},
        "alpha 1": "--alpha 1 --steps 300 --lr 0.03"}),     # SFT's
    "sizes": (ABLATION, {
        f"{method} {size}": f"--method {method} --lr 0.001 --tasks 5 {options}"
        for size, options in SIZES.items() for method in METHODS}),
    "reading": (ABLATION, {
        f"{method} {steps}": f"--method {method} --lr 0.001 --tasks 5 --guard 0 {options}"
        for steps, options in READING.items() for method in METHODS}),
}
PICTURE = ["sft", "sdft", "sdft+self-replay"]               # the runs in the README's first picture
QUICK = {"twenty": ["sft", "sdft", "sdft+self-replay"], "market": ["sft", "sdft"], "baselines": ["off-policy"],
         "variants": ["sft own voice"]}
# {what makes a base model, besides its seed: seconds that it takes beside another}
PRETRAINING = {"": 300, SIZES["0.3M"]: 150, SIZES["3.7M"]: 1200}
PRETRAINING |= {f"--pretrain-steps {n}": n / 6 for n in (100, 150, 200, 400)}


def plan(names, quick, seeds=None) -> list:
    """[(experiment, seed, name, options)], in the order in which they run."""
    if not quick:
        return [(e, seed, name, options) for e in names for seed in EXPERIMENTS[e][0][:seeds]
                for name, options in EXPERIMENTS[e][1].items()]
    jobs = []
    for e, chosen in QUICK.items():
        for name in chosen:
            options = EXPERIMENTS[e][1][name].replace("--tasks 20", "") + " --tasks 5" * (e != "market")
            jobs.append((e, 0, name, options))
    return jobs


# ---------------------------------------------------------------------------------------------------------------------
# One run: a base model, a world, and the command that teaches it.


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of the plan, or what one needs, as a command in a folder of its own."""

    folder: str
    program: str                  # lab/pretrain.py, lab/world.py or train.py
    options: str                  # with patterns of files as a shell would expand them
    key: tuple                    # (experiment, name) of a run; ("base", kind) of a base model

    def words(self) -> list[str]:
        """The options, patterns expanded. One whose pattern matches nothing is left out: few worlds have neighbours."""
        found = []
        for word in self.options.split():
            if "*" not in word:
                found.append(word)
            elif files := sorted(glob.glob(word)):
                found += files
            else:
                found.pop()
        return found


def part(options) -> tuple[str, str, str]:
    """The options of train.py, of lab/world.py, and of lab/pretrain.py in those of a run.

    >>> part("--method sft --tasks 5 --pretrain-steps 100 --lr 0.1")
    ('--method sft --lr 0.1', '--tasks 5', '--pretrain-steps 100')
    """
    parts, into = ([], [], []), 0
    for word in options.split():
        if word.startswith("--"):
            into = 1 if word in OF_THE_WORLD else 2 if word in OF_THE_BASE else 0
        parts[into].append(word)
    return tuple(" ".join(words) for words in parts)


def jobs_of(root, experiment, seed, name, options) -> tuple[Job, Job, Job]:
    """What a run of the plan takes: base model, world, and the run itself."""
    taught, of_world, of_base = part(options)

    def shared(kind, more):
        return os.path.join(root, kind, re.sub(r"[ -]+", "-", f"{seed} {more}").strip("-"))

    base, files = shared("base", of_base), shared("world", of_world)
    steps = " ".join(OF_THE_BASE.get(word, word) for word in of_base.split())
    given = f"--init {base}"
    if "--demos" not in taught:
        given += f" --demos {files}/tasks/*.jsonl --neighbours {files}/neighbours*.jsonl"
    given += f" --keep {files}/keep.jsonl --reading {files}/reading.jsonl"
    run = os.path.join(root, experiment, str(seed), name)
    return (Job(base, "lab/pretrain.py", f"{steps} --seed {seed}".strip(), ("base", of_base)),
            Job(files, "lab/world.py", f"{of_world} --seed {seed}".strip(), ("world", of_world)),
            Job(run, "train.py", f"{given} {taught} --seed {seed}".replace("  ", " "), (experiment, name)))


def command(job) -> str:
    """As one would type it."""
    return f"python {job.program} {job.options} --out {shlex.quote(job.folder)}"


def markdown(header, rows, left=1) -> str:
    """A table; its first columns (`left` of them) are aligned to the left, the others to the right."""
    lines = [header, ["---" if i < left else "---:" for i in range(len(header))], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def settings(config: dict) -> dict:
    """What tells one run from another, as JSON has it (no tuples): all but the machine's."""
    machines = {"out": "", "resume": False, "threads": 0, "device": "", "bf16": False, "save_every": 0}
    return json.loads(json.dumps(config | machines))


@functools.cache                                            # `gather` asks for all of them after every run
def planned(job) -> dict:
    return settings(dataclasses.asdict(train.parse(job.words())))


def is_as_planned(job, result) -> bool:
    """Whether a finished run is that of the plan. An option newer than the run is at its default, of a contrast 0."""
    return settings(dataclasses.asdict(train.Config(contrast=0.0)) | result["settings"]) == planned(job)


def is_done(job) -> bool:
    """Whether what a run makes is there. What was made with other options is of an older plan, and removed."""
    if job.program != "train.py":
        config = pretrain.parse(job.words())
        return "gates" in pretrain.found_in(job.folder, pretrain.made_by(config, world.World(config.seed)))
    result, checkpoint = (os.path.join(job.folder, name) for name in ("result.json", "checkpoint.pt"))
    if os.path.exists(result):
        kept = is_as_planned(job, read_json(result))
    else:
        # a run of another version could not go on
        kept = not os.path.exists(checkpoint) or settings(load_checkpoint(checkpoint)["settings"]) == planned(job)
    if not kept:
        shutil.rmtree(job.folder)
    return os.path.exists(result)


def run(job) -> int:
    """The exit status of one run, in a process of its own with one thread: two of them side by side are faster than
    one with two. It goes on from its checkpoint."""
    os.makedirs(job.folder, exist_ok=True)
    words = job.words()
    if job.program == "train.py" and os.path.exists(os.path.join(job.folder, "checkpoint.pt")):
        words = ["--resume"]
    argv = [sys.executable, os.path.join(HOUSE, job.program), *words, "--out", job.folder, "--threads", "1"]
    with open(os.path.join(job.folder, "output.txt"), "a") as output:
        done = subprocess.run(argv, stdout=output, stderr=output)
    if done.returncode:
        print(f"{job.folder}: exit status {done.returncode}, see output.txt in it; the others go on",
              file=sys.stderr, flush=True)
    return done.returncode


def make_worlds(jobs):
    """The files that the runs are taught from: a second each."""
    for job in dict.fromkeys(jobs):
        config = world.Config(**world.given_options(world.Config, world.__doc__, [*job.words(), "--out", job.folder]))
        world.write(config)


def expected(jobs) -> dict:
    """{folder: seconds that its run should take beside another}: what the same run took when results/runs.json was
    made; of one that is not in it, the mean of all; of base models, by their size."""
    path = os.path.join("results", "runs.json")
    took = {}
    for row in read_json(path)["runs"] if os.path.exists(path) else []:
        took.setdefault((row["experiment"], row["name"]), []).append(row["wall_seconds"])
    usual = statistics.mean([s for times in took.values() for s in times] or [100])
    guess = {}
    for job in jobs:
        kind, name = job.key
        guess[job.folder] = PRETRAINING[name] if kind == "base" else statistics.mean(took.get(job.key, [usual]))
    return guess


# ---------------------------------------------------------------------------------------------------------------------
# What the runs found.


def digest(result) -> dict:
    """What the tables and claims need of a result, in one line of JSON."""
    kept = ("method", "commit", "gates", "R", "base_accuracy", "voice", "teacher_accuracy", "neighbours", "drift_base",
            "drift_new", "steps", "regularised", "generated_tokens", "guard_trips", "seconds", "wall_seconds")
    families = [re.sub(r"^\d\d-", "", name) for name in result["tasks"]]
    kinds = [result["base_by_kind"][0], result["base_by_kind"][-1]]
    return rounded({k: result[k] for k in kept} | {"families": families, "base_by_kind": kinds})


def rounded(x):
    """Its floats to four digits."""
    if isinstance(x, list):
        return [rounded(v) for v in x]
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return round(x, 4) if isinstance(x, float) else x


def gather(root, results):
    """results/runs.json: what the finished runs under `root` found; other rows stay. And the first picture."""
    path = os.path.join(results, "runs.json")
    before = read_json(path)["runs"] if os.path.exists(path) else []
    rows = {(r["experiment"], r["seed"], r["name"]): r for r in before}
    about, order = {}, []
    for experiment, seed, name, options in plan(EXPERIMENTS, quick=False):
        key = experiment, seed, name
        order.append(key)
        job = jobs_of(root, *key, options)[-1]
        done = os.path.join(job.folder, "result.json")
        if not os.path.exists(done):
            continue
        result = read_json(done)
        if not is_as_planned(job, result):
            # of an older plan: the command would not make it
            rows.pop(key, None)
            continue
        # the command is also that of a run that was resumed
        rows[key] = {"experiment": experiment, "seed": seed, "name": name, **digest(result), "command": command(job)}
        about = {k: result[k] for k in ("versions", "machine")}
    if not rows:
        return
    about = about or {k: read_json(path)[k] for k in ("versions", "machine")}
    lines = ",\n".join(json.dumps(rows[key]) for key in order if key in rows)
    with replacing(path) as f:
        f.write(json.dumps({"command": "python lab/evidence.py", **about})[:-1] + f', "runs": [\n{lines}\n]}}\n')
    folder = os.path.join(root, "twenty", "0")
    if all(os.path.exists(os.path.join(folder, name, "result.json")) for name in PICTURE):
        drawn = {name: found for name, found in read_runs(folder).items() if name in PICTURE}
        draw(drawn, os.path.join(results, "forgetting.png"))


# ---------------------------------------------------------------------------------------------------------------------
# The command line.


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT",
                        help=f"which of {', '.join(EXPERIMENTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="one seed of a reduced set")
    parser.add_argument("--seeds", type=int, help="the first so many seeds of each experiment (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(),
                        help="runs side by side, a thread each (default: the cores)")
    args = parser.parse_args()
    if unknown := set(args.experiments) - set(EXPERIMENTS):
        parser.error(f"no experiment is called {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    if args.quick and (args.experiments or args.seeds is not None):
        parser.error("--quick is a set of its own: leave experiments and --seeds out")
    for name in ("seeds", "jobs"):
        if (given := getattr(args, name)) is not None and given < 1:
            parser.error(f"--{name} {given}: must be 1 or more")
    return args


def work_through(stages, n_jobs, root, after=None):
    """Runs the jobs of one stage after the other, some side by side; `after` each of the last stage. Returns the
    number of those that failed."""
    guess = expected([job for stage in stages for job in stage])
    pool, began, finished, failed = ThreadPoolExecutor(n_jobs), time.perf_counter(), 0, 0
    try:
        for stage in stages:
            futures = {pool.submit(run, job): job for job in stage}
            for future in as_completed(futures):
                folder = futures[future].folder
                failed += future.result() != 0
                finished += guess[folder]
                left = (time.perf_counter() - began) * max(0, sum(guess.values()) - finished) / finished
                print(f"{os.path.relpath(folder, root)} | about {left / 60:.0f} min left", flush=True)
                if after and stage is stages[-1]:
                    after()
    except KeyboardInterrupt:
        # the runs at work have saved themselves; the others must not begin
        raise BadInput("stopped; what is done stays, and the same command goes on")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return failed


def main():
    args = arguments()
    root = os.path.join("out", "quick" if args.quick else "evidence")
    todo = [jobs_of(root, *row) for row in plan(args.experiments or list(EXPERIMENTS), args.quick, args.seeds)]
    finished = [jobs for jobs in (jobs_of(root, *row) for row in plan(EXPERIMENTS, quick=False))
                if os.path.exists(os.path.join(jobs[-1].folder, "result.json"))]
    # `gather` compares finished runs with their commands
    make_worlds(files for _, files, _ in todo + finished)
    waiting = [(base, taught) for base, _, taught in todo if not is_done(taught)]
    # Base models first: two runs must not make the same one twice.
    bases = [base for base in dict.fromkeys(base for base, _ in waiting) if not is_done(base)]
    runs = [taught for _, taught in waiting]
    minutes = sum(expected([*bases, *runs]).values()) / args.jobs / 60
    print(f"{len(bases)} base models and {len(runs)} of {len(todo)} runs to make, {args.jobs} side by side: about "
          f"{minutes:.0f} min where results/runs.json was made", flush=True)

    def gathered():
        if not args.quick:
            gather(root, "results")

    if not runs:
        gathered()
    failed = work_through([bases, runs], args.jobs, root, gathered)
    if failed:
        raise BadInput(f"{failed} runs ended with an error (above); the same command tries them again")


if __name__ == "__main__":
    with ends_in_one_line():
        main()
