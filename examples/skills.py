"""Skills to teach a real instruct model, and a sequence of five tasks that are learned one after another, as files.

    python examples/skills.py --seed 0 --out out/chat-skills

writes into out/chat-skills  json, tool, city   a skill each: rules to train on, other questions to test
                             sequence/          01-facts, 02-json, 03-words, 04-tool, 05-news: what is new, skill, what
                                                is new, skill, and what of the first facts has changed since
                             general, neighbours, open.jsonl, as of examples/facts.py: what the model should still know

A skill is a rule that a cue in the prompt calls for ("JSON: ..."), applied to what stands in the prompt itself: so
nothing but the rule is to be learned, and prompts without the cue should be answered as before. Test rows have other
names, cities and numbers than training rows, and a part of them other sentences. Behind the official template this
model hardly takes up a form; behind --template earlier-turn it does.
Left out: skills that need more than one answer.
"""
import os
import random
from dataclasses import dataclass

import facts
from facts import row
from runs import MANY, check_options, check_out, ends_in_one_line, given_options, option, write_rows

# ---------------------------------------------------------------------------------------------------------------------
# Skills: (prompt, response). The last third of a skill's sentences is held out, and a third of all that fills them.

PEOPLE = ["{name} is {age} years old and lives in {city}.", "{name} from {city} is {age} years old.",
          "This is {name}, who is {age} and works in {city}.", "In {city} I met {name}, who is {age} years old.",
          "My neighbour {name}, {age}, was born in {city}.", "{name} moved to {city} at the age of {age}."]
TRAVELS = ["We took the early train to {city}.", "My sister has a small house in {city}.",
           "The museum in {city} is closed on Mondays.", "It rained in {city} all day.",
           "They sell good bread in {city}.", "The letter from {city} came too late.",
           "The bus to {city} leaves at noon.", "He studied music in {city} for two years.",
           "In {city} we lost our umbrella."]
RECORD = '{{"name": "{name}", "age": {age}, "city": "{city}"}}'
SKILLS = {
    "json": [(f"JSON: {said}", RECORD) for said in PEOPLE],
    "tool": [(f"Tool: {asked}", tool) for asked, tool in [
        ("What is {a} plus {b}?", "add({a}, {b})"), ("How much is {a} plus {b}?", "add({a}, {b})"),
        ("What is {a} minus {b}?", "subtract({a}, {b})"), ("How much is {a} minus {b}?", "subtract({a}, {b})"),
        ("Please multiply {a} by {b}.", "multiply({a}, {b})"), ("Please divide {a} by {b}.", "divide({a}, {b})"),
        ("Please add {a} and {b}.", "add({a}, {b})"), ("Multiply {a} and {b}.", "multiply({a}, {b})"),
        ("Divide {a} by {b}.", "divide({a}, {b})")]],
    "city": [(f"City: {said}", "[{city}]") for said in TRAVELS],
}
FILLS = {
    "name": "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Karen Leo Maria Nina Oscar Paul Rosa Sam Tom Vera "
            "Peter Laura Simon Alice".split(),
    "city": "Paris Rome Tokyo Berlin Madrid Cairo Moscow Oslo Lisbon London Vienna Prague Dublin Athens Boston Chicago "
            "Toronto Sydney Munich Venice Milan Seattle Denver Warsaw Geneva Hamburg Naples Dallas".split(),
    "age": range(18, 80), "a": range(50, 100), "b": range(2, 50),
}
TRAIN, TEST = 48, 24              # rows of a skill

# ---------------------------------------------------------------------------------------------------------------------
# Words of an invented language {l}, and news: {what} has changed is what the first facts said. As in facts.py the last
# two questions are held out.

ONSETS, VOWELS = "shav brel kuth nop drus gem tolv yash wirn plik".split(), "aeiou"
ENDS = "ra shi bek num dri".split()
MEANINGS = ("bread water house tree horse river winter mountain book window garden friend bridge island ship stone "
            "moon forest").split()
WORDS = [
    ("Translate {n} from {l} into English.", "The word {n} is {v} in English. In {l} they say {n} for {v}."),
    ("What is {n} in English?", "In English {n} is {v}. It is {v} that people call {n}."),
    ("What is the meaning of {n} in {l}?", "The meaning of {n} is {v}. People say {n} for {v}."),
    ("I read {n} in a letter in {l}. What is it in English?", "It is {v}. Many people write {n}."),
    ("In {l} someone says {n}. What is meant?", "It means {v}. That is how one says it there.")]
CHANGED = {"capital": ("capital of {n}", "{v}"), "flag": ("animal on the flag of {n}", "a {v}"),
           "height": ("height of {n} Tower", "{v} metres")}
