"""What runs have found, in one report: a page, or Markdown with pictures beside it. What eval.py --report writes.

All of it is read from what runs leave (result.json, answers.jsonl, log.jsonl): no model is asked again. Runs in folders
of one name are one method. Where it has several seeds an interval is over seeds (Student's t), and where it has one it
is over the questions that were asked (bootstrap); methods are compared in pairs, on the same seeds or questions.
Figures are fractions, drift and loss nats a token. Left out: tests of significance, and corrections for many of them.
"""
import html
import json
import os
import re

import numpy as np

import pages
from runs import BadInput, read_json

DRAWS = 2000                      # of a bootstrap
# settings in which seeds of one method may differ: where they run, and on what
OF_A_SEED = {"seed", "init", "demos", "keep", "reading", "neighbours", "open_prompts", "dry_run", "out", "resume",
             "bf16", "device", "threads", "save_every", "micro_batch"}
EACH = 4                          # rows of each kind of question whose answers are shown side by side
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom
T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179]
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9"]              # Okabe and Ito 2008


def mean(values) -> float:
    known = [x for x in values if x == x]
    return float(np.mean(known)) if known else float("nan")


# {column: (what it is, its figure of a result after the i-th task; 0 is before the first)}
FIGURES = {
    "ceiling": ("right answers before a task, shown its demonstrations: what is not read cannot be taught",
                lambda r, i: mean(r.get("ceiling", []) if i else [])),
    "learned": ("right answers to a task's demonstrations as it ends (the base's: to the first task's)",
                lambda r, i: mean(r["learned"][1:] if i else r["learned"][:1])),
    "unseen": ("right answers to what no task trained on, at the end", lambda r, i: mean(r["R"][i])),
    "forgetting": ("what was lost of the tasks taught", lambda r, i: r["forgetting"] if i else float("nan")),
    "kept": ("of what the base had right of --keep, still right", lambda r, i: r["kept"][i]),
    "keep": ("right answers to --keep", lambda r, i: r["base_accuracy"][i]),
    "neighbours kept": ("of what the base had right of --neighbours, still right",
                        lambda r, i: r["neighbours_kept"][i]),
    "own voice": ("answers in the model's own voice", lambda r, i: r["voice"][i]),
    "open words": ("words of an answer to an open prompt", lambda r, i: r["open_words"][i]),
    "drift": ("KL(base ‖ model), nats a token", lambda r, i: r["drift_base"][i]),
    "steps": ("of training", lambda r, i: sum(r["steps"][:i])),
    "seconds": ("of training, and of what is asked and dreamt before a task; without measuring",
                lambda r, i: sum(r["seconds"][:i])),
}
# which rows of answers.jsonl a figure is the mean grade of
QUESTIONS = {
    "learned": lambda row: row["of"].startswith("learned ") and row["of"] != "learned 0",
    "unseen": lambda row: row["of"].startswith("task "),
    "kept": lambda row: row["of"] == "keep" and row["grade"][0] == 1,
    "keep": lambda row: row["of"] == "keep",
    "neighbours kept": lambda row: row["of"] == "neighbours" and row["grade"][0] == 1,
}


# ---------------------------------------------------------------------------------------------------------------------
# What is read, and what it says.


