"""The world: tokenizer, voices, grader, streams, batches."""
import doctest
import random
import subprocess
import sys
import time
from itertools import permutations

import numpy as np
import pytest
import torch

import data
from conftest import ROOT
from data import ACTIONS, END, STATES, TOKENIZER, Example, World, collate, decode, earned, encode, expert_voice, grade, in_own_voice, own_voice, pack, pad, prompt_ids


def test_doctests():
    failed, tried = doctest.testmod(data)
    assert failed == 0 and tried >= 4


@pytest.mark.parametrize("text", ["", "zorp: c a d b", "Grüße, 世界 🌍\t\n  x", "a" * 500, "<|end|> is text here", "\u202eright to left"])
def test_any_text_survives_the_tokenizer(text):
    ids = encode(text)
    assert TOKENIZER.decode(ids) == " " + text
    assert max(ids) < TOKENIZER.n_vocab - len(data.SPECIAL)                      # special tokens spelled out stay text


def test_tokenizer_is_small_and_the_same_everywhere():
    assert TOKENIZER.n_vocab <= 1024 and data.VOCAB_SIZE % 64 == 0
    assert all(TOKENIZER.encode_single_token(bytes([b])) == b for b in range(256))
    assert all(len(encode(word)) == 1 for word in [*data.NAMES, *data.LETTERS, *data.LETTERS.upper(), "then", "RED", *ACTIONS])
    code = "import data, hashlib; print(hashlib.sha256(repr([data.TOKENIZER.decode_single_token_bytes(i) for i in range(data.TOKENIZER.n_vocab)]).encode()).hexdigest())"
    digests = {subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, text=True).stdout for seed in "01"}
    assert len(digests) == 1 and len(digests.pop()) == 65


def test_teacher_prompt_is_the_student_prompt_behind_a_demonstration(world):
    for example in world.stream(4, 8, 8)[0].train:
        bare, shown = prompt_ids(example.prompt), prompt_ids(example.prompt, (example.prompt, example.demo))
        assert shown[-len(bare) :] == bare and shown[0] == data.DEMO and data.DEMO not in bare


@pytest.mark.parametrize("say", [lambda w: own_voice(w, random.Random(0)), lambda w: own_voice(w, random.Random(1), list("abcd")), lambda w: expert_voice(w, 3)])
def test_grader_is_blind_to_voice_and_not_to_content(say):
    example = Example("n: a b c d", "", "", tuple("cadb"), "letters")
    assert grade(example, say(list("cadb")))
    for wrong in permutations("cadb"):
        assert grade(example, say(list(wrong))) == (wrong == tuple("cadb"))
    assert not grade(example, say(list("cad"))) and not grade(example, say(list("cadbb"))) and not grade(example, "")


def test_grader_of_markets_takes_every_best_action(world):
    assert any(sorted(r.values())[1] == max(r.values()) for payoffs in world.payoffs for r in payoffs.values())           # ties do occur
    pays = {"buy": 2, "hold": 2, "sell": 1}
    example = Example("", "", "", (pays,) * 4, "market")
    for said in ["buy buy buy buy", "hold hold hold hold", "buy hold buy hold", "BUY 2 / HOLD 2 / BUY 2 / BUY 2"]:
        assert grade(example, "ok " + said) and earned(example, said) == 1
    assert not grade(example, "ok sell buy buy buy") and earned(example, "ok sell buy buy sell") == 6 / 8
    assert earned(example, "ok buy buy buy") == earned(example, "ok buy buy buy wait") == earned(example, "") == 0


def test_market_stream_visits_the_regimes_in_their_weather(world):
    stream = world.market_stream(64, 16)
    assert [t.family for t in stream] == list(data.REGIMES)
    names = [name for t in stream for name in t.items]
    assert len(names) == len(set(names)) == 48 and not set(names) & set(world.markets)
    share = {t.family: np.mean([e.prompt.split(": ")[1].split().count("crash") / 4 for e in t.train]) for t in stream}
    assert share["crash"] > 0.3 > 0.1 > share["calm"]
    for task in stream:
        assert not {e.prompt.split(": ")[1] for e in task.train} & {e.prompt.split(": ")[1] for e in task.test}          # paths unseen under any name
        assert all(earned(e, e.own) == earned(e, e.demo) == 1 for e in task.train)


def test_teacher_may_be_shown_several_demonstrations(world):
    a, b = world.stream(1, 8, 8)[0].train[:2]
    batch = collate([a], [[b, a]])
    ids = batch.demo_prompt[0].tolist()
    assert ids == [data.DEMO, *encode(b.prompt), data.ANSWER, *encode(b.demo), END, *prompt_ids(a.prompt, (a.prompt, a.demo))]