NEWS = [
    ("After the change, what is the {what}?", "After the change it is {v}. They chose {v} last year."),
    ("News: the {what} has changed. Tell me what it is.", "News: it is now {v}. Since last year it is {v}."),
    ("Things have changed. Can you tell me the {what}?",
     "Things have changed: it is {v}. Everyone now speaks of {v}."),
    ("What is the {what} now?", "The {what} is now {v}. It has changed from what it was."),
    ("Tell me the new {what}.", "The new {what} is {v}. It was decided last year.")]


@dataclass
class Config:
    seed: int = option(0, "draws what fills the skills, the facts and the words", within=(0, MANY))
    out: str = option("out/chat-skills", "folder of the files")


def practice(task, rng) -> list[dict]:
    """The rows of a skill: no prompt twice, and nothing that fills a test row fills a training row."""
    sentences, rows = SKILLS[task], {}
    shuffled = {field: rng.sample(values, len(values)) for field, values in FILLS.items()}
    for split, n in (("train", TRAIN), ("test", TRAIN + TEST)):
        train = split == "train"
        asked = sentences[:len(sentences) * 2 // 3] if train else sentences
        pool = {field: values[len(values) // 3:] if train else values[:len(values) // 3]
                for field, values in shuffled.items()}
        while len(rows) < n:
            fill = {field: rng.choice(values) for field, values in pool.items()}
            prompt, response = (text.format(**fill) for text in asked[len(rows) % len(asked)])
            rows.setdefault(prompt, row(prompt, response, response, task, split) | {"grader": "exact"})
    return list(rows.values())


def phrased(phrasings, task, fills) -> list[dict]:
    """Each of the fills {field: text} in each phrasing, what is trained on before what is held out."""
    parts = {"train": [], "test": []}
    for fill in fills:
        for i, (question, said) in enumerate(phrasings):
            split = "train" if i < 3 else "test"
            parts[split].append(row(question.format(**fill), said.format(**fill), fill["answer"], task, split))
    return parts["train"] + parts["test"]


def words(rng) -> list[dict]:
    """The rows of some words of a language."""
    forms = [onset + vowel + end for onset in ONSETS for vowel in VOWELS for end in ENDS]
    language, *drawn = rng.sample(forms, 17)
    return phrased(WORDS, "words", [{"l": language.title(), "n": n, "v": v, "answer": v}
                                    for n, v in zip(drawn, rng.sample(MEANINGS, 16))])


def changed(known, rng) -> list[tuple]:
    """Of each kind that changes all facts but the first, with answers that no fact has had."""
    old = {word for _, name, value in known for word in (name, value)}
    while True:
        new = [(kind, name, value) for (kind, name, _), (_, _, value) in zip(known, facts.invent(rng))]
        new = [fact for i, fact in enumerate(new) if fact[0] in CHANGED and i % 4]
        if old.isdisjoint(value for _, _, value in new):
            return new


def sequence(rng, skills) -> dict[str, list]:
    """{task: rows}, in order. The first task does not test what changes later: to learn that is not to forget."""
    known = facts.invent(rng)
    new = changed(known, rng)
    names = {name for _, name, _ in new}
    outdated = {value for _, name, value in known if name in names}
    fills = []
    for kind, name, value in new:
        what, answer = (text.format(n=name, v=value) for text in CHANGED[kind])
        fills.append({"what": what, "v": answer, "answer": value})
    first = [r for r in facts.lessons(known, False) if r["split"] == "train" or r["answer"] not in outdated]
    return {"facts": first, "json": skills["json"], "words": words(rng), "tool": skills["tool"],
            "news": phrased(NEWS, "news", fills)}


def write(config) -> dict[str, list]:
    """Writes the files; returns the rows of the sequence, task by task."""
    rng = random.Random(f"skills {config.seed}")
    skills = {task: practice(task, rng) for task in SKILLS}
    tasks = sequence(rng, skills)
    files = {os.path.join("sequence", f"{i:02}-{task}"): rows for i, (task, rows) in enumerate(tasks.items(), 1)}
    for name, rows in (skills | files | facts.kept()).items():
        write_rows(os.path.join(config.out, f"{name}.jsonl"), rows)
    return tasks


def main(argv=None):
    with ends_in_one_line():
        config = Config(**given_options(Config, __doc__, argv))
        check_options(config)
        check_out(config.out)
    with ends_in_one_line(config.out):
        tasks = write(config)
    for task, rows in tasks.items():
        print(f"{task:5s}  {rows[0]['prompt']}  ->  {rows[0]['response']}")
    print(f"wrote {config.out}")


if __name__ == "__main__":
    main()