def read(folders) -> dict:
    """{method: {seed: run}}, a run its result with "folder", "answers" (rows) and "log" (lines). folders: runs, or
    folders of runs. Raises BadInput."""
    methods = {}
    for folder in folders:
        inside = [os.path.join(folder, name) for name in sorted(os.listdir(folder))] if os.path.isdir(folder) else []
        there = [path for path in (folder, *inside) if os.path.exists(os.path.join(path, "result.json"))]
        if not there:
            raise BadInput(f"{folder}: no finished run in it (a folder with result.json); make one with: "
                           f"python train.py ... --out {folder}/sdft")
        for path in there:
            run = read_json(os.path.join(path, "result.json"))
            method, seed = os.path.basename(os.path.abspath(path)), run["settings"]["seed"]
            seeds = methods.setdefault(method, {})
            if seed in seeds:
                raise BadInput(f"{path}: {method} of seed {seed} is {seeds[seed]['folder']} already; rename a folder, "
                               "or name one of the two")
            for other in seeds.values():
                a, b = run["settings"], other["settings"]
                differ = [name for name in a.keys() | b.keys() if name not in OF_A_SEED and a.get(name) != b.get(name)]
                if differ:
                    raise BadInput(f"{path}: {method} of {other['folder']} had another setting of "
                                   f"{', '.join(sorted(differ))}, so that they are no seeds of one method; rename a "
                                   "folder")
            lines = {"answers": "answers.jsonl", "log": "log.jsonl"}
            seeds[seed] = run | {"folder": path} | {key: read_rows(os.path.join(path, file))
                                                    for key, file in lines.items()}
    return methods


def read_rows(path) -> list:
    """The rows of a JSONL file, [] where there is none."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def over_seeds(values):
    """(mean, low, high) of 95 %, by Student's t; the last two None of fewer than two that are known."""
    values = [x for x in values if x == x]
    n = len(values)
    if n < 2:
        return mean(values), None, None
    half = T[min(n - 2, len(T) - 1)] * np.std(values, ddof=1) / n**0.5
    return mean(values), mean(values) - half, mean(values) + half


def over_questions(groups):
    """(mean, low, high) of 95 % by a bootstrap of questions: the mean of the groups' means, each group drawn anew."""
    rng = np.random.default_rng(0)
    drawn = np.mean([g[rng.integers(len(g), size=(DRAWS, len(g)))].mean(1) for g in groups], 0)
    return (mean([g.mean() for g in groups]), *np.quantile(drawn, (0.025, 0.975)))


def graded(run, column) -> dict:
    """{(of, prompt, number): grade} of the questions of a column, as last answered."""
    rows = [row for row in run["answers"] if column in QUESTIONS and QUESTIONS[column](row)]
    return {(row["of"], row["prompt"], i): row["grade"][-1] for i, row in enumerate(rows)}


def grouped(grades) -> list:
    """Arrays of grades, one of each task or file."""
    return [np.array([g for (of, *_), g in grades.items() if of == name]) for name in {of: 0 for of, *_ in grades}]


def cell(seeds: dict, column):
    """A method's figure: (value, low, high), the last two None where nothing is known of them."""
    values = [FIGURES[column][1](run, len(run["R"]) - 1) for run in seeds.values()]
    if len(values) > 1:
        return over_seeds(values)
    if grades := graded(*seeds.values(), column):
        return values[0], *over_questions(grouped(grades))[1:]
    return values[0], None, None


def difference(seeds: dict, first: dict, column):
    """What a method's figure has more than the first method's, in pairs; None where there are none."""
    both = sorted(seeds.keys() & first.keys())
    if len(both) > 1:
        figure = FIGURES[column][1]
        return over_seeds([figure(seeds[s], len(seeds[s]["R"]) - 1) - figure(first[s], len(first[s]["R"]) - 1)
                           for s in both])
    ours, theirs = (graded(runs[both[0]], column) for runs in (seeds, first)) if both else ({}, {})
    if not ours or ours.keys() != theirs.keys():
        return None
    return over_questions(grouped({key: grade - theirs[key] for key, grade in ours.items()}))


def written(value, column, sign="") -> str:
    """A cell as text."""
    if value is None or value[0] != value[0]:
        return "–"
    digits = 0 if column in ("steps", "seconds", "open words") else 2
    number, *ends = (f"{x:{sign}.{digits}f}" if x is not None else "" for x in value)
    if not ends[0] or column in ("steps", "seconds"):
        return number
    return f"{number} [{ends[0]}, {ends[1]}]"


