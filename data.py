"""The world: what the small GPT learns. Tokenizer, tasks, two voices, grader, streams of tasks, batches.

Everything is text. An `Example` is a prompt, an expert's demonstration of the answer, and the same answer in the model's
own voice; three families of tasks make them (manipulation, decision, knowledge). What is left out: anything not needed to
show learning and forgetting. `python data.py` prints a few documents and the tasks of a stream.
"""
import codecs
import json
import os
import random
import re
import reprlib
import unicodedata
from dataclasses import dataclass, field, fields, replace
from itertools import islice, permutations, product

import tiktoken
import torch

# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer: 256 bytes, then whole words as single tokens, then four special tokens. Built from the lists below, so that it
# is the same on every machine and needs no network. A word token includes its leading space, and every prompt and answer is
# encoded with one space in front: a word is the same token wherever it stands. Any other text falls back to bytes.

LETTERS = "abcdefghijkl"                                      # the alphabet of the manipulation family
STATES = "boom rise flat fall crash".split()                  # what a market does
ACTIONS = "buy hold sell".split()                             # what one can do about it
VALUES = {
    "color": "red blue green gray pink gold black white brown amber violet teal".split(),
    "food": "rice corn figs nuts plums beans bread soup dates eggs fish kale".split(),
    "home": "cave tent barn tower boat mill dune reef hill lake moor glen".split(),
    "craft": "weaver smith baker potter miner scribe tailor mason hunter farmer fisher healer".split(),
}
OWN_OPENERS = {"ok": 0.4, "so": 0.3, "well": 0.2, "hm": 0.1}   # how the model's own voice begins, and how often
RETURNS = "0 1 2 3".split()                                    # what an action earns in a state of a market
EXPERT_WORDS = "BEHOLD THUS VERILY INDEED HENCE LO NOTE MARK OBSERVE RESULT ANSWER FINALLY".split()
SEPARATORS = ["-", "/", "|", "+"]
N_EXPERTS = 12
REAL_WORDS = """river market winter Haus Fenster été livre река зима город книга ποτάμι βιβλίο μήλο ماء كتاب بيت नदी घर किताब 川 冬 市場 강 겨울 시장""".split()
# Words of examples/, so that their prompts are a few tokens; any other word is spelled in bytes, which works and learns more slowly.
CALENDAR = """January February March April May June July August September October November December Monday Tuesday Wednesday Thursday
    Friday Saturday Sunday""".split()
LANGUAGES = """French German Spanish Italian Portuguese Dutch Swedish Polish Finnish Turkish Hungarian Russian Ukrainian Greek Hebrew Arabic
    Hindi Japanese Chinese Korean""".split()
NAMES = ["".join(s) for s in product("bdfgklmnprstvz", "aeiou", "bdgklmnprstvz", "aeiou")][::9][:490]  # 'baba', ...

PROMPT_WEIGHT = 0.1                                           # of a token that is not part of the answer, in the loss of pretraining
SPECIAL = ["<|prompt|>", "<|answer|>", "<|demo|>", "<|end|>"]


