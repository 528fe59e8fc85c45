"""The look at single tokens: its numbers against formulas, what it does with any text, and the page in a browser."""
import html
import json
import re
from html.parser import HTMLParser

import pytest
import torch

import eval as evaluate
import pages
from conftest import content_width, random_gpt, write_world
from data import read_examples
from divergence import divergence_reference
from runs import BadInput, write_rows

ABOUT = {"command": "python eval.py <b>", "commit": "abc", "machine": "m"}
EVIL = ["<script>document.title='run'</script>", "</script><script>document.title='run'</script>", "<!--<script>",
        "<img src=x onerror=\"document.title='run'\">", "\"'><svg onload=document.title='run'>", "&lt;b&gt;"]


def a_run(folder, tokenizer, **settings):
    """A run of random models, and what it was taught: two tasks of a small world."""
    demos = write_world(folder)[1:3]
    for name, seed in (("base", 0), ("run", 1)):
        random_gpt(seed).save_pretrained(folder / name / "model", files=tokenizer.files())
    settings = {"demos": demos, "init": str(folder / "base"), "against": "own"} | settings
    (folder / "run/log.jsonl").write_text(json.dumps({"settings": settings}) + "\n")
    return str(folder / "run"), demos


def token(word, kl=0.5, best=None, more=()):
    """A token as eval.look has it."""
    top = [(w, 0.2) for w in (best or word, "b", "c", "d", "e")]
    return {"word": word, "kl": kl, "chances": [0.25, 0.125], "beliefs": [top[:], top, *more]}


def a_row(text="hello", words=("x",), beliefs=("student", "teacher"), **tokens):
    answers = [{"when": when, "model": text, "said": "".join(words), "grade": 0.0,
                "tokens": [token(word, **tokens) for word in words]} for when in ("before training", "after training")]
    return {"task": text, "place": text, "prompt": text, "right": text, "demonstration": text, "student_sees": text,
            "teacher_sees": (text, text, text), "beliefs": list(beliefs), "answers": answers}


def data_of(page) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])


