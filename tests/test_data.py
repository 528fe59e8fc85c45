"""Data: the tokenizer, prompts, files (what is read, what is refused and in which words), graders, what is held out,
batches."""
import doctest
import json
import os
import random
import re
import socket
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import formats
import pretrain
import runs
from conftest import ROOT, VOCAB_SIZE
from data import (ACTIONS, GRADERS, SPECIAL, VOICED, Example, Task, WordTokenizer, collate, earned, grade,
                  in_own_voice, into_tasks, pad, read_examples)
from runs import BadInput
from world import LETTERS, NAMES, expert_voice, own_voice, words

CONTEXT = 64
TOKENIZER = WordTokenizer(words())


def line(prompt="2 + 2", response="four", **more):
    return json.dumps({"prompt": prompt, "response": response, **more}, ensure_ascii=False)


def write(folder, *lines, name="sums.jsonl"):
    path = folder / name
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return str(path)


def read(paths, context=CONTEXT, **options):
    return read_examples(paths, TOKENIZER, context, **options)


def pairs(examples):
    return [(e.prompt, e.response) for e in examples]


def refusals(paths, context=CONTEXT, **options):
    """The lines of the refusal: each is a problem, and then a remedy."""
    with pytest.raises(BadInput) as caught:
        into_tasks(read(paths, context, **options), 0.2, 0)
    for message in caught.value.args:
        assert len(message.splitlines()) == 1 and message.isprintable(), message
        assert all(part.strip() for part in message.split("; ")) and "; " in message, message
    assert str(caught.value) == "\n".join(caught.value.args)
    return list(caught.value.args)


def refusal(paths, context=CONTEXT, **options):
    message, = refusals(paths, context, **options)
    return message


@pytest.mark.parametrize("module, least", [(data, 6), (runs, 1)])
def test_doctests(module, least):
    failed, tried = doctest.testmod(module)
    assert failed == 0 and tried >= least


# ---------------------------------------------------------------------------------------------------------------------
# The tokenizer, and the two prompts.


@pytest.mark.parametrize("text", ["", "zorp: c a d b", "Grüße, 世界 🌍\t\n  x", "a" * 500, "<|end|> is text here",
                                  "\u202eright to left"])
def test_any_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.encoding.decode(ids) == tokenizer.show(ids) == " " + text and tokenizer.decode(ids) == text
    assert max(ids) < tokenizer.n_vocab - len(SPECIAL)     # special tokens spelled out stay text


def test_tokenizer_is_small_and_the_same_everywhere(tokenizer):
    assert tokenizer.n_vocab <= VOCAB_SIZE == pretrain.Config().vocab_size <= 1024 and VOCAB_SIZE % 64 == 0
    assert all(tokenizer.encoding.encode_single_token(bytes([b])) == b for b in range(256))
    single = [*NAMES, *LETTERS, *LETTERS.upper(), "then", "RED", *ACTIONS]
    assert all(len(tokenizer.encode(word)) == 1 for word in single)
    code = ("import hashlib, world; e = world.World(0).tokenizer.encoding; "
            "tokens = [e.decode_single_token_bytes(i) for i in range(e.n_vocab)]; "
            "print(hashlib.sha256(repr(tokens).encode()).hexdigest())")
    where = {"PATH": "", "PYTHONPATH": os.path.join(ROOT, "lab")}
    digests = {subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed} | where, capture_output=True,
                              text=True).stdout for seed in "01"}
    assert len(digests) == 1 and len(digests.pop()) == 65


def test_decode_stops_at_the_first_end_token(tokenizer):
    end = tokenizer.end
    assert tokenizer.decode([*tokenizer.encode("ok b"), end, *tokenizer.encode("d")]) == "ok b"
    assert tokenizer.decode(torch.tensor([200, end])) == "\ufffd"                 # a lone byte that is not UTF-8
    assert tokenizer.decode([*tokenizer.encode("ok"), VOCAB_SIZE - 1, end]) == "ok"        # a row that is padding


def test_teacher_prompt_is_the_student_prompt_behind_a_demonstration(world, tokenizer):
    for example in world.stream(4, 8, 8)[0].train:
        bare = tokenizer.prompt(example.prompt)
        shown = tokenizer.prompt(example.prompt, (example.prompt, example.response))
        assert shown[-len(bare) :] == bare and shown[0] == tokenizer.demo and tokenizer.demo not in bare


def test_new_words_take_the_tokens_of_spare_ones():
    before = WordTokenizer(["tanu", "bodo", "kelo"], spare=["tanu", "bodo", "kelo"])
    shown = [Example("bodo is Fenster", "Haus", task="t")]
    after = before.learn(shown, others=[Example("kelo", "x")])
    assert before.new_words(shown) == ["is", "Fenster", "Haus"] and before.spare == ["tanu", "bodo", "kelo"]
    assert after.words == ["is", "bodo", "kelo"] and after.encode("is") == before.encode("tanu")
    assert after.spare == ["kelo"]                         # bodo is used; kelo is kept for the others; none is left
    assert after.new_words(shown) == ["Fenster", "Haus"] and after.n_vocab == before.n_vocab
    assert after.decode(after.encode("tanu Haus")) == "tanu Haus"
    kept = json.loads(after.files()["words.json"])
    assert kept == {"words": after.words, "spare": after.spare} and WordTokenizer(**kept).files() == after.files()


@pytest.mark.parametrize("words, spare", [(["tanu", "tanu"], []), (["tanu", ""], []), (["tanu"], ["bodo"])])
def test_words_that_would_not_be_as_many_tokens(words, spare):
    with pytest.raises(ValueError, match="a word is empty or stands twice, or a spare one is none of the words"):
        WordTokenizer(words, spare)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused. GOOD is a line that is right; a wrong one is line 3, behind it and a blank one.

GOOD = line("1 + 1", "two")
PAYS = {"buy": 2, "hold": 1, "sell": 0}


def returns(answer):
    return line(grader="return", answer=answer)


