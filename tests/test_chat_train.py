"""A chat model, from a Hugging Face folder to one: a tiny random one, which knows nothing and is taught all the
same."""
import copy
import errno
import json
import os
import re

import numpy as np
import pytest
import torch

import eval as evaluate
import model
import penalties
import sdft
import train
from chat import OFFICIAL
from conftest import random_gpt
from data import Example, read_examples
from model import GPT, Sampler
from runs import BadInput, locked
from test_chat import FILES, write
from test_train import equal, raise_after, saved_by, teach

transformers = pytest.importorskip("transformers")

TINY = ("--batch-size 4 --steps 3 --guard 0 --converged 0 --watch-every 2 --save-every 1 --threads 1 "
        "--device cpu --grader contains").split()
WORDS = "Paris Rome Oslo Madrid Vienna Athens Lisbon Dublin".split()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a chat model, `base`, and with files: chats of one turn and of two, and open prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(penalties, "DREAMS", 600)             # some of so many random texts end
    write_model(tmp_path / "base")
    write_rows("capitals.jsonl", [[("user", f"What is town {i}?"), ("assistant", f"It is {word}.")]
                                  for i, word in enumerate(WORDS)])
    write_rows("talk.jsonl", [[("system", "Be brief."), ("user", "Hello!"), ("assistant", "Hi."),
                               ("user", f"And town {i}?"), ("assistant", f"{word}.")] for i, word in enumerate(WORDS)])
    return tmp_path


def write_model(folder):
    """A chat model of random weights, as a Hugging Face folder."""
    vocab = -(-max(FILES["rare"]["model"]["vocab"].values()) // 64) * 64 + 64
    random_gpt(0, vocab, gated=True, tied=True, n_kv_head=1, context=1024).save_pretrained(folder)
    write(folder, FILES["rare"], bos_token="<|im_start|>", eos_token="<|im_end|>",
          tokenizer_class="PreTrainedTokenizerFast")


def write_rows(name, chats):
    with open(name, "w") as f:
        for chat in chats:
            f.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in chat]}) + "\n")


def run(*options, demos=("capitals.jsonl", "talk.jsonl")):
    return teach(["--init", "base", "--demos", *demos, "--keep", "capitals.jsonl", "--open-prompts", "talk.jsonl",
                  *TINY, *options])


FULL = ["--sampler", "0.5", "--contrast", "1", "--penalty", "self-replay"]


@pytest.mark.parametrize("options", [["--method", "sft"], FULL])
def test_a_run_leaves_a_folder_that_transformers_loads(here, options):
    result = run(*options, "--out", "a")
    weights = saved_by("a", "student")
    start = GPT.from_pretrained("base").state_dict()
    assert not any(torch.equal(w, start[k]) for k, w in weights.items() if w.ndim == 2)    # all were trained
    ours, tokenizer, _ = evaluate.load_model("a")
    assert equal(ours.state_dict(), weights)
    theirs = transformers.AutoModelForCausalLM.from_pretrained("a/model", dtype=torch.float32)
    ids = torch.tensor([tokenizer.prompt("What is town 3?")])
    torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    assert transformers.AutoTokenizer.from_pretrained("a/model").decode(ids[0]) == tokenizer.show(ids[0].tolist())
    # the teacher is another model, in the checkpoint
    assert not equal(saved_by("a", "teacher"), weights)
    assert isinstance(evaluate.ask("a", "What is town 3?"), str)
    assert len(result["kept"]) == len(result["open_words"]) == 3 and result["open_words"][0] > 0
    assert 0 < result["saving_seconds"] < result["wall_seconds"]
    assert result["steps"] == [3, 3] and len(result["ceiling"]) == (0 if "sft" in options else 2)
    # and another run may start from it
    config = train.parse(["--init", "a", "--demos", "capitals.jsonl", "--out", "b"])
    assert train.read_lessons(config).folder == "a/model"


