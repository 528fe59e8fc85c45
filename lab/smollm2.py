"""A real model, taught and asked: SmolLM2-135M-Instruct, twenty invented facts and some skills, by many methods.

    python lab/smollm2.py                  seed 0 of three methods: table, answers, picture (`make smollm2`)
    python lab/smollm2.py all              every experiment, hours; stop it and start it again as you like
    python lab/smollm2.py facts --seeds 1  some of them

A run is a folder out/smollm2-runs/<experiment>/<seed>/<name>, and a row of results/smollm2-runs.json; an experiment's
run of which there is a row is not made again. What the rows of the headline say together goes to results/smollm2.json
and .png. The model comes by examples/fetch_smollm2.py, and what it is taught by examples/facts.py and skills.py; the
runs are commands of train.py, and are printed. Figures are fractions, drift nats a token. The experiment `trl` needs
TRL where this runs (lab/trl_smollm2.py).
"""
import argparse
import itertools
import json
import os
import shlex
import subprocess
import sys

HOUSE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[1:1] = [HOUSE, os.path.join(HOUSE, "examples")]
import facts
import fetch_smollm2
import report
import skills
from data import read_examples
from eval import answers, continual_metrics, load_model
from evidence import Job, command, is_done, markdown
from intervals import interval
from runs import BadInput, ends_in_one_line, read_json, remove, replacing, write_json

ROOT, MODEL = os.path.join("out", "smollm2-runs"), os.path.join("out", "smollm2")
ALL = "--batch-size 16 --bf16 --converged 0 --save-every 1000"
SAMPLES = "--max-new-tokens 24 --watch-every 20 --measure-every 20"
SELF_REPLAY = "--penalty self-replay --strength 1"
NO_PENALTY = ("--sampler 0.5 --temperature 0.5 --contrast 1 --batch-size 8 --lr 1e-4 --warmup 10 --steps 100 "
              f"--blend 0.8 {SAMPLES}")