class Elements(HTMLParser):
    """(tag, {attribute: value}) of all that a page opens, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.text += text


# ---------------------------------------------------------------------------------------------------------------------
# What it says.


@pytest.mark.parametrize("settings", [{}, {"contrast": 0.5}, {"contrast": 0.5, "against": "row"}, {"shown": 2}])
def test_each_number_is_that_of_the_formulas(tmp_path, tokenizer, settings):
    """One answer at a time, without padding, in float64, with prompts that are made here."""
    path, demos = a_run(tmp_path, tokenizer, **settings)
    rows = evaluate.looks(path, rows=2)
    assert [row["place"] for row in rows] == [f"{name}:{i}" for name in demos for i in (1, 2)]
    contrast = settings.get("contrast", 0)
    base = evaluate.load_model(str(tmp_path / "base"))[0]
    for row in rows:
        file, line = row["place"].rsplit(":", 1)
        train = [e for e in read_examples([file], tokenizer, 128) if e.split != "test"]
        e, *others = train[int(line) - 1 :] + train[: int(line) - 1]
        shown = [o.shown for o in others[:2]] if "shown" in settings else [e.shown]
        prompts = [tokenizer.prompt(e.prompt), tokenizer.prompt(e.prompt, *shown)]
        if contrast:
            other = next(o for o in others if "own" == settings.get("against", "own") or o.response != e.response)
            said = evaluate.answers(base, tokenizer, [other])[0] if "against" not in settings else other.response
            prompts.append(tokenizer.prompt(e.prompt, (e.prompt, said)))
        assert row["student_sees"] == tokenizer.show(prompts[0])
        before, added, after = row["teacher_sees"]
        assert before + added + after == tokenizer.show(prompts[1]) and before + after == row["student_sees"]
        for name, seed, answer in zip(("before training", "after training"), (0, 1), row["answers"]):
            model = random_gpt(seed).double()
            assert answer["when"] == name
            response = greedy(model, prompts[0], len(answer["tokens"]))
            assert [evaluate.word(tokenizer, i) for i in response] == [t["word"] for t in answer["tokens"]] != []
            assert answer["said"] == tokenizer.decode(response)
            with torch.no_grad():
                logits = [model(torch.tensor([p + response]))[0, len(p) - 1 : -1] for p in prompts]
            if contrast:
                bracket = logits[0].log_softmax(-1) - logits[2].log_softmax(-1)
                logits.insert(1, logits[1] + contrast * bracket.clamp(-3, 3))
            assert len(logits) == len(row["beliefs"])
            kl = divergence_reference(logits[0], logits[1])
            assert [t["kl"] for t in answer["tokens"]] == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-5)
            for t, (i, found) in enumerate(zip(response, answer["tokens"])):
                chances = [x[t].softmax(-1) for x in logits]
                assert found["chances"] == pytest.approx([p[i].item() for p in chances[:2]], rel=1e-3)
                for p, top in zip(chances, found["beliefs"]):
                    best = p.topk(5)
                    assert [w for w, _ in top] == [evaluate.word(tokenizer, w) for w in best.indices.tolist()]
                    assert [x for _, x in top] == pytest.approx(best.values.tolist(), rel=1e-3)


def greedy(model, prompt, n) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[len(prompt):]


def test_a_page_has_the_numbers_of_the_looks(tmp_path, tokenizer, monkeypatch, capsys):
    path, demos = a_run(tmp_path, tokenizer)
    monkeypatch.setattr("sys.argv", ["eval.py", "--show", path, *demos, "--rows", "2", "--html", f"{tmp_path}/a.html"])
    evaluate.main()
    assert capsys.readouterr().out == f"wrote {tmp_path}/a.html\n"
    page, rows = (tmp_path / "a.html").read_text(), evaluate.looks(path, demos, 2)
    data, tokens = data_of(page), [t for row in rows for a in row["answers"] for t in a["tokens"]]
    assert data["beliefs"] == ["student", "teacher"] and len(data["tokens"]) == len(tokens) > 8
    spans = re.findall(r'class="t k(\d)( byte)?">(.*?)</span>', page)
    for t, (word, kl, q, p, *tops), (step, _, text) in zip(tokens, data["tokens"], spans):
        assert data["words"][word] == pages.spaced(t["word"]) and kl == pytest.approx(t["kl"], abs=1e-4)
        assert [q / 1e4, p / 1e4] == pytest.approx(t["chances"], abs=1e-4)
        said = [[(data["words"][w], p / 1e4) for w, p in zip(top[::2], top[1::2])] for top in tops]
        assert said == [[(pages.spaced(w), pytest.approx(p, abs=1e-4)) for w, p in top] for top in t["beliefs"]]
        assert (int(step), html.unescape(text)) == (pages.level(t["kl"]), pages.visible(t["word"]))
    assert len(spans) == len(tokens)
    for row in rows:
        assert f"<mark>{html.escape(row['teacher_sees'][1]).replace(row['demonstration'], '<b>%s</b>')}</mark>" % (
            row["demonstration"]) in page
        for answer in row["answers"]:
            kl = [t["kl"] for t in answer["tokens"]]
            assert (f"{sum(kl) / len(kl):.2f} nats a token: {kl[0]:.2f} at the first, "
                    f"{sum(kl[1:]) / len(kl[1:]):.2f} over the rest") in page
    assert page.index("Before training") < page.index("After training") and "python eval.py --show" in page


def test_the_demonstration_is_marked_in_what_was_said_and_not_in_its_escapes():
    row = a_row("x") | {"demonstration": "27", "teacher_sees": ("", "it's 27 & 27", "")}
    assert "<mark>it&#x27;s <b>27</b> &amp; <b>27</b></mark>" in pages.as_page([row], ABOUT)


def test_answers_are_judged_as_the_run_judged_them(tmp_path, tokenizer, monkeypatch):
    path, (demos, *_) = a_run(tmp_path, tokenizer, grader="contains")
    rows = [json.loads(line) for line in open(demos)]
    write_rows(demos, [{key: row[key] for key in ("prompt", "response")} for row in rows])     # without their own
    graders = []
    monkeypatch.setattr(evaluate, "grade", lambda e, text: graders.append(e.grader) or 1.0)
    evaluate.looks(path, [demos])
    assert set(graders) == {"contains"}


def test_a_base_that_is_elsewhere_is_named(tmp_path, tokenizer):
    path, _ = a_run(tmp_path, tokenizer, init="moved")
    with pytest.raises(BadInput, match=r"the model that this run began from \(moved\) is not there; put it back"):
        evaluate.looks(path)


def test_of_a_model_alone_one_answer_is_shown(tmp_path, tokenizer):
    a_run(tmp_path, tokenizer)
    *_, market, _ = write_world(tmp_path / "more", tasks=3)[1:5]
    (row,) = evaluate.looks(str(tmp_path / "base"), [market])
    assert [a["when"] for a in row["answers"]] == ["as it is"]
    # the answer of this task is a list
    assert row["right"] == row["demonstration"] and row["demonstration"] in pages.as_page([row], ABOUT)
    with pytest.raises(BadInput, match="of this model it is not known what it was taught; name a file too"):
        evaluate.looks(str(tmp_path / "base"))


@pytest.mark.parametrize("line", ["", "{", "[]", "{}", '{"settings'])
def test_a_log_that_says_no_settings(tmp_path, tokenizer, line):
    path, _ = a_run(tmp_path, tokenizer)
    (tmp_path / "run/log.jsonl").write_text(line)
    with pytest.raises(BadInput, match="run/log.jsonl: is not of the form that is known here") as e:
        evaluate.looks(path)
    assert len(e.value.args) == 1


@pytest.mark.parametrize("options", [["--html", "x"], ["out", "--rows", "2"], ["--show", "a", "--rows", "0"]])
def test_options_without_what_they_are_of(monkeypatch, capsys, options):
    monkeypatch.setattr("sys.argv", ["eval.py", *options])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "--html and --rows go with --show" in capsys.readouterr().err


def test_a_terminal_is_told_in_colour_unless_it_wants_none(tmp_path, tokenizer, monkeypatch, capsys):
    path, demos = a_run(tmp_path, tokenizer)
    monkeypatch.setattr("sys.argv", ["eval.py", "--show", path])
    monkeypatch.delenv("NO_COLOR", raising=False)

    def told():
        evaluate.main()
        return capsys.readouterr().out

    plain = told()
    assert "\x1b" not in plain
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    colour = told()
    assert pages.ANSI[4] in colour and f"{pages.ANSI[6]} ≥ 3 \x1b[0m" in colour
    bare = re.sub(r"\x1b\[[\d;]*m", "", colour)
    assert bare[: bare.index("\nnats: ")].rstrip() == plain.rstrip()
    monkeypatch.setenv("NO_COLOR", "1")
    assert told() == plain
    # what it says of each token, and what it was shown
    for row in evaluate.looks(path):
        assert f"the teacher sees   {''.join(row['teacher_sees'])}\n" in plain
        for t in (t for answer in row["answers"] for t in answer["tokens"]):
            best, chance = t["beliefs"][1][0]
            numbers = f"{t['kl']:6.2f} {t['chances'][0]:8.3f} {t['chances'][1]:8.3f}"
            rather = f"   {pages.spaced(best):14s} {chance:.3f}" * (best != t["word"])
            assert f"   {pages.spaced(t['word']):14s} {numbers}{rather}\n" in plain


# ---------------------------------------------------------------------------------------------------------------------
# Any text.


def test_no_text_becomes_an_element_or_a_script():
    """Wherever a user's or a model's text stands, and whatever it says."""
    harmless = pages.as_page([a_row("x", ["x"] * len(EVIL), best="y")] * len(EVIL), ABOUT)
    page = pages.as_page([a_row(text, EVIL, best=f"{text}!") for text in EVIL], ABOUT)
    kinds = [[(tag, sorted(a)) for tag, a in Elements(p).found] for p in (page, harmless)]
    assert kinds[0] == kinds[1] and [tag for tag, _ in kinds[0]].count("script") == 2
    said = Elements(page)
    for text in EVIL:
        assert said.text.count(text) >= 9 and pages.spaced(text) in data_of(page)["words"]
    assert re.findall('content="(.*?)"', page)[0].startswith("default-src 'none'; ")
    assert "innerHTML" not in pages.SCRIPT and "http" not in page.replace("http-equiv", "")


def test_bytes_line_ends_and_signs_that_move_others_can_be_seen():
    for raw, seen in ((b"\xe4\xbd", "⟨E4⟩⟨BD⟩"), (b" \xf0\x9f", " ⟨F0⟩⟨9F⟩"), ("👩".encode(), "👩"), (b"\n\t", "↵\\t"),
                      ("\u202e".encode(), "\\u202e"), ("مرحبا".encode(), "مرحبا"), ("你".encode(), "你"), (b"", "")):
        assert pages.visible(raw.decode("utf-8", "surrogateescape")) == seen
    assert pages.spaced(" a") == "␣a" and pages.spaced("") == "(no token)"


def test_a_character_in_parts_is_shown_in_parts_and_in_one_piece(tmp_path, tokenizer):
    """你 is three tokens of the small GPT; a page with it can be written and read."""
    ids = tokenizer.encode("你")
    words = [evaluate.word(tokenizer, i) for i in ids]
    assert [pages.visible(w) for w in words] == [" ", "⟨E4⟩", "⟨BD⟩", "⟨A0⟩"]
    assert evaluate.word(tokenizer, tokenizer.n_vocab) == ""
    row = a_row("سؤال 🙂 你", words)
    row["answers"][0]["said"] = "你"
    (tmp_path / "a.html").write_text(page := pages.as_page([row], ABOUT), encoding="utf-8")
    assert page.count('k4 byte"') == 6 and "In one piece: <bdi>你</bdi>" in page and "سؤال 🙂 你" in page
    assert "⟨BD⟩" in data_of(page)["words"] and "In one piece" not in pages.as_page([a_row()], ABOUT)


def test_fifty_rows_take_less_than_two_megabytes():
    """Each of two answers of 64 tokens, with four beliefs and words as various as those of a real model."""
    more = [[(f" word{i}", 0.1234) for i in range(5)]] * 2
    rows = [a_row("a prompt " * 40, [f" token{(r * 64 + i) % 9000}" for i in range(64)],
                  ["student", "target", "teacher", "teacher, shown another"], more=more, best=" other")
            for r in range(50)]
    assert 500_000 < len(pages.as_page(rows, ABOUT).encode()) < 2_000_000


def luminance(colour) -> float:
    """Of WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scale, sign", [(pages.LIGHT, -1), (pages.DARK, 1)])
