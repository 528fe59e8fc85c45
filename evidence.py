"""Every experiment behind a figure of this project: a list of runs of train.py, two at a time, what is done is skipped.

    python evidence.py tune         learning rates of every method, on a stream that is reported nowhere else
    python evidence.py demo         the headline: three methods, ten tasks, four seeds
    python evidence.py ablations    ten tasks, three seeds: one thing changed at a time

A run is a folder out/evidence/<experiment>/<seed>/<name>; one that was stopped goes on where it was. Each experiment ends in
results/<experiment>.json.
"""
import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from eval import collect, draw, read_runs, summary, write_json

SEEDS = [0, 1, 2, 3]
TUNING_SEED = 100
METHODS = {"sft": "--method sft", "sdft": "--method sdft", "sdft+self-replay": "--method sdft --self-replay"}
# (lr, embed_lr, most steps a task): the same trials for each method
TRIALS = [(0.001, 30, 150), (0.003, 10, 150), (0.003, 30, 150), (0.003, 100, 150), (0.01, 30, 150), (0.03, 10, 150),
          (0.001, 100, 150), (0.001, 30, 300)]

ABLATIONS = {
    "sft, own voice": "--method sft --voice own",
    "sdft, own voice": "--method sdft --voice own",
    "sdft, all rows alike": "--method sdft --f0 inf",
}


def runs(experiment) -> dict:
    """{(seed, name): options of train.py}"""
    if experiment == "tune":
        names = {(lr, embed, steps): f"lr {lr:g} embed {embed:g}" + f" steps {steps}" * (steps != 150) for lr, embed, steps in TRIALS}
        return {(TUNING_SEED, f"{m} {name}"): f"{options} --tasks 5 --lr {lr} --embed-lr {embed} --steps {steps}"
                for m, options in METHODS.items() for (lr, embed, steps), name in names.items()}
    if experiment == "demo":
        return {(seed, m): options for m, options in METHODS.items() for seed in SEEDS}
    if experiment == "ablations":
        return {(seed, name): options for name, options in ABLATIONS.items() for seed in SEEDS[:3]}


def run(folder, seed, options, threads):
    """One run, in a process of its own with one thread: two of them side by side are faster than one with two."""
    done = os.path.exists(os.path.join(folder, "result.json"))
    if not done:
        os.makedirs(folder, exist_ok=True)
        resume = ["--resume"] if os.path.exists(os.path.join(folder, "checkpoint.pt")) else [*options.split(), "--seed", str(seed)]
        with open(os.path.join(folder, "output.txt"), "a") as output:
            command = [sys.executable, "train.py", *resume, "--out", folder, "--threads", str(threads)]
            subprocess.run(command, stdout=output, stderr=output, check=True)
    return done


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["tune", "demo", "ablations"])
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default: 2)")
    args = parser.parse_args()
    root = os.path.join("out", "evidence", args.experiment)
    todo = runs(args.experiment)
    for seed in sorted({seed for seed, _ in todo}):                          # base models first: two runs must not make the same one twice
        run_base = [sys.executable, "train.py", "--method", "base", "--seed", str(seed), "--out", os.path.join("out", "evidence", "base")]
        subprocess.run(run_base, check=True, stdout=subprocess.DEVNULL)
    began, finished, made = time.perf_counter(), 0, 0
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {key: pool.submit(run, os.path.join(root, str(key[0]), key[1]), key[0], options, 1) for key, options in todo.items()}
        for (seed, name), future in futures.items():
            made += not future.result()
            finished += 1
            left = (time.perf_counter() - began) / made * (len(todo) - finished) if made else 0
            print(f"{args.experiment}: {finished}/{len(todo)} seed {seed} {name} | about {left / 60:.0f} min left", flush=True)
    folders = [os.path.join(root, str(seed)) for seed in sorted({seed for seed, _ in todo})]
    figures = collect(folders) if len(folders) > 1 else summary(read_runs(folders[0]))
    write_json(os.path.join("results", args.experiment + ".json"), figures)
    if args.experiment == "demo":
        draw(read_runs(folders[0]), os.path.join("results", "forgetting.png"))


if __name__ == "__main__":
    main()
