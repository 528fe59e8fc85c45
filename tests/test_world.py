"""The small world: its voices, streams and documents, and the files that are made of it."""
import json
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

import world as world_module
from conftest import ROOT
from data import Example, earned, grade, in_own_voice, into_tasks, read_examples
from pretrain import pack
from world import NAME_SET, REGIMES, Config, World, well_formed
from world import write as write_files

CONTEXT = 128                     # half of the context of the small GPT: what train.py reads with


# ---------------------------------------------------------------------------------------------------------------------
# Examples, streams, documents.


def names_of(task) -> set[str]:
    """The names that a task gives a meaning, or another one."""
    keys = [(key,) if isinstance(key, str) else key for key in task.items]
    return {word for key, meaning in zip(keys, task.items.values()) for word in (*key, meaning)} & NAME_SET


def test_market_stream_visits_the_regimes_in_their_weather(world):
    stream = world.market_stream(64, 16)
    assert [t.family for t in stream] == list(REGIMES)
    names = [name for t in stream for name in t.items]
    assert len(names) == len(set(names)) == 48 and not set(names) & set(world.markets)
    share = {t.family: np.mean([e.prompt.split(": ")[1].split().count("crash") / 4 for e in t.train]) for t in stream}
    assert share["crash"] > 0.3 > 0.1 > share["calm"]
    for task in stream:                                    # paths unseen under any name
        assert not {e.prompt.split(": ")[1] for e in task.train} & {e.prompt.split(": ")[1] for e in task.test}
        for e in task.train + task.test:
            assert earned(e.own, e.answer) == earned(e.response, e.answer) == 1
        assert {e.grader for e in task.train} == {"best-return"} and {e.grader for e in task.test} == {"return"}


def test_every_example_of_the_world_is_right_in_both_voices(world):
    rng = random.Random(0)
    kinds = set()
    examples = [world.base_example(rng) for _ in range(300)]
    examples += [world.fresh_example(rng, known) for known in (False, True) for _ in range(100)]
    for example in examples:
        kinds.add(example.kind)
        assert grade(example, example.own) and in_own_voice(example.own), example
        assert grade(example, example.response) and not in_own_voice(example.response), example
        assert well_formed(example, example.own) and not well_formed(example, example.response)
    assert kinds == {"letters", "composed", "market", "fact", "chain"}


def test_arbitrary_text_is_copied_as_it_is(world):
    rng = random.Random(0)
    for example in [world.text_example(rng, 12) for _ in range(300)]:
        assert grade(example, example.own) and example.own == example.response == example.answer
        assert 1 <= len(world.tokenizer.encode(example.response)) <= 12


def test_a_third_of_the_base_skills_need_the_written_step(world):
    rng = random.Random(0)
    assert sum(" then " in world.base_example(rng).own for _ in range(2000)) / 2000 > 1 / 3


def test_train_and_held_out_parts_share_no_prompt_and_no_name_is_used_twice(world):
    stream = world.stream(20)
    for task in stream:
        assert len(task.train) == 256 and len(task.test) == 64
        assert not {e.prompt for e in task.train} & {e.prompt for e in task.test}
    assert len(set().union(*map(names_of, stream))) == sum(len(names_of(task)) for task in stream) > 150
    taught = [{k if isinstance(k, str) else k[0]: 0 for k in task.items} for task in stream]
    names = [name for of_task in taught for name in of_task]
    assert len(names) == len(set(names))
    assert {task.family for task in stream} == {"manipulation", "decision", "facts", "update", "concept"}


def test_streams_are_seeded_and_longer_ones_begin_with_shorter_ones():
    a, b, c = World(3).stream(5, 16, 16), World(3).stream(12, 16, 16), World(4).stream(5, 16, 16)
    assert [t.train for t in a] == [t.train for t in b[:5]] and [t.train for t in a] != [t.train for t in c]


def test_base_examples_skip_updated_facts(world):
    updated = set(list(world.facts)[:100])
    rng = random.Random(0)
    examples = [world.base_example(rng, updated) for _ in range(3000)]
    asked = {tuple(e.prompt.split(" of ")) for e in examples if e.kind == "fact" and " of " in e.prompt}
    assert asked and not asked & {(a, e) for e, a in updated}


