"""The small world: what a GPT of a million parameters learns, as files that anyone can open.

    python lab/world.py --seed 0 --tasks 10 --out out/world

writes into out/world  tasks/01-....jsonl  one file a task, in the order of the stream
                       keep.jsonl          what the base model can do already, by kind
                       reading.jsonl       what it is asked behind a demonstration
                       neighbours.jsonl    facts that stand beside those that a task changes

A world has two voices. Experts demonstrate in words of their own, tersely, in capitals; the base
model answers in lower case and writes down the intermediate step that nearly half of its skills
need. Graders see the content alone. Three families of tasks: manipulation, decision, knowledge.
Left out: anything not needed to show learning and forgetting.
"""
import os
import random
import re
import sys
from dataclasses import dataclass, field
from itertools import islice, permutations, product

sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from data import (ACTIONS, EXPERT_WORDS, OWN_OPENERS, RETURNS, SPECIAL, Example, Task,
                  WordTokenizer, content, in_own_voice)
from runs import MANY, check_options, check_out, ends_in_one_line, given_options, option, write_rows

# ---------------------------------------------------------------------------------------------------------------------
# Words.

LETTERS = "abcdefghijkl"                                      # the alphabet of the manipulation family
STATES = "boom rise flat fall crash".split()                  # what a market does
VALUES = {
    "color": "red blue green gray pink gold black white brown amber violet teal".split(),
    "food": "rice corn figs nuts plums beans bread soup dates eggs fish kale".split(),
    "home": "cave tent barn tower boat mill dune reef hill lake moor glen".split(),
    "craft": "weaver smith baker potter miner scribe tailor mason hunter farmer fisher healer".split(),
}
SEPARATORS = ["-", "/", "|", "+"]
N_EXPERTS = 12
# Words of examples/, so that their prompts are a few tokens; others are spelled in bytes, and learn more slowly.
CALENDAR = """January February March April May June July August September October November December Monday Tuesday
    Wednesday Thursday Friday Saturday Sunday""".split()
LANGUAGES = """French German Spanish Italian Portuguese Dutch Swedish Polish Finnish Turkish Hungarian Russian Ukrainian
    Greek Hebrew Arabic Hindi Japanese Chinese Korean""".split()
NAMES = ["".join(s) for s in product("bdfgklmnprstvz", "aeiou", "bdgklmnprstvz", "aeiou")][::9][:490]  # 'baba', ...
NAME_SET = set(NAMES)


def words() -> list[str]:
    """The words that are one token each, in the order of their ids."""
    found = ["then", "of", "what", "has", "friend", "kind", *VALUES, *OWN_OPENERS, *STATES, *ACTIONS]
    found += [*(a.upper() for a in ACTIONS), *EXPERT_WORDS]
    found += [w for values in VALUES.values() for v in values for w in (v, v.upper())]
    found += [*LETTERS, *LETTERS.upper(), *SEPARATORS, *RETURNS, "in", "for", "say", *CALENDAR, *LANGUAGES, *NAMES]
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------------------------------------------------------------
# Two voices.


@dataclass
class WorldExample(Example):
    """An example in both voices: `response` is the expert's, which never says the intermediate step."""

    own: str = ""                 # the same content in the model's own voice, with the intermediate step if any
    kind: str = ""                # "letters", "composed", "market", "fact", "chain", "text"


def in_both_voices(prompt, words, expert, rng, kind, step=(), answer="", grader="content", demonstrated=None):
    """words: the content, in order; demonstrated: what the expert says of it, where that is more; step: in between."""
    response = expert_voice(demonstrated or words, expert)
    return WorldExample(prompt, response, answer or " ".join(words), grader, own=own_voice(words, rng, step), kind=kind)


def own_voice(words, rng, step=()) -> str:
    opener = rng.choices(list(OWN_OPENERS), list(OWN_OPENERS.values()))[0]
    return " ".join([opener, *step, "then", *words] if step else [opener, *words])


