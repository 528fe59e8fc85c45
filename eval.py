"""Measure: accuracy of a model, the metrics of continual learning, tables and pictures made from runs on disk.

    python eval.py out/demo                                         the table of the runs in a folder, and their picture
    python eval.py out/demo --report report.html                    all that they found, in a page (or .md)
    python eval.py --ask out/demo/sdft "tanu: c a d b"              what a trained model answers
    python eval.py --show out/demo/sdft --html page.html            what student and teacher see, say and believe

R[i][j] is the accuracy on task j (from 0) after the first i tasks; row 0 is the base model. All figures are fractions.
"""
import argparse
import json
import os
import sys

import numpy as np
import torch

import pages
import report
import sdft
from chat import OFFICIAL, ChatTokenizer, about, template_of
from data import VOICED, WordTokenizer, collate, grade, in_own_voice, in_own_words, into_tasks, read_examples
from divergence import contrasted, linear_distill_loss, token_divergence
from model import GPT, bf16_copy
from runs import BadInput, ends_in_one_line, provenance, read_json, replacing, write_json

OPEN = 64                         # tokens that the answer to an open prompt may have
AT_ONCE = 2**16                   # tokens of prompts and answers, and so places of the cache, when many are asked

# ---------------------------------------------------------------------------------------------------------------------
# One model, some examples.


