"""The report: intervals by hand and against simulation, what it is made of, and its two forms."""
import dataclasses
import html
import os
import re
from xml.etree import ElementTree

import numpy as np
import pytest

import eval as evaluate
import report
import train
from conftest import content_width
from runs import BadInput, read_json, write_json, write_rows

NAN = float("nan")
ABOUT = {"command": "python eval.py --report", "commit": "here", "machine": "this one"}
EVIL = "</td><script>|x|</script> `a* ![b](c)"


def a_run(folder, seed=0, learned=0.9, grades=(1, 1, 0, 1), drift=0.5, answers=True, **other):
    """A run of two tasks with one held-out question each, and of two questions to keep, the second wrong at first."""
    held, kept = grades[:2], grades[2:]
    result = {
        "settings": {"seed": seed}, "command": f"python train.py --seed {seed}", "commit": "abc", "machine": "a CPU",
        "R": [[0.0, 0.0], [held[0], 0.0], list(held)], "learned": [0.25, learned, learned], "forgetting": 0.125,
        "kept": [1.0, 1.0, kept[0]], "base_accuracy": [0.5, 0.5, np.mean(kept)], "neighbours_kept": [NAN] * 3,
        "voice": [NAN] * 3, "open_words": [50.0, 40.0, 30.0], "drift_base": [0.0, drift / 2, drift], "steps": [10, 20],
        "seconds": [1.5, 2.0], "teacher_accuracy": [0.75] * 3, "ceiling": [0.5, 1.0],
        "curve": [{"step": 5, "drift_base": 0.1, "learned": 0.4}], "teacher_curve": [[10, 1.0], [30, 0.5]]} | other
    write_json(str(folder / "result.json"), result)
    rows = [("task 1", 0), ("task 2", 0), ("keep", 1), ("keep", 0), *((f"learned {i}", 0) for i in range(3))]
    if answers:
        write_rows(str(folder / "answers.jsonl"), [
            {"of": of, "task": of, "prompt": f"question {i} {EVIL}", "right": "right",
             "said": ["before", f"now {int(grade)}"], "grade": [before, grade]}
            for i, ((of, before), grade) in enumerate(zip(rows, [*grades, 0, learned > 0.5, learned > 0.9]))])
    log = [{"settings": {}}, {"task": 1, "step": 10, "loss": 0.5}, {"task": 2, "step": 20, "loss": 0.25}]
    write_rows(str(folder / "log.jsonl"), log)
    return str(folder)


def table_of(blocks, heading):
    i = blocks.index(("heading", heading))
    _, head, rows, caption = blocks[i + 1]
    return {row[0]: dict(zip(head[1:], row[1:])) for row in rows}, caption


def test_one_seed_has_intervals_over_questions_and_pairs_of_them(tmp_path):
    a_run(tmp_path / "sft", grades=(1, 1, 0, 1), learned=1.0)
    a_run(tmp_path / "sdft", grades=(1, 0, 1, 1), drift=0.1)
    found = report.blocks(report.read([str(tmp_path)]), ABOUT)
    rows, caption = table_of(found, "What was learned, and what it cost")
    assert list(rows) == ["base", "sdft", "sft"] and rows["base"]["ceiling"] == "–" and rows["sft"]["ceiling"] == "0.75"
    assert rows["base"]["learned"] == "0.25" and rows["base"]["kept"] == "1.00" and rows["base"]["drift"] == "0.00"
    assert rows["sft"] == {"ceiling": "0.75", "learned": "1.00 [1.00, 1.00]", "unseen": "1.00 [1.00, 1.00]",
                           "forgetting": "0.12", "kept": "0.00 [0.00, 0.00]", "keep": "0.50 [0.00, 1.00]",
                           "open words": "30", "drift": "0.50", "steps": "30", "seconds": "4"}
    assert rows["sdft"]["unseen"] == "0.50 [0.50, 0.50]"      # a question a task: nothing to draw
    for part in ("python eval.py --report", "here", "this one", "abc", "a CPU"):
        assert part in caption
    pairs, _ = table_of(found, "More or less than sdft")
    assert pairs == {"sft": {"learned": "+0.50 [+0.50, +0.50]", "unseen": "+0.50 [+0.50, +0.50]",
                             "kept": "-1.00 [-1.00, -1.00]", "keep": "-0.50 [-1.00, +0.00]"}}
    assert "over the questions" in found[2][1] and "over seeds" not in found[2][1]
    answers, _ = table_of(found, "Answers that changed most")
    assert answers[f"question 0 {EVIL} (right)"] == {"base": "before", "sdft": "now 1", "sft": "now 1"}
    assert list(answers)[:2] == [f"question {i} {EVIL} (right)" for i in (0, 1)] and len(answers) == 4
    runs, _ = table_of(found, "The runs")
    assert runs["sft"] == {"seed": "0", "command": "python train.py --seed 0", "commit": "abc", "machine": "a CPU"}


