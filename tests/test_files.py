"""Tasks from files: what is read, what is refused and in which words, how answers are graded, what is held out."""
import json
import os
import socket
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import ROOT
from data import GRADERS, BadInput, Example, Task, encode, grade, prompt_ids, read_tasks, split_holdout

CONTEXT = 64


def line(prompt="2 + 2", response="four", **more):
    return json.dumps({"prompt": prompt, "response": response, **more}, ensure_ascii=False)


def write(folder, *lines, name="sums.jsonl"):
    path = folder / name
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return str(path)


def pairs(task):
    return [(e.prompt, e.own) for e in task.train]


def refusal(paths, context=CONTEXT):
    with pytest.raises(BadInput) as caught:
        read_tasks(paths, context)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and message.isprintable(), message
    assert all(part.strip() for part in message.split("; ")) and "; " in message, message        # a problem, then a remedy
    return message


# ---------------------------------------------------------------------------------------------------------------------
# What is refused. GOOD is a line that is right; a wrong one is line 3, behind it and a blank one.

GOOD = line("1 + 1", "two")
WRONG = {                         # what stands in the line, what the message says of it, a word of the remedy
    "not UTF-8": (b'{"prompt": "caf\xe9", "response": "x"}', ["byte 16", "0xe9"], "save the file as UTF-8"),
    "UTF-16": (line().encode("utf-16"), ["byte 1 ", "0xff"], "save the file as UTF-8"),
    "no JSON": ("prompt,response", ["'prompt,response'", "character 1)"], 'write {"prompt"'),
    "broken JSON": ('{"prompt": "a" "response": "b"}', ["Expecting ',' delimiter, character 16", """'{"prompt": "a" "response": "b"}'"""], "write {"),
    "cut off": ('{"prompt": "a", "response": "b', ["Unterminated string"], "write {"),
    "two objects": (line() + line(), ["Extra data"], "write {"),
    "tab in a string": ('{"prompt": "a\tb", "response": "b"}', ["Invalid control character", "\\t"], "write {"),
    "second byte order mark": ("\ufeff" + line(), ["BOM"], "write {"),
    "long integer": ('{"prompt": ' + "9" * 5000 + ', "response": "b"}', ["4300 digits"], "write {"),
    "nested too deeply": ('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}", ["recursion", "'{\"prompt\": [[[["], "write {"),
    "field twice": ('{"prompt": "a", "response": "b", "prompt": "c"}', ["twice"], "write {"),
    "NaN": ("NaN", ["nan is not an object"], "write {"),
    "null": ("null", ["None is not an object"], "write {"),
    "list": ('["a", "b"]', ["['a', 'b'] is not an object"], "write {"),
    "string": ('"a\\nb"', ["'a\\nb' is not an object"], "write {"),
    "no fields": ("{}", ['\'{}\' has no "prompt"'], "write {"),
    "no prompt": ('{"response": "b"}', ['\'{"response": "b"}\' has no "prompt"'], "write {"),
    "no response": ('{"prompt": "b"}', ['no "response"'], "write {"),
    "prompt a number": ('{"prompt": 17, "response": "b"}', ['"prompt" is 17'], "put a string"),
    "prompt infinite": ('{"prompt": -Infinity, "response": "b"}', ['"prompt" is -inf'], "put a string"),
    "prompt nested": ('{"prompt": ' + "[" * 900 + "]" * 900 + ', "response": "b"}', ['"prompt" is [[[['], "put a string"),
    "response null": ('{"prompt": "a", "response": null}', ['"response" is None'], "put a string"),
    "response a list": ('{"prompt": "a", "response": ["b"]}', ["\"response\" is ['b']"], "put a string"),
    "task a number": (line(task=3), ['"task" is 3'], "put a string"),
    "task null": (line(task=None), ['"task" is None'], "put a string"),
    "unknown field": (line(Task="x"), ["unknown field 'Task'"], '"task"'),
    "unknown fields": (line(answer="x", **{"b\n": 1}), ["unknown field 'answer', 'b\\n'"], '"task"'),
    "many unknown fields": (line(**{str(i): 0 for i in range(1000)}), ["'0', '1', '10', '100', '101';"], '"task"'),
    "empty prompt": (line(""), ['"prompt" is empty', "''"], "fill it in"),
    "blank response": (line(response=" \n\u3000"), ['"response" is empty', "' \\n\\u3000'"], "fill it in"),
    "blank task": (line(task="\t"), ['"task" is empty'], "fill it in"),
    "half a pair in prompt": ('{"prompt": "a\\ud83d", "response": "b"}', ['"prompt" is \'a\\ud83d\''], "write the character itself"),
    "half a pair in response": ('{"prompt": "a", "response": "\\udc00b"}', ['"response" is \'\\udc00b\''], "write the character itself"),
    "half a pair in task": (r'{"prompt": "a", "response": "b", "task": "\ud800"}', ['"task" is \'\\ud800\''], "write the character itself"),
    "too long": (line("a" * 30, "b"), ["'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' takes 68 tokens", "more than 64"], "shorten it"),
    "far too long": (line("x " * 10**6, "b\n"), ["...' takes 4000012 tokens"], "shorten it"),
    "another response": (line("1  +\t1", "Two"), ["'1 + 1' is answered 'Two'", "'two' at {path}:1"], "keep one"),
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


def test_long_value_is_cut_to_forty_characters(tmp_path):
    message = refusal([write(tmp_path, json.dumps({"prompt": "a" * 41, "respond": "x" * 40, "y" * 41: ""}))])
    assert "'" + "y" * 40 + "...'" in message and "'respond'" in message
    assert f"'{'z' * 40}' takes" in refusal([write(tmp_path, line("z" * 40))], context=9)


def test_terminal_codes_do_not_reach_the_terminal(tmp_path):
    for value in ("\x1b[2J", "\u202eevil", "a\u2028b", "\x85", "\x00" * 3):
        assert repr(value) in refusal([write(tmp_path, line(**{value: 1}))])


def test_two_files_that_disagree_are_both_named(tmp_path):
    a = write(tmp_path, GOOD, line("2 + 2", "four"), name="a.jsonl")
    b = write(tmp_path, "", line("3 + 3", "six"), line("2 + 2", "five"), name="b.jsonl")
    assert refusal([a, b]) == f"{b}:3: '2 + 2' is answered 'five', but 'four' at {a}:2; keep one of the two"


@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", b"\xef\xbb\xbf"], ids=["nothing", "blank lines", "a byte order mark"])
def test_file_without_an_example_is_refused(tmp_path, content):
    (tmp_path / "empty.jsonl").write_bytes(content)
    assert refusal([write(tmp_path, GOOD, line()), str(tmp_path / "empty.jsonl")]).startswith(f"{tmp_path}/empty.jsonl: empty; write {{")


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
    if os.path.exists("/proc/self/mem"):                                        # it opens, and reading fails
        yield "/proc/self/mem", "/proc/self/mem: cannot be read (Input/output error"


def test_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    for path, said in unreadable_files(tmp_path):
        message = refusal([path])
        assert said in message and message.endswith("; give a file that exists and may be read"), message
    monkeypatch.chdir(tmp_path)                                                 # the path of a socket must be short
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
    tasks = read_tasks([write(tmp_path, GOOD, line())], CONTEXT)
    assert tasks == [Task("sums", {}, 0, [Example("1 + 1", "two", "two", (), "exact"), Example("2 + 2", "four", "four", (), "exact")], [])]
    assert read_tasks([write(tmp_path, GOOD, line())], CONTEXT, "contains")[0].train[0].kind == "contains"
    assert read_tasks([], CONTEXT) == []


def test_tasks_come_in_order_of_first_appearance_over_all_files(tmp_path):
    a = write(tmp_path, line("a", "1", task="z"), line("b", "1"), line("c", "1", task="y"), name="x.y.jsonl")
    b = write(tmp_path, line("d", "1", task="y"), line("e", "1", task=" z\n"), line("f", "1", task="x.y"), name="b")
    tasks = read_tasks([a, b], CONTEXT)
    assert [(t.family, "".join(e.prompt for e in t.train)) for t in tasks] == [("z", "ae"), ("x.y", "bf"), ("y", "cd")]
    assert [t.family for t in read_tasks([b, a], CONTEXT)] == ["y", "z", "x.y"]


TEXTS = {"emoji": "👩‍👩‍👧 🌍", "tabs and newlines": "a\tb\r\n c", "right to left": "שלום \u202eعالم", "no line end": "a\u2028b\u0085c\x0bd",
         "NUL": "\0", "long word": "a" * 50, "special token": "<|end|>", "accents": "e\u0301é", "quotes": "\"\\/'", "outer space": "  a "}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("ascii", [False, True])
def test_any_text_is_read_as_it_is(tmp_path, text, ascii):
    rows = [{"prompt": prompt, "response": f"{text} {i}", "task": "t" + text} for i, prompt in enumerate([text, "other"])]
    lines = [json.dumps(row, ensure_ascii=ascii) for row in rows]
    task, = read_tasks([write(tmp_path, *lines)], 500)
    assert pairs(task) == [(text, text + " 0"), ("other", text + " 1")] and all(grade(e, e.own) for e in task.train)
    assert task.family == " ".join(("t" + text).split())


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\n\n \t\n", "\r\n\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_blank_lines_and_byte_order_mark(tmp_path, ends, mark, last):
    path = write(tmp_path, mark + GOOD + ends + line() + ends * last)
    assert pairs(read_tasks([path], CONTEXT)[0]) == [("1 + 1", "two"), ("2 + 2", "four")]


def test_what_is_said_twice_counts_once(tmp_path):
    a = write(tmp_path, GOOD, line(), GOOD, line(" 1 +  1\n", "two "), name="a.jsonl")
    assert pairs(read_tasks([a, a], CONTEXT)[0]) == [("1 + 1", "two"), ("2 + 2", "four")]
    b = write(tmp_path, GOOD, line(), name="copy.jsonl")                        # a task may not vanish unseen
    assert refusal([a, b]).startswith(f"{b}:1: task 'copy' has 0 of the two demonstrations")


def test_case_makes_two_prompts(tmp_path):
    task, = read_tasks([write(tmp_path, line("us", "we"), line("US", "states"))], CONTEXT)
    assert len(task.train) == 2


def test_the_last_token_that_fits(tmp_path):
    path = write(tmp_path, line("aaa", "bb"), line("b", "b"))
    length = len(prompt_ids("aaa", ("aaa", "bb"))) + len(encode("bb")) + 1
    assert len(read_tasks([path], length)[0].train) == 2
    assert f"takes {length} tokens" in refusal([path], length - 1)


# ---------------------------------------------------------------------------------------------------------------------
# Graders.

GRADED = [                        # grader, response, right answers, wrong answers
    ("exact", "New York", ["new york", " NEW\tYork\n"], ["", "new", "newyork", "new york.", "in new york"]),
    ("exact", "Café Straße İ", ["CAFE\u0301 STRASSE i\u0307", "café strasse İ"], ["cafe straße i"]),
    ("exact", "<|end|>", ["<|END|>"], ["end", ""]),
    ("contains", "10", ["10", "it is 10.", "(10)", "a 10\n b", "x=10"], ["", "100", "210", "1 0", "ten", "x10"]),
    ("contains", "New York", ["In new\n york, I think", "«New York»"], ["renew york", "new yorker", "york new", "new  jersey york"]),
    ("contains", "a.b (c)", ["so A.B (C)!", "a.b (c)"], ["axb (c)", "a.b c", "a.b (c)d"]),
    ("contains", "été", ["cet E\u0301TÉ-là"], ["étés", "répété", "ete"]),
    ("contains", "он", ["это ОН."], ["слон", "она"]),
    ("last-line", "42", ["42", "let me see\n42", "a\n\n 42 \n \n", "7 * 6\r\n42\r\n"], ["", "\n", "42\nsir", "is 42", "4\n2"]),
    ("last-line", "first\nso: B\n", ["so: b", "other\nSO:  B"], ["first", "first\nso: b c", "so:\nb"]),
]


@pytest.mark.parametrize("grader, response, right, wrong", GRADED)
def test_grader(grader, response, right, wrong):
    example = Example("?", response, response, (), grader)
    assert [grade(example, a) for a in [response, *right]] == [True] * (len(right) + 1)
    assert [grade(example, a) for a in wrong] == [False] * len(wrong)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(GRADERS)), st.text(min_size=1).filter(str.strip))