def test_the_scale_goes_by_lightness_and_its_text_can_be_read(scale, sign):
    assert len(scale) == len(pages.steps()) == len(pages.ANSI) == pages.level(1e9) + 1
    backs = [luminance(back) for back, _ in scale]
    for a, b in zip(backs, backs[1:]):
        light, dark = max(a, b), min(a, b)
        assert sign * (b - a) > 0 and (light + 0.05) / (dark + 0.05) > 1.1
    for back, text in scale:
        light, dark = sorted((luminance(back), luminance(text)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5


# ---------------------------------------------------------------------------------------------------------------------
# In a browser.


def test_a_browser_shows_a_token_and_runs_nothing_else(browse):
    rows = [a_row(text, EVIL, best=" best") for text in EVIL]
    dom = browse(pages.as_page(rows, ABOUT), "--dump-dom", at="#t1")
    box = re.search(r'<div id="box" role="status"(.*?)</div></div>', dom, re.S)[1]
    assert "hidden" not in box.split(">")[0] and dom.count(" open\"") == 1
    assert html.escape(pages.spaced(EVIL[1]), quote=False) in box and "0.500 nats" in box
    assert "student 25.00 %, teacher 12.50 %" in box
    assert box.count("<table>") == 2 and box.count("<tr>") == 10 and "<td>␣best</td><td>20.00 %</td>" in box
    assert "<title>Token by token</title>" in dom
    assert dom.count(' tabindex="0"') == len(rows) * 2 and f' id="t{len(EVIL) ** 2 * 2 - 1}"' in dom
    assert "hidden" in re.search(r'<div id="box"([^>]*)>', browse(pages.as_page(rows, ABOUT), "--dump-dom"))[1]


def test_a_browser_is_told_what_may_run(browse):
    """Were a text ever written as it is, the policy of the page would still stop its script."""
    page = pages.as_page([a_row()], ABOUT)
    broken = page.replace("<h1>", EVIL[0] + EVIL[3] + "<h1>")
    assert "<title>Token by token</title>" in browse(broken, "--dump-dom")
    harmless = broken.replace("http-equiv", "data-was")
    assert "<title>run</title>" in browse(harmless, "--dump-dom")


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_is_wider_than_the_window(browse, width):
    """Also where words are long and a token is chosen: a page around it tells how wide its content is."""
    row = a_row("long " * 30 + "x" * 300, ["y" * 80, "مرحبا", "你", "z"] * 9, best="z" * 40)
    page = pages.as_page([row], ABOUT).replace("http-equiv", "data-was")
    told = "show(all[0]); document.title = document.documentElement.scrollWidth; "
    assert content_width(browse, page.replace("if (location.hash) pin", told), width) <= width