WRONG = {                         # what stands in the line, what the message says of it, a word of the remedy
    "not UTF-8": (b'{"prompt": "caf\xe9", "response": "x"}', ["byte 16", "0xe9"], "save the file as UTF-8"),
    "UTF-16": (line().encode("utf-16"), ["byte 1 ", "0xff"], "save the file as UTF-8"),
    "no JSON": ("prompt,response", ["'prompt,response'", "character 1)"], 'write {"prompt"'),
    "broken JSON": ('{"prompt": "a" "response": "b"}',
                    ["Expecting ',' delimiter, character 16", """'{"prompt": "a" "response": "b"}'"""], "write {"),
    "cut off": ('{"prompt": "a", "response": "b', ["Unterminated string"], "write {"),
    "two objects": (line() + line(), ["Extra data"], "write {"),
    "tab in a string": ('{"prompt": "a\tb", "response": "b"}', ["Invalid control character", "\\t"], "write {"),
    "second byte order mark": ("\ufeff" + line(), ["BOM"], "write {"),
    "long integer": ('{"prompt": ' + "9" * 5000 + ', "response": "b"}', ["4300 digits"], "write {"),
    "nested too deeply": ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", ["recursion", "'{\"prompt\": [[[["],
                          "write {"),
    "field twice": ('{"prompt": "a", "response": "b", "prompt": "c"}', ["twice"], "write {"),
    "NaN": ("NaN", ["nan is not an object"], "write {"),
    "null": ("null", ["None is not an object"], "write {"),
    "list": ('["a", "b"]', ["['a', 'b'] is not an object"], "write {"),
    "string": ('"a\\nb"', ["'a\\nb' is not an object"], "write {"),
    "no fields": ("{}", ['no "prompt" among the fields (none)'], "write {"),
    "no prompt": ('{"response": "b"}', ['no "prompt" among the fields (\'response\')'], "write {"),
    "no response": ('{"prompt": "b"}', ['no "response"'], "write {"),
    "prompt a number": ('{"prompt": 17, "response": "b"}', ['"prompt" is 17'], "put a string"),
    "prompt infinite": ('{"prompt": -Infinity, "response": "b"}', ['"prompt" is -inf'], "put a string"),
    "prompt nested": ('{"prompt": ' + "[" * 900 + "]" * 900 + ', "response": "b"}', ['"prompt" is [[[['],
                      "put a string"),
    "response null": ('{"prompt": "a", "response": null}', ['"response" is None'], "put a string"),
    "response a list": ('{"prompt": "a", "response": ["b"]}', ["\"response\" is ['b']"], "put a string"),
    "task a number": (line(task=3), ['"task" is 3'], "put a string"),
    "task null": (line(task=None), ['"task" is None'], "put a string"),
    "split a number": (line(split=0), ['"split" is 0'], "put a string"),
    "grader a list": (line(grader=["exact"]), ["\"grader\" is ['exact']"], "put a string"),
    "answer a number": (line(answer=4), ['"answer" is 4'], "put a string"),
    "answer null": (line(answer=None), ['"answer" is None'], "put a string"),
    "answer of returns for a text": (line(answer=[PAYS]), ["\"answer\" is [{'buy': 2"], "put a string"),
    "empty prompt": (line(""), ['"prompt" is empty', "''"], "fill it in"),
    "blank response": (line(response=" \n\u3000"), ['"response" is empty', "' \\n\\u3000'"], "fill it in"),
    "blank task": (line(task="\t"), ['"task" is empty'], "fill it in"),
    "blank answer": (line(answer="\n"), ['"answer" is empty'], "fill it in"),
    "half a pair in prompt": ('{"prompt": "a\\ud83d", "response": "b"}', ['"prompt" is \'a\\ud83d\''],
                              "write the character itself"),
    "half a pair in response": ('{"prompt": "a", "response": "\\udc00b"}', ['"response" is \'\\udc00b\''],
                                "write the character itself"),
    "half a pair in task": (r'{"prompt": "a", "response": "b", "task": "\ud800"}', ['"task" is \'\\ud800\''],
                            "write the character itself"),
    "half a pair in answer": (r'{"prompt": "a", "response": "b", "answer": "\ud800"}', ['"answer" is \'\\ud800\''],
                              "write the character itself"),
    "unknown split": (line(split="dev"), ["\"split\" is 'dev'"], 'write "train", or "test"'),
    "unknown grader": (line(grader="Exact"), ["\"grader\" is 'Exact'"], "choose one of exact, contains, last-line"),
    "returns left out": (line(grader="best-return"), ['"answer" is None'], "for the grader best-return"),
    "returns as text": (returns("buy"), ["\"answer\" is 'buy'"], "list what each action earns in each state"),
    "returns of no state": (returns([]), ['"answer" is []'], "list what each action earns"),
    "returns of no action": (returns([PAYS, {}]), ['"answer" is [{'], "list what each action earns"),
    "returns of another action": (returns([PAYS | {"wait": 1}]), ['"answer" is [{'], "list what each action earns"),
    "returns of text": (returns([PAYS | {"buy": "2"}]), ['"answer" is [{'], "list what each action earns"),
    "returns of truth": (returns([PAYS | {"buy": True}]), ['"answer" is [{'], "list what each action earns"),
    "returns below zero": (returns([PAYS | {"sell": -1}]), ['"answer" is [{'], "list what each action earns"),
    "returns without end": (returns([PAYS | {"sell": float("inf")}]), ['"answer" is [{'],
                            "list what each action earns"),
    "returns of no number": (returns([PAYS | {"sell": float("nan")}]), ['"answer" is [{'],
                             "list what each action earns"),
    "returns of nothing": (returns([dict.fromkeys(PAYS, 0)]), ['"answer" is [{'], "list what each action earns"),
    "too long": (line("a" * 30, "b"), ["'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' takes 68 tokens", "more than 64"],
                 "shorten it"),
    "far too long": (line("x " * 10**6, "b\n"), ["...' takes 4000012 tokens"], "shorten it"),
    "another response": (line("1  +\t1", "Two"), ["'1 + 1' is answered 'Two'", "'two' at {path}:1"], "keep one"),
    "another way to say it": (line("1 + 1", "it is two", answer="two"),
                              ["'1 + 1' is answered 'it is two'", "'two' at {path}:1"], "keep one"),
    "another answer": (line("1 + 1", "two", answer="2"), ["'1 + 1' is answered '2'", "'two' at {path}:1"], "keep one"),
    "one of a task": (line(task="al\none"), ["task 'al one' has 1 of the two"], "add"),
}