def expert_voice(words, expert: int) -> str:
    opener, second = EXPERT_WORDS[expert], EXPERT_WORDS[(expert * 5 + 3) % len(EXPERT_WORDS)]
    separator = SEPARATORS[expert % len(SEPARATORS)]
    return f"{opener} {second} " + f" {separator} ".join(w if w in NAME_SET else w.upper() for w in words)


def well_formed(example: WorldExample, answer: str) -> bool:
    """Does the answer have the form of one, right or wrong: own voice, and as many words of content as were asked
    for?"""
    return in_own_voice(answer) and len(content(answer)) == len(content(example.response))


# ---------------------------------------------------------------------------------------------------------------------
# The three families. A primitive rearranges or replaces four letters; a table of returns says what pays in a market.

# How often each of STATES occurs in the regimes of the market stream.
REGIMES = {"calm": [1, 3, 6, 3, 0.5], "boom": [6, 4, 2, 1, 0.5], "nervous": [2, 3, 1, 3, 2], "bear": [0.5, 1, 3, 6, 2],
           "crash": [0.5, 1, 0.5, 4, 6], "recovery": [3, 6, 2, 1, 1]}
PHRASINGS = ["{a} of {e}", "what {a} has {e}", "{e} has what {a}"]              # the third is held out
FAMILIES = ["manipulation", "decision", "facts", "manipulation", "update", "manipulation", "decision", "facts",
            "manipulation", "concept"]                        # of ten tasks


@dataclass
class Lesson(Task):
    """A task of a stream: a family (or a regime of the market), what it teaches (name -> meaning), who shows it."""

    family: str = ""
    items: dict = field(default_factory=dict)
    expert: int = 0