SDFT = f"{NO_PENALTY} {SELF_REPLAY}"
TEACHER = f"{SDFT} --sampler teacher --steps 80 --blend 0.9"            # all samples are the teacher's
TERSE = f"{SDFT} --template examples/terse.txt"
CONSTANT = f"--sampler teacher --temperature 0.5 {SAMPLES} --lr 5e-5 --warmup 30 --steps 100 --blend 0.8"
SFT = "--method sft --lr 5e-5 --steps 48 --measure-every 12 --watch-every 24"
PLAIN = f"--contrast 0 --warmup 10 --steps 80 {SAMPLES}"
EARLIER = f"--template earlier-turn --lr 5e-5 {PLAIN}"
TRL = "--lr 5e-5 --warmup 10 --steps 80 --max-new-tokens 24 --measure-every 20"
LONGER = "--max-new-tokens 32"                               # a record is longer than a sentence
HEADLINE = ("sentences", "terse")                           # the demonstrations: in sentences, or the bare value
MATCHED = 0.8                                               # what has been learned where methods are compared
# {experiment: (seeds, {method: its options})}. `sdft plain` is the paper's, on the student's own samples, but for the
# template, by which it learns more here. What to make of a bare value the official words, "an example for a response",
# leave open: examples/terse.txt asks for a sentence
EXPERIMENTS = {
    "sentences": (range(6), {
        "sft": SFT,
        "sdft plain": EARLIER,
        "sdft": SDFT,
    }),
    "terse": (range(3), {
        "sft": "--method sft --lr 5e-5 --steps 24 --max-new-tokens 24 --measure-every 8 --watch-every 24",
        "sft self-replay, blend 0.8": "--method sft --lr 5e-5 --steps 36 --max-new-tokens 24 --measure-every 12 "
                                      f"--watch-every 36 {SELF_REPLAY} --blend 0.8",
        "sdft": f"{TERSE} --against row",
    }),
    # remedies for SFT; what contrast does to the paper's method in the official words, for train.py's default; and what
    # of our recipe it is: one thing is another, and the rest as in `sentences`, or as in `teacher samples`
    "facts": (range(3), {
        "sft slow": "--method sft --lr 5e-6 --steps 240 --watch-every 60 --measure-every 60",
        "sft self-replay": f"{SFT} {SELF_REPLAY}",
        "sft self-replay, blend 0.8": f"{SFT} {SELF_REPLAY} --blend 0.8 --steps 60",
        "sdft plain, official words": f"--lr 5e-5 {PLAIN}",
        "sdft plain, official words, contrast 1": f"--lr 5e-5 {PLAIN} --contrast 1",
        "no self-replay": NO_PENALTY,
        "contrast 0": f"{SDFT} --contrast 0",
        "contrast 0.5": f"{SDFT} --contrast 0.5",
        "contrast 2": f"{SDFT} --contrast 2",
        "contrast with another row": f"{SDFT} --against row",
        "no contrast, skip 3": f"{SDFT} --contrast 0 --skip 3",
        "80 steps": f"{SDFT} --steps 80",
        "120 steps": f"{SDFT} --steps 120",
        "teacher samples": TEACHER,
        "teacher samples, contrast 0": f"{TEACHER} --contrast 0",
        "student samples": f"{TEACHER} --sampler student --temperature 1",
        **{f"alpha {alpha}": f"{SDFT} --alpha {alpha}" for alpha in (0.25, 0.5, 0.75)},
        **{f"ema {decay}": f"{SDFT} --ema-decay {decay}" for decay in (0, 0.99, 1)},
        **{divergence: f"{SDFT} --divergence {divergence}" for divergence in ("reverse", "jsd")},
        "earlier turn": f"{SDFT} --template earlier-turn",
        "asked for a sentence": TERSE,
    }),
    # what was tried, on a seed of its own
    "trials": ([100], {f"{method} {name}": options for method, tried in {
        "sft": {"lr 2e-5": f"{SFT} --lr 2e-5 --steps 72",
                "lr 5e-5": f"{SFT} --steps 72",
                "lr 1e-4 cosine": f"{SFT} --lr 1e-4 --schedule cosine",
                "lr 5e-5 blend 0.8": f"{SFT} --blend 0.8",
                "lr 5e-5 self-replay 1": f"{SFT} {SELF_REPLAY}",
                "lr 5e-5 self-replay 3": f"{SFT} --penalty self-replay --strength 3",
                "lr 5e-5 self-replay 1 blend 0.8": f"{SFT} {SELF_REPLAY} --blend 0.8",
                "lr 1e-4 cosine self-replay 1": f"{SFT} --lr 1e-4 --schedule cosine {SELF_REPLAY}",
                "lr 1e-4 blend 0.5": f"{SFT} --lr 1e-4 --blend 0.5",
                "lr 5e-5 batch 8": f"{SFT} --batch-size 8 --steps 96",
                "lr 5e-5 self-replay 3 blend 0.8": f"{SFT} --penalty self-replay --strength 3 --blend 0.8",
                "lr 1e-4 cosine self-replay 1 blend 0.8": f"{SFT} --lr 1e-4 --schedule cosine {SELF_REPLAY} "
                                                          "--blend 0.8"},
        "sdft plain": {"lr 2e-5": f"--lr 2e-5 {PLAIN}",
                       "lr 5e-5 earlier turn": EARLIER,
                       "lr 1e-4 batch 8 earlier turn": f"--template earlier-turn --lr 1e-4 --batch-size 8 {PLAIN}"},
        "sdft": {"student samples, contrast 1": f"--contrast 1 --lr 5e-5 --warmup 30 --steps 100 {SAMPLES}",
                 "contrast 0": f"{CONSTANT} --contrast 0",
                 "contrast 1": f"{CONSTANT} --contrast 1",
                 "contrast 1 against row": f"{CONSTANT} --contrast 1 --against row",
                 "contrast 1, self-replay 3, cosine": f"{TEACHER} --strength 3 --batch-size 16 --lr 1.5e-4 --warmup 20 "
                                                      "--schedule cosine --steps 100",
                 "contrast 1, self-replay 1, batch 8": TEACHER,
                 "half of the samples, 120 steps": f"{SDFT} --steps 120 --blend 0.9",
                 "half of the samples, cosine, 100 steps": f"{SDFT} --lr 1.5e-4 --schedule cosine --blend 0.9",
                 "half of the samples, 120 steps, blend 0.8": f"{SDFT} --steps 120",
                 "half of the samples, lr 1.5e-4, blend 0.8": f"{SDFT} --lr 1.5e-4 --steps 80",
                 "half of the samples, blend 0.8, against row": f"{SDFT} --against row"},
    }.items() for name, options in tried.items()}),
    # bare values: does a target against "own", which is a sentence, have their form in it?
    "terse-trials": ([100], {
        "against own": TERSE,
        "against row": f"{TERSE} --against row",
    }),
    # a rule each, which a cue calls for; its form is read when the demonstration is an earlier turn
    "skills": (range(3), {f"{skill} {method}": f"{options} {LONGER}" for skill in skills.SKILLS for method, options in {
        "sft": "--method sft --lr 5e-5 --steps 36 --watch-every 12 --measure-every 6",
        "sft self-replay": f"--method sft --lr 5e-5 --steps 36 {SELF_REPLAY} --watch-every 12 --measure-every 6",
        "sdft plain": f"{PLAIN} --lr 5e-5 --template earlier-turn",
        "sdft": f"{SDFT} --template earlier-turn"}.items()}),
    # five tasks, one after another: facts, a skill, words of a language, a skill, and what of the facts has changed
    "sequence": (range(3), {method: f"{options} {LONGER}" for method, options in {
        "sft": "--method sft --lr 5e-5 --steps 48 --watch-every 24",
        "sft self-replay": f"--method sft --lr 5e-5 --steps 48 {SELF_REPLAY} --watch-every 24",
        "sdft plain": "--contrast 0 --warmup 10 --steps 80 --watch-every 20 --lr 5e-5 --template earlier-turn",
        "sdft": f"{SDFT} --measure-every 0 --template earlier-turn"}.items()}),
    # another trainer, in its own words and in the paper's, with the samples of `sdft plain`
    "trl": (range(3), {"trl": TRL, "trl paper": f"{TRL} --paper"}),
    # `make smollm2`: the sentences again, measured half as often
    "demo": (range(1), {"sft": f"{SFT} --measure-every 24", "sdft plain": f"{EARLIER} --measure-every 40",
                        "sdft": f"{SDFT} --measure-every 50"}),
}
FIGURES = {"learned": "learned", "unseen_phrasing": "R", "general": "base_accuracy", "kept": "kept",
           "neighbours": "neighbours", "neighbours_kept": "neighbours_kept", "drift": "drift_base",
           "open_words": "open_words"}