def test_several_seeds_have_intervals_over_seeds(tmp_path):
    for seed, ours, theirs in ((0, 0.8, 0.5), (1, 0.9, 0.7), (2, 0.7, 0.3)):
        a_run(tmp_path / str(seed) / "sdft", seed, ours)
        a_run(tmp_path / str(seed) / "sft", seed, theirs)
    found = report.blocks(report.read([str(tmp_path / str(seed)) for seed in range(3)]), ABOUT)
    rows, _ = table_of(found, "What was learned, and what it cost")
    half = 4.303 * 0.1 / 3**0.5
    assert rows["sdft"]["learned"] == f"0.80 [{0.8 - half:.2f}, {0.8 + half:.2f}]"
    assert rows["sdft"]["steps"] == "30" and "over seeds" in found[2][1] and "sft 3" in found[2][1]
    # of the same seeds: 0.3, 0.2, 0.4 less
    pairs, _ = table_of(found, "More or less than sdft")
    assert pairs["sft"]["learned"] == f"-0.30 [{-0.3 - half:+.2f}, {-0.3 + half:+.2f}]"
    assert len(table_of(found, "The runs")[0]) == 2 and len(found[-1][2]) == 6
    # what has another rate is no seed of it; of another machine it may be
    assert {f.name for f in dataclasses.fields(train.Config) if f.metadata["machine"]} < report.OF_A_SEED
    path = os.path.join(a_run(tmp_path / "3" / "sdft", 3), "result.json")
    write_json(path, read_json(path) | {"settings": {"seed": 3, "threads": 2, "lr": 1e-5}})
    with pytest.raises(BadInput, match="sdft of .*0/sdft had another setting of lr, so that they are no seeds"):
        report.read([str(tmp_path / str(seed)) for seed in (0, 3)])
    # each method by what there is of it
    a_run(tmp_path / "0" / "other")
    found = report.blocks(report.read([str(tmp_path / str(seed)) for seed in range(3)]), ABOUT)
    assert "over seeds (Student's t) for sdft, sft; over the questions" in found[2][1]
    assert "about others) for other. Seeds" in found[2][1]


@pytest.mark.parametrize("values, half", [([0.8, 0.9, 0.7], 4.303 * 0.1 / 3**0.5), ([1.0, 0.0], 12.706 * 0.5)])
def test_an_interval_over_seeds_by_hand(values, half):
    middle = sum(values) / len(values)
    assert report.over_seeds(values) == pytest.approx((middle, middle - half, middle + half))
    assert report.over_seeds([*values, NAN]) == report.over_seeds(values)
    assert report.over_seeds(values[:1]) == (values[0], None, None)


def test_a_bootstrap_is_as_wide_as_the_normal_law_says():
    grades = np.random.default_rng(1).random(400) < 0.7
    value, low, high = report.over_questions([grades.astype(float)])
    error = 1.96 * (value * (1 - value) / 400) ** 0.5
    assert value == grades.mean() and (low, high) == pytest.approx((value - error, value + error), abs=0.01)
    # two groups count alike, whatever their size
    assert report.over_questions([np.ones(9), np.zeros(1)]) == (0.5, 0.5, 0.5)