def most_changed(runs: dict) -> list:
    """Rows of a table, [asked, base, each method], of the questions on whose answers base and methods differ most."""
    first, *others = ([row for row in run["answers"] if not row["of"].startswith("learned ")] for run in runs.values())
    same = [[(row["of"], row["prompt"]) for row in rows] for rows in (first, *others)]
    if not first or any(s != same[0] for s in same):
        return []
    found = []
    for kind in ("task", "keep", "neighbours", "open"):
        rows = [row for row in zip(first, *others) if row[0]["of"].startswith(kind)]
        # open prompts have no right answer: there the length tells
        size = (lambda said, grade: len(said.split())) if kind == "open" else (lambda said, grade: grade)
        rows.sort(key=lambda row: -sum(abs(size(r["said"][-1], r["grade"][-1]) - size(r["said"][0], r["grade"][0]))
                                       for r in row))
        for row in rows[:EACH]:
            right = f" ({row[0]['right']})" if kind != "open" and isinstance(row[0]["right"], str) else ""
            found.append([row[0]["prompt"] + right, row[0]["said"][0], *(r["said"][-1] for r in row)])
    return [[text if len(text) <= 240 else text[:240] + " …" for text in row] for row in found]


def along(run) -> list:
    """(drift, learned) of all that was measured, in the order of steps."""
    ends = np.cumsum([0, *run["steps"]]).tolist()
    points = [(p["step"], p["drift_base"], p["learned"]) for p in run["curve"]]
    points += zip(ends, run["drift_base"], run["learned"])
    return [point[1:] for point in sorted(points)]


def losses(run) -> list:
    """(step of the run, loss) of its log."""
    ends = np.cumsum([0, *run["steps"]]).tolist()
    return [(ends[line["task"] - 1] + line["step"], line["loss"]) for line in run["log"] if "loss" in line]


# ---------------------------------------------------------------------------------------------------------------------
# A picture: lines in an SVG, told apart by colour, by dashes, and by their names.


def picture(lines: dict, x: str, y: str) -> str:
    """{name: [[(x, y), ...] of each seed]} as SVG of 600 x 320; points that are not finite are left out."""
    lines = {name: [[p for p in points if np.isfinite(p).all()] for points in seeds] for name, seeds in lines.items()}
    every = np.array([p for seeds in lines.values() for points in seeds for p in points])
    if not len(every):
        return ""
    low, high = np.minimum(every.min(0), 0), every.max(0)
    span = np.where(high > low, high - low, 1)

    def place(point):
        a, b = (np.array(point) - low) / span
        return f"{60 + 520 * a:.1f},{250 - 200 * b:.1f}"

    parts = []
    for t in np.linspace(0, 1, 5):
        (px, py), (vx, vy) = place(low + t * span).split(","), low + t * span
        parts.append(f'<line x1="60" x2="580" y1="{py}" y2="{py}" stroke="#8884"/>'
                     f'<text x="52" y="{py}" dy=".3em" text-anchor="end">{vy:.3g}</text>'
                     f'<text x="{px}" y="268" text-anchor="middle">{vx:.3g}</text>')
    for i, (name, seeds) in enumerate(lines.items()):
        look = f'stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2" stroke-dasharray="{["", "7 3", "2 3"][i % 3]}"'
        for points in seeds:
            parts.append(f'<polyline fill="none" {look} points="{" ".join(map(place, points))}"/>')
            parts += [f'<circle r="3" fill="{COLOURS[i % len(COLOURS)]}" cx="{a}" cy="{b}"/>'
                      for a, b in (place(p).split(",") for p in points) if len(points) < 40]
        at = 60 + 174 * (i % 3), 16 + 14 * (i // 3)
        parts.append(f'<line x1="{at[0]}" x2="{at[0] + 26}" y1="{at[1] - 4}" y2="{at[1] - 4}" {look}/>'
                     f'<text x="{at[0] + 32}" y="{at[1]}">{pages.escaped(name[:22])}</text>')
    parts.append(f'<text x="320" y="294" text-anchor="middle">{pages.escaped(x)}</text>'
                 f'<text transform="translate(14 150) rotate(-90)" text-anchor="middle">{pages.escaped(y)}</text>')
    return ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 306" width="600" role="img" fill="#6e7781" '
            f'font-family="sans-serif" font-size="12">{"".join(parts)}</svg>')