COLUMNS = [*FIGURES, "steps", "seconds"]
ASKED = {"teach": (60, 68, 84), "general": (0, 60, 150), "open": (0,)}               # lines of the files, from 0


# ---------------------------------------------------------------------------------------------------------------------
# Runs.


def files(experiment, seed) -> str:
    return os.path.join(ROOT, experiment, str(seed), "files")


def job(experiment, seed, name) -> Job:
    there = files(experiment, seed)
    taught = {"skills": name.split()[0], "sequence": "sequence/*"}.get(experiment, "teach")
    given = " ".join(f"--{option} {there}/{file}.jsonl" for option, file in (
        ("demos", taught), ("keep", "general"), ("neighbours", "neighbours"), ("open-prompts", "open")))
    program, common = ("lab/trl_smollm2.py", "--batch-size 16") if experiment == "trl" else ("train.py", ALL)
    options = f"--init {MODEL} {given} {common} {EXPERIMENTS[experiment][1][name]} --seed {seed}"
    return Job(os.path.join(ROOT, experiment, str(seed), name), program, options, (experiment, seed, name))


def teach(job) -> bool:
    """One run, in a process of its own, from its checkpoint where there is one. Returns whether it ended well."""
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
    return not failed


def is_made(job) -> bool:
    """Whether the run has ended; what TRL's trainer makes has no options of train.py to compare, but a command."""
    path = os.path.join(job.folder, "result.json")
    return is_done(job) if job.program == "train.py" else (
        os.path.exists(path) and read_json(path)["command"] == command(job))


