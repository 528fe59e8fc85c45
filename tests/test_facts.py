"""examples/facts.py: what it writes, and that its questions and answers can be used as they are."""
import os
import re
import sys
from collections import Counter

import pytest

from conftest import ROOT
from data import GRADERS, read_examples

sys.path.insert(1, os.path.join(ROOT, "examples"))
import facts

FILES = ["teach", "general", "neighbours", "open"]


def files(folder, **options):
    """{name: bytes} of the files that a seed writes."""
    facts.write(facts.Config(**{"seed": 0, "out": str(folder)} | options))
    return {name: (folder / f"{name}.jsonl").read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """{file: its rows}, for seed 0, as train.py reads them."""
    folder = tmp_path_factory.mktemp("facts")
    files(folder)
    return {name: read_rows(folder, name) for name in FILES}


def read_rows(folder, name):
    return read_examples([str(folder / f"{name}.jsonl")], facts_tokenizer(), 10**6)


def facts_tokenizer():
    from world import World
    return World(0).tokenizer


def taught(folder, **options):
    facts.write(facts.Config(out=str(folder), **options))
    return read_rows(folder, "teach")


def test_a_seed_gives_the_same_files_and_another_one_other_facts(tmp_path):
    first, again, other = files(tmp_path / "a"), files(tmp_path / "b"), files(tmp_path / "c", seed=1)
    assert first == again and sorted(os.listdir(tmp_path / "a")) == sorted(f"{name}.jsonl" for name in FILES)
    assert [name for name in FILES if first[name] != other[name]] == ["teach"]
    one, two = (read_rows(tmp_path / name, "teach") for name in "ac")
    assert not {e.prompt for e in one} & {e.prompt for e in two}


def test_counts(written):
    assert Counter((e.task, e.split) for e in written["teach"]) == {("facts", "train"): 60, ("facts", "test"): 40}
    assert len(written["general"]) >= 300 and len(written["neighbours"]) >= 40 and len(written["open"]) == 30
    assert all(e.split == "test" and e.task == name for name in FILES[1:] for e in written[name])


def test_no_question_is_asked_twice_and_every_response_contains_its_answer(written):
    examples = [e for name in FILES for e in written[name]]
    assert len({" ".join(e.prompt.casefold().split()) for e in examples}) == len(examples)
    assert all(e.grader == "contains" and GRADERS[e.grader](e.response, e.answer) for e in examples)
    # what a model says when it repeats the question is not right
    assert [e.prompt for e in examples if GRADERS[e.grader](e.prompt, e.answer)] == []


@pytest.mark.parametrize("seed", range(5))
def test_facts_are_invented_and_differ(seed):
    found = facts.invent(facts.random.Random(seed))
    assert Counter(kind for kind, _, _ in found) == dict.fromkeys(facts.KINDS, 4)
    names = [name for _, name, _ in found]
    names += [word for kind, _, value in found if kind in ("founder", "capital") for word in value.split()]
    assert len(set(names)) == len(names) == 32 and len({value for _, _, value in found}) == 20
    # consonants and vowels take turns
    assert all(name.isalpha() and name.istitle() and not re.search("[aeiou]{2}", name.lower()) for name in names)
    known = " ".join(table for _, _, table in facts.GENERAL + facts.NEIGHBOURS)
    assert not set(names) & set(re.findall(r"\w+", known))


def test_what_is_held_out_is_the_same_facts_in_other_words(written):
    parts = {split: [e for e in written["teach"] if e.split == split] for split in ("train", "test")}
    answers = {split: Counter(e.answer for e in examples) for split, examples in parts.items()}
    assert set(answers["train"].values()) == {3} and set(answers["test"].values()) == {2}
    assert answers["train"].keys() == answers["test"].keys()
    for pairs in facts.KINDS.values():
        assert len({q for q, _ in pairs}) == len({said for _, said in pairs}) == 5
        # two sentences each
        assert all(said.count(". ") == 1 and said.endswith(".") for _, said in pairs)


def test_terse_demonstrations_are_the_bare_answers(tmp_path):
    full, terse = taught(tmp_path / "full", seed=3), taught(tmp_path / "terse", seed=3, terse=True)
    assert [(e.prompt, e.answer, e.split) for e in full] == [(e.prompt, e.answer, e.split) for e in terse]
    assert all(e.response.removesuffix(" metres") == e.answer for e in terse)
    assert all(len(e.response.split()) > 8 for e in full if e.split == "train")


def test_command_line(tmp_path, capsys):
    facts.main(["--seed", "2", "--out", str(tmp_path / "x"), "--terse"])
    assert len(capsys.readouterr().out.splitlines()) == 21
    with pytest.raises(SystemExit) as end:
        facts.main(["--seed", "-1"])
    assert end.value.code == 2