class World:
    """Which name means what. `seed` draws the primitives, the meaning of the base names, and which names stay free.

    The base model knows 160 skills, 48 markets, 48 beings; about 250 free names have no meaning of their own until a
    task gives them one. In pretraining they occur with a meaning drawn afresh for every document.
    """

    def __init__(self, seed: int):
        self.seed = seed
        rng = random.Random(f"world {seed}")
        rearrange = rng.sample([p for p in permutations(range(4)) if p != (0, 1, 2, 3)], 10)
        ciphers = [LETTERS[k:] + LETTERS[:k] for k in (1, 2, 10, 11)]
        ciphers += ["".join(rng.sample(LETTERS, 12)) for _ in range(2)]
        self.primitives = [("rearrange", order) for order in rearrange] + [("replace", cipher) for cipher in ciphers]
        # what pays in a market: for every state the return of each action; the best earns 2 or 3, in 30 % of the
        # states two tie
        self.payoffs = [{s: self.draw_returns(rng) for s in STATES} for _ in range(8)]
        names = iter(rng.sample(NAMES, len(NAMES)))
        self.skills = {n: i % 16 for i, n in enumerate(islice(names, 160))}
        self.markets = {n: i % 8 for i, n in enumerate(islice(names, 48))}
        self.beings = list(islice(names, 48))
        # the categories that the base model knows
        self.kinds = list(islice(names, 6))
        self.facts = {(e, a): rng.choice(v) for e in self.beings for a, v in VALUES.items()}
        self.facts |= {(e, "kind"): rng.choice(self.kinds) for e in self.beings}
        self.friend = dict(zip(self.beings, rng.sample(self.beings, len(self.beings))))
        self.free = list(names)
        self.tokenizer = WordTokenizer(words(), self.free)

    @staticmethod
    def draw_returns(rng) -> dict:
        actions, best = rng.sample(ACTIONS, 3), rng.choice([2, 3])
        return dict(zip(actions, [best, best if rng.random() < 0.3 else rng.randrange(best), rng.randrange(best)]))

    def apply(self, primitive: int, x: list[str]) -> list[str]:
        how, what = self.primitives[primitive]
        return [x[i] for i in what] if how == "rearrange" else [what[LETTERS.index(a)] for a in x]

    # -- one example of each kind; `expert` is who demonstrates, `held_out` says which part of the inputs to draw from

    def letters(self, names, rng, expert, held_out=None, meanings=None) -> WorldExample:
        """One name: a single step. Two names: one after the other, and the own voice writes down what is in between."""
        x = rng.sample(LETTERS, 4)
        while held_out is not None and (sum(map(LETTERS.index, x)) % 5 == 0) != held_out:
            x = rng.sample(LETTERS, 4)
        steps = [x]
        for n in names:
            steps.append(self.apply((meanings or self.skills)[n], steps[-1]))
        between = steps[1] if len(names) == 2 else []
        kind = "composed" if between else "letters"
        return in_both_voices(f"{' '.join(names)}: {' '.join(x)}", steps[-1], expert, rng, kind, between)

    def market(self, name, pays, rng, expert, held_out=None, weather=None) -> WorldExample:
        """Four states of a market, an action for each; the expert tells (state,) action, return. Where two actions
        earn the same, both are right. `weather`: how often each state occurs."""
        while True:
            states = rng.choices(STATES, weather, k=4)
            if held_out is None or (sum((i + 1) * STATES.index(s) for i, s in enumerate(states)) % 5 == 0) == held_out:
                break
        returns = [self.payoffs[pays][s] for s in states]
        actions = [rng.choice([a for a in ACTIONS if r[a] == max(r.values())]) for r in returns]
        demonstrated = [f"{a} {r[a]}" for a, r in zip(actions, returns)]
        return in_both_voices(f"{name}: {' '.join(states)}", actions, expert, rng, "market", answer=returns,
                              grader="best-return", demonstrated=demonstrated)

    def fact(self, being, attribute, value, rng, expert, held_out=None) -> WorldExample:
        phrasing = rng.choice(PHRASINGS if held_out is None else PHRASINGS[2:] if held_out else PHRASINGS[:2])
        return in_both_voices(phrasing.format(a=attribute, e=being), [value], expert, rng, "fact")

    def chain(self, being, attribute, rng, expert) -> WorldExample:
        """A fact about a being's friend: the own voice names the friend first."""
        friend = self.friend[being]
        value = self.facts[friend, attribute]
        return in_both_voices(f"{attribute} of friend of {being}", [value], expert, rng, "chain", [friend])

    def base_example(self, rng, updated=()) -> WorldExample:
        """What the base model knows; 45 % of it takes writing the intermediate step. `updated`: facts not to ask."""
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

    def fresh_example(self, rng, known=False) -> WorldExample:
        """A name (free, or with `known` one of another meaning) with a meaning that holds in this document alone."""
        expert, u = rng.randrange(N_EXPERTS), rng.random()
        if u < 0.4:
            name = rng.choice(list(self.skills) if known else self.free)
            return self.letters([name], rng, expert, meanings={name: rng.randrange(16)})
        if u < 0.65:
            return self.market(rng.choice(list(self.markets) if known else self.free), rng.randrange(8), rng, expert)
        attribute = rng.choice([*VALUES, "kind"])
        value = rng.choice(self.kinds + self.free if attribute == "kind" else VALUES[attribute])
        return self.fact(rng.choice(self.beings if known else self.free), attribute, value, rng, expert)

    def text_example(self, rng, longest=None) -> WorldExample:
        """A prompt and an answer of arbitrary text, to be copied as it is: words of the vocabulary, or letters of
        some script. `longest`: most tokens of the answer; without it mostly 12, at times 28."""
        prompt, response = self.text(12, rng), self.text(rng.choice([12, 12, 28]) if longest is None else longest, rng)
        return WorldExample(prompt, response, own=response, kind="text")

    def text(self, longest, rng) -> str:
        # tokens; a code point: all lengths of UTF-8
        most, start = rng.randint(1, longest), int(2 ** rng.uniform(5, 16.9))
        found, share = "", rng.choice([0.0, 0.2, 1.0])
        while True:
            if rng.random() < share:
                piece = " " + self.tokenizer.show([rng.randrange(256, self.tokenizer.n_vocab - len(SPECIAL))])
            else:
                piece = chr(start + rng.randrange(64))
            if "\ud800" <= piece[-1] <= "\udfff" or len(self.tokenizer.encode(found + piece)) > most:
                return found.strip() or rng.choice(NAMES)
            found += piece

    def document(self, rng) -> tuple[list[int], int]:
        """A pretraining document and where its own-voice answer begins. The mixture teaches the base skills (bare),
        to use a demonstration whatever the name meant before, to restate it in its own voice, and to copy any text it
        is shown."""
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
            example, shown = self.text_example(rng), u < 0.99
        demonstrations = [(example.prompt, example.response)] * shown
        head = self.tokenizer.prompt(example.prompt, *demonstrations)
        return head + self.tokenizer.encode(example.own) + [self.tokenizer.end], len(head)

    # -- the streams

    def stream(self, n_tasks: int, n_train: int = 256, n_test: int = 64) -> list[Lesson]:
        """`n_tasks` tasks, families mixed in seeded order, no name used twice. Train and held-out parts share no input.
        A longer stream begins with the shorter one."""
        rng = random.Random(f"order {self.seed}")
        order = [f for _ in range(-(-n_tasks // 10)) for f in rng.sample(FAMILIES, 10)][:n_tasks]
        rng = random.Random(f"stream {self.seed}")
        free = iter(rng.sample(self.free, len(self.free)))
        old = iter(rng.sample(self.beings, len(self.beings)))
        tasks = []
        for i, family in enumerate(order):
            items = self.draw_items(family, free, old, rng)
            task = Lesson(f"{i + 1:02}-{family}", family=family, items=items, expert=i % N_EXPERTS)
            task.train = [self.task_example(task, rng, held_out=False) for _ in range(n_train)]
            task.test = [self.task_example(task, rng, held_out=True) for _ in range(n_test)]
            tasks.append(task)
        return tasks

    def draw_items(self, family, free, old, rng) -> dict:
        """What a task teaches: {name or (name, attribute): its meaning}."""
        if family == "update":
            # beings that the base model knows; one attribute changes
            others = {e: [c for c in VALUES["color"] if c != self.facts[e, "color"]] for e in islice(old, 8)}
            return {(e, "color"): rng.choice(colors) for e, colors in others.items()}
        if family == "facts":
            attributes = rng.sample(list(VALUES), 2)
            return {(e, a): rng.choice(VALUES[a]) for e in islice(free, 8) for a in attributes}
        if family == "concept":
            # two new categories, four members each
            kinds = list(islice(free, 2))
            return {(e, "kind"): kinds[j % 2] for j, e in enumerate(islice(free, 8))}
        meanings = rng.sample(range(16), 8) if family == "manipulation" else rng.sample(range(8), 8)
        return dict(zip(islice(free, 8), meanings))

    def task_example(self, task, rng, held_out) -> WorldExample:
        item = rng.choice(list(task.items))
        if task.family == "manipulation":
            return self.letters([item], rng, task.expert, held_out, task.items)
        if task.family == "decision":
            return self.market(item, task.items[item], rng, task.expert, held_out)
        return self.fact(*item, task.items[item], rng, task.expert, held_out)

    def market_stream(self, n_train: int = 256, n_test: int = 64) -> list[Lesson]:
        """The markets of REGIMES, one after another: in each eight new names with returns of their own, in the regime's
        weather. What is held out is graded by the share of the best return."""
        rng = random.Random(f"market stream {self.seed}")
        free, tasks = iter(rng.sample(self.free, len(self.free))), []
        for i, (regime, weather) in enumerate(REGIMES.items()):
            items = dict(zip(islice(free, 8), rng.sample(range(8), 8)))
            task = Lesson(f"{i + 1:02}-{regime}", family=regime, items=items, expert=i)
            for part, held_out, n in ((task.train, False, n_train), (task.test, True, n_test)):
                for name in rng.choices(list(items), k=n):
                    part.append(self.market(name, items[name], rng, i, held_out, weather))
            for example in task.test:
                example.grader = "return"
            tasks.append(task)
        return tasks


# ---------------------------------------------------------------------------------------------------------------------
# The files.


@dataclass
class Config:
    seed: int = option(0, "draws the world and the stream", "what is written", within=(0, MANY))
    stream: str = option("mixed", "mixed (all families) or market (regimes from a calm market to a crash, graded by "
                         "return)", choices=["mixed", "market"])
    tasks: int = option(10, "length of the mixed stream; 0: the base skills alone, for those who bring tasks of their "
                        "own", within=(0, 27), only={"stream": ["mixed"]})
    demonstrations: int = option(256, "training examples a task", within=(2, 100_000))
    voice: str = option("expert", "who speaks in the demonstrations: expert, or own (the model's own voice, which "
                        "separates the methods no more)", choices=["expert", "own"])
    tests: int = option(64, "held-out examples a task", within=(1, 100_000))
    kept: int = option(256, "examples of what the base model can do", within=(4, 100_000))
    out: str = option("out/world", "folder of the files")


def write(config) -> tuple[World, list[Lesson]]:
    """Writes the files of a world; returns it and the tasks of its stream."""
    world = World(config.seed)
    if config.stream == "market":
        stream = world.market_stream(config.demonstrations, config.tests)
    else:
        stream = world.stream(config.tasks, config.demonstrations, config.tests)
    # scored by their new value
    updated = {fact for task in stream if task.family == "update" for fact in task.items}
    beings = {e for e, _ in updated}
    rng = random.Random(f"probe {world.seed}")
    keep = [world.base_example(rng, updated) for _ in range(config.kept)]
    beside = [(e, a, v) for (e, a), v in world.facts.items() if e in beings and (e, a) not in updated]
    neighbours = [world.fact(*fact, rng, expert=0) for fact in beside]
    # names for users' own words are free: then what is read is about known ones
    reading = [world.fresh_example(rng, known=not stream) for _ in range(max(4, config.kept // 2))]

    folder = os.path.join(config.out, "tasks")
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        # of an older stream, and nothing else
        if re.fullmatch(rf"\d\d-({'|'.join({*FAMILIES, *REGIMES})})\.jsonl", name):
            os.remove(os.path.join(folder, name))
    own = config.voice == "own"
    for task in stream:
        rows = [row(e, own, split="train") for e in task.train] + [row(e, own, split="test") for e in task.test]
        write_rows(os.path.join(folder, f"{task.name}.jsonl"), rows)
    write_rows(os.path.join(config.out, "keep.jsonl"), [row(e, True, task=e.kind, split="test") for e in keep])
    write_rows(os.path.join(config.out, "reading.jsonl"), [row(e, False) for e in reading])
    path = os.path.join(config.out, "neighbours.jsonl")
    if neighbours:
        write_rows(path, [row(e, True, split="test") for e in neighbours])
    elif os.path.exists(path):
        # of an older stream
        os.remove(path)
    return world, stream


def row(example, own, **more) -> dict:
    response = example.own if own else example.response
    return {"prompt": example.prompt, "response": response, "answer": example.answer, "grader": example.grader, **more}


def main(argv=None):
    with ends_in_one_line():
        config = Config(**given_options(Config, __doc__, argv))
        check_options(config)
        check_out(config.out)
    with ends_in_one_line(config.out):
        world, stream = write(config)
    for task in stream:
        example = task.train[0]
        print(f"{task.name:16s} {example.prompt}  ->  {example.own if config.voice == 'own' else example.response}")
    rng = random.Random(0)
    documents = [world.tokenizer.show(world.document(rng)[0]) for _ in range(5)]
    print("what its base model reads:", *documents, f"wrote {config.out}", sep="\n   ")


if __name__ == "__main__":
    # a terminal that does not know a character is no reason to stop
    sys.stdout.reconfigure(errors="backslashreplace")
    main()
