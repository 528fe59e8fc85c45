"""A real model, taught and asked: SmolLM2-135M-Instruct, twenty invented facts, three methods.

    python lab/smollm2.py                  seed 0, demonstrations in sentences: table, answers, picture (`make smollm2`)
    python lab/smollm2.py --evidence       three seeds: results/smollm2.json and .png (hours)
    python lab/smollm2.py --trials         how the methods were tuned, on a seed that is not reported

A run is a folder out/smollm2-runs/<demonstrations>/<seed>/<method>; what is done is skipped, what was stopped goes on.
The model comes by examples/fetch_smollm2.py and the facts by examples/facts.py; the runs are commands of train.py, and
are printed. Figures are fractions, drift nats a token.
"""
import argparse
import os
import subprocess
import sys

HOUSE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[1:1] = [HOUSE, os.path.join(HOUSE, "examples")]
import facts
import fetch_smollm2
import report
from data import read_examples
from eval import answers, load_model
from evidence import Job, command, is_done
from runs import BadInput, ends_in_one_line, read_json, remove, write_json

ROOT, MODEL = os.path.join("out", "smollm2-runs"), os.path.join("out", "smollm2")
SEEDS, TUNING = range(3), 100
ALL = "--batch-size 16 --bf16 --converged 0 --save-every 1000"
SAMPLES = "--max-new-tokens 24 --watch-every 25 --measure-every 25"
TEACHER = f"--sampler teacher --temperature 0.5 --lr 5e-5 --warmup 30 --steps 100 --blend 0.8 {SAMPLES}"
PLAIN = f"--warmup 10 --steps 75 {SAMPLES}"
# {demonstrations: {method: its options}}; `sdft plain` is the paper's, on the student's own samples. What to make of a
# bare value the official words, "an example for a response", leave open: examples/terse.txt asks for a sentence of it
METHODS = {
    "sentences": {
        "sft": "--method sft --lr 5e-5 --steps 48 --watch-every 24 --measure-every 12",
        "sdft plain": f"--template earlier-turn --lr 5e-5 {PLAIN}",
        "sdft": f"{TEACHER} --contrast 1",
    },
    "terse": {
        "sft": "--method sft --lr 5e-5 --steps 24 --max-new-tokens 24 --watch-every 24 --measure-every 8",
        "sdft": f"{TEACHER} --contrast 1 --template examples/terse.txt",
    },
}
# as many for each method, on the seed TUNING; steps are chosen along their curves
TRIALS = {
    "sft": ["--method sft --lr 2e-5 --steps 72 --measure-every 24",
            "--method sft --lr 5e-5 --steps 72 --measure-every 24",
            "--method sft --lr 2e-5 --steps 72 --blend 0.8 --measure-every 24"],
    "sdft plain": [f"--lr 2e-5 {PLAIN}", f"--template earlier-turn --lr 5e-5 {PLAIN}",
                   f"--template earlier-turn --lr 1e-4 {PLAIN}"],
    "sdft": [f"{TEACHER} --contrast 0", f"{TEACHER} --contrast 1 --against row", f"{TEACHER} --contrast 1"],
}
FIGURES = {"learned": "learned", "unseen_phrasing": "R", "general": "base_accuracy", "kept": "kept",
           "neighbours": "neighbours", "neighbours_kept": "neighbours_kept", "drift": "drift_base",
           "open_words": "open_words"}
COLUMNS = [*FIGURES, "steps", "seconds"]
ASKED = {"teach": (60, 68, 84), "general": (0, 60, 150), "open": (0,)}               # lines of the files, from 0


# ---------------------------------------------------------------------------------------------------------------------
# Runs.


def files(kind, seed) -> str:
    return os.path.join(ROOT, kind, str(seed), "files")