def test_every_grader_takes_the_response_itself_however_it_is_written(grader, text):
    example = Example("?", text, text, (), grader)
    assert grade(example, text) and grade(example, f"\n{text}  \n")
    for form in ("NFC", "NFD"):
        assert grade(example, unicodedata.normalize(form, text)), form
    assert grade(example, "so\n" + text) == (grader != "exact")
    assert not grade(example, "")


# ---------------------------------------------------------------------------------------------------------------------
# What is held out.


def task_of(n, name="t"):
    return Task(name, {}, 0, [Example(f"{i}", f"{i}", f"{i}", (), "exact") for i in range(n)])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(2, 60), st.floats(0, 1, exclude_min=True), st.integers(0, 10**6), st.text(max_size=5))
def test_holdout_parts_a_task_in_two(n, share, seed, name):
    task = task_of(n, name)
    whole = list(task.train)
    parted = split_holdout(task, share, seed)
    assert task.train == whole and task.test == []                              # the task that was given stays as it is
    assert len(parted.train) >= 1 and len(parted.test) >= 1 and abs(len(parted.test) - share * n) <= 1
    order = [whole.index(e) for e in parted.train], [whole.index(e) for e in parted.test]
    assert order[0] == sorted(order[0]) and order[1] == sorted(order[1]) and sorted(order[0] + order[1]) == list(range(n))
    assert split_holdout(task, share, seed) == parted and (parted.family, parted.items) == (name, {})