@pytest.mark.parametrize("options", [["--method", "sft", "--blend", "0.5"], FULL, ["--bf16", "--shown", "1"]])
@pytest.mark.parametrize("killed_at", [1, 4])
def test_a_killed_run_resumed_equals_the_straight_run_bit_for_bit(here, monkeypatch, options, killed_at):
    straight = run(*options, "--out", "straight")
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        raise_after(patch, killed_at, SystemError("killed"))
        run(*options, "--out", "killed")
    resumed = teach(["--out", "killed", "--resume"])
    for name in ("student", "teacher"):
        assert equal(saved_by("straight", name), saved_by("killed", name))
    # as text: NaN is not NaN
    for name in ("R", "kept", "open_words", "drift_base", "ceiling", "left_out", "teacher_curve", "generated_tokens"):
        assert str(straight[name]) == str(resumed[name])
    assert equal(GPT.from_pretrained("straight/model").state_dict(), GPT.from_pretrained("killed/model").state_dict())


def test_of_many_demonstrations_some_are_asked_first(here, monkeypatch):
    """Those are what a contrast shows, too, also of a run that goes on; who leaves rows out has asked all."""
    monkeypatch.setattr(train, "LOOKED_AT", 3)
    asked = []
    monkeypatch.setattr(train, "answers", lambda model, tokenizer, examples, *rest, **options: asked.append(examples) or
                        evaluate.answers(model, tokenizer, examples, *rest, **options))
    config = train.parse(["--init", "base", "--demos", "capitals.jsonl", "--contrast", "1", *TINY, "--out", "a"])
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        raise_after(patch, 1, SystemError("killed"))
        train.learn(started := train.begin(config, train.read_lessons(config)))
    # bare, and shown
    bare, shown = asked
    every = started.lessons.tasks[0].train
    places = [every.index(e) for e in bare]
    assert places == [every.index(e) for e in shown] == sorted(set(places)) and len(places) == 3 < len(every)
    own = [e.shown for e in started.own]
    config = train.parse(["--out", "a", "--resume"])
    gone_on = train.begin(config, train.read_lessons(config))
    assert [e.shown for e in gone_on.own] == own and len(own) == 3
    config.helped_only = True
    assert train.asked_first(config, started.lessons.tasks[0]) == every
    # a contrast needs another prompt among them
    monkeypatch.setattr(train, "LOOKED_AT", 1)
    with pytest.raises(BadInput, match=r"--contrast 1.0: all demonstrations of a task \(capitals\) answer the same"):
        run("--contrast", "1", "--out", "b", demos=["capitals.jsonl"])


def test_what_the_teacher_cannot_read_is_not_taught(here, capsys):
    """The tiny model answers no demonstration rightly: rows and remedy are named, and no step is made."""
    with pytest.raises(BadInput) as e:
        run("--guard", "0.5", "--out", "a")
    *rows, last = e.value.args
    named = r"capitals.jsonl:\d: shown 'It is \w+\.', it answers '"
    assert len(rows) == 6 and all(re.match(named, row) for row in rows)
    assert "--guard 0.5: " in last and "answers 0.00 of them rightly" in last
    assert "--grader contains" in last and "another --template" in last
    assert os.listdir("a") == ["log.jsonl"]                # no step, and no models of GBs
    said = capsys.readouterr().out
    assert "the student sees   <|im_start|>" in said and "This is an example for a response to the question:" in said


def test_where_others_are_shown_it_says_so(here, capsys):
    """With --shown 2 the prompts that are printed, and what is said of a row, hold two other rows' demonstrations."""
    with pytest.raises(BadInput) as e:
        run("--guard", "0.5", "--shown", "2", "--out", "a", demos=["capitals.jsonl"])
    for row in e.value.args[:6]:
        place, shown = re.match(r"capitals.jsonl:(\d): shown '(.*?)', it answers", row).groups()
        assert shown.count("It is ") == 2 and WORDS[int(place) - 1] not in shown
    said = capsys.readouterr().out
    teacher = re.search("the teacher sees +(.*)", said, re.DOTALL)[1].split("\ntask 1")[0]
    number, = set(re.findall(r"town (\d)", re.search("the student sees +(.*?)\nthe teacher", said, re.DOTALL)[1]))
    assert WORDS[int(number)] not in teacher and sum(word in teacher for word in WORDS) == 2