def test_pack_keeps_every_token_once_and_documents_apart(world):
    rng = random.Random(0)
    documents = [world.document(rng) for _ in range(64)]
    tokens, targets, weights, mask = pack(documents, world.tokenizer.end)
    assert (weights > 0).sum() == sum(len(ids) - 1 for ids, _ in documents)
    assert (weights == 1).sum() == sum(len(ids) - answer for ids, answer in documents)
    assert sorted(targets[weights == 1].tolist()) == sorted(i for ids, answer in documents for i in ids[answer:])
    assert sorted(tokens[weights > 0].tolist()) == sorted(i for ids, _ in documents for i in ids[:-1])
    row = mask[0, 0]                                       # a first token sees only itself
    starts = [t for t in range(128) if weights[0, t] > 0 and row[t].sum() == 1]
    assert len(starts) > 1 and all(not row[t:, :t].any() for t in starts)


def test_documents_are_made_fast(world):
    """A step of pretraining takes about 150 ms on two cores, of which its 128 documents must cost under a tenth: four
    times what 20,000 numbers take to be drawn and sorted, and at most eight times, however fast the processor is."""
    rng, documents, numbers = random.Random(0), [], []
    for _ in range(10):
        began = time.process_time()
        pack([world.document(rng) for _ in range(128)], world.tokenizer.end)
        documents.append(time.process_time() - began)
        began = time.process_time()
        sorted(rng.random() for _ in range(20_000))
        numbers.append(time.process_time() - began)
    assert min(documents) < 8 * min(numbers)


# ---------------------------------------------------------------------------------------------------------------------
# The files.


def rows(path) -> list[dict]:
    with open(path, encoding="utf-8") as f:
        return [json.loads(row) for row in f]


def task_files(folder):
    return [str(path) for path in sorted((folder / "tasks").iterdir())]


def read(world, *paths, **options):
    """As train.py reads them; what is read is all that is there, and every word of it is a token."""
    examples = read_examples([str(path) for path in paths], world.tokenizer, CONTEXT, **options)
    assert len(examples) == sum(len(rows(path)) for path in paths)
    assert world.tokenizer.new_words(examples) == []
    return examples


def plain(examples, own, task, split) -> list[Example]:
    """Examples of the world as those of a file."""
    return [Example(e.prompt, e.own if own else e.response, e.answer, e.grader, task, split) for e in examples]


@pytest.mark.parametrize("stream, voice, seed, tasks", [
    ("mixed", "expert", 0, 10), ("mixed", "own", 1, 10), ("market", "expert", 0, 10), ("market", "own", 1, 10),
    ("mixed", "expert", 2, 27)])
def test_what_is_written_is_read_back_as_it_was(tmp_path, stream, voice, seed, tasks):
    config = Config(seed=seed, stream=stream, voice=voice, tasks=tasks, demonstrations=64, tests=16, kept=64,
                    out=str(tmp_path))
    world, lessons = write_files(config)
    written = world.market_stream(64, 16) if stream == "market" else world.stream(tasks, 64, 16)
    assert lessons == written and len(lessons) == (6 if stream == "market" else tasks)

    found = into_tasks(read(world, *task_files(tmp_path)), 0.2, 0)
    assert [task.name for task in found] == [lesson.name for lesson in lessons]
    for task, lesson in zip(found, lessons):
        assert task.train == plain(lesson.train, voice == "own", lesson.name, "train")
        assert task.test == plain(lesson.test, voice == "own", lesson.name, "test")
        assert all(grade(e, e.response) == 1 for e in task.train + task.test)
        assert all(in_own_voice(e.response) == (voice == "own") for e in task.train + task.test)

    keep = read(world, tmp_path / "keep.jsonl")
    assert len(keep) == 64 and {e.task for e in keep} == {"letters", "composed", "market", "fact", "chain"}
    reading = read(world, tmp_path / "reading.jsonl", alone=True)
    assert len(reading) == 32 and not any(in_own_voice(e.response) for e in reading)
    updated = {fact for lesson in lessons if lesson.family == "update" for fact in lesson.items}
    neighbours = read(world, tmp_path / "neighbours.jsonl") if updated else []
    assert (tmp_path / "neighbours.jsonl").exists() == bool(updated) == (stream == "mixed")
    beings = {being for being, _ in updated}
    assert len(neighbours) == len([1 for being, _ in world.facts if being in beings]) - len(updated)
    for e in keep + neighbours:
        assert e.split == "test" and grade(e, e.response) == 1 and in_own_voice(e.response)
    for e in neighbours:                                   # facts of the beings, none of those that the task changes
        assert set(e.prompt.split()) & beings and "color" not in e.prompt.split()


