"""The same lessons by TRL's trainer, of a tiny random chat model: TRL sees what train.py sees, and the ruler is one."""
import doctest
import json
import os
import sys

import pytest
import torch

import eval as evaluate
import train
from chat import OFFICIAL
from conftest import ROOT
from model import GPT
from test_chat_train import here, run  # noqa: F401
from test_train import equal

sys.path.insert(1, os.path.join(ROOT, "lab"))
import smollm2
import trl_smollm2

LESSON = ("--init base --demos capitals.jsonl --keep capitals.jsonl --neighbours talk.jsonl --open-prompts talk.jsonl "
          "--grader contains --steps 2 --batch-size 4 --max-new-tokens 4 --lr 5e-3 --warmup 1 --measure-every 1 "
          "--threads 1 --device cpu").split()
with_trl = pytest.mark.skipif(bool(trl_smollm2.MISSING), reason=f"TRL is needed: {trl_smollm2.MISSING}")


def words(**options):
    """The lesson with other options; None leaves one out."""
    left = {key: value for key, value in zip(LESSON[::2], LESSON[1::2])}
    left |= {"--" + name.replace("_", "-"): value for name, value in options.items()}
    return [word for key, value in left.items() if value is not None for word in (key, *value.split("\n"))]


def said(capsys, argv) -> str:
    """The one line in which a command ends."""
    with pytest.raises(SystemExit) as e:
        trl_smollm2.main(argv)
    assert e.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_without_trl_a_line_says_what_to_install(here, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(trl_smollm2, "MISSING", "No module named 'trl'")
    line = said(capsys, words(out="a"))
    assert line == "trl_smollm2.py: No module named 'trl'; pip install trl==1.16.0 transformers datasets"
    assert not os.path.exists("a")


@pytest.mark.parametrize("options, named", [
    ({"contrast": "1"}, "--contrast 1.0: means nothing to TRL's trainer here; leave it out"),
    ({"max_new_tokens": None}, "--max-new-tokens is missing"),
    ({"template": "earlier-turn"}, "--template earlier-turn: "),
    ({"template": "no words"}, "the template 'no words' lacks {prompt} and {demo}; write"),
    ({"demos": "nowhere.jsonl"}, "nowhere.jsonl: "),
    ({"demos": "capitals.jsonl\ntalk.jsonl"}, "--demos: 2 tasks ('capitals, talk'), and TRL's trainer is given one"),
    ({"demos": "tools.jsonl"}, "tools.jsonl:1: 'user: What is town 0?' has tools"),
    ({"init": "small"}, "--init small: the small GPT"),
    ({"init": "nowhere"}, "nowhere: no model there"),
    ({"steps": "many"}, "argument --steps: invalid int value: 'many'; all options: python "),
])
def test_what_cannot_be_taught_is_refused_in_one_line(here, monkeypatch, capsys, options, named):  # noqa: F811
    monkeypatch.setattr(trl_smollm2, "MISSING", "")
    monkeypatch.setattr(trl_smollm2, "teach", lambda *_: pytest.fail("was taught"))
    os.makedirs("small")
    for file in ("config.json", "words.json"):
        with open(os.path.join("small", file), "w") as f:
            f.write("{}")
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    with open("capitals.jsonl") as f, open("tools.jsonl", "w") as g:
        g.writelines(json.dumps(json.loads(line) | {"tools": [tool]}) + "\n" for line in f)
    assert named in said(capsys, words(out="a", **options))


def test_the_batches_are_those_of_train_py(here, monkeypatch):  # noqa: F811
    asked, collate = [], train.collate

    def watched(examples, *rest):
        asked.extend(e.prompt for e in examples)
        return collate(examples, *rest)

    monkeypatch.setattr(train, "collate", watched)
    run("--seed", "3", "--contrast", "0", "--out", "a", demos=["capitals.jsonl"])
    config = train.parse(["--init", "base", "--demos", "capitals.jsonl", "--out", "b", "--seed", "3"])
    task, = train.read_lessons(config).tasks
    assert [e.prompt for e in trl_smollm2.drawn(task.train, 3, 4, 3)] == asked


def test_doctests():
    assert doctest.testmod(trl_smollm2) == (0, 1)


@with_trl
def test_the_template_that_is_named_trls_is_trls():
    default = trl_smollm2.SDFTConfig.__dataclass_fields__["teacher_prompt_template"].default
    assert trl_smollm2.in_trl_words(trl_smollm2.TEMPLATE) == default


@with_trl
def test_both_methods_are_taught_and_measured_as_by_train_py(here, monkeypatch, capsys):  # noqa: F811
    """Of each: what student and teacher are shown, what the result says, and the model that is left."""
    rows, hook = [], trl_smollm2.Watch.on_self_distillation_batch_prepared

    def watched(self, *, prompt_ids, teacher_input_ids, teacher_attention_mask, **rest):
        rows.extend(zip(prompt_ids.tolist(), (ids[kept == 1].tolist() for ids, kept in
                                              zip(teacher_input_ids, teacher_attention_mask))))
        hook(self, teacher_attention_mask=teacher_attention_mask, **rest)

    monkeypatch.setattr(trl_smollm2.Watch, "on_self_distillation_batch_prepared", watched)
    monkeypatch.setattr(smollm2, "say", lambda _: [])
    base, found, weights = GPT.from_pretrained("base").state_dict(), {}, {}
    for name, options, template in (("plain", [], trl_smollm2.TEMPLATE), ("paper", ["--paper"], OFFICIAL)):
        rows.clear()
        trl_smollm2.main([*words(out=name), *options])
        model, tokenizer, _ = evaluate.load_model(name, template)
        weights[name] = model.state_dict()
        # every matrix has moved
        assert not any(torch.equal(w, base[key]) for key, w in weights[name].items() if w.ndim == 2)

        task, = train.read_lessons(trl_smollm2.parse(words(out=name))[0]).tasks
        examples = trl_smollm2.drawn(task.train, 2, 4, 0)
        assert len(rows) == len(examples) == 8
        for (student, teacher), e in zip(rows, examples):
            bare, behind = tokenizer.prompt(e.asked), tokenizer.prompt(e.asked, e.shown)
            # TRL pads on the left
            assert student[-len(bare):] == bare and teacher[:len(behind)] == behind
            assert 1 <= len(teacher) - len(behind) <= 4

        with open(os.path.join(name, "result.json")) as f:
            result = json.load(f)
        tokens = sum(len(teacher) - len(tokenizer.prompt(e.asked, e.shown)) for (_, teacher), e in zip(rows, examples))
        assert result["generated_tokens"] == [tokens] and result["steps"] == [2] and result["peak_mb"] > 100
        assert result["versions"].keys() == {"python", "torch", "numpy", "trl", "transformers"}
        assert {"commit", "machine", "command"} <= result.keys() and result["seconds"][0] > 0
        assert result["settings"]["template"] == template and len(result["ceiling"]) == 1
        told = result["settings"]["trl"]
        assert (told["teacher_model_kind"], told["distillation_mode"], told["lr_scheduler_type"]) == (
            ("ema", "full_logits", "constant_with_warmup") if options else ("base", "topk_logits", "linear"))
        assert f"  distillation_mode {json.dumps(told['distillation_mode'])}\n" in capsys.readouterr().out
        found[name] = row = smollm2.found(smollm2.Job(name, "lab/trl_smollm2.py", "", ("sentences", 0, name)))
        first, within, last = row["curve"]
        assert [first["step"], within["step"], last["step"]] == [0, 1, 2]
        # TRL's warm-up begins at rate 0: the first step moves nothing
        assert str(first | {"step": 1, "drift": within["drift"]}) == str(within) and within["drift"] < 1e-3
        assert last["drift"] == row["drift"] > 0.01

    # the ruler begins at the same base, with which train.py begins too
    assert str(found["plain"]["curve"][0]) == str(found["paper"]["curve"][0])
    assert not equal(weights["plain"], weights["paper"])
    ruler = run("--bf16", "--max-new-tokens", "4", "--neighbours", "talk.jsonl", "--out", "ours",
                demos=["capitals.jsonl"])
    with open("plain/result.json") as f:
        theirs = json.load(f)
    for figure in smollm2.FIGURES.values():
        assert str(ruler[figure][0]) == str(theirs[figure][0])


@with_trl
def test_the_same_command_finds_the_same(here):  # noqa: F811
    for name in ("a", "b"):
        # measuring draws nothing
        trl_smollm2.main(words(out=name, measure_every="1" if name == "a" else "0"))
    assert equal(GPT.from_pretrained("a/model").state_dict(), GPT.from_pretrained("b/model").state_dict())