def test_only_what_helps_is_trained_on_where_asked(here, monkeypatch, capsys):
    """Of the demonstrations, those of even numbers are read."""
    asked, collate = [], train.collate

    def said(model, tokenizer, examples, shown=False, **options):
        return [e.response if shown and int(re.search(r"\d+", e.prompt)[0]) % 2 == 0 else "?" for e in examples]

    def watched(examples, *rest):
        asked.extend(e.prompt for e in examples)
        return collate(examples, *rest)

    monkeypatch.setattr(train, "answers", said)
    monkeypatch.setattr(train, "collate", watched)
    monkeypatch.setattr("lessons.check_shown", lambda *_: None)
    result = run("--helped-only", "--guard", "0", "--out", "a", demos=["capitals.jsonl"])
    numbers = {int(re.search(r"\d+", text)[0]) for text in asked}
    assert numbers and all(n % 2 == 0 for n in numbers)
    assert 0 < result["ceiling"][0] < 1 and len(result["left_out"][0]) == round((1 - result["ceiling"][0]) * 6)
    assert "left out:\ncapitals.jsonl:" in capsys.readouterr().out


def test_what_is_left_out_is_neither_replayed_nor_counted_as_learned(here, monkeypatch):
    """And a run that goes on has left out the same."""
    def said(model, tokenizer, examples, shown=False, **options):
        return [e.response if shown and number(e.prompt) % 2 == 0 else "?" for e in examples]

    def number(prompt):
        return int(re.search(r"\d+", prompt)[0])

    def watched(examples, *rest):
        taught.extend(examples)
        return collate(examples, *rest)

    taught, collate = [], train.collate
    write_rows("more.jsonl", [[("user", f"Hill {i}?"), ("assistant", "It is high.")] for i in range(8)])
    options = ["--helped-only", "--guard", "0", "--penalty", "replay", "--strength", "1"]
    demos = ["capitals.jsonl", "more.jsonl"]
    monkeypatch.setattr(train, "answers", said)
    with monkeypatch.context() as patch:
        patch.setattr("lessons.check_shown", lambda *_: None)
        patch.setattr(train, "collate", watched)
        patch.setattr(penalties, "collate", watched)
        run(*options, "--out", "a", demos=demos)
    # before the first task, nothing has been left out
    asked = [row["prompt"] for row in map(json.loads, open("a/answers.jsonl"))
             if row["of"] in ("learned 1", "learned 2")]
    assert taught and asked and all(number(prompt) % 2 == 0 for prompt in [*(e.prompt for e in taught), *asked])
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        raise_after(patch, 4, SystemError("killed"))
        run(*options, "--out", "b", demos=demos)
    teach(["--out", "b", "--resume"])
    assert equal(saved_by("a", "student"), saved_by("b", "student"))


def test_what_is_left_out_is_tested_where_nothing_is_held_out(here):
    lessons = train.read_lessons(train.parse(["--init", "base", "--demos", "capitals.jsonl", "--holdout", "0"]))
    task = lessons.tasks[0]
    train.leave_out(task, [0, 5])
    assert len(task.test) == 8 and task.train == [e for e in task.test if e not in (task.test[0], task.test[5])]


def test_the_template_is_a_text_a_file_or_an_earlier_turn(here):
    (here / "words.txt").write_text("{demo} | {prompt}\n")

    def seen(*options):
        config = train.parse(["--init", "base", "--demos", "capitals.jsonl", "--out", "a", *options])
        lessons = train.read_lessons(config)
        return train.both_prompts(lessons.tasks[0], lessons.tokenizer).split("the teacher sees   ")[1]

    e = train.read_lessons(train.parse(["--init", "base", "--demos", "capitals.jsonl", "--out", "a"])).tasks[0].train[0]
    assert OFFICIAL.format(prompt=e.prompt, demo=e.response) in seen()
    assert f"{e.response} | {e.prompt}<|im_end|>" in seen("--template", "words.txt")
    assert f"{e.prompt}: {e.response}!<|im_end|>" in seen("--template", "{prompt}: {demo}!")
    turns = f"user\n{e.prompt}<|im_end|>\n<|im_start|>assistant\n{e.response}<|im_end|>\n<|im_start|>user\n{e.prompt}"
    assert turns in seen("--template", "earlier-turn")


