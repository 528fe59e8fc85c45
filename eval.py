"""Measure: accuracy of a model, the metrics of continual learning, tables and pictures made from runs on disk.

    python eval.py out/demo                                         the table of the runs in a folder; their pictures drawn again
    python eval.py --ask out/demo/sdft "tanu: c a d b"              what a trained model answers
    python eval.py --show-teacher out/demo/sdft                     what student and teacher see, sample and believe, token by token
    python eval.py --readme                                         write the tables of results/ into README.md

R[i, j] is the accuracy on task j after training on task i; row 0 is the base model. All figures are fractions.
"""
import argparse
import json
import math
import os
import re
import sys
import warnings
import zipfile

import numpy as np
import torch

import data
import sdft
from data import END, VOCAB_SIZE, World, collate, content, decode, grade, in_own_voice, prompt_ids
from model import GPT, GPTConfig

# ---------------------------------------------------------------------------------------------------------------------
# One model, some examples.

def room(batch) -> int:
    """Tokens that an answer may have, sampled or greedy: a little more than the longest demonstrated one."""
    return max(16, batch.response.shape[1] + 2)


def answers(model, examples, shown=False, batch=256) -> list[str]:
    """Greedy answers to the bare prompts, or to the prompts behind their demonstrations."""
    said = []
    for i in range(0, len(examples), batch):
        b = collate(examples[i : i + batch]).to(model.head.weight.device)
        prompt, length = (b.demo_prompt, b.demo_length) if shown else (b.prompt, b.length)
        response, _ = model.generate(prompt, length, room(b), END, temperature=0)
        said += [decode(r) for r in response.tolist()]
    return said


def accuracy(model, examples, shown=False, score=grade) -> float:
    """Mean score of the answers; NaN of none."""
    scores = [score(e, a) for e, a in zip(examples, answers(model, examples, shown))]
    return float(np.mean(scores)) if scores else float("nan")


def well_formed(example, answer) -> bool:
    """Does the answer have the form of one, right or wrong: own voice, and as many words of content as were asked for?"""
    return in_own_voice(answer) and len(content(answer)) == len(example.answer)


# What a base model must be able to do before it can teach itself anything: at least this share (without a demonstration: at most).
GATES = {"base": 0.97, "new_without_demonstration": 0.20, "new_with_demonstration": 0.95, "contradicting_demonstration": 0.90,
         "text_with_demonstration": 0.95, "real_words_with_demonstration": 0.95, "well_formed": 0.98}


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
        "forgetting": float(np.mean(np.nanmax(R[1:T, before], axis=0) - final[before])) if T > 1 else none,
        "backward_transfer": float(np.mean(final[before] - learned[before])) if T > 1 else none,
        "forward_transfer": float(np.mean([R[j, j] - R[0, j] for j in range(1, T)])) if T > 1 else none,
        "retention": float(np.mean(kept)) if kept else none,
        "never_learned": int(T - 1 - len(kept)),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Runs on disk: a run is a folder with result.json and checkpoint.pt; a folder of runs gets summary.json, a table and a picture.

METRICS = ["learning_accuracy", "average_accuracy", "forgetting", "backward_transfer", "forward_transfer", "retention"]
KEPT = ["base_retention", "teacher_retention", "voice_retention"]
COST = ["steps", "generated_tokens", "seconds", "guard_trips", "never_learned"]
COLUMNS = ["learning_accuracy", "average_accuracy", "forgetting", "retention", *KEPT, "steps", "seconds"]
ORDER = ["sft", "sft+self-replay", "sdft", "sdft+self-replay"]


def fail(message):
    """One clear line, exit status 2. What cannot be printed is escaped: a file's name may hold a line break."""
    print("".join(c if c.isprintable() else repr(c)[1:-1] for c in message), file=sys.stderr)
    sys.exit(2)


def read_json(path):
    with open(path) as f:
        return json.load(f)