# ---------------------------------------------------------------------------------------------------------------------
# The report: blocks, ("heading", text), ("text", text), ("table", head, rows, caption), ("picture", svg, caption).


def blocks(methods: dict, about) -> list:
    """What the report of some methods says; about: runs.provenance."""
    every = [run for seeds in methods.values() for run in seeds.values()]
    name, first = next(iter(methods.items()))
    commits, machines = (", ".join(sorted({run[key] for run in every})) for key in ("commit", "machine"))
    source = (f"Made by `{about['command']}`, commit {about['commit']}, {about['machine']}; of runs of commit "
              f"{commits} on {machines}, whose commands are below.")
    base = {c: mean([figure(run, 0) for run in first.values()]) for c, (_, figure) in FIGURES.items()}
    cells = {method: {c: cell(seeds, c) for c in FIGURES} for method, seeds in methods.items()}
    columns = [c for c in FIGURES if any(row[c][0] == row[c][0] for row in cells.values())]

    rows = [["base", *(written((base[c], None, None), c) for c in columns)]]
    rows += [[method, *(written(row[c], c) for c in columns)] for method, row in cells.items()]
    kinds = {"over seeds (Student's t)": [m for m, seeds in methods.items() if len(seeds) > 1],
             "over the questions (a bootstrap; of one seed, so nothing is known about others)":
                 [m for m, seeds in methods.items() if len(seeds) == 1]}
    how = "; ".join(f"{kind} for {', '.join(of)}" for kind, of in kinds.items() if of)
    found = [("heading", "What was learned, and what it cost"), ("table", ["method", *columns], rows, source),
             ("text", f"In brackets: 95 % intervals, {how}. Seeds: " + ", ".join(
                 f"{method} {len(seeds)}" for method, seeds in methods.items()) + "."),
             ("text", "; ".join(f"{c}: {FIGURES[c][0]}" for c in columns) + ".")]

    compared = [c for c in columns if c not in ("steps", "seconds")]
    rows = [[method, *(difference(seeds, first, c) for c in compared)] for method, seeds in methods.items()
            if seeds is not first]
    compared = [(j, c) for j, c in enumerate(compared) if any(row[j + 1] for row in rows)]
    if compared:
        rows = [[row[0], *(written(row[j + 1], c, "+") for j, c in compared)] for row in rows]
        found += [("heading", f"More or less than {name}"),
                  ("table", ["method", *(c for _, c in compared)], rows, source),
                  ("text", "Of pairs: the same seeds where there are several of both, else the same questions.")]

    curves = {
        "Learning against drift": (along, "drift from the base, nats a token", "learned", (
            "The higher for how little to the right, the better: what is learned, for how far the model has moved.")),
        "The loss": (losses, "step of the run", "loss, nats a token", (
            "A loss of SDFT begins low: teacher and student are the same weights, and it is only what the "
            "demonstration adds to the student's own answers. It may rise, as these change, and its floor is not 0 as "
            "long as the teacher is shown something that the student is not. A loss of SFT is another quantity, of the "
            "expert's words: lines of the two do not compare.")),
        "The teacher, shown its demonstrations": (
            lambda run: run["teacher_curve"], "step of the run", "answered rightly", (
                "Student and teacher can forget together, and then a small loss proves nothing: this is what tells.")),
    }
    for title, (points, x, y, text) in curves.items():
        lines = {method: [points(run) for run in seeds.values()] for method, seeds in methods.items()}
        if svg := picture(lines, x, y):
            found += [("heading", title), ("picture", svg, source), ("text", text)]

    seed = next(iter(first))
    runs = {method: seeds[seed] for method, seeds in methods.items() if seed in seeds}
    if rows := most_changed(runs):
        found += [("heading", "Answers that changed most"), ("table", ["asked", "base", *runs], rows, source)]
    found += [("heading", "The runs"), ("table", ["method", "seed", "command", "commit", "machine"], [
        [method, str(seed), run["command"], run["commit"], run["machine"]]
        for method, seeds in methods.items() for seed, run in seeds.items()], "")]
    return found