@pytest.mark.parametrize("options, contrast", [
    ([], 1.0), (["--contrast", "0"], 0.0), (["--contrast", "0.5"], 0.5), (["--shown", "1"], 0.0),
    (["--method", "sft"], 0.0), (["--alpha", "1"], 0.0),
])
def test_a_chat_model_is_taught_with_contrast(here, options, contrast):
    assert train.parse(["--init", "base", "--demos", "capitals.jsonl", *options]).contrast == contrast


@pytest.mark.parametrize("options, said", [
    (["--template", "no fields"], "lacks {prompt} and {demo}"),
    (["--contrast", "1", "--shown", "1"], "goes with --method sdft without --shown"),
    (["--contrast", "1", "--method", "sft"], "goes with --method sdft without --shown"),
    (["--penalty", "ewc"], "a chat model is trained by AdamW; choose"),
    (["--method", "sft", "--template", "{prompt} {demo}"], "--template"),
])
def test_options_that_do_not_fit_a_chat_model(here, options, said):
    with pytest.raises(BadInput, match=re.escape(said)):
        run("--out", "a", *options)
    assert not (here / "a").exists()


def test_a_new_run_takes_the_place_of_an_old_model_but_not_of_its_own_start(here):
    options = ["--demos", "capitals.jsonl", *TINY, "--method", "sft"]
    train.main(["--init", "base", *options, "--out", "a"])
    kept = (here / "a/model/model.safetensors").read_bytes()
    for init in ("a", "a/model"):
        with pytest.raises(SystemExit):
            train.main(["--init", init, *options, "--out", "a"])
    assert (here / "a/model/model.safetensors").read_bytes() == kept
    with pytest.raises(SystemExit):                        # nothing of this run is there, nor of the other
        train.main(["--init", "base", "--demos", "capitals.jsonl", *TINY, "--guard", "0.9", "--out", "a"])
    assert not (here / "a/model").exists()


def test_a_chat_model_is_shown_as_student_and_teacher(here, capsys):
    run("--out", "a")
    evaluate.show("a", ["capitals.jsonl"])
    said = capsys.readouterr().out
    assert "the teacher sees   <|im_start|>system" in said and "nats a token" in said
    evaluate.show("a")                                     # what it was taught, in its own words
    assert "Now answer with a response of your own" in capsys.readouterr().out
    run("--out", "b", "--template", "{demo} then {prompt}")
    evaluate.show("b")
    assert "It is Paris. then What is town 0?" in capsys.readouterr().out
    evaluate.show("base", ["capitals.jsonl"])
    assert "the student says" in capsys.readouterr().out
    with pytest.raises(BadInput, match="name a file too"):
        evaluate.show("base")