def write_json(path, value):
    """Written whole or not at all: a reader never sees half a file."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "w") as f:
            json.dump(value, f, indent=1)
            f.write("\n")
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def read_runs(folder) -> dict:
    """{name: result} of the finished runs in a folder; of a run at work a line tells how far it is."""
    runs, at_work = {}, []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        path = os.path.join(folder, name)
        try:
            runs[name] = read_json(os.path.join(path, "result.json"))
        except (FileNotFoundError, NotADirectoryError):
            if os.path.exists(os.path.join(path, "log.jsonl")):
                at_work.append(f"{name}: not finished; {progress(path)}")
    if not runs and not at_work:
        fail(f"{folder}: no run in it (a folder with result.json or log.jsonl); make one with: python train.py --out {folder}/sdft")
    print(*at_work, sep="\n", end="\n" * bool(at_work))
    return dict(sorted(runs.items(), key=lambda r: ORDER.index(r[0]) if r[0] in ORDER else len(ORDER)))


def progress(path) -> str:
    """The last whole line of a run's log, in words."""
    with open(os.path.join(path, "log.jsonl")) as f:
        lines = f.read().split("\n")[:-1]                   # what follows the last line end is being written
    last = json.loads(lines[-1]) if lines else {}
    return f"task {last['task']}, step {last['step']}, loss {last['loss']:.4f}" if "task" in last else "before its first task"


def figure(run, name):
    return sum(run[name]) if name in ("steps", "seconds", "generated_tokens") else run[name]


def summary(runs: dict) -> dict:
    return {
        "gates": next(iter(runs.values()))["gates"],
        "methods": {name: {k: figure(run, k) for k in [*METRICS, *KEPT, *COST]} for name, run in runs.items()},
        "R": {name: run["R"] for name, run in runs.items()},
        "runs": {name: {k: run[k] for k in ("command", "commit", "versions", "machine")} for name, run in runs.items()},
    }


def t_quantile_975(df: int) -> float:
    """97.5 % point of Student's t, by its distribution function on a grid (for one number scipy is not needed)."""
    x = np.linspace(0, 200, 400_001)
    density = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi) * (1 + x * x / df) ** (-(df + 1) / 2)
    mass = 0.5 + np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2) * (x[1] - x[0])])
    return float(np.interp(0.975, mass, x))


