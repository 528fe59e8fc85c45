"""A look at single tokens, as a page that opens from disk and as lines of a terminal: what eval.py --show writes.

The page is one file: no network, no framework, a style and a script of one screen each. Whatever a model or a user has
said is text: escaped where it is HTML, JSON where the script reads it, and a policy in the head lets no other script
run. Of models and tensors nothing is known here: eval.looks makes the rows. Left out: everything a server could do.

A word is the text of a token; a byte that is no whole character stands in it as Python's surrogateescape has it.
"""
import base64
import bisect
import hashlib
import html
import json

# ---------------------------------------------------------------------------------------------------------------------
# A scale of seven steps, in nats, by lightness alone, so that no eye needs the hue: ColorBrewer's OrRd on white, and
# away from the background too on black. (background, text) of each step.

LIMITS = (0.01, 0.03, 0.1, 0.3, 1, 3)
LIGHT = [("#ffffff", "#1d1d1f"), ("#fef0d9", "#1d1d1f"), ("#fdd49e", "#1d1d1f"), ("#fdbb84", "#1d1d1f"),
         ("#ef6548", "#000000"), ("#c4281a", "#ffffff"), ("#7f0000", "#ffffff")]
DARK = [("#16171a", "#e8e6e3"), ("#332119", "#e8e6e3"), ("#57301f", "#f3ece8"), ("#853d22", "#ffffff"),
        ("#d9622f", "#000000"), ("#ff9c63", "#000000"), ("#ffdcb8", "#000000")]
# the same of the 256 colours that terminals know
ANSI = ["", "\x1b[48;5;230;38;5;16m", "\x1b[48;5;223;38;5;16m", "\x1b[48;5;216;38;5;16m", "\x1b[48;5;209;38;5;16m",
        "\x1b[48;5;160;38;5;231m", "\x1b[48;5;88;38;5;231m"]


def level(kl) -> int:
    """The step of the scale on which so many nats are.

    >>> [level(kl) for kl in (0, 0.01, 0.5, 12)]
    [0, 1, 4, 6]
    """
    return bisect.bisect(LIMITS, kl)


def steps() -> list[str]:
    """What the legend says of each step."""
    between = [f"{a:g}–{b:g}" for a, b in zip(LIMITS, LIMITS[1:])]
    return [f"< {LIMITS[0]:g}", *between, f"≥ {LIMITS[-1]:g}"]


def visible(word: str) -> str:
    """What can be seen of a word: a byte as a byte, a line end as its sign, and no sign that would move others.

    >>> visible(b" \\xe4\\xbd".decode("utf-8", "surrogateescape")), visible("a\\n"), visible("\\u202e")
    (' ⟨E4⟩⟨BD⟩', 'a↵', '\\\\u202e')
    """
    def sign(c):
        if in_bytes(c):
            return f"⟨{ord(c) - 0xdc00:02X}⟩"
        return "↵" if c == "\n" else c if c.isprintable() else repr(c)[1:-1]

    return "".join(map(sign, word))


def in_bytes(word) -> bool:
    """Whether something of it is no whole character."""
    return any("\udc80" <= c <= "\udcff" for c in word)


def spaced(word: str) -> str:
    """A word that stands alone: a space at its beginning is a part of it."""
    return visible(word).replace(" ", "␣") or "(no token)"


# ---------------------------------------------------------------------------------------------------------------------
# What a row says, as eval.looks has it.


def in_nats(tokens) -> str:
    """A first token that dwarfs the rest is the sign of two prompts that differ in more than the demonstration."""
    first, *rest = (t["kl"] for t in tokens)
    said = f"{(first + sum(rest)) / (1 + len(rest)):.2f} nats a token"
    return f"{said}: {first:.2f} at the first, {sum(rest) / len(rest):.2f} over the rest" if rest else said


def preferred(token) -> str | None:
    """What the teacher would rather have said, where it is not what was said."""
    best = token["beliefs"][1][0][0]
    return None if best == token["word"] else best


