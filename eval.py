"""Measure: accuracy of a model, the metrics of continual learning, tables and pictures made from runs on disk.

    python eval.py out/demo                        print the table of the runs in a folder and draw their pictures again
    python eval.py --ask out/demo/sdft "zorp: c a d b"
    python eval.py --show-teacher out/demo/sdft    what student and teacher see, sample and believe, token by token
    python eval.py --collect out/seed0 out/seed1 out/seed2 --to results/demo.json
    python eval.py --readme                        write the tables of results/ into README.md

R[i, j] is the accuracy on task j after training on task i; row 0 is the base model. All figures are fractions.
"""
import argparse
import json
import math
import os
import sys

import numpy as np
import torch

from data import END, collate, content, decode, grade, in_own_voice, text_example

# ---------------------------------------------------------------------------------------------------------------------
# One model, some examples.


def answers(model, examples, shown=False, batch=256, n_new=16) -> list[str]:
    """Greedy answers to the bare prompts, or to the prompts behind their demonstrations."""
    said = []
    for i in range(0, len(examples), batch):
        b = collate(examples[i : i + batch])
        prompt, length = (b.demo_prompt, b.demo_length) if shown else (b.prompt, b.length)
        response, _ = model.generate(prompt, length, n_new, END, temperature=0)
        said += [decode(r) for r in response.tolist()]
    return said


def accuracy(model, examples, shown=False) -> float:
    return float(np.mean([grade(e, a) for e, a in zip(examples, answers(model, examples, shown))]))


def well_formed(example, answer) -> bool:
    """Does the answer have the form of one, right or wrong: own voice, and content of the kind that was asked for?"""
    n = len(content(answer))
    return in_own_voice(answer) and (n == 4 if example.kind in ("letters", "composed") else n in range(2, 9) if example.kind == "walk" else n == 1)


def continual_metrics(R) -> dict:
    """The metrics of a [T+1, T] accuracy matrix; NaN marks what was not evaluated.

    forgetting: Chaudhry et al. 2018, the final row is not in the maximum, so it can be negative. Transfers: Lopez-Paz and Ranzato
    2017. retention: mean of R[T, j] / R[j, j] over the tasks before the last that were learned at all.
    """
    R = np.asarray(R, dtype=float)
    T = R.shape[1]
    if R.shape != (T + 1, T):
        raise ValueError(f"R has shape {R.shape}: expected [T+1, T], row 0 being the base model")
    learned, final, before = np.array([R[j + 1, j] for j in range(T)]), R[T], slice(0, T - 1)
    none = float("nan")
    kept = [f / l for f, l in zip(final[before], learned[before]) if l > 0]
    return {
        "average_accuracy": float(final.mean()),
        "learning_accuracy": float(learned.mean()),
        "forgetting": float(np.mean(R[1:T, before].max(axis=0) - final[before])) if T > 1 else none,
        "backward_transfer": float(np.mean(final[before] - learned[before])) if T > 1 else none,
        "forward_transfer": float(np.mean([R[j, j] - R[0, j] for j in range(1, T)])) if T > 1 else none,
        "retention": float(np.mean(kept)) if kept else none,
        "never_learned": int(T - 1 - len(kept)),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Runs on disk: a run is a folder with result.json; a folder of runs gets summary.json, a table and pictures.

COLUMNS = ["learning_accuracy", "average_accuracy", "forgetting", "retention", "base_retention", "voice_retention", "teacher_retention", "seconds"]


def read_json(path):
    with open(path) as f:
        return json.load(f)


def write_json(path, value):
    """Written whole or not at all: a reader never sees half a file."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path + ".part", "w") as f:
        json.dump(value, f, indent=1)
        f.write("\n")
    os.replace(path + ".part", path)


def read_runs(folder) -> dict:
    """{method: result} of the runs below a folder, those that have finished their last task first to last by method name."""
    runs = {}
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name, "result.json")
        if os.path.exists(path):
            runs[name] = read_json(path)
    if not runs:
        sys.exit(f"{folder}: no run found (a run is a folder with result.json); make one with: python train.py --out {folder}/sdft")
    order = ["sft", "sft+self-replay", "sdft", "sdft+self-replay"]
    return dict(sorted(runs.items(), key=lambda r: order.index(r[0]) if r[0] in order else len(order)))


def table(rows: dict, columns=COLUMNS) -> str:
    """A Markdown table; rows: {method: {metric: number, or {"mean", "ci95"}}}."""

    def cell(column, v):
        scale, unit = (1, "") if column == "seconds" else (100, "")
        if isinstance(v, dict):
            return f"{v['mean'] * scale:.0f} ± {v['ci95'] * scale:.0f}{unit}"
        return f"{v * scale:.0f}{unit}"

    lines = ["| method | " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cell(c, row[c]) for c in columns) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def t_quantile_975(df: int) -> float:
    """97.5 % point of Student's t, by bisection on its distribution function (numerical integral; scipy is not needed for one number)."""
    x = np.linspace(0, 200, 400_001)
    density = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi) * (1 + x * x / df) ** (-(df + 1) / 2)
    mass = 0.5 + np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2) * (x[1] - x[0])])
    return float(np.interp(0.975, mass, x))


def draw_forgetting(runs: dict, path):
    """Left: one heat map of R per method (rows: after task i, row 0 the base; the diagonal outlined). Right: what is kept."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is missing (pip install matplotlib); the figures are in summary.json")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, len(runs) + 1, figsize=(3.4 * len(runs) + 4.6, 3.9), width_ratios=[1] * len(runs) + [1.35], layout="constrained")
    for ax, (name, run) in zip(axes, runs.items()):
        R = np.array(run["R"], dtype=float)
        T = R.shape[1]
        ax.imshow(np.ma.masked_invalid(R), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for j in range(T):
            ax.add_patch(plt.Rectangle((j - 0.5, j + 0.5), 1, 1, fill=False, edgecolor="white", linewidth=1.5))
        ax.set(title=name, xlabel="task", ylabel="after task (0 = base model)" if ax is axes[0] else "", xticks=range(0, T, 2), xticklabels=range(1, T + 1, 2))
    for name, run in runs.items():
        R = np.array(run["R"], dtype=float)
        seen = [np.mean(R[i, :i]) for i in range(1, len(R))]
        (line,) = axes[-1].plot(range(1, len(R)), seen, marker="o", markersize=3, label=f"{name}: tasks seen so far")
        axes[-1].plot(range(len(R)), run["base_accuracy"], linestyle="--", color=line.get_color(), label=f"{name}: base skills")
    axes[-1].set(title="what is left after each task", xlabel="tasks learned", ylabel="accuracy", ylim=(-0.02, 1.02))
    axes[-1].legend(fontsize=7, loc="lower left")
    axes[-1].grid(alpha=0.3)
    fig.savefig(path, dpi=110)
    plt.close(fig)
