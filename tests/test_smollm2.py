"""SmolLM2-135M-Instruct itself, fetched once: what transformers makes of it, we make of it. Skipped where it cannot be
had. The tests of small random folders are in test_model.py and test_chat.py."""
import os
import random
import sys

import pytest
import torch

from chat import ChatTokenizer
from conftest import ROOT
from data import pad
from model import GPT
from runs import BadInput

sys.path.insert(0, os.path.join(ROOT, "examples"))
import fetch_smollm2

FOLDER = os.path.join(ROOT, "out", "smollm2")
TOPICS = ("the moon,rain,a violin,bread,Portugal,a lighthouse,whales,glass,the number 7,12 x 12,chess,snow,ÅNGSTRÖM,"
          "naïve bayes,東京,Привет,🙂 and 🚀,silk,1984,a compass").split(",")
ASKED = ["What is {}?", "Tell me one fact about {}.", "Write a short line on {}\n\nin plain words."]
PROMPTS = [asked.format(topic) for topic in TOPICS for asked in ASKED][:50]


@pytest.fixture(scope="module")
def folder():
    try:
        fetch_smollm2.fetch(FOLDER)
    except BadInput as e:
        pytest.skip(str(e))
    return FOLDER


@pytest.fixture(scope="module")
def theirs(folder):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return GPT.from_pretrained(folder), ChatTokenizer(folder)


def test_prompts_are_cut_into_the_same_tokens(theirs, ours):
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        expected = theirs[1].apply_chat_template(messages, add_generation_prompt=True)
        assert ours[1].prompt(prompt) == expected["input_ids"]
    assert ours[1].end == theirs[1].eos_token_id


def test_random_texts_are_cut_into_the_same_tokens(theirs, ours):
    rng = random.Random(0)
    alphabet = "abcdefgh ABC \n\t0123456789'.,-éßñ中文字日本語العربيةहिन्दी🙂🚀\u200d\u0301"
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randrange(1, 60)))
        assert ours[1].encode(text) == theirs[1].encode(text, add_special_tokens=False)


@torch.no_grad()
def test_logits_are_those_of_transformers(theirs, ours):
    """fp32 sums in another order: of logits up to 20 or so, a ten-thousandth may differ."""
    for prompt in PROMPTS[::10]:
        ids = torch.tensor([ours[1].prompt(prompt)])
        a, b = ours[0](ids), theirs[0](ids).logits
        assert (a - b).abs().max() < 1e-4 * b.abs().max() and torch.equal(a.argmax(-1), b.argmax(-1))


def test_fifty_greedy_answers_are_those_of_transformers(theirs, ours):
    """Ours in one batch padded on the right, theirs in one padded on the left."""
    rows = [ours[1].prompt(prompt) for prompt in PROMPTS]
    said, mask = ours[0].generate(*pad(rows, ours[1].end), 16, ours[1].end, temperature=0)
    longest = max(map(len, rows))
    left = torch.tensor([[ours[1].end] * (longest - len(row)) + row for row in rows])
    seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    expected = theirs[0].generate(left, attention_mask=seen, max_new_tokens=16, do_sample=False)[:, longest:]
    for mine, n, other in zip(said.tolist(), mask.sum(1).tolist(), expected.tolist()):
        assert mine[:n] == other[:n]
        assert len(ours[1].decode(mine)) > 0