def as_text(rows, colour: bool) -> str:
    """The rows for a terminal, with the colours of the scale where it has any."""
    def painted(text, kl):
        return f"{ANSI[level(kl)]}{text}\x1b[0m" if colour and level(kl) else text

    lines = []
    for row in rows:
        before, added, after = map(visible_lines, row["teacher_sees"])
        added = f"\x1b[1m{added}\x1b[0m" if colour else added
        lines += ["", f"{row['task']}   {row['place']}", f"the student sees   {visible_lines(row['student_sees'])}",
                  f"the teacher sees   {before}{added}{after}"]
        for answer in row["answers"]:
            tokens = answer["tokens"]
            lines += ["", f"{answer['when']} ({answer['model']})",
                      "the student says   " + "".join(painted(visible(t["word"]), t["kl"]) for t in tokens),
                      f"KL({row['beliefs'][1]} ‖ student) = {in_nats(tokens)}", "",
                      f"   {'token':14s} {'nats':>6s} {'student':>8s} {row['beliefs'][1]:>8s}   which would rather say"]
            for t in tokens:
                (q, p), best, (_, most) = t["chances"], preferred(t), t["beliefs"][1][0]
                rather = f"   {spaced(best):14s} {most:.3f}" if best is not None else ""
                nats = painted(f"{t['kl']:6.2f}", t["kl"])
                lines.append(f"   {spaced(t['word']):14s} {nats} {q:8.3f} {p:8.3f}{rather}")
    if colour:
        lines += ["", "nats: " + " ".join(painted(f" {step} ", kl) for step, kl in zip(steps(), (0, *LIMITS)))]
    return "\n".join(lines)


def visible_lines(text) -> str:
    return "\n".join(map(visible, text.split("\n")))


# ---------------------------------------------------------------------------------------------------------------------
# A page. Text comes in through `escaped` alone, and numbers through formats.


def escaped(text) -> str:
    return html.escape(visible_lines(text))


STYLE = """
:root { color-scheme: light dark; --back: #ffffff; --text: #1d1d1f; --faint: #5f6368; --line: #d8d8d8;
  --mark: #dcebff; --demo: #b5d3ff; --panel: #f7f7f8; LIGHT }
@media (prefers-color-scheme: dark) { :root { --back: #16171a; --text: #e8e6e3; --faint: #a0a4aa; --line: #3a3c40;
  --mark: #1c3350; --demo: #2a5183; --panel: #202226; DARK } }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 64rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.1rem; margin: 0; } h3 { font-size: .95rem; margin: 0; }
section { border-top: 1px solid var(--line); padding: 1.25rem 0; margin-top: 1.5rem; }
.faint, .seen h3, figcaption { color: var(--faint); font-weight: normal; font-size: .875rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem; align-items: center; padding: 0; list-style: none; }
.legend li { padding: .1rem .6rem; border-radius: 4px; border: 1px solid var(--line); font-size: .875rem; }
.both { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(24rem, 100%), 1fr)); gap: 1rem;
  margin: .75rem 0; }
.seen p { white-space: pre-wrap; margin: .25rem 0 0; max-height: 20rem; overflow: auto; padding: .5rem .75rem;
  background: var(--panel); border-radius: 6px; font: .8125rem/1.5 ui-monospace, monospace; }
mark { background: var(--mark); color: inherit; } mark b { background: var(--demo); }
.said { font-size: 1.2rem; line-height: 1.9; margin: .25rem 0 .75rem; white-space: pre-wrap; }
.t { border-radius: 3px; cursor: pointer; padding: .2rem 0; box-shadow: inset 0 -1px var(--line); }
.other { display: inline-block; max-width: 100%; line-height: 1.6; }
.other .t { display: block; }
.other small { display: block; font-size: .6875rem; line-height: 1; color: var(--faint); padding: 0 .5em 0 .3em; }
.t:hover, .t:focus, .t.open { outline: 2px solid var(--text); outline-offset: 1px; }
.byte { font-family: ui-monospace, monospace; font-size: .875rem; }
#box { position: absolute; z-index: 1; background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  box-shadow: 0 4px 20px #0004; padding: .75rem 1rem; max-width: min(44rem, 100vw - 3rem); font-size: .875rem; }
#box[hidden] { display: none; } #box p { margin: 0 0 .5rem; }
#box div { display: flex; flex-wrap: wrap; gap: .75rem 1.5rem; }
#box table { border-collapse: collapse; } #box caption { text-align: left; color: var(--faint); white-space: nowrap; }
#box td { padding: 0 .75rem 0 0; white-space: pre; } #box td + td { text-align: right; padding: 0; }
@media (max-width: 40rem) {
  #box { position: fixed; left: 0 !important; right: 0; top: auto !important; bottom: 0; max-width: none; } }
"""