def test_a_run_that_has_not_learned_its_first_task_is_gone_on_with(here, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        raise_after(patch, 2, SystemError("killed"))
        run("--out", "a")
    with pytest.raises(BadInput, match="train.py --out a --resume"):
        evaluate.load_model("a")


def test_what_a_kill_left_half_written_is_taken_away(here):
    for name in ("model.12.part", "model.12.old"):
        (here / "a" / name).mkdir(parents=True)
        (here / "a" / name / "config.json").write_text("{")
    with locked("a"):
        assert sorted(p.name for p in (here / "a").iterdir()) == ["lock"]


def test_no_space_left_for_the_models_folder(here, monkeypatch, capsys):
    """What was saved before is whole, nothing half written stays, and the run goes on to the same end."""
    straight, real = run(*FULL, "--out", "straight"), model.write_safetensors
    calls = []

    def full(path, weights, types):
        calls.append(path)
        if len(calls) == 2:                                # of the second task: a model of the first is there
            open(path, "w").close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, weights, types)

    monkeypatch.setattr(model, "write_safetensors", full)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train.main(["--init", "base", "--demos", "capitals.jsonl", "talk.jsonl", "--keep", "capitals.jsonl",
                    "--open-prompts", "talk.jsonl", *TINY, *FULL, "--out", "full"])
    assert capsys.readouterr().err.startswith("full: No space left on device; make room there")
    assert sorted(os.listdir("full")) == ["checkpoint.pt", "lock", "log.jsonl", "model"]
    first = GPT.from_pretrained("full/model").state_dict()
    resumed = teach(["--out", "full", "--resume"])
    assert len(calls) == 3 and str(resumed["R"]) == str(straight["R"])
    last = GPT.from_pretrained("full/model").state_dict()
    assert equal(last, GPT.from_pretrained("straight/model").state_dict()) and not equal(last, first)


def test_a_folder_of_that_name_that_no_run_has_made_stays(here):
    (here / "a" / "model").mkdir(parents=True)
    (here / "a" / "model" / "config.json").write_text("mine")
    with pytest.raises(SystemExit):
        train.main(["--init", "base", "--demos", "capitals.jsonl", *TINY, "--out", "a"])
    assert (here / "a/model/config.json").read_text() == "mine"


def test_rows_that_share_their_context_have_no_contrast(here):
    with open("handbook.jsonl", "w") as f:
        for i in range(6):
            row = {"prompt": f"Town {i}?", "completion": f"It is {WORDS[i]}.", "privileged_context": "The handbook."}
            f.write(json.dumps(row) + "\n")
    with pytest.raises(BadInput, match="say the same, and a contrast needs another one"):
        run("--out", "a", "--contrast", "1", "--against", "row", demos=["handbook.jsonl"])


def test_answers_are_the_same_however_many_are_asked_at_once(here, monkeypatch):
    model, tokenizer, _ = evaluate.load_model("base")
    rows = read_examples(["capitals.jsonl", "talk.jsonl"], tokenizer, 512)
    together = evaluate.answers(model, tokenizer, rows, room=20)
    monkeypatch.setattr(evaluate, "AT_ONCE", 300)
    sizes, generate = [], GPT.generate
    monkeypatch.setattr(GPT, "generate", lambda self, p, *a, **k: sizes.append(len(p)) or generate(self, p, *a, **k))
    assert evaluate.answers(model, tokenizer, rows, room=20) == together
    assert sum(sizes) == len(rows) and max(sizes) < 8


def test_a_contrast_needs_two_answers_among_those_that_help(here, monkeypatch):
    def said(model, tokenizer, examples, shown=False, **options):
        return [e.response if shown and i == 0 else "?" for i, e in enumerate(examples)]

    monkeypatch.setattr(train, "answers", said)
    with pytest.raises(BadInput, match="all demonstrations of a task .capitals. answer the same prompt"):
        run("--helped-only", "--contrast", "1", "--out", "a", demos=["capitals.jsonl"])


def test_a_dry_run_tells_what_was_found_and_writes_nothing(here, capsys, monkeypatch):
    monkeypatch.setattr(sdft, "sdft_step", None)
    before = sorted(p.name for p in here.iterdir())
    train.main(["--init", "base", "--demos", "capitals.jsonl", "talk.jsonl", "--dry-run", "--out", "a"])
    said = capsys.readouterr().out
    assert "capitals.jsonl: 8 rows, chat\n" in said and "talk.jsonl: 8 rows, chat, 4 turns at most\n" in said
    assert "talk: 6 to train on, 2 to test on\n" in said and "<|im_start|>system\nBe brief.<|im_end|>" in said
    assert sorted(p.name for p in here.iterdir()) == before