def test_holdout_of_nothing_measures_what_was_trained():
    parted = split_holdout(task_of(5), 0, 3)
    assert parted.test == parted.train == task_of(5).train


def test_holdout_depends_on_seed_and_name_and_not_on_the_hash_seed():
    split = [e.prompt for e in split_holdout(task_of(20), 0.5, 0).test]
    assert split != [e.prompt for e in split_holdout(task_of(20), 0.5, 1).test]
    assert split != [e.prompt for e in split_holdout(task_of(20, "u"), 0.5, 0).test]
    code = "import test_files as t; print([e.prompt for e in t.split_holdout(t.task_of(20), 0.5, 0).test])"
    env = {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join([ROOT, os.path.dirname(__file__)]), "PYTHONDONTWRITEBYTECODE": "1"}
    assert subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True).stdout == f"{split}\n"


# ---------------------------------------------------------------------------------------------------------------------
# Whatever a file holds, it is read or refused in one line.

JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda x: st.lists(x, max_size=3), max_leaves=4)
WORDS = st.text(st.characters(codec=None), max_size=8) | st.sampled_from(["a", "b", "a b", " ", "x" * 60, "\ud800", "\u2028", "\0"])
FIELDS = st.fixed_dictionaries({"prompt": WORDS, "response": WORDS}, optional={"task": st.sampled_from(["s", "t"])})
VALID = st.builds(lambda i, task: {"prompt": f"p{i}", "response": f"r{i} é🌍"} | task, st.integers(0, 99), st.sampled_from([{}, {"task": "t"}]))
STRANGE = FIELDS | st.dictionaries(st.sampled_from(["prompt", "response", "task", "Task"]), JSON | WORDS, max_size=4)
BAD_LINES = [b"NaN", b"9" * 5000, b"[" * 2000, b'{"prompt":' * 2000, b"\xff\xfe", b'{"prompt": "a", "prompt": "b", "response": "c"}', b"\xef\xbb\xbf"]