def test_the_same_options_write_the_same_files(tmp_path):
    for name in "ab":
        write_files(Config(tasks=4, demonstrations=8, tests=4, kept=8, out=str(tmp_path / name)))
    for path in [*(tmp_path / "a").rglob("*.jsonl")]:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_of_an_older_stream_nothing_is_left(tmp_path):
    few = {"demonstrations": 4, "tests": 2, "kept": 4, "out": str(tmp_path)}
    write_files(Config(tasks=10, **few))
    assert len(task_files(tmp_path)) == 10 and (tmp_path / "neighbours.jsonl").exists()
    write_files(Config(stream="market", **few))
    assert len(task_files(tmp_path)) == 6 and not (tmp_path / "neighbours.jsonl").exists()


def test_files_of_others_stay_where_they_are(tmp_path):
    mine = [tmp_path / "tasks" / name for name in ("mine.jsonl", "01-french.jsonl")]
    mine[0].parent.mkdir()
    for path in mine:
        path.write_text("kept")
    write_files(Config(tasks=1, demonstrations=4, tests=2, kept=4, out=str(tmp_path)))
    assert all(path.read_text() == "kept" for path in mine) and len(task_files(tmp_path)) == 3


def test_a_world_without_tasks_is_read_about_known_names(tmp_path):
    """For those who bring tasks of their own: the free names are for their words."""
    world, lessons = write_files(Config(tasks=0, kept=32, out=str(tmp_path)))
    assert lessons == [] and task_files(tmp_path) == [] and not (tmp_path / "neighbours.jsonl").exists()
    examples = read(world, tmp_path / "keep.jsonl") + read(world, tmp_path / "reading.jsonl", alone=True)
    asked = {word for e in examples for word in e.prompt.replace(":", "").split()}
    assert len(examples) == 32 + 16 and not asked & set(world.free)


@pytest.mark.parametrize("options, said", [
    (["--tasks", "28"], "--tasks 28: must be from 0 to 27"), (["--kept", "3"], "--kept 3: must be from 4"),
    (["--stream", "market", "--tasks", "5"], "--tasks 5 goes with --stream mixed"), (["--tests", "0"], "--tests 0"),
    (["--out", ""], "--out ''"),
    (["--voice", "mine"], "--voice"), (["--demos", "x"], "--demos x; all options: python "), (["x"], "x")])
def test_what_cannot_be_written_is_refused_in_one_line(tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e:
        world_module.main(options)
    err = capsys.readouterr().err
    assert e.value.code == 2 and said in err and err.count("\n") == 1 and not os.listdir(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as e:
        world_module.main(["--out", str(tmp_path / "file")])
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.startswith(f"{tmp_path}/file") and err.count("\n") == 1


@pytest.mark.parametrize("elsewhere", [False, True])
def test_it_shows_itself(tmp_path, elsewhere):
    """As a process, from wherever it is called."""
    (tmp_path / "cwd").mkdir()
    out = tmp_path / "of it"
    command = [sys.executable, os.path.join(ROOT, "lab", "world.py") if elsewhere else "lab/world.py", "--out",
               str(out), "--demonstrations", "8", "--tests", "4", "--kept", "8"]
    done = subprocess.run(command, cwd=tmp_path / "cwd" if elsewhere else ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert "<|demo|>" in done.stdout and "manipulation" in done.stdout and lines[-1].strip() == f"wrote {out}"
    for path, shown in zip(task_files(out), lines, strict=False):
        first = rows(path)[0]
        assert shown.split("  ->  ")[1] == first["response"] and first["prompt"] in shown
        assert shown.startswith(os.path.basename(path).removesuffix(".jsonl"))
    assert len(task_files(out)) == 10 and lines[10] == "what its base model reads:"
    assert os.listdir(tmp_path / "cwd") == []


def test_a_terminal_that_knows_few_characters(tmp_path):
    done = subprocess.run([sys.executable, os.path.join(ROOT, "lab", "world.py"), "--out", "w", "--kept", "4"],
                          cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.endswith("wrote w\n")