def test_rates_rise_and_are_what_the_guard_left_of_them(here):
    config = train.parse(["--init", "base", "--demos", "capitals.jsonl", "--out", "a", "--lr", "1e-4", "--warmup", "4"])
    run = train.begin(config, train.read_lessons(config))
    assert isinstance(run.optimizer, torch.optim.AdamW)
    found = []
    for run.step, run.rate in ((0, 1), (1, 1), (3, 1), (9, 1), (9, 0.5)):
        train.set_rates(run)
        found.append(run.optimizer.param_groups[0]["lr"])
    assert found == pytest.approx([2.5e-5, 5e-5, 1e-4, 1e-4, 5e-5])
    config.schedule, config.steps, found = "cosine", 12, []
    for run.step, run.rate in ((0, 1), (4, 1), (8, 1), (8, 0.5), (11, 1)):
        train.set_rates(run)
        found.append(run.optimizer.param_groups[0]["lr"])
    # from the end of the warm-up to a last step that is not the one at rate 0
    assert found == pytest.approx([2.5e-5, 1e-4, 5e-5, 2.5e-5, 1e-4 * (1 + np.cos(7 / 8 * np.pi)) / 2])
    run.log.leave()


def test_a_log_tells_what_a_mean_loss_hides(here, capsys, monkeypatch):
    """Of a teacher that is the student, shown a demonstration; and of samples whose room is cut."""
    run("--out", "a", "--max-new-tokens", "3", "--watch-every", "1", "--ema-decay", "0", "--lr", "1e-30",
        "--contrast", "0")
    with open("a/log.jsonl") as f:
        steps = [row for row in map(json.loads, f) if "step" in row]
    assert len(steps) == 6
    for row in steps:
        # random weights hardly ever say their end token
        assert row["cut"] > 0.5 and row["first_kl"] > 0 and row["rest_kl"] > 0 and 0 < row["rather"] <= 1
        # no step has moved it, so the loss of these four rows is the mean over their tokens
        said = row["tokens"] / 4
        assert row["loss"] == pytest.approx((row["first_kl"] + (said - 1) * row["rest_kl"]) / said, rel=1e-3)
    assert " kl " in capsys.readouterr().out


def test_what_is_taught_and_asked_to_be_kept_is_told(here, capsys):
    run("--keep", "talk.jsonl", "--holdout", "0", "--steps", "1", "--out", "a", demos=["talk.jsonl"])
    said = capsys.readouterr().out
    assert "--keep: 8 of 8 prompts are taught as well (the first is talk.jsonl:1)" in said
    # batches of 4 from 8, drawn anew: a half is left out by one step
    assert "1 steps of 4, drawn anew at each, leave about 50% of 8 demonstrations out" in said
    began, result = json.loads(open("a/log.jsonl").readline()), json.load(open("a/result.json"))
    assert began["lessons"] == result["lessons"] and len(result["lessons"]) == 16


def test_a_longer_context_takes_longer_rows(here):
    options = ["--init", "base", "--demos", "capitals.jsonl", "--context"]
    assert train.read_lessons(train.parse([*options, "900"])).model.config.context == 900
    with pytest.raises(BadInput, match="more than 20, half of the context; shorten it"):
        train.read_lessons(train.parse([*options, "40", "--max-new-tokens", "8"]))
    with pytest.raises(BadInput, match="max_position_embeddings is 1024, less than the context of 2000"):
        train.read_lessons(train.parse([*options, "2000"]))


def test_a_chat_models_task_ends_when_its_steps_do(here):
    options = ["--init", "base", "--demos", "capitals.jsonl"]
    assert train.parse(options).converged == 0 and train.parse([*options, "--converged", "0.1"]).converged == 0.1


def test_the_guard_does_not_take_a_batchs_chance_for_a_bad_teacher(here, monkeypatch):
    """A ceiling of 0.5 is not below a guard of 0.5; of a batch of 4, 0.25 may be chance, and 0 as well."""
    def said(model, tokenizer, examples, shown=False, **options):
        return [e.response if shown and i % 2 == 0 else "?" for i, e in enumerate(examples)]

    monkeypatch.setattr(train, "answers", said)
    monkeypatch.setattr(train, "accuracy", lambda *_, **__: 0.25)
    assert run("--guard", "0.5", "--out", "unsure", demos=["capitals.jsonl"])["guard_trips"] == 0
    # where the ceiling is 1, chance explains nothing
    monkeypatch.setattr(train, "answers", lambda m, t, examples, shown=False, **_: [e.response for e in examples])
    assert run("--guard", "0.5", "--out", "sure", demos=["capitals.jsonl"])["guard_trips"] > 0


