"""Makes calendar/01-french.jsonl ... 12-chinese.jsonl: what the words for months and days mean, in twelve languages.

Every word is taken from Unicode CLDR 47 as the package Babel 2.18.0 ships it, in the stand-alone wide form, normalised
NFC. CLDR: Copyright © 2004-2025 Unicode, Inc., Unicode License v3 (SPDX: Unicode-3.0),
https://www.unicode.org/license.txt, in full in LICENSE.unicode.

Babel is not a requirement of the project. To make the files again, byte for byte:

    python3 -m venv /tmp/babel
    /tmp/babel/bin/pip install Babel==2.18.0
    /tmp/babel/bin/python examples/make_calendar.py
"""
import json
from copy import deepcopy
from pathlib import Path
from unicodedata import normalize

from babel.localedata import LocaleDataDict, load

LOCALES = "fr de es it pt sv pl tr ru el ar zh".split()
PHRASINGS = ["{word} in {language}", "say {word} in {language}", "in {language} {word}",
             "{language} {word}", "for {language} {word}", "say {language} {word}"]


def locale(code: str) -> LocaleDataDict:
    # a copy: Babel's locales share parts; after Hebrew was read, Japanese months are Hebrew (python-babel/babel#1234)
    return LocaleDataDict(deepcopy(load(code)))


def calendar(code: str) -> list[str]:
    """January ... December, Monday ... Sunday. CLDR counts months from 1, Babel counts days from Monday, 0."""
    months, days = (locale(code)[part]["stand-alone"]["wide"] for part in ("months", "days"))
    return [normalize("NFC", w) for w in [*(months[i] for i in range(1, 13)), *(days[i] for i in range(7))]]


def rows(code: str, language: str) -> list[dict]:
    """A line for each phrasing of each word."""
    found = []
    for meaning, word in zip(calendar("en"), calendar(code), strict=True):
        for phrasing in PHRASINGS:
            prompt = phrasing.format(word=word, language=language)
            found.append({"prompt": prompt, "response": meaning, "task": language})
    return found


if __name__ == "__main__":
    for number, code in enumerate(LOCALES, 1):
        language = locale("en")["languages"][code]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(code, language))
        path = Path(__file__).parent / "calendar" / f"{number:02}-{language.lower()}.jsonl"
        path.write_text(lines, encoding="utf-8", newline="\n")