def style() -> str:
    """The style with both scales, as the variables and classes k0 to k6 that are made of them."""
    sets = ["".join(f"--k{i}: {back}; --t{i}: {text}; " for i, (back, text) in enumerate(scale))
            for scale in (LIGHT, DARK)]
    classes = "".join(f".k{i} {{ background: var(--k{i}); color: var(--t{i}); }}\n" for i in range(len(LIGHT)))
    return STYLE.replace("LIGHT", sets[0]).replace("DARK", sets[1]) + classes


# A token's number is its place in data.tokens: [word, nats, student's chance, teacher's, top five of each belief].
# A word is a number too, of data.words; chances are ten-thousandths. textContent takes everything for text.
SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent), box = document.getElementById("box");
const all = [...document.querySelectorAll(".t")];
let pinned = null;
// a stop of the tab key is the first token of an answer: the arrow keys go on from there
all.forEach((span, i) => { span.id = "t" + i; span.tabIndex = -1; });
document.querySelectorAll(".said").forEach(answer => { answer.querySelector(".t").tabIndex = 0; });

function make(tag, text, ...children) {
  const element = document.createElement(tag);
  element.textContent = text;
  element.append(...children);
  return element;
}

function percent(chance) {
  return chance < 1 ? "< 0.01 %" : (chance / 100).toFixed(2) + " %";
}

function belief(name, top) {
  const table = make("table", "", make("caption", name));
  for (let i = 0; i < top.length; i += 2)
    table.append(make("tr", "", make("td", data.words[top[i]]), make("td", percent(top[i + 1]))));
  return table;
}

function show(span) {
  const [word, nats, student, teacher, ...tops] = data.tokens[span.id.slice(1)];
  document.querySelector(".open")?.classList.remove("open");
  span.classList.add("open");
  const lists = tops.map((top, i) => belief(data.beliefs[i], top));
  const odds = `student ${percent(student)}, ${data.beliefs[1]} ${percent(teacher)}`;
  box.replaceChildren(make("p", `${data.words[word]} — ${nats.toFixed(3)} nats. Its chance: ${odds}`),
                      make("div", "", ...lists));
  box.hidden = false;
  const at = span.getClientRects()[0], right = document.documentElement.clientWidth - box.offsetWidth - 16;
  box.style.left = Math.max(8, Math.min(at.left, right)) + scrollX + "px";
  box.style.top = at.bottom + scrollY + 6 + "px";
}

function hide() {
  if (pinned) return show(pinned);
  document.querySelector(".open")?.classList.remove("open");
  box.hidden = true;
}

function pin(span) {
  pinned = span;
  if (span) span.focus();
  hide();
}

for (const event of ["mouseover", "focusin"])
  addEventListener(event, e => { const span = e.target.closest?.(".t"); if (span) show(span); });
