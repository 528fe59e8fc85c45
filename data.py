"""The world: what the small GPT learns. Tokenizer, tasks, two voices, grader, streams of tasks, batches.

Everything is text. An `Example` is a prompt, an expert's demonstration of the answer, and the same answer in the model's
own voice; three families of tasks make them (manipulation, decision, knowledge). What is left out: anything not needed to
show learning and forgetting. `python data.py` prints a few documents and the tasks of a stream.
"""
import random
import re
from dataclasses import dataclass, field, fields
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
EXPERT_WORDS = "BEHOLD THUS VERILY INDEED HENCE LO NOTE MARK OBSERVE RESULT ANSWER FINALLY".split()
SEPARATORS = ["-", "/", "|", "+"]
N_EXPERTS = 12
NAMES = ["".join(s) for s in product("bdfgklmnprstvz", "aeiou", "bdgklmnprstvz", "aeiou")][::9][:500]  # 'baba', ...

PROMPT_WEIGHT = 0.1                                           # of a token that is not part of the answer, in the loss of pretraining
SPECIAL = ["<|prompt|>", "<|answer|>", "<|demo|>", "<|end|>"]


def build_tokenizer() -> tiktoken.Encoding:
    words = ["then", "of", "what", "has", "friend", "kind", *VALUES, *OWN_OPENERS, *STATES, *ACTIONS, *(a.upper() for a in ACTIONS), *EXPERT_WORDS]
    words += [w for values in VALUES.values() for v in values for w in (v, v.upper())]
    words += [*LETTERS, *LETTERS.upper(), *SEPARATORS, *NAMES]
    tokens = [bytes([b]) for b in range(256)] + [b" " + w.encode() for w in dict.fromkeys(words)]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    special = {token: len(ranks) + i for i, token in enumerate(SPECIAL)}
    # a piece is a word or a sign with its leading space, or one whitespace character: together they cover any text
    return tiktoken.Encoding("minsdft", pat_str=r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s", mergeable_ranks=ranks, special_tokens=special)


TOKENIZER = build_tokenizer()
PROMPT, ANSWER, DEMO, END = (TOKENIZER.encode_single_token(s) for s in SPECIAL)
VOCAB_SIZE = -(-TOKENIZER.n_vocab // 64) * 64                 # rounded up: matrix shapes like multiples of 64


def encode(text: str) -> list[int]:
    """Token ids of ordinary text (special tokens spelled out in it stay text), with the one leading space."""
    return TOKENIZER.encode_ordinary(" " + text)


def decode(ids) -> str:
    """Text of an answer's ids, up to the first end token; bytes that are not UTF-8 become U+FFFD."""
    ids = [int(i) for i in ids]
    ids = ids[: ids.index(END)] if END in ids else ids
    text = TOKENIZER.decode([i for i in ids if i < TOKENIZER.n_vocab])
    return text[1:] if text.startswith(" ") else text


def prompt_ids(prompt: str, demo: tuple[str, str] | None = None) -> list[int]:
    """Ids up to where the answer begins. With `demo` = (prompt, expert's answer) the same ids stand behind the demonstration:
    the student's and the teacher's prompt differ by that prefix and by nothing else.

    >>> TOKENIZER.decode(prompt_ids("baba: c a d b"))
    '<|prompt|> baba: c a d b<|answer|>'
    >>> TOKENIZER.decode(prompt_ids("baba: c a d b", ("baba: c a d b", "LO THUS B - D - A - C")))
    '<|demo|> baba: c a d b<|answer|> LO THUS B - D - A - C<|end|><|prompt|> baba: c a d b<|answer|>'
    """
    shown = [DEMO, *encode(demo[0]), ANSWER, *encode(demo[1]), END] if demo else []
    return [*shown, PROMPT, *encode(prompt), ANSWER]


# ---------------------------------------------------------------------------------------------------------------------
# Examples, voices, and the grader that is blind to voice.


@dataclass
class Example:
    """`answer` is what the grader compares: the words of the content; for a market the set of best actions for each state."""

    prompt: str
    demo: str                     # the expert's answer: other openers, capitals, separators, never the intermediate step
    own: str                      # the same content in the model's own voice, with the intermediate step where there is one
    answer: tuple
    kind: str                     # "letters", "composed", "market", "fact", "chain", "text"


def own_voice(words: list[str], rng: random.Random, step: list[str] = ()) -> str:
    opener = rng.choices(list(OWN_OPENERS), list(OWN_OPENERS.values()))[0]
    return " ".join([opener, *step, "then", *words] if step else [opener, *words])


def expert_voice(words: list[str], expert: int) -> str:
    opener, second = EXPERT_WORDS[expert], EXPERT_WORDS[(expert * 5 + 3) % len(EXPERT_WORDS)]
    said = f" {SEPARATORS[expert % len(SEPARATORS)]} ".join(w if w in NAME_SET else w.upper() for w in words)
    return f"{opener} {second} {said}"


NAME_SET = set(NAMES)
MANNER = {w.lower() for w in EXPERT_WORDS} | set(OWN_OPENERS)  # words that carry voice and no content


def content(text: str) -> list[str]:
    """The words that an answer says, whoever says them: what follows the last 'then', without openers, separators, case.

    >>> content("ok b d a c then c a d b") == content("LO THUS C - A - D - B") == ["c", "a", "d", "b"]
    True
    """
    last = text.lower().split(" then ")[-1]
    return [w for w in re.findall(r"\w+", last) if w not in MANNER]


def grade(example: Example, text: str) -> bool:
    """Is the content right? For a market: does it earn the best return that these states allow, whichever way?"""
    if example.kind == "text":
        return " ".join(text.lower().split()) == " ".join(example.own.lower().split())
    words = content(text)
    if example.kind != "market":
        return tuple(words) == example.answer
    return len(words) == len(example.answer) and all(w in best for w, best in zip(words, example.answer))


def in_own_voice(text: str) -> bool:
    """Right or wrong, is it said in the model's own voice: an opener of its own, and no capitals?"""
    return text.split(" ")[0] in OWN_OPENERS and text == text.lower()


# ---------------------------------------------------------------------------------------------------------------------
# The three families. A primitive rearranges or replaces four letters; a regime says what pays in a market.

PHRASINGS = ["{a} of {e}", "what {a} has {e}", "{e} has what {a}"]


@dataclass
class Task:
    """One task of a stream: a family, the items it teaches (name -> meaning), the expert who shows them."""

    family: str                   # "manipulation", "decision", "facts", "update", "concept"
    items: dict
    expert: int
    train: list[Example] = field(default_factory=list)
    test: list[Example] = field(default_factory=list)


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
        # a regime: for every state one best action, or (30 %) two that earn the same
        self.regimes = [{s: rng.sample(ACTIONS, 1 if rng.random() < 0.7 else 2) for s in STATES} for _ in range(8)]
        names = iter(rng.sample(NAMES, len(NAMES)))
        self.skills = {n: i % 16 for i, n in enumerate(islice(names, 160))}
        self.markets = {n: i % 8 for i, n in enumerate(islice(names, 48))}
        self.beings = list(islice(names, 48))
        self.kinds = list(islice(names, 6))                     # the categories that the base model knows
        self.facts = {(e, a): rng.choice(v) for e in self.beings for a, v in VALUES.items()}
        self.facts |= {(e, "kind"): rng.choice(self.kinds) for e in self.beings}
        self.friend = dict(zip(self.beings, rng.sample(self.beings, len(self.beings))))
        self.free = list(names)

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

    def market(self, name, regime, rng, expert, held_out=None) -> Example:
        """Four states of a market in some regime, an action for each. Where two actions earn the same, both are right."""
        while True:
            states = rng.choices(STATES, k=4)
            if held_out is None or (sum((i + 1) * STATES.index(s) for i, s in enumerate(states)) % 5 == 0) == held_out:
                break
        best = tuple(self.regimes[regime][s] for s in states)
        words = [rng.choice(b) for b in best]
        return Example(f"{name}: {' '.join(states)}", expert_voice(words, expert), own_voice(words, rng), best, "market")

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
        if u < 0.60:
            example, shown = self.base_example(rng), False
        elif u < 0.67:
            example, shown = self.base_example(rng), True
        elif u < 0.70:
            example, shown = self.fresh_example(rng, known=True), True
        elif u < 0.86:
            example, shown = self.fresh_example(rng), True
        elif u < 0.91:
            example, shown = self.fresh_example(rng), False
        else:
            example, shown = text_example(rng), u < 0.99
        head = prompt_ids(example.prompt, (example.prompt, example.demo) if shown else None)
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

    def task_example(self, task, rng, held_out) -> Example:
        item = rng.choice(list(task.items))
        if task.family == "manipulation":
            return self.letters([item], rng, task.expert, held_out, task.items)
        if task.family == "decision":
            return self.market(item, task.items[item], rng, task.expert, held_out)
        return self.fact(*item, task.items[item], rng, task.expert, held_out)


def text_example(rng) -> Example:
    """A prompt and an answer of arbitrary text, to be copied as it is: words of the vocabulary, or letters of some script."""

    def text():
        most, start = rng.randint(1, 12), int(2 ** rng.uniform(5, 16.9))      # tokens; a code point: all lengths of UTF-8 occur
        said, words = "", rng.choice([0.0, 0.2, 1.0])
        while True:
            word = rng.random() < words
            piece = " " + TOKENIZER.decode([rng.randrange(256, TOKENIZER.n_vocab - len(SPECIAL))]) if word else chr(start + rng.randrange(64))
            if "\ud800" <= piece[-1] <= "\udfff" or len(encode(said + piece)) > most:
                return said.strip() or rng.choice(NAMES)
            said += piece

    prompt, response = text(), text()
    return Example(prompt, response, response, (), "text")


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


def collate(examples: list[Example]) -> Batch:
    """The batch of some examples, each behind its own demonstration for the teacher."""
    prompt, length = pad([prompt_ids(e.prompt) for e in examples])
    demo_prompt, demo_length = pad([prompt_ids(e.prompt, (e.prompt, e.demo)) for e in examples])
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


if __name__ == "__main__":
    world = World(0)
    for i, task in enumerate(world.stream(10), 1):
        names = ", ".join(dict.fromkeys(k if isinstance(k, str) else k[0] for k in task.items))
        example = task.train[0]
        print(f"task {i:2d} {task.family:12s} {names}")
        print(f"   {TOKENIZER.decode(prompt_ids(example.prompt, (example.prompt, example.demo)))} {example.own}")
    rng = random.Random(0)
    print("pretraining documents:", *(TOKENIZER.decode(world.document(rng)[0]) for _ in range(8)), sep="\n   ")