def test_tokens_at_the_beginning_of_a_sample_are_left_out(here):
    tokens = {}
    for skip in (0, 3, 99):
        run("--out", f"skip {skip}", "--max-new-tokens", "8", "--watch-every", "1", "--skip", str(skip), "--steps", "1",
            demos=["capitals.jsonl"])
        with open(f"skip {skip}/log.jsonl") as f:
            tokens[skip] = next(row["tokens"] for row in map(json.loads, f) if "step" in row)
    # of four samples; of each at least its last token stays
    assert tokens[0] > tokens[3] > tokens[99] == 4


def test_the_last_checkpoint_of_a_run_keeps_no_moments(here, monkeypatch):
    kept, write_checkpoint = [], train.save_checkpoint
    monkeypatch.setattr(train, "save_checkpoint", lambda path, state: kept.append(len(state["optimizer"]["state"]))
                        or write_checkpoint(path, state))
    run("--out", "a", demos=["capitals.jsonl"])
    *before, last = kept
    assert min(before) > 0 == last and saved_by("a", "good") is None


def test_a_copy_in_bf16_answers_with_the_weights_of_now():
    gpt, sample, said = random_gpt(0), Sampler(end=9, bf16=True), []
    prompt, length = torch.randint(300, 900, (4, 6)), torch.full((4,), 6)
    for _ in range(2):
        response, mask = sample(gpt, prompt, length, 8, temperature=0)
        expected = model.bf16_copy(gpt).generate(prompt, length, 8, 9, temperature=0)
        assert torch.equal(response, expected[0]) and torch.equal(mask, expected[1])
        said.append(response.tolist())
        with torch.no_grad():
            for p in gpt.parameters():
                p.mul_(-1.5)
    assert said[0] != said[1] and gpt.embed.weight.dtype == torch.float32


def test_dreams_of_a_chat_model_stand_behind_its_header(here):
    model, tokenizer, _ = evaluate.load_model("base")
    prompt, length, response, mask = penalties.dream(model, tokenizer, Sampler(tokenizer.end), 600, 12)
    for row, n in zip(prompt.tolist(), length.tolist()):
        head, foot = len(tokenizer.header), len(tokenizer.footer)
        assert row[:head] == tokenizer.header and row[n - foot : n] == tokenizer.footer
        assert tokenizer.end not in row[head : n - foot]
    assert len(prompt) == len(response) and response.shape == mask.shape


def test_a_row_that_a_template_refuses_is_named(here):
    write_rows("bad.jsonl", [[("user", "a"), ("assistant", "b")], [("user", "c <|eot_id|>"), ("assistant", "d")]])
    with pytest.raises(BadInput, match=r"bad.jsonl:2: .*<\|eot_id\|>"):
        run("--out", "a", demos=["bad.jsonl"])


def test_what_the_teacher_is_shown_may_differ_from_the_answer():
    assert Example("a", "b").shown == ("a", "b") and Example("a", "b", demo="c").shown == ("a", "c")
    turns = [{"role": "user", "content": "a"}]
    assert Example("a", "b", messages=turns).asked == turns


def test_a_curve_is_measured_within_tasks_and_changes_nothing(here, monkeypatch):
    """What is measured between steps is what is measured behind a task, and training is the same without it; a run that
    is killed has the points from before."""
    plain, measured = run(*FULL, "--out", "a"), run(*FULL, "--out", "b", "--measure-every", "2")
    for name in ("student", "teacher"):
        assert equal(saved_by("a", name), saved_by("b", name))
    assert plain["curve"] == [] and [point["step"] for point in measured["curve"]] == [2, 5]
    for point in measured["curve"]:
        assert point.keys() - {"step"} <= measured.keys() and 0 <= point["learned"] <= 1 and point["drift_base"] > 0
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        raise_after(patch, 4, SystemError("killed"))
        run(*FULL, "--out", "c", "--measure-every", "2")
    assert str(teach(["--out", "c", "--resume"])["curve"]) == str(measured["curve"])


