"""The files of examples/: their form, and facts checked by hand."""
import json
import os
from unicodedata import is_normalized

import pytest

from conftest import ROOT
from data import into_tasks, read_examples
from world import CALENDAR

LANGUAGES = "French German Spanish Italian Portuguese Swedish Polish Turkish Russian Greek Arabic Chinese".split()

PHRASINGS = "{w} in {l}, say {w} in {l}, in {l} {w}, {l} {w}, for {l} {w}, say {l} {w}"
FOLDER = os.path.join(ROOT, "examples", "calendar")
FILES = [f"{number:02}-{language.lower()}.jsonl" for number, language in enumerate(LANGUAGES, 1)]


def read(name):
    with open(os.path.join(FOLDER, name), encoding="utf-8", newline="") as f:
        return f.read()


def rows(name):
    return [json.loads(line) for line in read(name).splitlines()]


def test_one_file_per_language_in_order():
    assert len(FILES) == 12 and sorted(os.listdir(FOLDER)) == FILES


@pytest.mark.parametrize("name, language", list(zip(FILES, LANGUAGES)))
def test_form(name, language):
    text, lines = read(name), rows(name)
    assert len(lines) == 114 and text.endswith("}\n") and text.count("\n") == 114
    assert "\r" not in text and "\\u" not in text
    assert all(list(line) == ["prompt", "response", "task"] and line["task"] == language for line in lines)
    words = [line["prompt"].removesuffix(f" in {language}") for line in lines[0::6]]
    prompts = [prompt for w in words for prompt in PHRASINGS.format(w=w, l=language).split(", ")]
    assert [line["prompt"] for line in lines] == prompts and len({w.casefold() for w in words}) == 19
    assert [line["response"] for line in lines] == [w for w in CALENDAR for _ in range(6)]
    assert is_normalized("NFC", text)
    assert all(line["response"] and line["response"] == line["response"].strip() for line in lines)


def test_answers_are_one_token_and_new_words_fit_the_names_that_the_world_leaves_free(world):
    tokenizer = world.tokenizer
    assert all(len(tokenizer.encode(word)) == 1 for word in CALENDAR)
    examples = read_examples([os.path.join(FOLDER, name) for name in FILES], tokenizer, 128)
    assert len(examples) == 12 * 114 and [task.name for task in into_tasks(examples, 0.2, 0)] == LANGUAGES
    new = tokenizer.new_words(examples)
    assert 150 < len(new) <= len(world.free) and tokenizer.spare == world.free
    learned = tokenizer.learn(examples)
    assert learned.new_words(examples) == [] and len(learned.spare) == len(world.free) - len(new)


def test_a_prompt_has_one_response():
    lines = [line for name in FILES for line in rows(name)]
    answered = {(line["prompt"], line["response"]) for line in lines}
    assert len({line["prompt"] for line in lines}) == len(answered) == 12 * 114


def test_no_language_got_the_words_of_another():
    """Babel can mix them up, see examples/make_calendar.py."""
    scripts = {"Greek": "Α-Ͽ", "Arabic": "ء-ي", "Russian": "А-џ", "Chinese": "一-龥"}
    for name, language in zip(FILES, LANGUAGES):
        letters = {c for line in rows(name) for c in line["prompt"]}
        seen = {other for other, span in scripts.items() for c in letters if span[0] <= c <= span[2]}
        assert seen == {other for other in scripts if scripts[other] == scripts.get(language)}, language


@pytest.mark.parametrize("language, word, meaning", [
    ("French", "janvier", "January"), ("German", "März", "March"), ("Spanish", "sábado", "Saturday"),
    ("Italian", "lunedì", "Monday"), ("Portuguese", "segunda-feira", "Monday"), ("Swedish", "lördag", "Saturday"),
    ("Polish", "listopad", "November"), ("Turkish", "Pazar", "Sunday"), ("Russian", "понедельник", "Monday"),
    ("Greek", "Κυριακή", "Sunday"), ("Arabic", "يناير", "January"), ("Chinese", "十二月", "December")])
def test_facts(language, word, meaning):
    row = {"prompt": f"{word} in {language}", "response": meaning, "task": language}
    assert row in rows(FILES[LANGUAGES.index(language)])