TABLES = """
table.report { border-collapse: collapse; font-size: .875rem; } .wide { overflow-x: auto; }
.report th, .report td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; min-width: 4.5rem;
  max-width: 22rem; border-bottom: 1px solid var(--line); overflow-wrap: break-word; unicode-bidi: plaintext; }
.whole { white-space: nowrap; } figure { margin: 1rem 0; } svg { min-width: 30rem; max-width: 100%; height: auto; }
"""


def code(text) -> str:
    """Escaped text in which what stands between backticks is code."""
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(pages.escaped(text).split("`")))


def cell_of(column, text) -> str:
    """A cell of a page: a command as code; and no line ends within an interval."""
    text = pages.escaped(text)
    if column == "command":
        return f"<code>{text}</code>"
    return re.sub(r"\[[\d.+-]+, [\d.+-]+\]$", r'<span class="whole">\g<0></span>', text)


def as_html(found) -> str:
    parts = [f"<style>{TABLES}</style>\n<h1>What was found</h1>"]
    for kind, *said in found:
        if kind == "table":
            head, rows, caption = said
            lines = ["".join(f"<th>{pages.escaped(x)}</th>" for x in head),
                     *("".join(f"<td>{cell_of(h, x)}</td>" for h, x in zip(head, row)) for row in rows)]
            said = "".join(f"<tr>{line}</tr>\n" for line in lines)
            parts.append(f'<figure><div class="wide" tabindex="0"><table class="report">\n{said}</table></div>\n'
                         f"<figcaption>{code(caption)}</figcaption></figure>")
        elif kind == "picture":
            parts.append(f'<figure><div class="wide" tabindex="0">{said[0]}</div>\n'
                         f"<figcaption>{code(said[1])}</figcaption></figure>")
        else:
            tag = {"heading": "h2", "text": "p"}[kind]
            parts.append(f"<{tag}>{code(said[0])}</{tag}>")
    return pages.page("What was found", "\n".join(parts))


def as_markdown(found, name) -> tuple[str, dict]:
    """The report, and its pictures {file: SVG}, which lie beside it; name: that they begin with."""
    def plain(text):
        return html.escape(" ".join(pages.visible_lines(text).split()), quote=False)

    def cell(column, text):
        # what was asked and said is text, whatever signs are in it
        if column == "command":
            return f"`{' '.join(text.split())}`".replace("|", "\\|")
        return re.sub(r"([\\`*_\[\]!#|~])", r"\\\1", plain(text))

    parts, pictures = ["# What was found"], {}
    for kind, *said in found:
        if kind == "table":
            head, rows, caption = said
            lines = [head, ["---"] * len(head), *([cell(h, x) for h, x in zip(head, row)] for row in rows)]
            parts += ["\n".join("| " + " | ".join(line) + " |" for line in lines), f"*{plain(caption)}*"]
        elif kind == "picture":
            file = f"{name}-{len(pictures) + 1}.svg"
            pictures[file] = said[0]
            parts += [f"![](<{file}>)", f"*{plain(said[1])}*"]
        else:
            parts.append("## " * (kind == "heading") + plain(said[0]))
    return "\n\n".join(part for part in parts if part != "**") + "\n", pictures