@pytest.mark.parametrize("wrong, said, remedy", WRONG.values(), ids=WRONG)
def test_wrong_line_is_named(tmp_path, wrong, said, remedy):
    path = write(tmp_path, GOOD, "", wrong, line("3 + 3", "six"))
    message = refusal([path])
    assert message.startswith(f"{path}:3: ") and len(message) < len(path) * 2 + 300
    for part in said:
        assert part.replace("{path}", path) in message, message
    assert remedy in message.split("; ", 1)[1]


def report_of(paths):
    read(paths, reports=(reports := []))
    assert all(report.isprintable() for report in reports)
    return "\n".join(reports)


def test_form_and_fields_not_used_are_told_in_a_line_for_each_file(tmp_path):
    a = write(tmp_path, GOOD, line(reply="x", Task="y", **{"b\n": 1}), name="a.jsonl")
    assert report_of([a]).splitlines() == [
        f"{a}: 2 rows, prompt/response; fields not used: 'reply', 'Task' (did you mean task?), 'b\\n'"]
    many = write(tmp_path, GOOD, line(**{str(i): 0 for i in range(1000)}), name="b.jsonl")
    assert report_of([many]).endswith("'8', '9', ...")


def test_conversations_are_for_chat_models(tmp_path):
    """A chat of one message is a prompt as any other; the small GPT has no words for another turn."""
    def chat(*messages):
        roles = ["user", "assistant"] * 2
        return json.dumps({"messages": [{"role": r, "content": c} for r, c in zip(roles, messages)]})

    single = write(tmp_path, chat("2 + 2", "four"), chat("3 + 3", "six"), name="single.jsonl")
    assert [(e.prompt, e.response, e.messages) for e in read([single])] == [("2 + 2", "four", []), ("3 + 3", "six", [])]
    turns = write(tmp_path, GOOD.replace("prompt", "question").replace("response", "answer"), name="other.jsonl")
    assert read([turns], alone=True)[0].prompt == "1 + 1"
    several = write(tmp_path, chat("2 + 2", "four", "and 3?", "seven"), name="several.jsonl")
    assert f"{several}:1: " in refusal([several]) and "start from a chat model" in refusal([several])


def test_long_value_is_cut_to_forty_characters(tmp_path):
    message = refusal([write(tmp_path, json.dumps({"prompt": "a" * 41, "respond": "x" * 40, "y" * 41: ""}))])
    assert "'" + "y" * 40 + "...'" in message and "'respond'" in message
    assert f"'{'z' * 40}' takes" in refusal([write(tmp_path, line("z" * 40))], context=9)


def test_terminal_codes_do_not_reach_the_terminal(tmp_path):
    for value in ("\x1b[2J", "\u202eevil", "a\u2028b", "\x85", "\x00" * 3):
        assert repr(value) in report_of([write(tmp_path, GOOD, line(**{value: 1}))])
        for name in ("split", "grader"):
            assert repr(value) in refusal([write(tmp_path, line(**{name: value}))])


def test_two_files_that_disagree_are_both_named(tmp_path):
    a = write(tmp_path, GOOD, line("2 + 2", "four"), name="a.jsonl")
    b = write(tmp_path, "", line("3 + 3", "six"), line("2 + 2", "five"), name="b.jsonl")
    assert refusal([a, b]) == f"{b}:3: '2 + 2' is answered 'five', but 'four' at {a}:2; keep one of the two"


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"],
                         ids=["nothing", "blank lines", "a byte order mark"])
def test_file_without_an_example_is_refused(tmp_path, content):
    (tmp_path / "empty.jsonl").write_bytes(content)
    message = refusal([write(tmp_path, GOOD, line()), str(tmp_path / "empty.jsonl")])
    assert message.startswith(f"{tmp_path}/empty.jsonl: empty; write {{")


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    a = write(tmp_path, "{}", GOOD, line(split="dev"), line("a" * 30, "b"), name="a.jsonl")
    b = write(tmp_path, line("1 + 1", "2"), b"\xff", name="b.jsonl")
    no = f"{tmp_path}/no.jsonl"
    lines = refusals([a, no, b])
    assert [message.split(": ")[0] for message in lines] == [f"{a}:1", f"{a}:3", f"{a}:4", no, f"{b}:2", f"{b}:1"]
    assert "is answered '2'" in lines[-1]                  # what two lines say is compared when all are read


@pytest.mark.parametrize("wrong", [1, 9, 10, 11, 25])
def test_of_many_wrong_lines_the_first_ten_are_told(tmp_path, wrong):
    a = write(tmp_path, GOOD, *["{}"] * min(wrong, 8), name="a.jsonl")
    b = write(tmp_path, line(), *["[]"] * (wrong - min(wrong, 8)), name="b.jsonl")
    lines = refusals([a, b])
    assert len(lines) == min(wrong, 11) and lines[0].startswith(f"{a}:2: ")
    places = [message.split(": ")[0] for message in lines[:10]]
    assert places == [f"{a}:{i + 2}" if i < 8 else f"{b}:{i - 6}" for i in range(min(wrong, 10))]
    assert lines[10:] == [f"... and {wrong - 10} more things like these; mend them as well"] * (wrong > 10)


