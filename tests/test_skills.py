"""examples/skills.py: what it writes, that a rule is tested on other questions than it is trained on, and that nothing
in the sequence contradicts but what is news."""
import os
import random
import re
import sys
from collections import Counter

import pytest

from conftest import ROOT
from data import grade, into_tasks, read_examples

sys.path.insert(1, os.path.join(ROOT, "examples"))
import facts
import skills

OTHERS = ["general", "neighbours", "open"]
SEQUENCE = ["01-facts", "02-json", "03-words", "04-tool", "05-news"]
FILES = [*skills.SKILLS, *OTHERS, *(os.path.join("sequence", name) for name in SEQUENCE)]


def files(folder, seed=0):
    """{name: bytes} of the files that a seed writes."""
    skills.write(skills.Config(seed, str(folder)))
    return {name: (folder / f"{name}.jsonl").read_bytes() for name in FILES}


def read_rows(folder, *names):
    from world import World
    return read_examples([str(folder / f"{name}.jsonl") for name in names], World(0).tokenizer, 10**6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    files(folder := tmp_path_factory.mktemp("skills"))
    return folder


@pytest.fixture(scope="module")
def tasks(folder):
    """The tasks of the sequence, as train.py reads them from files in the order of their names."""
    names = sorted(os.listdir(folder / "sequence"))
    assert names == [f"{name}.jsonl" for name in SEQUENCE]
    return into_tasks(read_rows(folder / "sequence", *(name.removesuffix(".jsonl") for name in names)), 0.2, 0)


def parts(examples):
    return ([e for e in examples if e.split == split] for split in ("train", "test"))


def test_a_seed_gives_the_same_files_and_another_one_other_lessons(tmp_path):
    first, again, other = files(tmp_path / "a"), files(tmp_path / "b"), files(tmp_path / "c", seed=1)
    assert first == again
    assert [name for name in FILES if first[name] == other[name]] == OTHERS
    assert first["json"] == first["sequence/02-json"] and first["tool"] == first["sequence/04-tool"]


def test_the_rest_is_as_facts_writes_it(folder, tmp_path):
    facts.write(facts.Config(out=str(tmp_path)))
    assert all((folder / f"{n}.jsonl").read_bytes() == (tmp_path / f"{n}.jsonl").read_bytes() for n in OTHERS)


def test_the_sequence_is_in_order(tasks):
    counts = {task.name: (len(task.train), len(task.test)) for task in tasks}
    assert list(counts.items()) == [("facts", (60, 22)), ("json", (48, 24)), ("words", (48, 32)), ("tool", (48, 24)),
                                    ("news", (27, 18))]


@pytest.mark.parametrize("task", skills.SKILLS)
def test_a_skill_is_tested_on_other_questions_than_it_is_trained_on(folder, task):
    train, test = parts(read_rows(folder, task))
    assert (len(train), len(test)) == (skills.TRAIN, skills.TEST)
    assert len({e.prompt for e in train + test}) == skills.TRAIN + skills.TEST
    # one cue; and nothing that fills a sentence in one part does so in the other
    assert len({e.prompt.split(": ")[0] for e in train + test}) == 1
    fills = [{w for e in part for w in re.findall(r"[A-Z]\w+|\d+", e.response)} for part in (train, test)]
    if task == "tool":
        # 2 to 49 and 50 to 99 are apart
        assert all(len(numbers) > 10 and max(map(int, numbers)) > 49 for numbers in fills)
    assert fills[0].isdisjoint(fills[1])


@pytest.mark.parametrize("task", skills.SKILLS)
def test_a_form_is_graded_and_not_its_content_alone(folder, task):
    for e in read_rows(folder, task):
        assert e.grader == "exact" and grade(e, e.response) == 1
        content = re.findall(r"[A-Z]\w+|\d+", e.response)
        assert all(word in e.prompt for word in content)
        for said in (" ".join(content), content[-1], e.prompt, e.prompt.split(": ")[1], f"It is {e.response}"):
            assert grade(e, said) == 0, said


def test_a_third_of_the_sentences_is_never_trained_on(folder):
    for task, sentences in skills.SKILLS.items():
        shapes = [re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(prompt))) for prompt, _ in sentences]
        train, test = (Counter(i for e in part for i, shape in enumerate(shapes) if shape.fullmatch(e.prompt))
                       for part in parts(read_rows(folder, task)))
        assert sorted(train) == list(range(len(shapes) * 2 // 3)) and sorted(test) == list(range(len(shapes)))


def test_what_is_told_in_sentences_is_graded_by_its_answer(tasks):
    for task in (tasks[0], tasks[2], tasks[4]):
        for e in task.train + task.test:
            assert e.grader == "contains" and grade(e, e.response) == 1 and grade(e, e.prompt) == 0
        # other words, the same facts; but of the first task those that change are not asked
        answers = [{e.answer for e in part} for part in (task.train, task.test)]
        assert answers[0] > answers[1] if task.name == "facts" else answers[0] == answers[1]


@pytest.mark.parametrize("seed", range(5))
def test_nothing_contradicts_but_what_is_news(seed):
    rng = random.Random(seed)
    known = facts.invent(rng)
    new = skills.changed(known, rng)
    before = {(kind, name): value for kind, name, value in known}
    assert Counter(kind for kind, *_ in new) == {"capital": 3, "flag": 3, "height": 3}
    assert {(kind, name) for kind, name, _ in new} < before.keys()
    assert {value for *_, value in new}.isdisjoint([*before.values(), *(name for _, name in before)])
    assert len({value for *_, value in new}) == 9


def test_the_first_task_does_not_ask_what_changes(tasks):
    first, news = tasks[0], tasks[4]
    names = {name for e in first.train for name in re.findall(r"[A-Z]\w{4,}", e.prompt)} - {"Tower"}
    changing = [name for name in names if any(name in e.prompt for e in news.train)]
    assert len(changing) == 9
    assert not any(name in e.prompt for e in first.test for name in changing)
    others = [e.prompt for task in tasks[1:4] for e in task.train + task.test]
    assert not any(name in prompt for name in changing for prompt in others)


def test_the_words_of_the_language_mean_one_thing_each(tasks):
    form = re.compile(rf"\b(?:{'|'.join(skills.ONSETS)})[{''.join(skills.VOWELS)}](?:{'|'.join(skills.ENDS)})\b")
    found = {(*form.findall(e.prompt), e.answer) for e in tasks[2].train + tasks[2].test}
    assert len(found) == len({word for word, _ in found}) == len({meaning for _, meaning in found}) == 16


def test_command_line(tmp_path, capsys):
    skills.main(["--seed", "2", "--out", str(tmp_path / "x")])
    assert len(capsys.readouterr().out.splitlines()) == 6
    with pytest.raises(SystemExit) as end:
        skills.main(["--seed", "-1"])
    assert end.value.code == 2