def job(kind, seed, name, options) -> Job:
    there = files(kind, seed)
    given = " ".join(f"--{option} {there}/{file}.jsonl" for option, file in (
        ("demos", "teach"), ("keep", "general"), ("neighbours", "neighbours"), ("open-prompts", "open")))
    folder = os.path.join(ROOT, kind, str(seed), name)
    return Job(folder, "train.py", f"--init {MODEL} {given} {ALL} {options} --seed {seed}", (kind, name))


def teach(job):
    """One run, in a process of its own; it goes on from its checkpoint, and without one when it is done."""
    checkpoint = os.path.join(job.folder, "checkpoint.pt")
    words = ["--resume"] if os.path.exists(checkpoint) else job.words()
    print(command(job), flush=True)
    argv = [sys.executable, os.path.join(HOUSE, job.program), *words, "--out", job.folder]
    with subprocess.Popen(argv) as process:
        try:
            failed = process.wait()
        except KeyboardInterrupt:
            # it has been told as well: it ends its step and saves itself
            process.wait()
            raise BadInput("stopped; the same command goes on")
    if failed:
        raise BadInput(f"{job.folder}: the run ended with an error (above); the same command tries it again")


def teach_all(jobs):
    """One after the other, with all cores: two at a time, a core each, are no faster together."""
    for job in jobs:
        if not is_done(job):
            teach(job)
        # 3 GB; the model stays
        remove(job.folder, "checkpoint.pt")


def prepare(kinds, seeds):
    """The model, and the files of each seed."""
    fetch_smollm2.fetch(MODEL)
    for kind in kinds:
        for seed in seeds:
            facts.write(facts.Config(seed=seed, terse=kind == "terse", out=files(kind, seed)))


# ---------------------------------------------------------------------------------------------------------------------
# What they found.


def point(measured) -> dict:
    """The figures of one measurement: of one task, and so the last of each list."""
    return {name: measured[key][0] if key == "R" else measured[key] for name, key in FIGURES.items()}


def found(job) -> dict:
    """What a finished run found: its figures, how it got there, and what it started from."""
    result = read_json(os.path.join(job.folder, "result.json"))
    first, last = ({key: result[key][i] for key in FIGURES.values()} for i in (0, -1))
    curve = [{"step": p["step"], **point(p)} for p in result["curve"]]
    steps, seconds = result["steps"][0], result["seconds"][0]
    return {**point(last), "steps": steps, "seconds": seconds, "ceiling": (result["ceiling"] or [None])[0],
            "curve": [{"step": 0, **point(first)}, *curve, {"step": steps, **point(last)}],
            "commit": result["commit"], "versions": result["versions"], "machine": result["machine"]}