def unreadable_files(folder):
    """Paths that cannot be read even by root, and what the system says of them."""
    write(folder, GOOD)
    (folder / "new\nline").mkdir()
    yield f"{folder}/no.jsonl", f"{folder}/no.jsonl: cannot be read (No such file"
    yield str(folder), f"{folder}: cannot be read (Is a directory"
    yield f"{folder}/sums.jsonl/x", f"{folder}/sums.jsonl/x: cannot be read (Not a directory"
    yield "x" * 5000, "cannot be read (File name too long"
    yield f"{folder}/new\nline", f"'{folder}/new\\nline': cannot be read (Is a directory"
    yield "a\0b", "'a\\x00b': cannot be read (embedded null byte"
    yield "a\ud800", "'a\\ud800': cannot be read ("
    yield "", "'': cannot be read ("
    if os.path.exists("/proc/self/mem"):                   # it opens, and reading fails
        yield "/proc/self/mem", "/proc/self/mem: cannot be read (Input/output error"


def test_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    for path, said in unreadable_files(tmp_path):
        message = refusal([path])
        assert said in message and message.endswith("; give a file that exists and may be read"), message
    monkeypatch.chdir(tmp_path)                            # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
        assert refusal(["socket"]).startswith("socket: cannot be read (")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_named(tmp_path):
    path = write(tmp_path, GOOD)
    os.chmod(path, 0)
    assert refusal([path]).startswith(f"{path}: cannot be read (Permission denied)")


# ---------------------------------------------------------------------------------------------------------------------
# What is read.


def test_a_file_is_a_task_and_a_line_an_example(tmp_path):
    path = write(tmp_path, GOOD, line())
    one = Example("1 + 1", "two", "two", "exact", "sums", "")
    four = Example("2 + 2", "four", "four", "exact", "sums", "")
    assert read([path]) == [one, four] and into_tasks(read([path]), 0, 0) == [Task("sums", [one, four], [one, four])]
    assert [e.place for e in read([path])] == [f"{path}:1", f"{path}:2"]
    assert read([path], grader="contains")[0].grader == "contains"
    assert read([]) == [] and into_tasks([], 0.2, 0) == []


def test_tasks_come_in_order_of_first_appearance_over_all_files(tmp_path):
    a = write(tmp_path, line("a", "1", task="z"), line("b", "1"), line("c", "1", task="y"), name="x.y.jsonl")
    b = write(tmp_path, line("d", "1", task="y"), line("e", "1", task=" z\n"), line("f", "1", task="x.y"), name="b")
    tasks = into_tasks(read([a, b]), 0, 0)
    assert [(t.name, "".join(e.prompt for e in t.train)) for t in tasks] == [("z", "ae"), ("x.y", "bf"), ("y", "cd")]
    assert [t.name for t in into_tasks(read([b, a]), 0, 0)] == ["y", "z", "x.y"]


def test_files_of_one_name_are_tasks_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = ["law/a/train.jsonl", "tax/a/train.jsonl", "tax/b/train.jsonl", "b.jsonl"]
    for i, path in enumerate(paths):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path, line(f"{i} one", "1"), line(f"{i} two", "2"), name=path)
    names = ["law/a/train", "tax/a/train", "b/train", "b"]
    assert [t.name for t in into_tasks(read(paths), 0, 0)] == names
    assert [t.name for t in into_tasks(read([*paths, "./b.jsonl"]), 0, 0)] == names      # one file, named twice
    assert [t.name for t in into_tasks(read(paths[1:2]), 0, 0)] == ["train"]


def test_rows_that_cannot_be_used_are_left_out_where_asked(tmp_path):
    lines = [line("a", "1"), line("b", "2"), "{", line("c", ""), line("a", "3"), line("d", "word " * 80)]
    path, reports = write(tmp_path, *lines), []
    assert pairs(read([path], drop=True, reports=reports)) == [("a", "1"), ("b", "2")]
    left_out = next(text for text in reports if "cannot be" in text).split("\n")
    assert left_out[0] == "not used: 4 rows that cannot be:" and sorted(
        int(re.match(r".*?sums.jsonl:(\d)", text)[1]) for text in left_out[1:]) == [3, 4, 5, 6]
    with pytest.raises(BadInput) as e:
        read([path])
    assert sorted(e.value.args) == sorted(left_out[1:])
    # a file without a row that can be used is another thing, and so is a task without two
    for bad in (str(tmp_path / "none.jsonl"), write(tmp_path, "{", name="bad.jsonl"),
                write(tmp_path, line("f", "word " * 80), line("g", "word " * 80), name="long.jsonl"),
                write(tmp_path, "prompt,response", "h,1", "i,2", 'j,"3', name="open.csv"),
                write(tmp_path, line("e", "1"), "{", name="one.jsonl")):
        with pytest.raises(BadInput):
            read([path, bad], drop=True)


TEXTS = {"emoji": "👩‍👩‍👧 🌍", "tabs and newlines": "a\tb\r\n c", "right to left": "שלום \u202eعالم",
         "no line end": "a\u2028b\u0085c\x0bd", "NUL": "\0", "long word": "a" * 50, "special token": "<|end|>",
         "accents": "e\u0301é", "quotes": "\"\\/'", "outer space": "  a "}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_any_text_is_read_as_it_is(tmp_path, text, ascii_only):
    rows = [{"prompt": prompt, "response": f"{text} {i}", "task": "t" + text}
            for i, prompt in enumerate([text, "other"])]
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    task, = into_tasks(read([write(tmp_path, *lines)], 500), 0, 0)
    assert pairs(task.train) == [(text, text + " 0"), ("other", text + " 1")]
    assert all(grade(e, e.response) for e in task.train)
    assert task.name == " ".join(("t" + text).split())


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_text_may_be_the_answer(tmp_path, text):
    rows = line("a", "so: " + text, answer=text, grader="contains"), line("b", "c")
    one, other = read([write(tmp_path, *rows)], 500)
    assert (one.answer, other.answer) == (text, "c") and grade(one, text) and not grade(other, text)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\n \t\n", "\r\n\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_blank_lines_and_byte_order_mark(tmp_path, ends, mark, last):
    path = write(tmp_path, mark + GOOD + ends + line() + ends * last)
    assert pairs(read([path])) == [("1 + 1", "two"), ("2 + 2", "four")]