def test_both_forms_say_the_same_and_no_text_becomes_an_element(tmp_path, monkeypatch, capsys):
    for name in ("sft", "sdft"):
        a_run(tmp_path / name, grades=(1, name == "sft", 0, 1))
    for form in ("html", "md"):
        path = tmp_path / "reports" / f"a.{form}"
        runs = str(tmp_path / "sft"), str(tmp_path / "sdft")
        monkeypatch.setattr("sys.argv", ["eval.py", *runs, "--report", str(path)])
        evaluate.main()
        assert capsys.readouterr().out == f"wrote {path}\n"
    page, text = ((tmp_path / "reports" / f"a.{form}").read_text() for form in ("html", "md"))
    assert "<script" not in page and "<script" not in text and "default-src 'none'" in page
    for said in ("over the questions", "KL(base ‖ model)", "python train.py --seed 0"):
        assert said in page and said in text
    # what was asked is text in both, and no mark-up
    assert html.escape(EVIL) in page
    # an interval breaks no line, and stands there as it is
    assert '<td>1.00 <span class="whole">[1.00, 1.00]</span></td>' in page
    assert r"&lt;/td&gt;&lt;script&gt;\|x\|&lt;/script&gt; \`a\* \!\[b\](c)" in text
    # a table keeps its columns
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    pictures = re.findall(r"!\[\]\(<(a-\d\.svg)>\)", text)
    assert len(pictures) == page.count("<svg") == 3
    for name in pictures:
        svg = (tmp_path / "reports" / name).read_text()
        assert svg in page and ElementTree.fromstring(svg).tag.endswith("svg")


def test_a_picture_has_its_points_where_they_belong():
    svg = report.picture({"a & b": [[(0, 0), (1, 2), (NAN, 1)], [(0.5, 1)]], "c": [[]]}, "x", "y <")
    lines = re.findall(r'polyline .*? points="(.*?)"', svg)
    assert lines == ["60.0,250.0 580.0,50.0", "320.0,150.0", ""]
    assert "a &amp; b" in svg and "y &lt;" in svg and svg.count("<circle") == 3
    assert report.picture({"a": [[]]}, "x", "y") == ""


def test_the_curves_of_a_run(tmp_path):
    run = report.read([a_run(tmp_path / "sdft")])["sdft"][0]
    assert report.along(run) == [(0.0, 0.25), (0.1, 0.4), (0.25, 0.9), (0.5, 0.9)]
    assert report.losses(run) == [(10, 0.5), (30, 0.25)]


def test_runs_that_left_no_answers_have_no_interval(tmp_path):
    a_run(tmp_path / "sft", answers=False)
    a_run(tmp_path / "sdft")
    found = report.blocks(report.read([str(tmp_path)]), ABOUT)
    rows, _ = table_of(found, "What was learned, and what it cost")
    assert rows["sft"]["unseen"] == "1.00" and "[" in rows["sdft"]["unseen"]
    headings = [said for kind, said, *_ in found if kind == "heading"]
    assert "More or less than sdft" not in headings and "Answers that changed most" not in headings


def test_what_cannot_be_reported_ends_in_one_line(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadInput, match="no finished run in it .*; make one with"):
            report.read([str(folder)])
    a_run(tmp_path / "a" / "sft")
    a_run(tmp_path / "b" / "sft")
    with pytest.raises(BadInput, match="b/sft: sft of seed 0 is .*a/sft already; rename a folder"):
        report.read([str(tmp_path / "a"), str(tmp_path / "b")])


# ---------------------------------------------------------------------------------------------------------------------
# In a browser.


def a_page(tmp_path):
    """Two methods of two seeds, that have said what is long, what is markup, and what is not Latin."""
    said = ["x" * 400, EVIL, "مرحبا 你好 " * 30, "long words " * 60]
    for method in ("sft", "sdft"):
        for seed in range(2):
            folder = a_run(tmp_path / str(seed) / method, seed, learned=0.5 + seed / 4)
            rows = report.read_rows(f"{folder}/answers.jsonl")
            write_rows(f"{folder}/answers.jsonl",
                       [row | {"said": ["before", text]} for row, text in zip(rows, said)])
    return report.as_html(report.blocks(report.read([str(tmp_path / "0"), str(tmp_path / "1")]), ABOUT))


@pytest.mark.parametrize("width", [400, 1400])
def test_no_part_of_a_report_is_wider_than_the_window(browse, tmp_path, width):
    page = a_page(tmp_path).replace("http-equiv", "data-was")
    page += "<script>onload = () => document.title = document.documentElement.scrollWidth</script>"
    assert content_width(browse, page, width) <= width


def test_no_text_of_a_report_runs_in_a_browser(browse, tmp_path):
    page = a_page(tmp_path)
    assert html.escape(EVIL, quote=False) in page
    dom = browse(page, "--dump-dom")
    assert "<title>What was found</title>" in dom and "<script>|x|" not in dom