def test_of_what_a_task_changed_a_share_stays(here):
    """Training goes as without --blend, and ends part of the way from where the task began; so do the points of its
    curve. The next task begins there, and counts from there."""
    one = {"demos": ["capitals.jsonl"]}
    whole, part = run("--out", "a", **one), run("--out", "b", "--blend", "0.25", "--measure-every", "2", **one)
    start = GPT.from_pretrained("base").state_dict()
    # of the teacher as well, which would else lead the next task back
    for of in ("teacher", "student"):
        end, blended = saved_by("a", of), saved_by("b", of)
        for name, weight in start.items():
            torch.testing.assert_close(blended[name], weight + 0.25 * (end[name] - weight), rtol=0, atol=1e-7)
        assert not equal(start, blended)
    assert 0 < part["curve"][0]["drift_base"] < part["drift_base"][1] < whole["drift_base"][1]
    # a frozen teacher has changed nothing, also where the student has
    run("--out", "c", "--blend", "0.25", "--ema-decay", "1")
    assert equal(saved_by("c", "teacher"), start)


def test_a_guard_leads_no_further_back_than_to_where_a_task_began(here, monkeypatch):
    """What a blend has shed does not come back with the last good pair."""
    ends, end_task = [], train.end_task
    monkeypatch.setattr(train, "end_task", lambda run: end_task(run) or ends.append(copy.deepcopy(run.student)))
    looks = iter([1, 1, 0, 0])
    monkeypatch.setattr(train, "accuracy", lambda *_, **__: next(looks))
    monkeypatch.setattr(train, "look_at_the_teacher", lambda run, *_: run.history.ceiling.append(1.0))
    result = run("--out", "a", "--blend", "0.25", "--guard", "0.5", "--steps", "2", "--watch-every", "1")
    assert result["guard_trips"] == 2
    assert equal(ends[0].state_dict(), ends[1].state_dict())


def test_what_is_shown_leaves_room_for_what_may_be_sampled(here):
    write_rows("long.jsonl", [[("user", f"Town {i}?"), ("assistant", f"It is {word}." + " Yes." * 20)]
                              for i, word in enumerate(WORDS)])
    with pytest.raises(BadInput, match=r"--shown 5: with the 5 longest .* take \d+ tokens, more than 1024; show fewer"):
        run("--shown", "5", "--max-new-tokens", "512", "--out", "a", demos=["long.jsonl"])
    with pytest.raises(BadInput, match="the 6 demonstrations .* show fewer, or add some"):
        run("--shown", "6", "--out", "a", demos=["long.jsonl"])


def test_a_sample_has_no_more_tokens_than_it_may(here, monkeypatch):
    result = run("--sampler", "0.5", "--max-new-tokens", "2", "--out", "a")
    # two tasks of three steps of four rows
    assert all(tokens <= 3 * 4 * 2 for tokens in result["generated_tokens"])
    # what is asked of a task before, within and behind it has as much room where that is more
    asked, generate = [], GPT.generate
    monkeypatch.setattr(GPT, "generate", lambda self, *args, **more: asked.append(args[2]) or generate(
        self, *args, **more))
    run("--max-new-tokens", "40", "--contrast", "1", "--guard", "0", "--steps", "1", "--watch-every", "1", "--out", "c")
    # the base: both tasks' tests, what is trained on; of each task: bare, shown, sample, watch, and as of the base
    assert asked.count(40) == 3 + 2 * (1 + 1 + 1 + 1 + 3), asked
    with pytest.raises(BadInput, match=r"--max-new-tokens 600: more than half of the model's context of 1024"):
        run("--max-new-tokens", "600", "--out", "b")