def test_what_is_said_twice_counts_once(tmp_path):
    a = write(tmp_path, GOOD, line(), GOOD, line(" 1 +  1\n", "two "), name="a.jsonl")
    assert pairs(read([a, a])) == [("1 + 1", "two"), ("2 + 2", "four")]
    assert report_of([a, a]).splitlines()[2:] == [
        f"not used: 6 of 8 rows, whose prompts came before (the first is {a}:3)"]
    b = write(tmp_path, GOOD, line(), name="copy.jsonl")   # a task may not vanish unseen
    assert refusal([a, b]).startswith(f"{b}:1: task 'copy' has 0 of the two demonstrations")


def test_two_responses_with_one_answer_need_a_split(tmp_path):
    """Without one, --holdout could train on the one and ask the other; dropping one of them unseen would lose it."""
    twice = {"answer": "two", "split": "train"}, {"answer": " two", "split": "train"}
    rows = [line("1 + 1", "it is two", **twice[0]), line("1 + 1", "TWO!", **twice[1]), line(split="test")]
    assert pairs(read([write(tmp_path, *rows)]))[:2] == [("1 + 1", "it is two"), ("1 + 1", "TWO!")]
    unsplit = write(tmp_path, *(row.replace(', "split": "train"', "") for row in rows[:2]), line())
    with pytest.raises(BadInput, match="'1 . 1' is answered 'TWO!', but 'it is two' at .*:1; keep one"):
        read([unsplit])


def test_rows_that_differ_in_what_was_called_are_two(tmp_path):
    def called(i):
        call = {"type": "function", "function": {"name": "price", "arguments": {"id": i}}}
        asked = {"role": "user", "content": "which?"}, {"role": "assistant", "content": "", "tool_calls": [call]}
        return json.dumps({"messages": [*asked, {"role": "tool", "content": "42"},
                                        {"role": "assistant", "content": "It is 42."}]})

    rows = data.read_file(write(tmp_path, called(1), called(2), called(2)), {"task": "", "grader": "exact"},
                          problems := [], [])
    examples = data.without_repetitions(rows, problems)
    assert len(rows) == 3 and len(examples) == 2 and '{"id": 2}' in examples[1].prompt and not problems


def test_an_answer_may_be_a_message(tmp_path):
    said = [{"role": "assistant", "content": "Paris"}]
    rows = [json.dumps({"question": f"{i}?", "answer": said}) for i in range(2)]
    assert [(e.response, e.answer) for e in read([write(tmp_path, *rows)])] == [("Paris", "Paris")] * 2