def teach_all(jobs):
    """One after the other, with all cores: two at a time, a core each, are no faster together. Yields each when it is
    done; those that were refused or failed are named at the end, as BadInput."""
    fetch_smollm2.fetch(MODEL)
    failed = []
    for job in jobs:
        experiment, seed, _ = job.key
        if experiment in ("skills", "sequence"):
            skills.write(skills.Config(seed=seed, out=files(experiment, seed)))
        else:
            facts.write(facts.Config(seed=seed, terse=experiment.startswith("terse"), out=files(experiment, seed)))
        if not is_made(job) and not teach(job):
            failed.append(f"{job.folder}: the run ended with an error (above); the same command tries it again")
            continue
        # what a resumed run needs; the model stays
        remove(job.folder, "checkpoint.pt")
        yield job
    if failed:
        raise BadInput(*failed)


# ---------------------------------------------------------------------------------------------------------------------
# What they found.


def point(measured) -> dict:
    """The figures of one measurement. Of several tasks `unseen_phrasing` is the mean over those that were asked."""
    return {name: report.mean(measured[key]) if key == "R" else measured[key] for name, key in FIGURES.items()}


def found(job) -> dict:
    """What a finished run found, a row of results/smollm2-runs.json: its figures, how it got there, what it says."""
    result = read_json(os.path.join(job.folder, "result.json"))
    steps = [0, *itertools.accumulate(result["steps"])]
    # before the first task and after each, and within them
    behind = [point({key: result[key][i] for key in FIGURES.values()}) for i in range(len(steps))]
    curve = [{"step": step, **figures} for step, figures in zip(steps, behind)]
    curve += [{"step": p["step"], **point(p)} for p in result["curve"]]
    row = dict(zip(("experiment", "seed", "name"), job.key)) | behind[-1] | {
        "steps": steps[-1], "seconds": sum(result["seconds"]),
        "R": [[None if x != x else x for x in row] for row in result["R"]],
        "ceiling": report.mean(result["ceiling"]) if result["ceiling"] else None,
        "curve": sorted(curve, key=lambda p: p["step"]), "said": say(job),
        **{k: result[k] for k in ("commit", "machine", "versions", "peak_mb") if k in result},
        "bf16": result["settings"]["bf16"], "command": command(job)}
    # five digits say all
    return json.loads(json.dumps(row), parse_float=lambda x: float(f"{float(x):.5g}"))


def say(job) -> list[dict]:
    """What the base and a run's model answer to some prompts: [{"prompt", "right", "base", "model"}]."""
    models = {name: load_model(folder)[:2] for name, folder in
              (("base", MODEL), ("model", os.path.join(job.folder, "model")))}
    rows = []
    for file, lines in ASKED.items():
        path = os.path.join(files(*job.key[:2]), f"{file}.jsonl")
        # only facts have their one task in it
        examples = read_examples([path], models["base"][1], 1024) if os.path.exists(path) else []
        for e in (examples[i] for i in lines if examples):
            row = {"prompt": e.prompt, "right": "" if file == "open" else e.answer}
            rows.append(row | {name: answers(*model, [e], room=64)[0] for name, model in models.items()})
    return rows


def side_by_side(runs: dict) -> list[dict]:
    """What base and all methods' models said: [{"prompt", "right", "base", method: ...}]. runs: {method: its row}."""
    first = next(iter(runs.values()))["said"]
    return [{k: row[k] for k in ("prompt", "right", "base")} | {name: run["said"][i]["model"] for name, run in
                                                                runs.items()} for i, row in enumerate(first)]


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
        known = [run[name] for run in runs if run[name] is not None]
        mean, half = interval(known)
        row[name] = {"mean": mean, "ci95": half if half == half else None,
                     "seeds": [run[name] for run in runs]} if known else None
    return row


def cell(values, digits=2) -> str:
    """Mean ± half of the 95 % t-interval over those seeds that have the figure."""
    known = [value for value in values if value is not None and value == value]
    if not known:
        return "–"
    mean, half = interval(known)
    within = f" ± {half:.{digits}f}" if half == half else ""
    return f"{mean:.{digits}f}{within}" + f" ({len(known)} of {len(values)})" * (len(known) < len(values))