def build_tokenizer(taken: dict[str, str] = {}) -> tiktoken.Encoding:
    """`taken`: {word: name}. The word stands in the place of a name, whose token it becomes; the name is spelled in bytes from then on."""
    words = ["then", "of", "what", "has", "friend", "kind", *VALUES, *OWN_OPENERS, *STATES, *ACTIONS, *(a.upper() for a in ACTIONS), *EXPERT_WORDS]
    words += [w for values in VALUES.values() for v in values for w in (v, v.upper())]
    word_of = {name: word for word, name in taken.items()}
    words += [*LETTERS, *LETTERS.upper(), *SEPARATORS, *RETURNS, "in", "for", "say", *CALENDAR, *LANGUAGES, *(word_of.get(n, n) for n in NAMES)]
    tokens = [bytes([b]) for b in range(256)] + [b" " + w.encode() for w in dict.fromkeys(words)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    special = {token: len(ranks) + i for i, token in enumerate(SPECIAL)}
    # a piece is a word or a sign with its leading space, or one whitespace character: together they cover any text
    return tiktoken.Encoding("minsdft", pat_str=r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s", mergeable_ranks=ranks, special_tokens=special)


TOKENIZER = build_tokenizer()
PROMPT, ANSWER, DEMO, END = (TOKENIZER.encode_single_token(s) for s in SPECIAL)
VOCAB_SIZE = -(-TOKENIZER.n_vocab // 64) * 64                 # rounded up: matrix shapes like multiples of 64


def take_names(taken: dict[str, str]):
    """New words for the tokenizer: each takes the token of a name without a meaning, {word: name}.

    A word in bytes shares its rows with all words there are; with a token of its own what is learned about it has a place of its own.
    The rows of the names are used to standing for something that the model does not know yet. A checkpoint keeps `taken` as "words".
    """
    global TOKENIZER
    TOKENIZER = build_tokenizer(taken)


def encode(text: str) -> list[int]:
    """Token ids of ordinary text (special tokens spelled out in it stay text), with the one leading space."""
    return TOKENIZER.encode_ordinary(" " + text)


def decode(ids) -> str:
    """Text of an answer's ids, up to the first end token; bytes that are not UTF-8 become U+FFFD."""
    ids = [int(i) for i in ids]
    ids = ids[: ids.index(END)] if END in ids else ids
    text = TOKENIZER.decode([i for i in ids if i < TOKENIZER.n_vocab])
    return text[1:] if text.startswith(" ") else text


def prompt_ids(prompt: str, *demos: tuple[str, str]) -> list[int]:
    """Ids up to where the answer begins. With a demonstration (prompt, expert's answer), or several, the same ids stand behind it:
    the student's and the teacher's prompt differ by that prefix and by nothing else.

    >>> TOKENIZER.decode(prompt_ids("baba: c a d b"))
    '<|prompt|> baba: c a d b<|answer|>'
    >>> TOKENIZER.decode(prompt_ids("baba: c a d b", ("baba: c a d b", "LO THUS B - D - A - C")))
    '<|demo|> baba: c a d b<|answer|> LO THUS B - D - A - C<|end|><|prompt|> baba: c a d b<|answer|>'
    """
    shown = [i for asked, said in demos for i in (DEMO, *encode(asked), ANSWER, *encode(said), END)]
    return [*shown, PROMPT, *encode(prompt), ANSWER]


# ---------------------------------------------------------------------------------------------------------------------
# Examples, voices, and the grader that is blind to voice.


@dataclass
class Example:
    """`answer` is what the grader compares: the words of the content; for a market what each action earns, {action: return}, state by state."""

    prompt: str
    demo: str                     # the expert's answer: other openers, capitals, separators, never the intermediate step
    own: str                      # the same content in the model's own voice, with the intermediate step where there is one
    answer: tuple
    kind: str                     # "letters", "composed", "market", "fact", "chain", or one of GRADERS


def own_voice(words: list[str], rng: random.Random, step: list[str] = ()) -> str:
    opener = rng.choices(list(OWN_OPENERS), list(OWN_OPENERS.values()))[0]
    return " ".join([opener, *step, "then", *words] if step else [opener, *words])


def expert_voice(words: list[str], expert: int) -> str:
    opener, second = EXPERT_WORDS[expert], EXPERT_WORDS[(expert * 5 + 3) % len(EXPERT_WORDS)]
    said = f" {SEPARATORS[expert % len(SEPARATORS)]} ".join(w if w in NAME_SET else w.upper() for w in words)
    return f"{opener} {second} {said}"


NAME_SET = set(NAMES)
MANNER = {w.lower() for w in EXPERT_WORDS} | set(OWN_OPENERS) | set(RETURNS)         # words that are not what was asked for


def content(text: str) -> list[str]:
    """The words that an answer says, whoever says them: what follows the last 'then', without openers, separators, returns, case.

    >>> content("ok b d a c then c a d b") == content("LO THUS C - A - D - B") == ["c", "a", "d", "b"]
    True
    """
    last = text.lower().split(" then ")[-1]
    return [w for w in re.findall(r"\w+", last) if w not in MANNER]


def plain(text: str) -> str:
    """Text without what makes no difference: white space, case, and whether an accent is a character of its own.

    >>> plain("Cafe\\u0301  STRASSE\\n") == plain("CAFÉ Straße")
    True
    """
    folded = unicodedata.normalize("NFD", text).casefold()       # Unicode's order: case is folded on characters taken apart
    return " ".join(unicodedata.normalize("NFC", folded).split())


# How an answer is compared with the response of a demonstration: the whole, anywhere as whole words (1 is not in 10), or the last lines.
GRADERS = {
    "exact": lambda said, right: plain(said) == plain(right),
    "contains": lambda said, right: re.search(rf"(?<!\w){re.escape(plain(right))}(?!\w)", plain(said)) is not None,
    "last-line": lambda said, right: plain(said.strip().split("\n")[-1]) == plain(right.strip().split("\n")[-1]),
}


def grade(example: Example, text: str) -> bool:
    """Is the content right? For a market: does it earn the best return that these states allow, whichever way?"""
    if example.kind in GRADERS:
        return GRADERS[example.kind](text, example.own)
    return earned(example, text) == 1 if example.kind == "market" else tuple(content(text)) == example.answer


def earned(example: Example, text: str) -> float:
    """The return of a market's actions as a share of the best possible; what is no action for each state earns nothing."""
    words = content(text)
    if len(words) != len(example.answer) or not set(words) <= set(ACTIONS):
        return 0.0
    return sum(pays[w] for w, pays in zip(words, example.answer)) / sum(max(pays.values()) for pays in example.answer)


def in_own_voice(text: str) -> bool:
    """Right or wrong, is it said in the model's own voice: an opener of its own, and no capitals?"""
    return text.split(" ")[0] in OWN_OPENERS and text == text.lower()


# ---------------------------------------------------------------------------------------------------------------------
# The three families. A primitive rearranges or replaces four letters; a table of returns says what pays in a market.

# How often each of STATES occurs in the regimes of the market stream.
REGIMES = {"calm": [1, 3, 6, 3, 0.5], "boom": [6, 4, 2, 1, 0.5], "nervous": [2, 3, 1, 3, 2], "bear": [0.5, 1, 3, 6, 2], "crash": [0.5, 1, 0.5, 4, 6],
           "recovery": [3, 6, 2, 1, 1]}
PHRASINGS = ["{a} of {e}", "what {a} has {e}", "{e} has what {a}"]


@dataclass
class Task:
    """One task of a stream: a family, the items it teaches (name -> meaning), the expert who shows them."""

    family: str                   # "manipulation", "decision", "facts", "update", "concept"; a regime of the market; the name of a file's task
    items: dict
    expert: int
    train: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)

    def names(self) -> set[str]:
        """The names that it gives a meaning, or another one."""
        return {word for key, meaning in self.items.items() for word in (*([key] if isinstance(key, str) else key), meaning)} & NAME_SET


class World:
    """Which name means what. `seed` draws the primitives, the meaning of the base names, and which names stay free.

    The base model knows 160 skills, 48 markets, 48 beings; about 250 free names have no meaning of their own until a task
    gives them one. In pretraining they occur with a meaning drawn afresh for every document.
    """

    def __init__(self, seed: int):
        self.seed = seed
        rng = random.Random(f"world {seed}")
        rearrange = rng.sample([p for p in permutations(range(4)) if p != (0, 1, 2, 3)], 10)
        ciphers = [LETTERS[k:] + LETTERS[:k] for k in (1, 2, 10, 11)] + ["".join(rng.sample(LETTERS, 12)) for _ in range(2)]
        self.primitives = [lambda x, p=p: [x[i] for i in p] for p in rearrange]
        self.primitives += [lambda x, c=c: [c[LETTERS.index(a)] for a in x] for c in ciphers]
        # what pays in a market: for every state the return of each action; the best one earns 2 or 3, in 30 % of the states two tie
        self.payoffs = [{s: self.draw_returns(rng) for s in STATES} for _ in range(8)]
        names = iter(rng.sample(NAMES, len(NAMES)))
        self.skills = {n: i % 16 for i, n in enumerate(islice(names, 160))}
        self.markets = {n: i % 8 for i, n in enumerate(islice(names, 48))}
        self.beings = list(islice(names, 48))
        self.kinds = list(islice(names, 6))                     # the categories that the base model knows
        self.facts = {(e, a): rng.choice(v) for e in self.beings for a, v in VALUES.items()}
        self.facts |= {(e, "kind"): rng.choice(self.kinds) for e in self.beings}
        self.friend = dict(zip(self.beings, rng.sample(self.beings, len(self.beings))))
        self.free = list(names)

    @staticmethod
    def draw_returns(rng) -> dict:
        actions, best = rng.sample(ACTIONS, 3), rng.choice([2, 3])
        return dict(zip(actions, [best, best if rng.random() < 0.3 else rng.randrange(best), rng.randrange(best)]))

    # -- one example of each kind; `expert` is who demonstrates, `held_out` says which part of the inputs to draw from

    def letters(self, names, rng, expert, held_out=None, meanings=None) -> Example:
        """One name: a single step. Two names: one after the other, and the own voice writes down what is in between."""
        x = rng.sample(LETTERS, 4)
        while held_out is not None and (sum(map(LETTERS.index, x)) % 5 == 0) != held_out:
            x = rng.sample(LETTERS, 4)
        steps = [x]
        for n in names:
            steps.append(self.primitives[(meanings or self.skills)[n]](steps[-1]))
        y, between = steps[-1], steps[1] if len(names) == 2 else []
        prompt, kind = f"{' '.join(names)}: {' '.join(x)}", "composed" if between else "letters"
        return Example(prompt, expert_voice(y, expert), own_voice(y, rng, between), tuple(y), kind)

    def market(self, name, pays, rng, expert, held_out=None, weather=None) -> Example:
        """Four states of a market, an action for each; the expert's demonstration tells (state,) action, return. Where two actions
        earn the same, both are right. `weather`: how often each state occurs."""
        while True:
            states = rng.choices(STATES, weather, k=4)
            if held_out is None or (sum((i + 1) * STATES.index(s) for i, s in enumerate(states)) % 5 == 0) == held_out:
                break
        returns = tuple(self.payoffs[pays][s] for s in states)
        words = [rng.choice([a for a in ACTIONS if r[a] == max(r.values())]) for r in returns]
        demo = expert_voice([f"{w} {r[w]}" for w, r in zip(words, returns)], expert)
        return Example(f"{name}: {' '.join(states)}", demo, own_voice(words, rng), returns, "market")

    def fact(self, being, attribute, value, rng, expert, held_out=None) -> Example:
        phrasing = rng.choice(PHRASINGS if held_out is None else PHRASINGS[2:] if held_out else PHRASINGS[:2])
        prompt = phrasing.format(a=attribute, e=being)
        return Example(prompt, expert_voice([value], expert), own_voice([value], rng), (value,), "fact")

    def chain(self, being, attribute, rng, expert) -> Example:
        """A fact about a being's friend: the own voice names the friend first."""
        friend = self.friend[being]
        value = self.facts[friend, attribute]
        return Example(f"{attribute} of friend of {being}", expert_voice([value], expert), own_voice([value], rng, [friend]), (value,), "chain")

    def base_example(self, rng, updated=()) -> Example:
        """What the base model knows. 45 % of it is solved only by writing the intermediate step. `updated`: facts not to ask for."""
        expert, u = rng.randrange(N_EXPERTS), rng.random()
        if u < 0.25:
            return self.letters([rng.choice(list(self.skills))], rng, expert)
        if u < 0.55:
            return self.letters([rng.choice(list(self.skills)), rng.choice(list(self.skills))], rng, expert)
        if u < 0.70:
            market = rng.choice(list(self.markets))
            return self.market(market, self.markets[market], rng, expert)
        while True:
            being, attribute = rng.choice(list(self.facts))
            if u < 0.85 and (being, attribute) not in updated:
                return self.fact(being, attribute, self.facts[being, attribute], rng, expert)
            if u >= 0.85 and attribute != "kind" and (self.friend[being], attribute) not in updated:
                return self.chain(being, attribute, rng, expert)

    def fresh_example(self, rng, known=False) -> Example:
        """A name (free, or with `known` one that has another meaning) with a meaning that holds in this document alone."""
        expert, u = rng.randrange(N_EXPERTS), rng.random()
        if u < 0.4:
            name = rng.choice(list(self.skills) if known else self.free)
            return self.letters([name], rng, expert, meanings={name: rng.randrange(16)})
        if u < 0.65:
            return self.market(rng.choice(list(self.markets) if known else self.free), rng.randrange(8), rng, expert)
        attribute = rng.choice([*VALUES, "kind"])
        value = rng.choice(self.kinds + self.free if attribute == "kind" else VALUES[attribute])
        return self.fact(rng.choice(self.beings if known else self.free), attribute, value, rng, expert)

    def document(self, rng) -> tuple[list[int], int]:
        """A pretraining document and where its own-voice answer begins. The mixture teaches the base skills (bare), to use a
        demonstration whatever the name meant before, to restate it in its own voice, and to copy any text it is shown."""
        u = rng.random()
        if u < 0.56:
            example, shown = self.base_example(rng), False
        elif u < 0.63:
            example, shown = self.base_example(rng), True
        elif u < 0.66:
            example, shown = self.fresh_example(rng, known=True), True
        elif u < 0.82:
            example, shown = self.fresh_example(rng), True
        elif u < 0.87:
            example, shown = self.fresh_example(rng), False
        else:
            example, shown = text_example(rng), u < 0.99
        head = prompt_ids(example.prompt, *[(example.prompt, example.demo)] * shown)
        return head + encode(example.own) + [END], len(head)

    # -- the stream

    def stream(self, n_tasks: int, n_train: int = 256, n_test: int = 64) -> list[Task]:
        """`n_tasks` tasks, families mixed in seeded order, no name used twice. Train and held-out parts share no input.
        A longer stream begins with the shorter one."""
        families = ["manipulation", "decision", "facts", "manipulation", "update", "manipulation", "decision", "facts", "manipulation", "concept"]
        rng = random.Random(f"order {self.seed}")
        order = [f for i in range(-(-n_tasks // 10)) for f in rng.sample(families, 10)][:n_tasks]
        rng = random.Random(f"stream {self.seed}")
        free = iter(rng.sample(self.free, len(self.free)))
        old = iter(rng.sample(self.beings, len(self.beings)))
        tasks = []
        for i, family in enumerate(order):
            if family == "update":                              # beings that the base model knows; one attribute changes
                items = {(e, "color"): rng.choice([v for v in VALUES["color"] if v != self.facts[e, "color"]]) for e in islice(old, 8)}
            elif family == "facts":
                attributes = rng.sample(list(VALUES), 2)
                items = {(e, a): rng.choice(VALUES[a]) for e in islice(free, 8) for a in attributes}
            elif family == "concept":                           # two new categories, four members each
                kinds = list(islice(free, 2))
                items = {(e, "kind"): kinds[j % 2] for j, e in enumerate(islice(free, 8))}
            else:
                meanings = rng.sample(range(16), 8) if family == "manipulation" else rng.sample(range(8), 8)
                items = dict(zip(islice(free, 8), meanings))
            task = Task(family, items, expert=i % N_EXPERTS)
            task.train, task.test = ([self.task_example(task, rng, held_out) for _ in range(n)] for held_out, n in ((False, n_train), (True, n_test)))
            tasks.append(task)
        return tasks

    def market_stream(self, n_train: int = 256, n_test: int = 64) -> list[Task]:
        """The markets of REGIMES, one after another: in each eight new names with returns of their own, in the regime's weather."""
        rng = random.Random(f"market stream {self.seed}")
        free, tasks = iter(rng.sample(self.free, len(self.free))), []
        for i, (regime, weather) in enumerate(REGIMES.items()):
            task = Task(regime, dict(zip(islice(free, 8), rng.sample(range(8), 8))), expert=i)
            task.train, task.test = ([self.market(name, task.items[name], rng, i, held_out, weather) for name in rng.choices(list(task.items), k=n)]
                                     for held_out, n in ((False, n_train), (True, n_test)))
            tasks.append(task)
        return tasks

    def task_example(self, task, rng, held_out) -> Example:
        item = rng.choice(list(task.items))
        if task.family == "manipulation":
            return self.letters([item], rng, task.expert, held_out, task.items)
        if task.family == "decision":
            return self.market(item, task.items[item], rng, task.expert, held_out)
        return self.fact(*item, task.items[item], rng, task.expert, held_out)


def text_example(rng, longest=None) -> Example:
    """A prompt and an answer of arbitrary text, to be copied as it is: words of the vocabulary, or letters of some script.
    `longest`: most tokens of the answer; without it mostly 12, at times 28."""

    def text(longest):
        most, start = rng.randint(1, longest), int(2 ** rng.uniform(5, 16.9))      # tokens; a code point: all lengths of UTF-8 occur
        said, words = "", rng.choice([0.0, 0.2, 1.0])
        while True:
            word = rng.random() < words
            piece = " " + TOKENIZER.decode([rng.randrange(256, TOKENIZER.n_vocab - len(SPECIAL))]) if word else chr(start + rng.randrange(64))
            if "\ud800" <= piece[-1] <= "\udfff" or len(encode(said + piece)) > most:
                return said.strip() or rng.choice(NAMES)
            said += piece

    prompt, response = text(12), text(rng.choice([12, 12, 28]) if longest is None else longest)
    return Example(prompt, response, response, (), "exact")


# ---------------------------------------------------------------------------------------------------------------------
# Tensors. Ragged rows are left-aligned and padded on the right; a length or a mask says what counts.


@dataclass
class Batch:
    """B examples as tensors: what the student sees, what the teacher sees, and what the expert said.

    prompt (B, P), length (B,): the bare prompts. demo_prompt (B, Q), demo_length (B,): the same behind their demonstration.
    response (B, R), response_mask (B, R): the expert's answers up to and including the end token, the targets of SFT.
    """

    prompt: torch.Tensor
    length: torch.Tensor
    demo_prompt: torch.Tensor
    demo_length: torch.Tensor
    response: torch.Tensor
    response_mask: torch.Tensor

    def to(self, device):
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))


def pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to (B, T) int64, padded on the right with END, and their lengths (B,).

    >>> pad([[5, 6, 7], [8]])[1].tolist()
    [3, 1]
    """
    longest = max(map(len, rows))
    return torch.tensor([r + [END] * (longest - len(r)) for r in rows]), torch.tensor([len(r) for r in rows])


def collate(examples: list[Example], shown: list[list[Example]] | None = None) -> Batch:
    """The batch of some examples, each behind its own demonstration for the teacher, or behind those that `shown` lists for it."""
    shown = [[e] for e in examples] if shown is None else shown
    prompt, length = pad([prompt_ids(e.prompt) for e in examples])
    demo_prompt, demo_length = pad([prompt_ids(e.prompt, *((d.prompt, d.demo) for d in ds)) for e, ds in zip(examples, shown)])
    response, response_length = pad([encode(e.demo) + [END] for e in examples])
    mask = torch.arange(response.shape[1]) < response_length[:, None]
    return Batch(prompt, length, demo_prompt, demo_length, response, mask)


def pack(documents: list[tuple[list[int], int]], width: int = 128):
    """Documents (ids, start of the answer) side by side in rows of `width`, so that pretraining pays for no padding.

    Returns tokens, targets (N, T) int64, loss weights (N, T) float and the attention mask (N, 1, T, T) bool: a token looks at the
    tokens before it in its own document.
    """
    rows = []                                                   # first fit, longest first
    for ids, answer in sorted(documents, key=lambda d: -len(d[0])):
        row = next((r for r in rows if sum(len(i) - 1 for i, _ in r) + len(ids) - 1 <= width), None)
        if row is None:
            rows.append(row := [])
        row.append((ids, answer))
    tokens = torch.full((len(rows), width), END)
    targets, weights, doc = tokens.clone(), torch.zeros(len(rows), width), torch.full((len(rows), width), -1)
    for r, row in enumerate(rows):
        t = 0
        for d, (ids, answer) in enumerate(row):
            n = len(ids) - 1
            tokens[r, t : t + n], targets[r, t : t + n] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
            weights[r, t : t + n], weights[r, t + answer - 1 : t + n], doc[r, t : t + n] = PROMPT_WEIGHT, 1.0, d
            t += n
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return tokens, targets, weights, (causal & (doc[:, :, None] == doc[:, None, :]))[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# Tasks from files: one's own demonstrations, a JSON object a line. What cannot be used is refused before anything is trained.


class BadInput(ValueError):
    """One line for the user: file, line, value, remedy."""


def quoted(value) -> str:
    """A value in a message: 40 characters of it at most, control characters escaped, so that a message stays one line."""
    text = value if isinstance(value, str) else reprlib.repr(value)               # plain repr() may fail on what is nested deeply
    cut = text[:40] + "..." * (len(text) > 40)
    return repr(cut) if isinstance(value, str) else cut


def no_field_twice(pairs: list[tuple]) -> dict:
    if len(dict(pairs)) < len(pairs):                                              # json would keep the last and say nothing
        raise ValueError("a field occurs twice")
    return dict(pairs)


def read_lines(path: str) -> list[tuple[str, dict]]:
    """The lines of one file that are not blank: where each stands ("file:line") and its fields, all three of them sound strings.

    UTF-8 with or without a byte order mark. Lines end with \\n or \\r\\n and with nothing else: a string may contain U+2028. Raises BadInput.
    """
    name = path if path and path.isprintable() else repr(path)
    write = 'write {"prompt": "...", "response": "..."}'
    try:
        with open(path, "rb") as file:
            lines = file.read().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except (OSError, ValueError) as e:                                             # ValueError: a path that no file can have
        raise BadInput(f"{name}: cannot be read ({getattr(e, 'strerror', None) or e}); give a file that exists and may be read")
    rows = []
    for number, line in enumerate(lines, 1):
        place = f"{name}:{number}"
        try:
            text = line.decode()
            if not text.strip():
                continue
            row = json.loads(text, object_pairs_hook=no_field_twice)
        except UnicodeDecodeError as e:
            raise BadInput(f"{place}: byte {e.start + 1} of the line, {line[e.start]:#04x}, is not UTF-8; save the file as UTF-8")
        except (ValueError, RecursionError) as e:                                  # broken, a number too long, or nested too deeply
            at = f", character {e.colno}" if isinstance(e, json.JSONDecodeError) else ""
            raise BadInput(f"{place}: {quoted(text)} is not JSON that can be read ({getattr(e, 'msg', e)}{at}); {write}")
        if not isinstance(row, dict):
            raise BadInput(f"{place}: {quoted(row)} is not an object; {write}")
        if unknown := sorted(row.keys() - {"prompt", "response", "task"}):
            raise BadInput(f'{place}: unknown field {", ".join(map(quoted, unknown[:5]))}; a line has "prompt", "response" and, if you like, "task"')
        row = {"task": os.path.splitext(os.path.basename(path))[0], **row}
        for key in ("prompt", "response", "task"):
            if key not in row:
                raise BadInput(f'{place}: {quoted(text)} has no "{key}"; {write}')
            if not isinstance(row[key], str):
                raise BadInput(f'{place}: "{key}" is {quoted(row[key])}; put a string there, in quotes')
            if not row[key].strip():
                raise BadInput(f'{place}: "{key}" is empty ({quoted(row[key])}); fill it in or delete the line')
            if re.search("[\ud800-\udfff]", row[key]):                             # JSON can spell these, UTF-8 cannot
                raise BadInput(f'{place}: "{key}" is {quoted(row[key])} with half a surrogate pair; write the character itself')
        rows.append((place, row))
    if not rows:
        raise BadInput(f"{name}: empty; {write}, one a line")
    return rows


def read_tasks(paths: list[str], context: int, grader: str = "exact") -> list[Task]:
    """Tasks from JSONL files of {"prompt": str, "response": str, "task": optional str}, in order of first appearance.

    Without "task" a line belongs to the task that its file is named after (without the extension): one file is one task. Telling tasks
    apart by their content would be a guess. A task may go on in another file. An answer is right by `grader`, one of GRADERS.

    Raises BadInput for what cannot be read or trained on: among other things a prompt with two different responses, a task with fewer
    than two demonstrations, and an example that takes more than `context` tokens behind its own demonstration, end token included.
    A line that says what an earlier one says, in whichever task, is left out. White space makes no difference to either.
    """
    tasks, first, known = {}, {}, {}                                               # by name; where it begins; prompt -> (response, place)
    for place, row in (line for path in paths for line in read_lines(path)):
        prompt, response, family = row["prompt"], row["response"], " ".join(row["task"].split())
        length = len(prompt_ids(prompt, (prompt, response))) + len(encode(response)) + 1
        if length > context:
            raise BadInput(f"{place}: {quoted(prompt)} takes {length} tokens (prompt and response, both twice), more than {context}; shorten it")
        task = tasks.setdefault(family, Task(family, {}, 0))
        first.setdefault(family, place)
        key, said = " ".join(prompt.split()), " ".join(response.split())
        if key not in known:
            known[key] = said, place
            task.train.append(Example(prompt, response, response, (), grader))
        elif known[key][0] != said:
            raise BadInput(f"{place}: {quoted(key)} is answered {quoted(said)}, but {quoted(known[key][0])} at {known[key][1]}; keep one of the two")
    for family, task in tasks.items():
        if len(task.train) < 2:
            raise BadInput(f"{first[family]}: task {quoted(family)} has {len(task.train)} of the two demonstrations that it needs; add new ones")
    return list(tasks.values())


def new_words(tasks: list[Task]) -> list[str]:
    """The words of the tasks, in their order, that are more than one token."""
    text = " ".join(part for task in tasks for e in task.train for part in (e.prompt, e.own))
    return [w for w in dict.fromkeys(re.findall(r"(?:(?<=\s)|^)[^\W\d_]+", text)) if len(encode(w)) > 1]


def split_holdout(task: Task, share: float, seed: int) -> Task:
    """The task with a random share of its demonstrations, rounded, moved from `train` to `test`; one or more stay and one or more move.

    The draw depends on `seed` and on the task's name alone, not on the other tasks. With share 0 nothing is held out and `test` is
    `train` itself, so that something is measured: then accuracy tells what was learned by heart, and nothing of unseen prompts.
    """
    if share == 0:
        return replace(task, test=task.train)
    n = len(task.train)
    held_out = set(random.Random(f"holdout {seed} {task.family}").sample(range(n), min(max(1, round(share * n)), n - 1)))
    return replace(task, train=[e for i, e in enumerate(task.train) if i not in held_out], test=[task.train[i] for i in sorted(held_out)])


if __name__ == "__main__":
    world = World(0)
    for i, task in enumerate(world.stream(10), 1):
        names = ", ".join(dict.fromkeys(k if isinstance(k, str) else k[0] for k in task.items))
        example = task.train[0]
        print(f"task {i:2d} {task.family:12s} {names}")
        print(f"   {TOKENIZER.decode(prompt_ids(example.prompt, (example.prompt, example.demo)))} {example.own}")
    rng = random.Random(0)
    print("pretraining documents:", *(TOKENIZER.decode(world.document(rng)[0]) for _ in range(8)), sep="\n   ")