def test_a_task_of_a_file_whose_name_is_no_text_has_one(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9sum\xe9.jsonl")
    with open(path, "w") as f:
        f.write("\n".join([GOOD, line()]))
    task, = into_tasks(read([path]), 0.5, 0)
    assert task.name == r"r\udce9sum\udce9"


def test_of_what_is_only_measured_one_row_is_enough(tmp_path):
    path = write(tmp_path, line("a", task="alone"))
    assert len(read([path], taught=False)) == 1
    with pytest.raises(BadInput, match="task 'alone' has 1 of the two demonstrations"):
        read([path])


def test_case_makes_two_prompts(tmp_path):
    task, = into_tasks(read([write(tmp_path, line("us", "we"), line("US", "states"))]), 0, 0)
    assert len(task.train) == 2


def test_the_last_token_that_fits(tmp_path):
    path = write(tmp_path, line("aaa", "bb"), line("b", "b"))
    length = len(TOKENIZER.prompt("aaa", ("aaa", "bb"))) + len(TOKENIZER.encode("bb")) + 1
    assert len(read([path], length)) == 2
    assert f"takes {length} tokens" in refusal([path], length - 1)


def test_a_line_may_name_its_grader_and_its_answer(tmp_path):
    path = write(tmp_path, line("a", "let me see\n42", grader="last-line"), line("b", "LO THUS C - A", answer="c a"),
                 line("c", "LO THUS C - A", grader="content"), line("d", "so: buy", grader="contains", answer="buy"),
                 line("e", "buy / hold", grader="return", answer=[PAYS, {"buy": 0, "hold": 1, "sell": 2.5}]),
                 line("f", "buy", grader="best-return", answer=[PAYS]))
    examples = read([path], grader="exact")
    assert [e.grader for e in examples] == ["last-line", "exact", "content", "contains", "return", "best-return"]
    said = ["then\n42", "c a", "ok c a", "I would buy.", "buy hold", "buy"]
    assert [grade(e, a) for e, a in zip(examples, said)] == [1, 1, 1, 1, 3 / 4.5, 1]
    wrong = ["42 then", examples[1].response, "ok a c", "so: hold", "buy", "hold"]
    assert [grade(e, a) for e, a in zip(examples, wrong)] == [0] * 6


def test_a_task_may_say_itself_what_is_held_out(tmp_path):
    """What it says more than once counts as often; what it does not say is trained on."""
    a = write(tmp_path, line("a", "1", split="train"), line("b", "2", split="test"), line("a", "1"), line("c", "3"),
              line("b", "2", split="test"), line("a ", "1", split="train"), name="a.jsonl")
    b = write(tmp_path, *[line(f"{i}", "x") for i in range(10)], line("0", "x"), name="b.jsonl")
    for share in (0, 0.2, 0.9):
        one, other = into_tasks(read([a, b]), share, 0)
        assert [e.prompt for e in one.train] == ["a", "a", "c", "a "] and [e.prompt for e in one.test] == ["b", "b"]
        assert (len(other.train), len(other.test)) == {0: (10, 10), 0.2: (8, 2), 0.9: (1, 9)}[share]


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_task_whose_lines_are_all_of_one_part(tmp_path, part):
    a = write(tmp_path, GOOD, line(), name="a.jsonl")
    b = write(tmp_path, line("3", "x", split=part), line("4", "x", split=part), name="b.jsonl")
    assert len(read([a, b])) == 4                          # to be measured they are fit; to be taught they are not
    assert refusal([a, b]).startswith(f"{b}:1: all of task 'b' is \"split\": \"{part}\"; mark some lines ")
    one = write(tmp_path, line("3", "x", split=part), name="one.jsonl")
    assert len(read([one])) == 1 and refusal([one]).startswith(f"{one}:1: all of task 'one' is ")


@pytest.mark.parametrize("first, second", [("train", "test"), ("test", "train"), (None, "test"), ("test", None)])
@pytest.mark.parametrize("apart", [False, True])
def test_a_prompt_in_both_parts_is_refused(tmp_path, first, second, apart):
    """In one task or in two, which may be in two files."""
    def rows(prompt, split):
        return line(prompt, "two", **{"split": split} if split else {})

    a = write(tmp_path, rows("1 + 1", first), line("3", "x", split="train"), line("4", "x", split="test"))
    more = {"task": "other"} if apart else {"task": "sums"}
    b = write(tmp_path, json.dumps(json.loads(rows(" 1  + 1", second)) | more), line("5", "x", split="train", **more),
              line("6", "x", split="test", **more), name="b.jsonl")
    assert refusal([a, b]) == f"{b}:1: '1 + 1' is in both parts, train and test ({a}:1); keep one of them"


def test_a_prompt_that_is_held_out_is_not_drawn_from_another_task(tmp_path):
    """A task that leaves it to --holdout may say what another one holds out: it counts once, or is refused."""
    a = write(tmp_path, line("1", "x", split="train"), line("2", "x", split="test"), name="a.jsonl")
    b = write(tmp_path, line("2", "x"), line("3", "x"), line("4", "x"), name="b.jsonl")
    assert [e.prompt for e in read([a, b])] == ["1", "2", "3", "4"]
    assert refusal([b, a]).startswith(f"{a}:2: '2' is in both parts")


def test_what_one_task_trains_on_is_not_drawn_from_another(tmp_path):
    """Whichever comes first: what is tested in a task without "split" is not what a task with it trains on."""
    a = write(tmp_path, *[line(f"{i}", "x") for i in range(4)], name="a.jsonl")
    b = write(tmp_path, *[line(f"{i}", "x", split="train") for i in range(2, 6)], line("9", "x", split="test"),
              name="b.jsonl")
    for paths in ([a, b], [b, a]):
        tasks = into_tasks(read(paths), 0.9, 0)
        assert not {e.prompt for t in tasks for e in t.train} & {e.prompt for t in tasks for e in t.test}


def test_lines_that_stand_for_themselves(tmp_path):
    """alone: nothing is compared, what is wrong in itself is refused all the same."""
    path = write(tmp_path, GOOD, GOOD, line("1 + 1", "three"), line("1 + 1", "four", split="test"),
                 line("1 + 1", "four", split="train"), line("5", "six", task="one"))
    said = [("1 + 1", "two"), ("1 + 1", "two"), ("1 + 1", "three"), ("1 + 1", "four"), ("1 + 1", "four"), ("5", "six")]
    assert pairs(read([path], alone=True)) == said
    assert pairs(read([write(tmp_path, GOOD, name="one")], alone=True)) == said[:1]
    bad = write(tmp_path, "{}", line("a" * 30, "b"), "", name="bad.jsonl")
    empty = write(tmp_path, "", name="empty.jsonl")
    lines = refusals([path, bad, empty], alone=True)
    assert [message.split(": ")[0] for message in lines] == [f"{bad}:1", f"{bad}:2", empty]


# ---------------------------------------------------------------------------------------------------------------------
# Graders.

GRADED = [                        # grader, response, right answers, wrong answers
    ("exact", "New York", ["new york", " NEW\tYork\n"], ["", "new", "newyork", "new york.", "in new york"]),
    ("exact", "Café Straße İ", ["CAFE\u0301 STRASSE i\u0307", "café strasse İ"], ["cafe straße i"]),
    ("exact", "<|end|>", ["<|END|>"], ["end", ""]),
    ("contains", "10", ["10", "it is 10.", "(10)", "a 10\n b", "x=10", "8-10", "10, 11", "-10 or 10", "10-ish"],
     ["", "100", "210", "1 0", "ten", "x10", "10.5", "10,000", "9.10", "x = -10", "−10"]),
    ("contains", "New York", ["In new\n york, I think", "«New York»"],
     ["renew york", "new yorker", "york new", "new  jersey york"]),
    ("contains", "a.b (c)", ["so A.B (C)!", "a.b (c)"], ["axb (c)", "a.b c", "a.b (c)d"]),
    ("contains", "été", ["cet E\u0301TÉ-là"], ["étés", "répété", "ete"]),
    ("contains", "он", ["это ОН."], ["слон", "она"]),
    ("contains", "कल", ["वह कल आया", "कला, कल"], ["कला", "कला है"]),
    # no spaces between words
    ("contains", "東京", ["日本の首都は東京です。"], ["京都", "東"]),
    ("contains", "서울", ["수도는 서울입니다"], ["서 울"]),
    ("contains", "กรุงเทพ", ["คือกรุงเทพครับ"], ["กรุง"]),
    ("contains", "10", ["価格は10円"], ["価格は100円"]),
    ("last-line", "42", ["42", "let me see\n42", "a\n\n 42 \n \n", "7 * 6\r\n42\r\n"],
     ["", "\n", "42\nsir", "is 42", "4\n2"]),
    ("last-line", "first\nso: B\n", ["so: b", "other\nSO:  B"], ["first", "first\nso: b c", "so:\nb"]),
    ("content", "LO THUS C - A", ["ok c a", "hm x then c a", "C / A", "c 2 a 0", "c a"], ["", "ok a c", "c", "c a a"]),
]


@pytest.mark.parametrize("grader, response, right, wrong", GRADED)
def test_grader(grader, response, right, wrong):
    example = Example("?", response, grader=grader)
    assert [grade(example, a) for a in [response, *right]] == [True] * (len(right) + 1)
    assert [grade(example, a) for a in wrong] == [False] * len(wrong)
    assert [grade(Example("?", "no", response, grader), a) for a in right] == [True] * len(right)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(set(GRADERS) - set(VOICED))), st.text(min_size=1).filter(str.strip))