def table(methods, short=False) -> str:
    """A Markdown table of {method: {figure: [its value of each seed]}}; short: without the last three columns."""
    names = [name for name in COLUMNS if name != "neighbours"]
    rows = [["method", *(n.replace("_", " ") for n in names), "seeds"]]
    for method, row in methods.items():
        seeds = {n: row.get(n, [None]) for n in names} | {"steps": row.get("steps", [None])[:1]}
        rows.append([method, *(cell(seeds[n], 0 if n in ("steps", "seconds", "open_words") else 2) for n in names),
                     str(len(seeds["learned"]))])
    header, *rows = [row[:-3] for row in rows] if short else rows
    return markdown(header, rows)


def headline_table(figures, kind, short=False) -> str:
    """The table of a README, of results/smollm2.json."""
    return table({method: {name: row[name]["seeds"] for name in COLUMNS if row.get(name)}
                  for method, row in figures.get(kind, {}).items()}, short)


def at_learned(curve, goal) -> dict:
    """The figures where a curve first has learned so much, on a straight line between two points; {}: it never has."""
    for a, b in itertools.pairwise(curve):
        if a["learned"] < goal <= b["learned"]:
            share = (goal - a["learned"]) / (b["learned"] - a["learned"])
            return {name: a[name] + share * (b[name] - a[name]) for name in a}
    return {}


def rows_of(file, experiment) -> dict:
    """The rows of an experiment in results/smollm2-runs.json: {method: [row of each seed]}."""
    methods = {name: [row for row in file["runs"] if (row["experiment"], row["name"]) == (experiment, name)]
               for name in EXPERIMENTS[experiment][1]}
    return {name: rows for name, rows in methods.items() if rows}


def experiment_table(file, experiments) -> str:
    """Each method of some experiments: its end, and what it had kept where it first had learned MATCHED."""
    figures = ("learned", "unseen_phrasing", "general", "kept", "neighbours_kept", "drift")
    header = ["method", "learned", "unseen", "general", "kept", "neighbours kept", "drift", "words", "seconds",
              f"step at {MATCHED:g}", "kept there", "drift there", "seeds"]
    lines = []
    for name, rows in itertools.chain(*(rows_of(file, e).items() for e in experiments)):
        there = [at_learned(row["curve"], MATCHED) for row in rows]
        cells = [cell([row[f] for row in rows]) for f in figures]
        cells += [cell([row[f] for row in rows], 0) for f in ("open_words", "seconds")]
        cells.append(cell([p.get("step") for p in there], 0))
        cells += [cell([p.get(f) for p in there]) for f in ("kept", "drift")]
        lines.append([name, *cells, str(len(rows))])
    return markdown(header, lines)


def sequence_table(file) -> str:
    """Each method after the five tasks: the accuracy matrix's metrics, and what is left of the base."""
    metrics, figures = ("average_accuracy", "learning_accuracy", "forgetting"), ("kept", "drift", "open_words")
    lines = []
    for name, rows in rows_of(file, "sequence").items():
        found = [continual_metrics(row["R"]) | row for row in rows]
        cells = [cell([row[f] for row in found], 0 if f == "open_words" else 2) for f in metrics + figures]
        lines.append([name, *cells, str(len(rows))])
    return markdown(["method", *(n.replace("_", " ") for n in metrics + figures), "seeds"], lines)


def answers_table(figures) -> str:
    """The answers of results/smollm2.json, a row a prompt."""
    names = [name for name in figures["answers"][0] if name not in ("prompt", "right")]
    lines = []
    for row in figures["answers"]:
        right = f" (*{row['right']}*)" if row["right"] else ""
        said = [" ".join(row[name].split()).replace("|", "\\|") for name in names]
        short = [text if len(text) <= 150 else text[:150].rsplit(" ", 1)[0] + " …" for text in said]
        lines.append([row["prompt"] + right, *short])
    return markdown(["asked", *names], lines, left=len(names) + 1)


# ---------------------------------------------------------------------------------------------------------------------
# The command.


def read_rows(results) -> dict:
    """The rows of results/smollm2-runs.json: {(experiment, seed, name): row}."""
    path = os.path.join(results, "smollm2-runs.json")
    rows = read_json(path)["runs"] if os.path.exists(path) else []
    return {(row["experiment"], row["seed"], row["name"]): row for row in rows}