def spoil(text, at, piece, cut):
    at %= len(text) + 1
    return text[:at] + piece + text[at + cut :]


def dumped(x):
    return st.booleans().map(lambda ascii: json.dumps(x, ensure_ascii=ascii).encode("utf-8", "surrogatepass"))


PIECES = st.binary(max_size=2) | st.sampled_from([b'"', b"\\", b"\n", b"}", b"\r"])
MUTATED = st.builds(spoil, VALID.flatmap(dumped), st.integers(0, 200), PIECES, st.integers(0, 2))
LINES = [VALID.flatmap(dumped), STRANGE.flatmap(dumped), MUTATED, st.binary(max_size=20), st.sampled_from([b"", b" ", *BAD_LINES])]
MARKS, ENDS = st.sampled_from([b"", b"", b"\xef\xbb\xbf"]), st.sampled_from([b"\n", b"\r\n", b"\n\n"])
FILE = st.builds(lambda mark, end, lines: mark + end.join(lines), MARKS, ENDS,
                 st.lists(LINES[0], min_size=5, max_size=9) | st.lists(LINES[0] | LINES[1], max_size=5) | st.lists(st.one_of(LINES), max_size=5))


def test_a_file_is_read_or_refused_in_one_line(tmp_path):
    outcomes = Counter()
    paths = [str(tmp_path / name) for name in ("one.jsonl", "two\n\u202e.jsonl")]

    @settings(max_examples=1000, deadline=None, derandomize=True)
    @given(st.lists(FILE, min_size=1, max_size=2))
    def check(files):
        used = paths[: len(files)]
        for path, content in zip(used, files):
            with open(path, "wb") as f:
                f.write(content)
        before = sorted(os.listdir(tmp_path))
        try:
            tasks = read_tasks(used, CONTEXT)
        except BadInput as e:
            message = str(e)
            assert message.isprintable() and len(message.splitlines()) == 1 and "; " in message
            assert message.startswith(tuple(p if p.isprintable() else repr(p) for p in used))
            outcomes["refused"] += 1
        else:
            assert tasks and all(len(t.train) >= 2 and t.family.strip() for t in tasks)
            prompts = [" ".join(e.prompt.split()) for t in tasks for e in t.train]
            assert len(set(prompts)) == len(prompts) and all(prompts)
            for e in (e for t in tasks for e in t.train):
                assert grade(e, e.own) and len(prompt_ids(e.prompt, (e.prompt, e.demo)) + encode(e.own)) < CONTEXT
            outcomes["read"] += 1
        assert sorted(os.listdir(tmp_path)) == before

    check()
    assert outcomes["read"] >= 100 and outcomes["refused"] >= 100, outcomes             # neither half of the test is idle