def test_every_grader_takes_the_response_itself_however_it_is_written(grader, text):
    """Every grader of text: those of the world see nothing but its words."""
    example = Example("?", text, grader=grader)
    assert grade(example, text) and grade(example, f"\n{text}  \n")
    for form in ("NFC", "NFD"):
        assert grade(example, unicodedata.normalize(form, text)), form
    assert grade(example, "so\n" + text) == (grader != "exact")
    assert not grade(example, "")


SAY = {"own": lambda said: own_voice(said, random.Random(0)),
       "own, with a step": lambda said: own_voice(said, random.Random(1), list("abcd")),
       "expert": lambda said: expert_voice(said, 3)}


@pytest.mark.parametrize("say", SAY.values(), ids=SAY)
def test_grader_is_blind_to_voice_and_not_to_content(say):
    example = Example("n: a b c d", "", "c a d b", "content")
    assert grade(example, say(list("cadb")))
    for wrong in permutations("cadb"):
        assert grade(example, say(list(wrong))) == (wrong == tuple("cadb"))
    assert not grade(example, say(list("cad"))) and not grade(example, say(list("cadbb"))) and not grade(example, "")


def test_grader_of_markets_takes_every_best_action(world):
    assert any(sorted(r.values())[1] == max(r.values()) for p in world.payoffs for r in p.values())      # ties do occur
    pays = [{"buy": 2, "hold": 2, "sell": 1}] * 4
    best, share = Example("", "", pays, "best-return"), Example("", "", pays, "return")
    for said in ["buy buy buy buy", "hold hold hold hold", "buy hold buy hold", "BUY 2 / HOLD 2 / BUY 2 / BUY 2"]:
        assert grade(best, "ok " + said) and grade(share, "ok " + said) == earned("ok " + said, pays) == 1
    assert not grade(best, "ok sell buy buy buy")
    assert grade(share, "ok sell buy buy sell") == earned("ok sell buy buy sell", pays) == 6 / 8
    for said in ["ok buy buy buy", "ok buy buy buy wait", ""]:
        assert earned(said, pays) == grade(share, said) == grade(best, said) == 0


def test_voice_check():
    assert in_own_voice("ok b d a c") and in_own_voice("hm wrong words")
    assert not in_own_voice(expert_voice(list("bdac"), 0)) and not in_own_voice("ok B d")
    assert not in_own_voice("b d a c")


# ---------------------------------------------------------------------------------------------------------------------
# What is held out.


def task_of(n, name="t"):
    return [Example(f"{i}", f"{i}", task=name) for i in range(n)]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(2, 60), st.floats(0, 1, exclude_min=True), st.integers(0, 10**6), st.text(max_size=5))
def test_holdout_parts_a_task_in_two(n, share, seed, name):
    given_examples, whole = task_of(n, name), task_of(n, name)
    parted, = into_tasks(given_examples, share, seed)
    assert given_examples == whole                         # what was given stays as it is
    assert len(parted.train) >= 1 and len(parted.test) >= 1 and abs(len(parted.test) - share * n) <= 1
    order = [whole.index(e) for e in parted.train], [whole.index(e) for e in parted.test]
    assert order[0] == sorted(order[0]) and order[1] == sorted(order[1])
    assert sorted(order[0] + order[1]) == list(range(n))
    assert into_tasks(whole, share, seed) == [parted] and parted.name == name
    assert parted in into_tasks(task_of(7, "before" + name) + whole, share, seed)          # whatever else is taught


def test_holdout_of_nothing_measures_what_was_trained():
    parted, = into_tasks(task_of(5), 0, 3)
    assert parted.test == parted.train == task_of(5)


def held_out(seed=0, name="t"):
    return [e.prompt for e in into_tasks(task_of(20, name), 0.5, seed)[0].test]


def test_holdout_depends_on_seed_and_name_and_not_on_the_hash_seed():
    split = held_out()
    assert split != held_out(seed=1)
    assert split != held_out(name="u")
    code = "import test_data; print(test_data.held_out())"
    env = {"PYTHONHASHSEED": "7", "PYTHONDONTWRITEBYTECODE": "1",
           "PYTHONPATH": os.pathsep.join([ROOT, os.path.join(ROOT, "lab"), os.path.dirname(__file__)])}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == f"{split}\n"


# ---------------------------------------------------------------------------------------------------------------------
# Batches.


def test_batch_is_left_aligned_with_an_explicit_mask(tokenizer):
    encode, end = tokenizer.encode, tokenizer.end
    tokens, length = pad([[5, 6, 7], [8]], end)
    assert tokens.tolist() == [[5, 6, 7], [8, end, end]] and length.tolist() == [3, 1]
    short, long = Example("x", "A"), Example("x", "A B")
    b = collate([short, long], tokenizer)
    assert b.response.tolist() == [[*encode("A"), end, end], [*encode("A B"), end]]
    assert b.response_mask.tolist() == [[True, True, False], [True, True, True]]  # the end token counts, padding not
    more = [len(encode("x")) + len(encode(e.response)) + 3 for e in (short, long)]
    assert (b.demo_length - b.length).tolist() == more


def test_teacher_may_be_shown_several_demonstrations(world, tokenizer):
    a, b = world.stream(1, 8, 8)[0].train[:2]
    batch = collate([a], tokenizer, [[b, a]])
    ids = batch.demo_prompt[0].tolist()
    assert ids == [tokenizer.demo, *tokenizer.encode(b.prompt), tokenizer.answer, *tokenizer.encode(b.response),
                   tokenizer.end, *tokenizer.prompt(a.prompt, (a.prompt, a.response))]


