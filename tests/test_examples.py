"""The files of examples/: their form, and facts checked by hand."""
import json
import os
from unicodedata import is_normalized

import pytest

from conftest import ROOT
from data import CALENDAR, LANGUAGES, encode

FOLDER = os.path.join(ROOT, "examples", "calendar")
FILES = [f"{number:02}-{language.lower()}.jsonl" for number, language in enumerate(LANGUAGES, 1)]


def read(name):
    with open(os.path.join(FOLDER, name), encoding="utf-8", newline="") as f:
        return f.read()


def rows(name):
    return [json.loads(line) for line in read(name).splitlines()]


def test_one_file_per_language_in_order():
    assert len(FILES) == 20 and sorted(os.listdir(FOLDER)) == FILES


@pytest.mark.parametrize("name, language", list(zip(FILES, LANGUAGES)))
def test_form(name, language):
    text, lines = read(name), rows(name)
    assert len(lines) == 57 and text.endswith("}\n") and text.count("\n") == 57 and "\r" not in text and "\\u" not in text
    assert all(list(line) == ["prompt", "response", "task"] and line["task"] == language for line in lines)
    prompts = [p for w in CALENDAR for p in (f"{w} in {language}", f"{language} for {w}", f"say {w} in {language}")]
    assert [line["prompt"] for line in lines] == prompts
    assert is_normalized("NFC", text)
    assert all(line["response"] and line["response"] == line["response"].strip() for line in lines)


@pytest.mark.parametrize("name", FILES)
def test_length_in_tokens(name):
    assert all(len(encode(line["prompt"])) == len(line["prompt"].split()) <= 6 for line in rows(name))   # each word of a prompt is one token
    assert max(len(encode(line["response"])) for line in rows(name)) <= 28


def test_a_prompt_has_one_response():
    lines = [line for name in FILES for line in rows(name)]
    assert len({line["prompt"] for line in lines}) == len({(line["prompt"], line["response"]) for line in lines}) == 20 * 57


@pytest.mark.parametrize("name", FILES)
def test_a_fact_has_one_response_and_no_other_fact_has_it(name):
    responses = [line["response"] for line in rows(name)]
    assert responses[0::3] == responses[1::3] == responses[2::3] and len({r.casefold() for r in responses}) == 19


def test_no_language_got_the_words_of_another():                              # Babel can mix them up, see examples/make_calendar.py
    scripts = {"Greek": "Α-Ͽ", "Hebrew": "א-ת", "Arabic": "ء-ي", "Hindi": "ऀ-ॿ", "Russian": "А-џ", "Ukrainian": "А-џ", "Korean": "가-힣"}
    for name, language in zip(FILES, LANGUAGES):
        seen = {other for line in rows(name) for other, span in scripts.items() for c in line["response"] if span[0] <= c <= span[2]}
        assert seen == {other for other in scripts if scripts[other] == scripts.get(language)}, language
    shared = [len({line["response"] for line in rows(a)} & {line["response"] for line in rows(b)}) for i, a in enumerate(FILES) for b in FILES[:i]]
    assert max(shared) == 9                                                   # Dutch and Swedish: januari, februari, april, ...


@pytest.mark.parametrize("language, word, response", [
    ("French", "January", "janvier"), ("German", "March", "März"), ("Spanish", "Saturday", "sábado"), ("Italian", "Monday", "lunedì"),
    ("Portuguese", "Monday", "segunda-feira"), ("Dutch", "March", "maart"), ("Swedish", "Saturday", "lördag"), ("Polish", "November", "listopad"),
    ("Finnish", "December", "joulukuu"), ("Turkish", "Sunday", "Pazar"), ("Hungarian", "Thursday", "csütörtök"), ("Russian", "Monday", "понедельник"),
    ("Ukrainian", "November", "листопад"), ("Greek", "Sunday", "Κυριακή"), ("Hebrew", "Sunday", "יום ראשון"), ("Arabic", "January", "يناير"),
    ("Hindi", "Friday", "शुक्रवार"), ("Japanese", "Monday", "月曜日"), ("Japanese", "January", "1月"), ("Chinese", "December", "十二月"),
    ("Korean", "Sunday", "일요일"), ("Korean", "October", "10월")])
def test_facts(language, word, response):
    assert {"prompt": f"{word} in {language}", "response": response, "task": language} in rows(FILES[LANGUAGES.index(language)])