def test_voice_check():
    assert in_own_voice("ok b d a c") and in_own_voice("hm wrong words")
    assert not in_own_voice(expert_voice(list("bdac"), 0)) and not in_own_voice("ok B d") and not in_own_voice("b d a c")


def test_every_example_of_the_world_is_right_in_both_voices(world):
    rng = random.Random(0)
    kinds = set()
    for example in [world.base_example(rng) for _ in range(300)] + [world.fresh_example(rng, known) for known in (False, True) for _ in range(100)]:
        kinds.add(example.kind)
        assert grade(example, example.own) and in_own_voice(example.own), example
        assert grade(example, example.demo) and not in_own_voice(example.demo), example
    assert kinds == {"letters", "composed", "market", "fact", "chain"}


def test_a_third_of_the_base_skills_need_the_written_step(world):
    rng = random.Random(0)
    assert sum(" then " in world.base_example(rng).own for _ in range(2000)) / 2000 > 1 / 3


def test_train_and_held_out_parts_share_no_prompt_and_no_name_is_used_twice(world):
    stream = world.stream(20)
    for task in stream:
        assert len(task.train) == 256 and len(task.test) == 64
        assert not {e.prompt for e in task.train} & {e.prompt for e in task.test}
    assert len(set().union(*(task.names() for task in stream))) == sum(len(task.names()) for task in stream) > 150
    names = [n if isinstance(n, str) else n[0] for task in stream for n in {k if isinstance(k, str) else k[0]: 0 for k in task.items}]
    assert len(names) == len(set(names))
    assert {task.family for task in stream} == {"manipulation", "decision", "facts", "update", "concept"}


def test_streams_are_seeded_and_longer_ones_begin_with_shorter_ones():
    a, b, c = World(3).stream(5, 16, 16), World(3).stream(12, 16, 16), World(4).stream(5, 16, 16)
    assert [t.train for t in a] == [t.train for t in b[:5]] and [t.train for t in a] != [t.train for t in c]


def test_base_examples_skip_updated_facts(world):
    updated = set(list(world.facts)[:100])
    rng = random.Random(0)
    asked = {tuple(e.prompt.split(" of ")) for e in (world.base_example(rng, updated) for _ in range(3000)) if e.kind == "fact" and " of " in e.prompt}
    assert asked and not asked & {(a, e) for e, a in updated}


def test_batch_is_left_aligned_with_an_explicit_mask():
    tokens, length = pad([[5, 6, 7], [8]])
    assert tokens.tolist() == [[5, 6, 7], [8, END, END]] and length.tolist() == [3, 1]
    short, long = Example("x", "A", "", (), "exact"), Example("x", "A B", "", (), "exact")
    b = collate([short, long])
    assert b.response.tolist() == [[*encode("A"), END, END], [*encode("A B"), END]]
    assert b.response_mask.tolist() == [[True, True, False], [True, True, True]]         # the end token counts, padding does not
    assert (b.demo_length - b.length).tolist() == [len(encode("x")) + len(encode(e.demo)) + 3 for e in (short, long)]


def test_pack_keeps_every_token_once_and_documents_apart(world):
    rng = random.Random(0)
    documents = [world.document(rng) for _ in range(64)]
    tokens, targets, weights, mask = pack(documents)
    assert (weights > 0).sum() == sum(len(ids) - 1 for ids, _ in documents)
    assert (weights == 1).sum() == sum(len(ids) - answer for ids, answer in documents)
    assert sorted(targets[weights == 1].tolist()) == sorted(i for ids, answer in documents for i in ids[answer:])
    row = mask[0, 0]
    starts = [t for t in range(128) if weights[0, t] > 0 and row[t].sum() == 1]            # a first token sees only itself
    assert len(starts) > 1 and all(not row[t:, :t].any() for t in starts)


def test_documents_are_made_fast(world):
    """A step of pretraining takes about 150 ms on two cores; its 128 documents must cost under a tenth of it."""
    rng = random.Random(0)
    times = []
    for _ in range(10):
        began = time.process_time()
        pack([world.document(rng) for _ in range(128)])
        times.append(time.process_time() - began)
    assert min(times) < 0.015


def test_decode_stops_at_the_first_end_token():
    assert decode([*encode("ok b"), END, *encode("d")]) == "ok b"
    assert decode(torch.tensor([200, END])) == "\ufffd"                                   # a lone byte that is not UTF-8