def answers(model, tokenizer, examples, shown=False, batch=256, room=0) -> list[str]:
    """Greedy answers to the bare prompts, or to the prompts after their demonstrations (shown: True, or of each prompt
    a list of others). An answer may have Batch.room tokens, or `room` where that is more; as many are asked at once as
    have, with their answers, at most AT_ONCE tokens."""
    said = []
    while len(said) < len(examples):
        rows = slice(len(said), len(said) + batch)
        b = collate(examples[rows], tokenizer, shown[rows] if isinstance(shown, list) else None)
        prompt, length = (b.demo_prompt, b.demo_length) if shown else (b.prompt, b.length)
        if batch > 1 and len(prompt) * (prompt.shape[1] + max(room, b.room)) > AT_ONCE:
            batch = max(1, min(batch, len(prompt)) // 2)
            continue
        prompt, length = (t.to(model.head.weight.device) for t in (prompt, length))
        response, _ = model.generate(prompt, length, max(room, b.room), tokenizer.end, temperature=0)
        said += [tokenizer.decode(r) for r in response.tolist()]
    return said


def mean(values) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def spread(examples, most) -> list:
    """At most so many of them, from all over."""
    return [examples[i] for i in np.linspace(0, len(examples) - 1, min(most, len(examples))).astype(int)]


def accuracy(model, tokenizer, examples, shown=False, room=0) -> float:
    """Mean grade of the answers; NaN of none."""
    return mean([grade(e, a) for e, a in zip(examples, answers(model, tokenizer, examples, shown, room=room))])


class Drift:
    """Mean KL(base ‖ model) in nats a token, along the base's own greedy answers to the bare prompts.

    The base answers once, as this is made: what its head reads for the N tokens of its answers (N, D) and the head
    (V, D) stay, on the CPU, and the base itself need not. `model` in its place in a call is what it has become. head: a
    copy of the base's that others have too. low: a copy of the base in bf16 that answers for it.
    """

    def __init__(self, base, tokenizer, examples, most=64, head=None, low=None):
        self.batch = None
        self.head = base.head.weight.detach().to("cpu", copy=True) if head is None else head
        if examples:
            self.batch = collate(spread(examples, most), tokenizer)
            self.response, self.mask = self.answer(low or base, tokenizer)
            self.hidden = self.score(base).cpu()

    def answer(self, base, tokenizer):
        batch = self.batch.to(base.head.weight.device)
        return base.generate(batch.prompt, batch.length, batch.room, tokenizer.end, temperature=0)

    @torch.no_grad()
    def score(self, model):
        device = model.head.weight.device
        batch, response, mask = (t.to(device) for t in (self.batch, self.response, self.mask))
        return sdft.score(model, batch.prompt, batch.length, response, mask, return_hidden=True)[mask]

    @torch.no_grad()
    def __call__(self, model) -> float:
        if self.batch is None:
            return float("nan")
        hidden, head = self.score(model), model.head.weight
        base = self.hidden.to(hidden.device), self.head.to(hidden.device)
        return linear_distill_loss(hidden, head, *base, torch.ones_like(hidden[:, 0])).item()


class Probe:
    """What is measured before the first task and after each; NaN where there is nothing to measure.

    tasks: what is taught, in this order. keep: examples of what the model should still know, by their task. reading:
    what it is asked after a demonstration. neighbours: of facts that a task changes. open_prompts: without a right
    answer; the words of the answers are counted. Of what a task is trained on at most `most` are asked. room: tokens
    that an answer to a task may have, as in `answers`. base: the model before its first task. bf16: answers are those
    of a copy in bf16; drift is that of the model itself.
    """

    def __init__(self, base, tokenizer, tasks, keep=(), reading=(), neighbours=(), open_prompts=(), bf16=False,
                 most=128, room=0):
        self.tokenizer, self.tasks, self.bf16, self.room, self.most = tokenizer, tasks, bf16, room, most
        self.keep, self.reading, self.neighbours, self.open_prompts = keep, reading, neighbours, open_prompts
        self.asked = []                                    # what was said before the first task, and last; see `ask`
        self.kinds = np.array([e.task for e in keep])
        low = bf16_copy(base) if bf16 else None
        self.drift_keep = Drift(base, tokenizer, [*keep, *open_prompts], low=low)
        self.drift_new = [Drift(base, tokenizer, task.test, head=self.drift_keep.head, low=low) for task in tasks]

    def measure(self, model, learned: int) -> dict:
        """The figures of a model that has learned the first so many tasks."""
        whole, model = model, bf16_copy(model) if self.bf16 else model
        # all of the base; then what is seen, and the next
        known = len(self.tasks) if learned == 0 else learned + 1
        if learned == 0:
            self.asked = []
        R = [mean(self.ask(model, f"task {j + 1}", task.test, self.room)[1]) if j < known else float("nan")
             for j, task in enumerate(self.tasks)]
        # of the base: the first task's
        trained_on = spread(self.tasks[max(learned - 1, 0)].train, self.most)
        _, learned_by_now, _ = self.ask(model, f"learned {learned}", trained_on, self.room)
        said, right, before = self.ask(model, "keep", self.keep)
        _, beside, beside_before = self.ask(model, "neighbours", self.neighbours)
        spoken, *_ = self.ask(model, "open", self.open_prompts, room=OPEN)
        return {
            "R": R,
            "learned": mean(learned_by_now),
            "base_accuracy": mean(right),
            "kept": mean(right[before == 1]),
            "open_words": mean([len(text.split()) for text in spoken]),
            "base_by_kind": {kind: mean(right[self.kinds == kind]) for kind in dict.fromkeys(self.kinds.tolist())},
            "voice": mean([in_own_voice(a) for e, a in zip(self.keep, said) if e.grader in VOICED]),
            "teacher_accuracy": accuracy(model, self.tokenizer, self.reading, shown=True),
            "neighbours": mean(beside),
            "neighbours_kept": mean(beside[beside_before == 1]),
            "drift_base": self.drift_keep(whole),
            "drift_new": self.drift_new[max(learned - 1, 0)](whole),
        }

    def ask(self, model, of, examples, room=0):
        """Greedy answers, their grades (N,), and the grades (N,) when first asked: before the first task, but for
        what a task is trained on ("learned 1", ...; "learned 0" is the first task's, before it). Of each `asked` keeps
        a row: {"of": that, "task 1", ..., "keep", "neighbours" or "open", "task", "prompt", "right", "said": [first,
        last], "grade": [first, last]}."""
        said = answers(model, self.tokenizer, examples, room=room)
        rows = [row for row in self.asked if row["of"] == of]
        if not rows:
            rows = [{"of": of, "task": e.task, "prompt": e.prompt, "right": e.answer, "said": [], "grade": []}
                    for e in examples]
            self.asked += rows
        for row, example, text in zip(rows, examples, said):
            row["said"][1:], row["grade"][1:] = [text], [grade(example, text)]
        return said, np.array([row["grade"][-1] for row in rows]), np.array([row["grade"][0] for row in rows])


def continual_metrics(R) -> dict:
    """The metrics of a [T+1, T] accuracy matrix; NaN marks what was not evaluated.

    forgetting: Chaudhry et al. 2018, the final row is not in the maximum, so it can be negative. Transfers: Lopez-Paz
    and Ranzato 2017. retention: mean of R[T, j] / R[j, j] over the tasks before the last that were learned at all.
    """
    R = np.asarray(R, dtype=float)
    T = R.shape[1]
    if R.shape != (T + 1, T):
        raise ValueError(f"R has shape {R.shape}: expected [T+1, T], row 0 being the base model")
    learned, final, before = np.array([R[j + 1, j] for j in range(T)]), R[T], slice(0, T - 1)
    none = float("nan")
    kept = [last / first for last, first in zip(final[before], learned[before]) if first > 0]
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
# Runs on disk: a run is a folder with result.json and model/; a folder of runs gets summary.json, a table, a picture.

METRICS = ["learning_accuracy", "average_accuracy", "forgetting", "backward_transfer", "forward_transfer", "retention"]
KEPT = ["base_retention", "teacher_retention", "voice_retention"]
COST = ["steps", "generated_tokens", "seconds", "guard_trips", "never_learned"]
COLUMNS = ["learning_accuracy", "average_accuracy", "forgetting", "retention", *KEPT, "steps", "seconds"]
ORDER = ["sft", "sft+self-replay", "sdft", "sdft+self-replay"]


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
    if not runs and not at_work and os.path.exists(os.path.join(folder, "log.jsonl")):
        above = os.path.dirname(os.path.abspath(folder))
        raise BadInput(f"{folder}: a run; a table is of the folder that runs lie in: python eval.py {above}")
    if not runs and not at_work:
        raise BadInput(f"{folder}: no run in it (a folder with result.json or log.jsonl); make one with: "
                       f"python train.py ... --out {folder}/sdft")
    print(*at_work, sep="\n", end="\n" * bool(at_work))
    return dict(sorted(runs.items(), key=lambda r: ORDER.index(r[0]) if r[0] in ORDER else len(ORDER)))


def progress(path) -> str:
    """The last whole line of a run's log, in words."""
    with open(os.path.join(path, "log.jsonl")) as f:
        # what follows the last line end is being written
        lines = f.read().split("\n")[:-1]
    last = json.loads(lines[-1]) if lines else {}
    if "task" not in last:
        return "before its first task"
    return f"task {last['task']}, step {last['step']}, loss {last['loss']:.4f}"


def figure(run, name):
    return sum(run[name]) if name in ("steps", "seconds", "generated_tokens") else run[name]


def summary(runs: dict) -> dict:
    return {
        "gates": next(iter(runs.values()))["gates"],
        "methods": {name: {k: figure(run, k) for k in [*METRICS, *KEPT, *COST]} for name, run in runs.items()},
        "R": {name: run["R"] for name, run in runs.items()},
        "runs": {name: {k: run[k] for k in ("command", "commit", "versions", "machine")} for name, run in runs.items()},
    }


def table(rows: dict, columns=COLUMNS) -> str:
    """A Markdown table in percent, but for steps and seconds; rows: {method: {metric: number}}."""
    header = " | ".join(c.replace("_", " ") for c in columns)
    lines = [f"| method | {header} |", "|---" + "|---:" * len(columns) + "|"]
    for name, row in rows.items():
        cells = [f"{row[c] * (1 if c in COST else 100):.0f}" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def changes(result) -> str:
    """What was learned and what was forgotten, task by task: accuracy before, when learned, now."""
    R, kinds = result["R"], result["base_by_kind"]
    rows = [(f"new: {name}", R[j][j], R[j + 1][j], R[-1][j]) for j, name in enumerate(result["tasks"])]
    rows += [(f"kept: {name}", kinds[0][name], float("nan"), kinds[-1][name]) for name in kinds[0]]
    beside = result.get("neighbours") or [float("nan")]
    if not np.isnan(beside[0]):
        rows.append(("neighbours", beside[0], float("nan"), beside[-1]))
    lines = [f"{'task':32s} {'before':>8s} {'learned':>8s} {'now':>8s}"]
    for name, *figures in rows:
        cells = [f"{x:8.2f}".replace("nan", "  –") for x in figures]
        lines.append(f"{name:32.32s} {' '.join(cells)}")
    return "\n".join(lines)


def draw(runs: dict, path):
    """Heat maps of R (rows: after task i, row 0 the base; the diagonal outlined), what is left after each task, and
    how well the teacher read its demonstrations as it trained."""
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
        color = line.get_color()
        left.plot(range(len(R)), run["base_accuracy"], linestyle="--", color=color, label=f"{name}: kept skills")
        right.plot(*zip(*run["teacher_curve"]), color=color, label=name)
    left.set(title="what is left", xlabel="tasks learned", ylabel="accuracy", ylim=(-0.02, 1.02))
    left.set(xticks=range(0, T + 1, every))
    right.set(title="the teacher, shown a demonstration", xlabel="step of the run", ylim=(-0.02, 1.02))
    for ax in (left, right):
        # the lines are everywhere
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
        ax.legend(fontsize=7, ncols=len(runs), **below)
        ax.grid(alpha=0.3)
    fig.savefig(path, dpi=110)
    plt.close(fig)


# ---------------------------------------------------------------------------------------------------------------------
# A model's folder: config.json and model*.safetensors; words.json of the small GPT, or the files of a chat model's
# tokenizer; and pretraining.json, where lab/pretrain.py has made what it began with.


def model_folder(path) -> str | None:
    """The folder of a model that a path is, or that a run or a pretraining has left in it."""
    found = [folder for folder in (path, os.path.join(path, "model"))
             if os.path.exists(os.path.join(folder, "config.json"))]
    return found[0] if found else None


def is_chat(path) -> bool:
    """Whether a model is there that is not the small GPT."""
    folder = model_folder(path)
    return folder is not None and not os.path.exists(os.path.join(folder, "words.json"))


def load_model(path, template=OFFICIAL, context=0) -> tuple[GPT, WordTokenizer | ChatTokenizer, dict]:
    """The model of a folder, or of what a run or a pretraining has left in its own: on the CPU, in fp32, with its
    tokenizer and what its pretraining hands on, see `handed_on`. Raises BadInput.

    template: how a chat model is shown a demonstration. context: longest sequence in tokens, see GPT.from_pretrained.
    """
    folder = model_folder(path)
    if folder is None and os.path.exists(os.path.join(path, "log.jsonl")):
        raise BadInput(f"{path}: no model yet, since no task is learned or its pretraining has not ended; go on with "
                       f"it first: python train.py --out {path} --resume, or lab/pretrain.py as before")
    if folder is None:
        raise BadInput(f"{path}: no model there, neither config.json nor model/config.json; check the path, or make a "
                       f"base model with: python lab/pretrain.py --out {path}")
    try:
        model = GPT.from_pretrained(folder, context or None)
    except ValueError as e:
        raise BadInput(str(e))
    if is_chat(folder):
        tokenizer = ChatTokenizer(folder, template)
    else:
        with about(folder, "words.json"):
            tokenizer = WordTokenizer(**read_json(os.path.join(folder, "words.json")))
    if tokenizer.n_vocab > model.config.vocab_size:
        raise BadInput(f"{folder}: the tokenizer has {tokenizer.n_vocab} tokens, and the model has "
                       f"{model.config.vocab_size} rows for them; fetch or make both again")
    return model.eval(), tokenizer, handed_on(folder, model.config.vocab_size)


def handed_on(folder, n_rows) -> dict:
    """What pretraining.json says, {} where there is none. For those who train: "frequency", (V,) fp32, each token's
    share of what was read, of `n_rows` tokens; and "gates", {what a base model must be able to do: share of answers}.
    Raises BadInput."""
    path = os.path.join(folder, "pretraining.json")
    if not os.path.exists(path):
        return {}
    with about(folder, "pretraining.json"):
        said = read_json(path)
        said["frequency"] = torch.from_numpy(np.array(said["frequency"], np.float32))
        if said["frequency"].shape != (n_rows,) or not said["frequency"].isfinite().all():
            raise ValueError(f"not a frequency of each of {n_rows} tokens")
    return said


def ask(path, prompt) -> str:
    """The greedy answer to a prompt. Raises BadInput for one that does not fit."""
    model, tokenizer, _ = load_model(path, context=settings_of(path).get("context", 0))
    ids = torch.tensor([tokenizer.prompt(prompt)])
    room = 256 if isinstance(tokenizer, ChatTokenizer) else 32
    if ids.shape[1] + room > model.config.context:
        raise BadInput(f"the prompt has {ids.shape[1]} tokens: with {room} for the answer it does not fit the context "
                       f"of {model.config.context}; shorten it")
    response, _ = model.generate(ids, torch.tensor([ids.shape[1]]), room, tokenizer.end, temperature=0)
    return tokenizer.decode(response[0].tolist())


def both_prompts(task, tokenizer, k=0) -> str:
    """What student and teacher see of the first demonstration of a task; k: of others, shown in its place."""
    first = task.train[0]
    b = collate([first], tokenizer, [following(first, task.train)[:k]] if k else None)
    return (f"the student sees   {tokenizer.show(b.prompt[0].tolist())}\n"
            f"the teacher sees   {tokenizer.show(b.demo_prompt[0].tolist())}")


# ---------------------------------------------------------------------------------------------------------------------
# The method at single tokens: what eval.py --show makes a page of, or lines of a terminal.


def settings_of(path) -> dict:
    """The options with which a run began, as its log has them; {} of any other model. Raises BadInput."""
    log = os.path.join(path, "log.jsonl")
    if not os.path.exists(log):
        return {}
    with about(path, "log.jsonl"), open(log, encoding="utf-8") as f:
        return json.loads(f.readline())["settings"]


def looks(path, files=(), rows=1) -> list[dict]:
    """Of each task the first so many rows: what student and teacher see, and what both believe along the student's
    greedy answer. Of a run twice, of the model that it began from and of its own. files: demonstrations; by default
    those that the run was taught. The teacher is the student shown the demonstration, as the run showed it.

    A row is what pages.as_page and as_text read: {"task", "place", "prompt", "right", "demonstration", "student_sees":
    text, "teacher_sees": (text, what the teacher alone sees, text), "beliefs": [names], "answers": [{"when", "model",
    "said", "grade", "tokens": see `look`}]}. Raises BadInput.
    """
    settings = settings_of(path)
    model, tokenizer, _ = load_model(path, template_of(settings.get("template", "")), settings.get("context", 0))
    files = files or settings.get("demos")
    if not files:
        raise BadInput(f"{path}: of this model it is not known what it was taught; name a file too")
    models = [("as it is", path, model)]
    if init := settings.get("init"):
        if not model_folder(init):
            raise BadInput(f"{path}: the model that this run began from ({init}) is not there; put it back, or call "
                           "this where the run was made")
        before = load_model(init, context=model.config.context)[0]
        models = [("before training", init, before), ("after training", path, model)]
    contrast, k = settings.get("contrast", 0), settings.get("shown", 0)
    own = settings.get("against") == "own"

    found = []
    grader = settings.get("grader", "exact")
    drop = settings.get("drop_unusable", False)
    for task in into_tasks(read_examples(files, tokenizer, model.config.context // 2, grader, drop=drop), 0, 0):
        examples = task.train[:rows]
        shown = [following(e, task.train)[:k] for e in examples] if k else None
        against = None
        if contrast:
            against = [next((o for o in following(e, task.train) if own or o.shown[1] != e.shown[1]), e)
                       for e in examples]
        if contrast and own:
            # as before the first task: what the model itself says to another prompt
            said = answers(models[0][2], tokenizer, against, room=settings.get("max_new_tokens", 0))
            against = in_own_words(against, said)
        b = collate(examples, tokenizer, shown, against)
        room = max(settings.get("max_new_tokens", 0), b.room)
        spoken = [m.generate(b.prompt, b.length, room, tokenizer.end, temperature=0) for _, _, m in models]
        for i, e in enumerate(examples):
            # a market's answer is a list
            right = e.answer if isinstance(e.answer, str) else e.response
            row = {"task": task.name, "place": e.place, "prompt": e.prompt, "right": right, "demonstration": e.shown[1],
                   "beliefs": BELIEFS[bool(contrast)], "answers": []}
            row |= dict(zip(("student_sees", "teacher_sees"), both_seen(b, i, tokenizer)))
            for (when, name, m), (response, mask) in zip(models, spoken):
                ids = response[i, : mask[i].sum()]
                text = tokenizer.decode(ids)
                row["answers"].append({"when": when, "model": name, "said": text, "grade": grade(e, text),
                                       "tokens": look(m, tokenizer, b, i, ids, contrast)})
            found.append(row)
    return found


BELIEFS = [["student", "teacher"], ["student", "target", "teacher", "teacher, shown another"]]


def following(example, train) -> list:
    """The examples of other prompts, from the next one on, round and round."""
    i = train.index(example)
    return [e for e in train[i:] + train[:i] if e.prompt != example.prompt]


def both_seen(b, i, tokenizer) -> tuple[str, tuple]:
    """What the student sees of a row, and what the teacher sees, in three parts: the second is what they differ by."""
    bare, shown = b.prompt[i, : b.length[i]].tolist(), b.demo_prompt[i, : b.demo_length[i]].tolist()
    same = len(os.path.commonprefix([bare, shown]))
    last = len(os.path.commonprefix([bare[same:][::-1], shown[same:][::-1]]))
    cut = len(shown) - last
    return tokenizer.show(bare), tuple(map(tokenizer.show, (shown[:same], shown[same:cut], shown[cut:])))


@torch.no_grad()
def look(model, tokenizer, b, i, response, contrast) -> list[dict]:
    """What is believed at each token of an answer (R,) to the i-th row of a batch: {"word", "kl": KL(teacher ‖
    student) in nats, "chances": [student's, teacher's] of the token, "beliefs": of each [(word, chance)] * 5}. With a
    contrast the target stands in the teacher's place, and the teachers that it is made of after it."""
    seen = [(b.prompt, b.length), (b.demo_prompt, b.demo_length)]
    if contrast:
        seen.append((b.other_prompt, b.other_length))
    logits = [sdft.score(model, prompt[i : i + 1], n[i : i + 1], response[None])[0].float() for prompt, n in seen]
    if contrast:
        # the student, of the same weights, is the bare teacher
        logits.insert(1, contrasted(contrast, logits[1], logits[0], logits[2]))
    kl = token_divergence(logits[0], logits[1]).tolist()
    chances = torch.stack(logits).softmax(-1)                                                     # (2 or 4, R, V)
    best, which = (x.tolist() for x in chances.topk(5))
    words = []
    for t, token in enumerate(response.tolist()):
        beliefs = [[(word(tokenizer, w), p) for w, p in zip(ids[t], top[t])] for ids, top in zip(which, best)]
        words.append({"word": word(tokenizer, token), "kl": kl[t], "chances": chances[:2, t, token].tolist(),
                      "beliefs": beliefs})
    return words


def word(tokenizer, token) -> str:
    """The text of a token, in it bytes that are no character as surrogateescape has them; "" of a row without one."""
    try:
        raw = tokenizer.encoding.decode_single_token_bytes(token) if token < tokenizer.n_vocab else b""
    except KeyError:
        raw = b""
    return raw.decode("utf-8", "surrogateescape")


def show(path, files=(), rows=1, page=""):
    """Writes the looks at some rows into a page, or prints them: in colour on a terminal, unless NO_COLOR is set."""
    found = looks(path, files, rows)
    if page:
        with replacing(page, encoding="utf-8") as f:
            f.write(pages.as_page(found, provenance()))
        print(f"wrote {page}")
    else:
        print(pages.as_text(found, sys.stdout.isatty() and not os.environ.get("NO_COLOR")))


def tabulate(folder):
    runs = read_runs(folder)
    if runs:
        print(table(summary(runs)["methods"]))
        write_json(os.path.join(folder, "summary.json"), summary(runs))
        draw(runs, picture := os.path.join(folder, "forgetting.png"))
        print(f"in percent; wrote {picture}" if os.path.exists(picture) else "in percent")


def write_report(folders, path):
    """What runs have found, as a page, or where the path ends so as Markdown, with its pictures beside it."""
    found = report.blocks(report.read(folders), provenance())
    folder, name = os.path.split(path)
    if name.endswith(".md"):
        text, pictures = report.as_markdown(found, name.removesuffix(".md"))
        files = {name: text} | pictures
    else:
        files = {name: report.as_html(found)}
    for file, text in files.items():
        with replacing(os.path.join(folder, file), encoding="utf-8") as f:
            f.write(text)
    print(f"wrote {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*",
                        help="a folder of runs: print their table, write summary.json, draw forgetting.png")
    parser.add_argument("--report", metavar="FILE", help="a report of runs, or of folders of runs: a page, or .md")
    parser.add_argument("--ask", nargs=2, metavar=("RUN", "PROMPT"), help="answer a prompt with a run's student")
    parser.add_argument("--show", nargs="+", metavar=("RUN", "FILE"),
                        help="student and teacher, token by token, on the first row of each task of some files "
                             "(default: those that the run was taught), before and after training")
    parser.add_argument("--rows", type=int, default=1, help="rows of each task for --show (default: 1)")
    parser.add_argument("--html", metavar="PAGE", default="", help="the file that --show writes: a page, from disk")
    args = parser.parse_args()
    if args.report and (args.show or args.ask):
        parser.error("--report is of folders of runs, without --show and --ask")
    if not args.show and (args.html or args.rows != 1) or args.rows < 1:
        parser.error("--html and --rows go with --show, and --rows is at least 1")
    if args.ask:
        print(ask(*args.ask))
    elif args.show:
        show(args.show[0], args.show[1:], args.rows, args.html)
    elif args.folders and args.report:
        write_report(args.folders, args.report)
    elif args.folders:
        for folder in args.folders:
            tabulate(folder)
    else:
        parser.error("nothing to do: name a folder of runs, or one of the options")


if __name__ == "__main__":
    # a terminal that does not know a character is no reason to stop
    sys.stdout.reconfigure(errors="backslashreplace")
    with ends_in_one_line():
        main()