@pytest.mark.parametrize("tokens, room", [(1, 16), (13, 16), (14, 17), (40, 43)])
def test_an_answer_has_room_for_a_little_more_than_the_longest_demonstrated(tokenizer, tokens, room):
    batch = collate([Example("x", "A"), Example("x", " ".join("A" * tokens))], tokenizer)
    assert batch.response.shape == (2, tokens + 1) and batch.room == room == batch.to("cpu").room


def test_nothing_said_is_shown_as_nothing():
    assert Example("x", "A", demo="").shown == ("x", "") and Example("x", "A").shown == ("x", "A")


# ---------------------------------------------------------------------------------------------------------------------
# Whatever a file holds, it is read or refused, each thing in one line.

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda x: st.lists(x, max_size=3), max_leaves=4)
WORDS = (st.text(st.characters(codec=None), max_size=8)
         | st.sampled_from(["a", "b", "a b", " ", "x" * 60, "\ud800", "\u2028", "\0"]))
MORE = {"task": st.sampled_from(["s", "t"]), "split": st.sampled_from(["train", "test", "dev"]),
        "grader": st.sampled_from([*GRADERS, "Exact"]), "answer": WORDS | st.just([PAYS])}
FIELDS = st.fixed_dictionaries({"prompt": WORDS, "response": WORDS}, optional=MORE)
OPTIONS = [*[{}] * 6, *[{"task": "t"}] * 6, {"grader": "contains", "answer": "é🌍"},
           {"task": "u", "split": "train"}, {"task": "u", "split": "test"}]
VALID = st.integers(0, 99).map(lambda i: {"prompt": f"p{i}", "response": f"r{i} é🌍"} | OPTIONS[i % len(OPTIONS)])
NAMES_OF_FIELDS = st.sampled_from(["prompt", "response", *formats.OF_ALL, "Task"])
STRANGE = FIELDS | st.dictionaries(NAMES_OF_FIELDS, JSON | WORDS, max_size=4)
BAD_LINES = [b"NaN", b"9" * 5000, b"[" * 2000, b'{"prompt":' * 2000, b"\xff\xfe",
             b'{"prompt": "a", "prompt": "b", "response": "c"}', b"\xef\xbb\xbf"]


def spoil(text, at, piece, cut):
    at %= len(text) + 1
    return text[:at] + piece + text[at + cut :]


def dumped(x):
    return st.booleans().map(lambda plain: json.dumps(x, ensure_ascii=plain).encode("utf-8", "surrogatepass"))


PIECES = st.binary(max_size=2) | st.sampled_from([b'"', b"\\", b"\n", b"}", b"\r"])
MUTATED = st.builds(spoil, VALID.flatmap(dumped), st.integers(0, 200), PIECES, st.integers(0, 2))
LINES = [VALID.flatmap(dumped), STRANGE.flatmap(dumped), MUTATED, st.binary(max_size=20),
         st.sampled_from([b"", b" ", *BAD_LINES])]
MARKS, ENDS = st.sampled_from([b"", b"", b"\xef\xbb\xbf"]), st.sampled_from([b"\n", b"\r\n", b"\n\n"])
SOUND = st.lists(LINES[0], min_size=5, max_size=9)
# most of the files are sound; `|` would count a strategy that is named twice once
KINDS = [SOUND, SOUND, SOUND, st.lists(LINES[0] | LINES[1], max_size=5), st.lists(st.one_of(LINES), max_size=15)]
FILE = st.builds(lambda mark, end, lines: mark + end.join(lines), MARKS, ENDS,
                 st.sampled_from(range(len(KINDS))).flatmap(KINDS.__getitem__))


def test_a_file_is_read_or_refused_in_lines(tmp_path):
    outcomes = Counter()
    paths = [str(tmp_path / name) for name in ("one.jsonl", "two\n\u202e.jsonl")]

    def check_refusal(lines, used):
        *told, last = lines
        assert len(lines) <= 10 or len(lines) == 11 and last.startswith("... and ")
        for message in lines:
            assert message.isprintable() and len(message.splitlines()) == 1 and "; " in message
        for message in lines[:10]:
            assert message.startswith(tuple(p if p.isprintable() else repr(p) for p in used))

    def check_tasks(tasks):
        assert tasks and all(t.train and t.test and t.name.strip() for t in tasks)
        plain = [t for t in tasks if not any(e.split for e in t.train + t.test)]
        prompts = [" ".join(e.prompt.split()) for t in plain for e in t.train + t.test]
        assert len(set(prompts)) == len(prompts) and all(prompts)
        for task in tasks:
            parts = [{" ".join(e.prompt.split()) for e in part} for part in (task.train, task.test)]
            assert not parts[0] & parts[1]
            for e in task.train + task.test:
                assert e.grader in GRADERS and 0 <= grade(e, e.response) <= 1
                assert e.answer != e.response or e.grader in VOICED or grade(e, e.response)
                shown = TOKENIZER.prompt(e.prompt, (e.prompt, e.response))
                assert len(shown + TOKENIZER.encode(e.response)) < CONTEXT

    @settings(max_examples=1000, deadline=None, derandomize=True)
    @given(st.lists(FILE, min_size=1, max_size=2))
    def check(files):
        used = paths[: len(files)]
        for path, content in zip(used, files):
            with open(path, "wb") as f:
                f.write(content)
        before = sorted(os.listdir(tmp_path))
        try:
            tasks = into_tasks(read(used), 0.2, 0)
        except BadInput as e:
            check_refusal(e.args, used)
            outcomes["refused in one line" if len(e.args) == 1 else "refused"] += 1
        else:
            check_tasks(tasks)
            outcomes["read"] += 1
        assert sorted(os.listdir(tmp_path)) == before

    check()
    for outcome in ("read", "refused", "refused in one line"):                    # no part of the test is idle
        assert outcomes[outcome] >= 100, outcomes