def table(rows: dict, columns=COLUMNS) -> str:
    """A Markdown table in percent, but for steps and seconds; rows: {method: {metric: number}}."""
    lines = ["| method | " + " | ".join(c.replace("_", " ") for c in columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{row[c] * (1 if c in COST else 100):.0f}" for c in columns) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def draw(runs: dict, path):
    """Heat maps of R (rows: after task i, row 0 the base; the diagonal outlined), what is left after each task, the teacher as it trains."""
    try:
        import matplotlib
    except ImportError:
        print(f"no picture {path}: matplotlib is missing (pip install matplotlib); all figures are in summary.json")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(max(9, 3.3 * len(runs)), 7.5), layout="constrained")
    top, bottom = fig.subfigures(2, 1)
    for i, (ax, (name, run)) in enumerate(zip(np.atleast_1d(top.subplots(1, len(runs))), runs.items())):
        R = np.array(run["R"], dtype=float)
        T = R.shape[1]
        image = ax.imshow(np.ma.masked_invalid(R), vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for j in range(T):
            ax.add_patch(plt.Rectangle((j - 0.5, j + 0.5), 1, 1, fill=False, edgecolor="white", linewidth=1.5))
        ax.set(title=name, xlabel="accuracy on task", ylabel="after task (0: base model)" if i == 0 else "")
        every = max(1, T // 5)
        ax.set(xticks=range(0, T, every), xticklabels=range(1, T + 1, every), yticks=range(0, T + 1, every))
    top.colorbar(image, ax=top.axes, label="accuracy", fraction=0.02)
    left, right = bottom.subplots(1, 2)
    for name, run in runs.items():
        R = np.array(run["R"], dtype=float)
        seen = [np.mean(R[i, :i]) for i in range(1, len(R))]
        (line,) = left.plot(range(1, len(R)), seen, marker="o", markersize=3, label=f"{name}: tasks seen")
        left.plot(range(len(R)), run["base_accuracy"], linestyle="--", color=line.get_color(), label=f"{name}: base skills")
        right.plot(*zip(*run["teacher_curve"]), color=line.get_color(), label=name)
    left.set(title="what is left", xlabel="tasks learned", xticks=range(0, T + 1, every), ylabel="accuracy", ylim=(-0.02, 1.02))
    right.set(title="the teacher: accuracy on the demonstrations it is shown", xlabel="step of the stream", ylim=(-0.02, 1.02))
    for ax in (left, right):
        ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=len(runs))       # below: the lines are everywhere
        ax.grid(alpha=0.3)
    fig.savefig(path, dpi=110)
    plt.close(fig)


# ---------------------------------------------------------------------------------------------------------------------
# A trained checkpoint, looked at.


def load_checkpoint(path) -> dict:
    """A checkpoint of train.py: tensors and plain values alone (weights_only: a file that would execute code is refused)."""
    if not path.endswith(".pt") or os.path.isdir(path):
        path = os.path.join(path, "checkpoint.pt")
    try:
        with zipfile.ZipFile(path) as file:                # torch.load compares no checksums: a damaged weight would be just another weight
            if file.testzip():
                raise zipfile.BadZipFile
        with warnings.catch_warnings(action="ignore"):     # the unpickler's, on what is refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
        return state if {"settings", "student", "teacher"} <= state.keys() else fail(f"{path}: not a checkpoint of train.py; give one that it wrote")
    except FileNotFoundError:
        fail(f"{path}: no such checkpoint; make one with: python train.py --out {os.path.dirname(path) or '.'} (a base model: with --method base)")
    except Exception as e:                                 # bytes that are no checkpoint raise whatever they happen to mean to the unpickler
        fail(f"{path}: not a checkpoint, or damaged ({type(e).__name__}); restore it, or remove it and train again")


def load_model(path, which="student") -> tuple[GPT, dict]:
    """The student or the teacher of a checkpoint, and all that the checkpoint holds. The tokenizer learns its words."""
    state = load_checkpoint(path)
    try:
        data.take_names(state.get("words", {}))
        rows, width = state[which]["embed.weight"].shape
        model = GPT(GPTConfig(rows, state["settings"]["n_layer"], state["settings"]["n_head"], width))
        model.load_state_dict(state[which])
        if rows < VOCAB_SIZE or width % (2 * model.config.n_head):
            raise ValueError(f"{rows} words, width {width}")
    except Exception:                                      # settings and weights may be anything
        fail(f"{path}: a checkpoint of another architecture than model.py; train again, or use the version of this project that wrote it")
    return model.eval(), state


def ask(path, prompt) -> str:
    """The greedy answer to a prompt."""
    model, _ = load_model(path)
    ids = torch.tensor([prompt_ids(prompt)])
    if ids.shape[1] + 32 > model.config.context:
        fail(f"the prompt has {ids.shape[1]} tokens: with 32 for the answer it does not fit the context of {model.config.context}")
    response, _ = model.generate(ids, torch.tensor([ids.shape[1]]), 32, END, temperature=0)
    return decode(response[0].tolist())


def word(token) -> str:
    return data.TOKENIZER.decode([token]) if token < data.TOKENIZER.n_vocab else "(padding)"


def show_teacher(path, n=3):
    """The method in a terminal: both prompts, the student's sample, and what student and teacher thought of each of its tokens."""
    student, state = load_model(path)
    settings = state["settings"] | {"seed": state.get("world_seed", state["settings"]["seed"])}
    teacher, _ = load_model(path, "teacher")
    tasks = World(settings["seed"]).stream(settings["tasks"] + n)[settings["tasks"] :]         # tasks that it has not been taught yet
    for task in tasks:
        b = collate([task.train[0]])
        response, mask = student.generate(b.prompt, b.length, room(b), END)
        q, p = (sdft.score(m, x, l, response)[0].softmax(-1) for m, x, l in ((student, b.prompt, b.length), (teacher, b.demo_prompt, b.demo_length)))
        kl = sdft.distill_loss(q.log()[None], p.log()[None], mask)
        print(f"\nthe student sees   {data.TOKENIZER.decode(b.prompt[0].tolist())}\nthe teacher sees   {data.TOKENIZER.decode(b.demo_prompt[0].tolist())}")
        print(f"the student says   {decode(response[0].tolist())!r}     KL(teacher ‖ student) = {kl:.2f} nats a token\n")
        print(f"   {'token':12s} {'student':>8s} {'teacher':>8s}   what the teacher would rather say")
        for t in range(int(mask.sum())):
            token, best = int(response[0, t]), int(p[t].argmax())
            print(f"   {word(token):12s} {q[t, token]:8.3f} {p[t, token]:8.3f}   {word(best):12s} {p[t, best]:.3f}")


def write_readme(readme, results="results"):
    """Replaces what stands between <!-- NAME --> and <!-- end --> by the text that BLOCKS make of a JSON under results/."""
    import claims                                          # here, since it imports this file

    blocks = BLOCKS | claims.BLOCKS
    with open(readme) as f:
        text = f.read()

    def fill(match):
        source, text = blocks[match[1]]
        return f"<!-- {match[1]} -->\n{text(read_json(os.path.join(results, source + '.json')))}\n<!-- end -->"

    new = re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.S)
    with open(readme + ".part", "w") as f:
        f.write(new)
    os.replace(readme + ".part", readme)


def step_text(figures):
    ms = figures["milliseconds"]
    text = "| part of a step | ms |\n|---|---:|\n" + "\n".join(f"| {'**whole step**' if k == 'step' else k} | {v} |" for k, v in ms.items())
    text += f"\n| rest (each part is timed apart, in memory that is warm; in a step the system hands it out anew) | {2 * ms['step'] - sum(ms.values()):.1f} |"
    if "trl" in figures:
        low, high = min(figures["times_faster_than_trl"]), max(figures["times_faster_than_trl"])
        text += f"\n| the same work by TRL {figures['trl']['version']} | {figures['trl']['step']} |\n\n"
        text += f"TRL takes {low:.1f} to {high:.1f} times as long, timed alternately in one run on a {figures['machine']}."
    return text


def kernel_text(figures):
    lines = ["| linear loss, 2,048 tokens, width 128 | words | seconds | extra memory, MB |", "|---|---:|---:|---:|"]
    for r in figures["linear"]:
        how = "whole logits, eager" if r["chunk"] == 0 else f"chunk {r['chunk']}"
        lines.append(f"| {how} | {r['V']:,} | {r['seconds']:.2f} | {r['extra_mb']:,.0f} |")
    lines += ["", "| operator, 600 tokens x 960 words | mean divergence, nats | eager, ms | operator, ms |", "|---|---:|---:|---:|"]
    lines += [f"| {r['divergence']} | {r['mean_divergence']:.1g} | {r['eager_ms']:.1f} | {r['operator_ms']:.1f} |" for r in figures["operator"]]
    return "\n".join(lines)


# <!-- name of a block in the README --> : (its JSON under results/, its text); claims.py has more
BLOCKS = {
    "step": ("step_cpu", step_text),
    "kernel": ("kernel_cpu", kernel_text),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="a folder of runs: print their table, write summary.json, draw forgetting.png")
    parser.add_argument("--ask", nargs=2, metavar=("RUN", "PROMPT"), help="answer a prompt with a run's student")
    parser.add_argument("--show-teacher", metavar="RUN", help="student and teacher on a few tasks that the run has not been taught")
    parser.add_argument("--readme", action="store_true", help="write the tables of results/ into README.md")
    args = parser.parse_args()
    if args.ask:
        print(ask(*args.ask))
    elif args.show_teacher:
        show_teacher(args.show_teacher)
    elif args.readme:
        for readme in ("README.md", os.path.join("examples", "README.md")):
            write_readme(readme)
    elif args.folder:
        runs = read_runs(args.folder)
        if runs:
            print(table(summary(runs)["methods"]))
            write_json(os.path.join(args.folder, "summary.json"), summary(runs))
            draw(runs, picture := os.path.join(args.folder, "forgetting.png"))
            print(f"in percent; wrote {picture}" if os.path.exists(picture) else "in percent")
    else:
        parser.error("nothing to do: name a folder of runs, or one of the options")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")     # a terminal that does not know a character is no reason to stop
    main()