def table(rows: dict) -> str:
    """A Markdown table: {method: figures}."""
    head = [c.replace("_", " ") for c in COLUMNS]
    lines = ["| method | " + " | ".join(head) + " |", "| --- |" + " ---: |" * len(head)]
    for name, row in rows.items():
        cells = [f"{row[c]:.0f}" if c in ("steps", "seconds", "open_words") else f"{row[c]:.2f}" for c in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_base(runs: dict) -> dict:
    """Rows of a table: the base, which is where each run began, before the methods."""
    base = next(iter(runs.values()))["curve"][0]
    return {"base": base | {"steps": 0, "seconds": 0}} | runs


def say(jobs: dict, kind, seed) -> list[dict]:
    """What the base and each method's model answer to the same prompts: [{"prompt", "right", "base", ...}]."""
    folders = {"base": MODEL} | {name: os.path.join(job.folder, "model") for name, job in jobs.items()}
    models = {name: load_model(folder)[:2] for name, folder in folders.items()}
    tokenizer = models["base"][1]
    rows = []
    for file, lines in ASKED.items():
        examples = read_examples([os.path.join(files(kind, seed), f"{file}.jsonl")], tokenizer, 1024)
        for e in (examples[i] for i in lines):
            row = {"prompt": e.prompt, "right": "" if file == "open" else e.answer}
            rows.append(row | {name: answers(*model, [e], room=64)[0] for name, model in models.items()})
    return rows


def told(rows) -> str:
    """Answers side by side, as text."""
    lines = []
    for row in rows:
        lines.append(f"\n{row['prompt']}" + f"   ({row['right']})" * bool(row["right"]))
        lines += [f"  {name:11s} {' '.join(row[name].split())}" for name in row if name not in ("prompt", "right")]
    return "\n".join(lines)


def draw(by_kind: dict, path):
    """Drift, and what is kept, against what is learned, along each run: {demonstrations: {method: [run of each seed]}}.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {"drift": "drift from the base, nats a token", "kept": "kept of what the base knew"}
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(name for m in by_kind.values() for name in m))}
    fig, axes = plt.subplots(len(by_kind), 2, figsize=(9, 3.6 * len(by_kind)), layout="constrained", squeeze=False)
    for row, (kind, methods) in zip(axes, by_kind.items()):
        for ax, (figure, label) in zip(row, panels.items()):
            for name, runs in methods.items():
                for j, run in enumerate(runs):
                    # where nothing was learned yet there is no drift, and a logarithm has no zero
                    points = run["curve"][1:] if figure == "drift" else run["curve"]
                    ax.plot([p["learned"] for p in points], [p[figure] for p in points], color=colours[name],
                            marker="o", markersize=3, linewidth=1, label=name if j == 0 else None)
            ax.set(xlabel="learned (trained phrasings)", ylabel=label, title=f"demonstrations: {kind}",
                   xlim=(-0.03, 1.03))
            ax.grid(alpha=0.3)
        row[0].set_yscale("log")
        row[1].legend(fontsize=8)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def over_seeds(runs, names) -> dict:
    """Mean, half of the 95 % t-interval and every seed of each figure."""
    row = {}
    for name in names:
        seeds = [run[name] for run in runs if run[name] is not None]
        mean, _, high = report.over_seeds(seeds)
        row[name] = {"mean": mean, "ci95": None if high is None else high - mean, "seeds": seeds} if seeds else None
    return row


def with_intervals(figures, kind) -> str:
    """The table of a README: mean ± half of the 95 % t-interval over the seeds of results/smollm2.json."""
    def cell(row, name):
        if row.get(name) is None or name in ("steps", "seconds") and not row[name]["mean"]:
            return "–"
        digits = 0 if name in ("steps", "seconds", "open_words") else 2
        interval = "" if row[name]["ci95"] is None or name == "steps" else f" ± {row[name]['ci95']:.{digits}f}"
        return f"{row[name]['mean']:.{digits}f}{interval}"

    names = [name for name in COLUMNS if name != "neighbours"]
    lines = ["| method | " + " | ".join(n.replace("_", " ") for n in names) + " |", "| --- |" + " ---: |" * len(names)]
    lines += [f"| {method} | " + " | ".join(cell(row, name) for name in names) + " |"
              for method, row in figures[kind].items()]
    return "\n".join(lines)


def answers_table(figures) -> str:
    """The answers of results/smollm2.json, a row a prompt."""
    first, *rest = figures["answers"]
    names = [name for name in first if name not in ("prompt", "right")]
    lines = ["| asked | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for row in (first, *rest):
        right = f" (*{row['right']}*)" if row["right"] else ""
        said = [" ".join(row[name].split()).replace("|", "\\|") for name in names]
        short = [text if len(text) <= 150 else text[:150].rsplit(" ", 1)[0] + " …" for text in said]
        lines.append(f"| {row['prompt']}{right} | " + " | ".join(short) + " |")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# The command.


def with_seeds(kind, seeds) -> dict:
    """{method: what its runs found, one a seed}, of the seeds that have all methods."""
    jobs = [{name: job(kind, seed, name, options) for name, options in METHODS[kind].items()} for seed in seeds]
    done = [row for row in jobs if all(is_done(job) for job in row.values())]
    return {name: [found(row[name]) for row in done] for name in METHODS[kind]} if done else {}


def evidence(results, n_seeds):
    """All methods and demonstrations of some seeds; then what is done, in results/smollm2.json and .png."""
    prepare(METHODS, SEEDS)
    teach_all(job(kind, seed, name, options) for kind in METHODS for seed in SEEDS[:n_seeds]
              for name, options in METHODS[kind].items())
    gather(results)


def gather(results):
    by_kind = {kind: runs for kind in METHODS if (runs := with_seeds(kind, SEEDS))}
    every = [run for methods in by_kind.values() for runs in methods.values() for run in runs]
    if not every:
        raise BadInput(f"{ROOT}: no seed has all its runs; make them with: python lab/smollm2.py --evidence")
    summary = {"command": "python lab/smollm2.py --evidence", "commit": ", ".join(sorted({r["commit"] for r in every})),
               "versions": every[0]["versions"], "machine": every[0]["machine"]}
    for kind, methods in by_kind.items():
        base = over_seeds([{**run["curve"][0], "steps": 0, "seconds": 0} for run in methods["sft"]], FIGURES)
        summary[kind] = {"base": base} | {
            name: {"options": f"{ALL} {METHODS[kind][name]}", **over_seeds(runs, [*COLUMNS, "ceiling"]),
                   "curves": [run["curve"] for run in runs]} for name, runs in methods.items()}
    kind = "sentences"
    summary["answers"] = say({name: job(kind, 0, name, options) for name, options in METHODS[kind].items()}, kind, 0)
    write_json(os.path.join(results, "smollm2.json"), summary)
    draw(by_kind, os.path.join(results, "smollm2.png"))


def trials(results):
    """How the methods were tuned: {method: {options: its curve}}, each with as many trials."""
    kind = "sentences"
    prepare([kind], [TUNING])
    jobs = {name: {options: job(kind, TUNING, f"{name} {options}", options) for options in tried}
            for name, tried in TRIALS.items()}
    teach_all(job for tried in jobs.values() for job in tried.values())
    runs = {name: {options: found(job) for options, job in tried.items()} for name, tried in jobs.items()}
    every = [run for tried in runs.values() for run in tried.values()]
    about = {"command": "python lab/smollm2.py --trials", "commit": ", ".join(sorted({r["commit"] for r in every})),
             "versions": every[0]["versions"], "machine": every[0]["machine"], "seed": TUNING}
    write_json(os.path.join(results, "smollm2-trials.json"), about | {
        name: {f"{ALL} {options}": {"ceiling": run["ceiling"], "seconds": run["seconds"], "curve": run["curve"]}
               for options, run in tried.items()} for name, tried in runs.items()})


def demo():
    kind, seed = "sentences", 0
    prepare([kind], [seed])
    jobs = {name: job(kind, seed, name, options) for name, options in METHODS[kind].items()}
    teach_all(jobs.values())
    runs = {name: found(job) for name, job in jobs.items()}
    print(f"{told(say(jobs, kind, seed))}\n\n{table(with_base(runs))}", flush=True)
    draw({kind: {name: [run] for name, run in runs.items()}}, picture := os.path.join(ROOT, "learning.png"))
    print(f"wrote {picture}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evidence", action="store_true", help="three seeds")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="the first so many of them (default: all)")
    parser.add_argument("--trials", action="store_true", help="how the methods were tuned")
    args = parser.parse_args()
    if not 1 <= args.seeds <= len(SEEDS):
        parser.error(f"--seeds {args.seeds}: must be from 1 to {len(SEEDS)}")
    if args.trials and args.evidence:
        parser.error("--trials and --evidence: one after the other")
    with ends_in_one_line():
        if args.trials:
            trials("results")
        elif args.evidence:
            evidence("results", args.seeds)
        else:
            demo()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")
    main()