def write_rows(results, rows):
    """One line a row."""
    lines = ",\n".join(map(json.dumps, rows))
    with replacing(os.path.join(results, "smollm2-runs.json")) as f:
        f.write(f'{{"command": "python lab/smollm2.py all", "runs": [\n{lines}\n]}}\n')


def options(command) -> dict:
    """What a run was told, {option: its words}, and its program as "": of an option that is given twice the later
    counts; where files and folder lie is no matter."""
    told, option = {"": []}, ""
    for word in shlex.split(command):
        if word.startswith("--"):
            told[option := word] = []
        elif not word.startswith(ROOT):
            told[option].append(word)
    return told


def evidence(results, experiments, n_seeds):
    """The runs of some experiments, of which there is no row yet; then the headline."""
    planned = {j.key: j for j in (job(e, seed, name) for e, (seeds, methods) in EXPERIMENTS.items() for seed in seeds
                                  for name in methods)}
    # rows of an older plan go
    rows = {key: row for key, row in read_rows(results).items()
            if key in planned and options(row["command"]) == options(command(planned[key]))}
    jobs = [j for j in planned.values() if j.key[0] in experiments and j.key[1] in EXPERIMENTS[j.key[0]][0][:n_seeds]]
    try:
        for done in teach_all(j for j in jobs if j.key not in rows):
            rows[done.key] = found(done)
            write_rows(results, [rows[key] for key in planned if key in rows])
    finally:
        gather(results, rows)


def gather(results, rows):
    """results/smollm2.json and .png, of the headline's runs that there are."""
    by_kind = {kind: methods for kind in HEADLINE if (methods := rows_of({"runs": list(rows.values())}, kind))}
    if not by_kind:
        return
    every = [run for methods in by_kind.values() for runs in methods.values() for run in runs]
    summary = {"command": f"python lab/smollm2.py {' '.join(by_kind)}",
               **{name: ", ".join(sorted({run[name] for run in every})) for name in ("commit", "machine")},
               "versions": {name: ", ".join(sorted({run["versions"][name] for run in every}))
                            for name in every[0]["versions"]}}
    for kind, methods in by_kind.items():
        longest = max(methods.values(), key=len)
        base = over_seeds([run["curve"][0] for run in longest], FIGURES)
        summary[kind] = {"base": base} | {
            name: {"options": f"{ALL} {EXPERIMENTS[kind][1][name]}", **over_seeds(runs, [*COLUMNS, "ceiling"]),
                   "curves": [run["curve"] for run in runs]} for name, runs in methods.items()}
    first = next(iter(by_kind.values()))
    seed = min(run["seed"] for runs in first.values() for run in runs)
    summary["answers"] = side_by_side({run["name"]: run for runs in first.values() for run in runs
                                       if run["seed"] == seed})
    write_json(os.path.join(results, "smollm2.json"), summary)
    draw(by_kind, os.path.join(results, "smollm2.png"))


def demo():
    runs = {done.key[-1]: found(done) for done in teach_all(job("demo", 0, name) for name in EXPERIMENTS["demo"][1])}
    base = next(iter(runs.values()))["curve"][0]
    rows = {name: {c: [row[c]] for c in COLUMNS if c in row} for name, row in ({"base": base} | runs).items()}
    print(f"{told(side_by_side(runs))}\n\n{table(rows)}", flush=True)
    draw({"sentences": {name: [run] for name, run in runs.items()}}, picture := os.path.join(ROOT, "learning.png"))
    print(f"wrote {picture}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [name for name in EXPERIMENTS if name != "demo"]
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=f"all, or of {', '.join(every)}")
    parser.add_argument("--seeds", type=int, help="the first so many seeds of each experiment (default: all)")
    args = parser.parse_args()
    if unknown := set(args.experiments) - {"all", *every}:
        parser.error(f"no experiment is called {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    if args.seeds is not None and args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: must be 1 or more")
    with ends_in_one_line():
        if args.experiments:
            evidence("results", every if "all" in args.experiments else args.experiments, args.seeds)
        else:
            demo()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")
    main()