addEventListener("mouseout", e => { if (e.target.closest?.(".t")) hide(); });
addEventListener("click", e => { if (!box.contains(e.target)) pin(e.target.closest(".t")); });
addEventListener("keydown", e => {
  const next = { ArrowRight: 1, ArrowLeft: -1 }[e.key], i = all.indexOf(document.activeElement);
  if (e.key == "Escape") { document.activeElement.blur(); pin(null); }
  if (next && i >= 0 && all[i + next]) { e.preventDefault(); pin(all[i + next]); }
});
// page.html#t12 opens with token 12
addEventListener("hashchange", () => pin(document.getElementById(location.hash.slice(1))));
if (location.hash) pin(document.getElementById(location.hash.slice(1)));
"""


def page(title, body, script="", data=None) -> str:
    """A whole page around a body of HTML. script may read data, which is JSON in it; no other script can run."""
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    # "<" would let a word end the element
    told = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    scripts = f'<script type="application/json" id="data">{told}</script>\n<script>{script}</script>\n' * bool(script)
    return (f'<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escaped(title)}</title>\n<style>{style()}</style>\n<body>\n{body}\n{scripts}</body>\n</html>\n")


def made_by(about) -> str:
    """The command, commit and machine of runs.provenance, as a line."""
    return (f'<p class="faint">Made by <code>{escaped(about["command"])}</code>, commit {escaped(about["commit"])}, '
            f'{escaped(about["machine"])}.</p>')


class Tokens:
    """The answers of a page as HTML, and the data that the script shows of their tokens."""

    def __init__(self):
        self.words, self.tokens = {}, []

    def number(self, word) -> int:
        return self.words.setdefault(spaced(word), len(self.words))

    def add(self, tokens) -> str:
        parts = []
        for t in tokens:
            tops = [[x for word, p in top for x in (self.number(word), round(p * 1e4))] for top in t["beliefs"]]
            chances = [round(p * 1e4) for p in t["chances"]]
            byte = " byte" * in_bytes(t["word"])
            span = f'<span class="t k{level(t["kl"])}{byte}">{html.escape(visible(t["word"]))}</span>'
            best = preferred(t)
            rather = "" if best is None else html.escape(spaced(best).strip("␣"))
            parts.append(f'<span class="other"><small>→ {rather}</small>{span}</span>' if rather else span)
            self.tokens.append([self.number(t["word"]), round(t["kl"], 4), *chances, *tops])
        return f'<p class="said" dir="auto">{"".join(parts)}</p>'


def as_page(rows, about) -> str:
    """The rows as a page; about: runs.provenance."""
    tokens, sections = Tokens(), []
    beliefs = rows[0]["beliefs"]
    for row in rows:
        before, added, after = row["teacher_sees"]
        before, after = escaped(before), escaped(after)
        demo = row["demonstration"]
        added = f"<mark>{f'<b>{escaped(demo)}</b>'.join(map(escaped, added.split(demo)))}</mark>"
        answers = []
        for answer in row["answers"]:
            whole = ""
            if any(in_bytes(t["word"]) for t in answer["tokens"]):
                whole = f'\n<p class="faint">In one piece: <bdi>{escaped(answer["said"])}</bdi></p>'
            about_it = f'{answer["model"]} · {"right" if answer["grade"] == 1 else "not right"} · '
            answers.append(f'<h3>{escaped(answer["when"].capitalize())} <span class="faint">{escaped(about_it)}'
                           f'{in_nats(answer["tokens"])}</span></h3>\n{tokens.add(answer["tokens"])}{whole}')
        sections.append(
            f'<section>\n<h2 dir="auto">{escaped(row["prompt"])}</h2>\n<p class="faint">{escaped(row["task"])} · '
            f'{escaped(row["place"])} · right would be: <bdi>{escaped(row["right"])}</bdi></p>\n'
            f'<div class="both">\n<div class="seen"><h3>The student sees</h3><p dir="auto">'
            f'{escaped(row["student_sees"])}</p></div>\n<div class="seen"><h3>The teacher sees, the '
            f'<mark>difference</mark> and in it the <mark><b>demonstration</b></mark> marked</h3>'
            f'<p dir="auto">{before}{added}{after}</p></div>\n</div>\n' + "\n".join(answers) + "\n</section>")
    legend = "".join(f'<li class="k{i}">{html.escape(step)}</li>' for i, step in enumerate(steps()))
    contrast = ("" if len(beliefs) == 2 else " The target is the teacher with a contrast: what any demonstration would "
                "make it say is taken out. The student, which is the same model, is the bare teacher too.")
    body = f"""<h1>What the demonstration knows better, token by token</h1>
<p>A model answers a question (the student). The same model, shown a demonstration before the question, reads that
answer along (the teacher). The stronger the colour of a token, the more the demonstration changes what should stand
there; the small word above it is what the teacher would rather have said. Training moves the student towards the
teacher, so the colour goes.{contrast} Hover, tap, or press Tab and the arrow keys to see what each thought likely.</p>
<ul class="legend"><li style="border: 0; padding-left: 0">KL({beliefs[1]} ‖ student) in nats:</li>{legend}</ul>
<p class="faint">Answers are greedy, each model's own. Student and teacher have the same weights: before training those
of the model that the run began from, afterwards those of the run's model.</p>
<noscript>The lists of likely tokens need JavaScript; colours and words do not.</noscript>
{made_by(about)}
{"".join(sections)}
<div id="box" role="status" hidden></div>"""
    data = {"words": list(tokens.words), "beliefs": beliefs, "tokens": tokens.tokens}
    return page("Token by token", body, SCRIPT, data)
