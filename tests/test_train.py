"""Training: optimiser and methods, resume after a kill, the guard, what is in memory, the command line's bounds."""
import ast
import dataclasses
import functools
import gc
import inspect
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import tempfile
import types
from collections import Counter

import pytest
import torch

import eval as evaluate
import lessons as lessons_module
import penalties
import pretrain
import sdft
import train
import world as world_module
from conftest import VOCAB_SIZE, random_gpt, write_world
from runs import BadInput, make_parser

TINY_BASE = ("--steps 2 --docs 8 --n-layer 1 --n-head 2 --n-embd 16 --threads 1 --device cpu").split()
TINY = ("--steps 4 --batch-size 8 --guard 0 --converged 0 --watch-every 2 --save-every 1 --threads 1 "
        "--device cpu").split()
HOME = tempfile.TemporaryDirectory()                       # of base model and worlds, for as long as the tests run


def no_gates(patch):
    """`patch` is monkeypatch.setattr: the gates of a base model, which take most of the time of a tiny one."""
    patch(pretrain, "gates", lambda model, world: dict.fromkeys(pretrain.GATES, 0.0))


@functools.cache
def tiny_base(*options) -> str:
    """The folder of a tiny base model, made once."""
    folder = tempfile.mkdtemp(dir=HOME.name)
    with pytest.MonkeyPatch.context() as patch:
        no_gates(patch.setattr)
        pretrain.main([*TINY_BASE, *options, "--out", folder])
    return folder


@functools.cache
def lessons(**options) -> tuple:
    """The options that teach a tiny base model the files of a small world, written once."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=HOME.name))
    return "--init", tiny_base(), *write_world(folder, **options)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder of one's own for the runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(penalties, "FISHER", 4)
    return tmp_path


def teach(options) -> dict:
    """What train.main does between its one line for errors and its lock."""
    config = train.parse(options)
    return train.learn(train.begin(config, train.read_lessons(config)))


def run(*options, **of_world):
    return teach([*lessons(**of_world), *TINY, *options])


def saved_by(folder, name=None):
    state = torch.load(os.path.join(folder, "checkpoint.pt"), weights_only=True)
    return state[name] if name else state


def weights_of(folder) -> dict:
    """Of the model that a run or a pretraining has left."""
    return evaluate.load_model(folder)[0].state_dict()


def words_of(folder) -> list:
    return evaluate.load_model(folder)[1].words


def equal(a, b) -> bool:
    """Are these the same weights?"""
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def raise_after(monkeypatch, steps, error):
    """Lets some steps of training pass; the next one raises."""
    count, step = [0], sdft.sdft_step

    def counted(*args, **kwargs):
        if count[0] == steps:
            raise error
        count[0] += 1
        return step(*args, **kwargs)

    monkeypatch.setattr(sdft, "sdft_step", counted)


def test_a_frequent_word_moves_less():
    gpt = random_gpt()
    frequency = torch.zeros(VOCAB_SIZE)
    frequency[1], frequency[2] = train.Config.f0, 9 * train.Config.f0
    optimizer = train.sgd(gpt, 0.5, 2.0, train.row_scale(frequency, train.Config.f0, gpt))
    before = gpt.embed.weight.detach().clone()
    gpt.embed.weight.sum().backward()
    optimizer.step()
    moved = (before - gpt.embed.weight.detach())[:, 0]
    torch.testing.assert_close(moved[:4], torch.tensor([2.0, 1.0, 0.2, 2.0]), rtol=1e-4, atol=1e-4)


def test_where_no_frequency_is_known_all_words_move_alike():
    assert train.row_scale(None, train.Config.f0, random_gpt()).tolist() == [1.0] * VOCAB_SIZE


def test_alpha_one_is_sft_bit_for_bit(here):
    a, b = run("--out", "a", "--method", "sft"), run("--out", "b", "--alpha", "1", "--lr", "0.03")
    assert a["R"][-1] == b["R"][-1] and equal(saved_by("a", "student"), saved_by("b", "student"))


def test_joint_trains_on_all_tasks_at_once(here, monkeypatch):
    seen, collate = [], train.collate

    def watched(examples, *rest):
        seen.append([e.prompt for e in examples])
        return collate(examples, *rest)

    monkeypatch.setattr(train, "collate", watched)
    run("--out", "a", "--method", "joint", "--watch-every", "100")
    tasks = train.read_lessons(train.parse([*lessons(), "--out", "a"])).tasks
    prompts = [{e.prompt for e in task.train} for task in tasks]
    batches = [batch for batch in seen if len(batch) == 8 and all(p in prompts[0] | prompts[1] for p in batch)]
    assert any(set(batch) & prompts[0] and set(batch) & prompts[1] for batch in batches)


def test_the_market_stream_is_graded_by_return(here):
    result = run("--out", "a", stream="market")
    assert result["tasks"] == [f"{i:02}-{regime}" for i, regime in enumerate(world_module.REGIMES, 1)]
    assert len(result["R"]) == 7
    tasks = train.read_lessons(train.parse([*lessons(stream="market"), "--out", "b"])).tasks
    assert {e.grader for task in tasks for e in task.test} == {"return"}


def test_others_are_of_the_same_task_and_of_other_prompts(world):
    train_set = world.stream(1, 40, 4)[0].train
    shown = train.others(train_set[0], train_set, 4, random.Random(0))
    assert len(shown) == 4 and all(e in train_set and e.prompt != train_set[0].prompt for e in shown)


def test_off_policy_trains_on_what_the_teacher_says(here, monkeypatch, tokenizer):
    asked, generate = [], train.GPT.generate

    def watched(self, prompt, *args, **kwargs):
        asked.append(prompt[0, 0].item())
        return generate(self, prompt, *args, **kwargs)

    class NoProbe:
        asked = ()

        def __init__(self, *_, **options):
            pass

        def measure(self, *_):
            one = dict.fromkeys(("learned", "base_accuracy", "kept", "open_words", "voice", "teacher_accuracy",
                                 "neighbours", "neighbours_kept", "drift_base", "drift_new"), 1.0)
            return {"R": [0.0] * 2, "base_by_kind": {}, **one}

    monkeypatch.setattr(train.GPT, "generate", watched)
    monkeypatch.setattr(train, "Probe", NoProbe)
    run("--out", "a", "--watch-every", "100")
    on_policy = asked.count(tokenizer.ask)
    asked.clear()
    run("--out", "b", "--watch-every", "100", "--sampler", "teacher")
    assert on_policy == 8 and asked.count(tokenizer.ask) == 0


def test_a_share_of_the_rows_is_answered_by_the_teacher(batch):
    """The first rows by the teacher behind its demonstrations, the others by the student; every row keeps its place."""
    class Answers:
        end = 9

        def __call__(self, model, prompt, length, n_new, temperature):
            assert n_new == 3 and temperature == 0.5
            n = 2 if model == "teacher" else 3
            return prompt[:, :1].expand(-1, n), torch.ones(len(prompt), n, dtype=torch.bool)

    batch.demo_prompt = torch.full_like(batch.demo_prompt, 7)
    run = types.SimpleNamespace(sample=Answers(), teacher="teacher", config=None)
    for share, n in (("student", 0), ("0.25", 2), ("teacher", 8)):
        run.config = train.Config(sampler=share, max_new_tokens=3, temperature=0.5)
        response, mask = train.who_answers(run, batch)("student", batch.prompt, batch.length)
        assert (response[:n, :2] == 7).all() and (response[n:] == batch.prompt[n:, :1]).all()
        assert mask.sum().item() == 2 * n + 3 * (8 - n) and (response[~mask] == 9).all()


def test_what_a_penalty_samples_is_at_temperature_1(here, monkeypatch):
    seen, generate = [], train.GPT.generate

    def watched(model, prompt, length, n_new, end, temperature=1.0):
        seen.append((len(prompt), temperature))
        return generate(model, prompt, length, n_new, end, temperature)

    monkeypatch.setattr(train.GPT, "generate", watched)
    run("--out", "a", "--temperature", "0.5", "--penalty", "self-replay", tasks=1)
    sampled = [t for n, t in seen if t > 0]
    # the dreams and the answers to them, and then the answers of each step
    assert sampled[:2] == [1.0, 1.0] and len(sampled) > 3 and set(sampled[2:]) == {0.5}


def test_a_contrast_is_with_a_demonstration_that_says_something_else(world):
    rows = world.stream(1, 40, 4)[0].train
    assert all(train.another(e, rows, random.Random(0)).response != e.response for e in rows)


@pytest.mark.parametrize("against", ["own", "row"])
def test_what_a_contrast_shows_is_of_another_prompt(here, monkeypatch, against):
    """Of another row, or what the model itself said to that row's prompt before the task."""
    config = train.parse([*lessons(tasks=1), *TINY])
    assert config.contrast == 0                            # of a small GPT, unless one asks for it
    at_first = train.read_lessons(config)
    rows = at_first.tasks[0].train
    said = evaluate.answers(at_first.model, at_first.tokenizer, rows)
    seen, step = [], sdft.sdft_step

    def watched(*args, **options):
        assert options["contrast"] == 0.5
        seen.append(args[3])
        return step(*args, **options)

    monkeypatch.setattr(sdft, "sdft_step", watched)
    result = run("--out", "a", "--contrast", "0.5", "--against", against, tasks=1)
    texts = [e.response for e in rows] if against == "row" else said
    prompt = at_first.tokenizer.prompt
    may_see = {tuple(prompt(e.prompt)): [prompt(e.prompt, (e.prompt, text)) for o, text in zip(rows, texts)
                                         if o.prompt != e.prompt] for e in rows}
    assert len(seen) == result["steps"][0]
    for batch in seen:
        for other, n, bare, m in zip(batch.other_prompt, batch.other_length, batch.prompt, batch.length):
            assert other[:n].tolist() in may_see[tuple(bare[:m].tolist())]


# ---------------------------------------------------------------------------------------------------------------------
# Resume.


@pytest.mark.parametrize("options", [["--method", "sft", "--penalty", "replay", "--strength", "0.2"],
                                     ["--penalty", "self-replay"], ["--penalty", "ewc", "--shown", "1"]])
@pytest.mark.parametrize("killed_at", [1, 3, 4, 5, 7])
def test_a_killed_run_resumed_equals_the_straight_run_bit_for_bit(here, monkeypatch, options, killed_at):
    straight = run(*options, "--out", "straight")
    step = sdft.sdft_step
    raise_after(monkeypatch, killed_at, SystemError("killed"))
    with pytest.raises(SystemError):
        run(*options, "--out", "killed", "--save-every", "2")       # not every step: some work is done again
    monkeypatch.setattr(sdft, "sdft_step", step)
    torch.manual_seed(99)                                  # a new process has another random state
    resumed = run(*options, "--out", "killed", "--resume")
    for key in ("R", "base_accuracy", "voice", "teacher_accuracy", "drift_base", "teacher_curve", "steps",
                "generated_tokens"):
        assert repr(resumed[key]) == repr(straight[key]), key      # repr: NaN is not equal to itself
    for name in ("student", "teacher"):
        assert equal(saved_by("straight", name), saved_by("killed", name))
    lines = [[json.loads(line) for line in open(f"{folder}/log.jsonl")][1:] for folder in ("straight", "killed")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]] and len(lines[0]) == 4


def test_resume_refuses_other_settings(here):
    run("--out", "a")
    with pytest.raises(BadInput) as e:
        run("--out", "a", "--resume", "--lr", "0.5")
    assert "--lr 0.5" in str(e.value) and len(e.value.args) == 1


def test_resume_remembers_the_guard_and_needs_what_the_run_starts_from_as_it_was(here, monkeypatch):
    """With trips, with convergence; and the folder of --init gone, another model's, or with other words or another
    frequency."""
    shutil.copytree(tiny_base(), "base")
    options = ["--init", "base", "--guard", "0.9", "--converged", "0.5", "--steps", "30"]
    straight = run("--out", "straight", *options, tasks=1)
    step = sdft.sdft_step
    raise_after(monkeypatch, 11, SystemError("killed"))
    with pytest.raises(SystemError):
        run("--out", "killed", *options, "--save-every", "5", tasks=1)
    monkeypatch.setattr(sdft, "sdft_step", step)
    before = {p: p.read_bytes() for p in here.rglob("killed/*")}

    def resume():
        return run("--out", "killed", "--resume", *options, tasks=1)

    shutil.rmtree("base")
    with pytest.raises(BadInput, match="base: no model there"):
        resume()
    shutil.copytree(tiny_base("--seed", "1"), "base")
    with pytest.raises(BadInput, match="killed: what it teaches or starts from has changed since this run began"):
        resume()
    for name, key in (("words.json", "spare"), ("pretraining.json", "frequency")):
        shutil.rmtree("base")
        shutil.copytree(tiny_base(), "base")
        path = here / "base" / "model" / name
        said = json.loads(path.read_text())
        path.write_text(json.dumps(said | {key: said[key][::-1]}))
        with pytest.raises(BadInput, match="killed: what it teaches or starts from has changed since this run began"):
            resume()
    assert before == {p: p.read_bytes() for p in here.rglob("killed/*")}
    shutil.rmtree("base")
    shutil.copytree(tiny_base(), "base")
    resumed = resume()
    assert straight["guard_trips"] > 0
    for key in ("R", "teacher_curve", "steps", "guard_trips", "drift_base"):
        # repr: NaN is not equal to itself
        assert repr(resumed[key]) == repr(straight[key]), key
    assert equal(weights_of("straight"), weights_of("killed"))


def test_a_run_takes_the_model_of_its_lessons(here):
    """A second run from the same lessons would start where the first one ended."""
    config = train.parse([*lessons(), *TINY, "--out", "a"])
    found = train.read_lessons(config)
    train.begin(config, found)
    assert found.model is None


def test_shown_demonstrations_that_do_not_fit_are_refused_before_anything_is_written(here):
    rows = [{"prompt": f"{i} asked", "response": "7" * 40} for i in range(12)]
    (here / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--init", tiny_base(), "--demos", "long.jsonl", "--out", "run"]
    train.read_lessons(train.parse([*options, "--shown", "2"]))
    with pytest.raises(BadInput, match="--shown 8: with the 8 longest demonstrations of a task .* more than 256; show"):
        train.read_lessons(train.parse([*options, "--shown", "8"]))
    assert not os.path.exists("run")


@pytest.mark.parametrize("option", ["--keep", "--neighbours"])
def test_what_is_measured_is_what_was_held_out(here, option):
    rows = [{"prompt": f"tell {i}", "response": "ten", "split": "train" if i else "test"} for i in range(3)]
    (here / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = [x for x in lessons()[: lessons().index("--keep")]]
    options = [*given, *TINY, "--out", "a", option, "more.jsonl"]
    found = train.read_lessons(train.parse(options))
    assert [e.prompt for e in (found.keep or found.neighbours)] == ["tell 0"]
    (here / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    with pytest.raises(BadInput, match='more.jsonl:1: every line is "split": "train"'):
        train.read_lessons(train.parse(options))


@pytest.mark.parametrize("what", ["demos", "keep", "reading", "neighbours"])
def test_resume_refuses_files_that_have_changed(here, what):
    rows = "".join(json.dumps({"prompt": f"tell {i}", "response": "ten"}) + "\n" for i in "abcd")
    (here / "more.jsonl").write_text(rows)
    given = list(lessons())
    options = given[: given.index("--keep")] if what == "keep" else given
    options = [*options[:2], "--demos"] if what == "demos" else [*options, f"--{what}"]
    run_it = [*options, "more.jsonl", *TINY, "--out", "a"]
    teach(run_it)
    (here / "more.jsonl").write_text(rows.replace("ten", "two"))
    with pytest.raises(BadInput, match="has changed since this run began"):
        teach([*run_it, "--resume"])


def test_a_new_run_in_an_old_folder_leaves_no_old_result(here, monkeypatch):
    run("--out", "a")
    raise_after(monkeypatch, 0, SystemError("killed"))
    with pytest.raises(SystemError):
        train.main([*lessons(), *TINY, "--out", "a"])
    assert not os.path.exists("a/result.json")


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(here, monkeypatch, capsys):
    raise_after(monkeypatch, 3, FloatingPointError("loss nan, gradient norm nan: no step was taken"))
    with pytest.raises(SystemExit) as e:
        train.main([*lessons(), *TINY, "--out", "a"])
    said = capsys.readouterr().err
    assert e.value.code == 2 and "loss nan" in said and said.count("\n") == 1
    state = saved_by("a")
    assert state["step"] == 3 and all(v.isfinite().all() for v in state["student"].values())
    assert "a/checkpoint.pt is from before" in said
    raise_after(monkeypatch, 0, FloatingPointError("loss nan"))
    with pytest.raises(SystemExit):
        train.main([*lessons(), *TINY, "--out", "b"])
    assert "Nothing was saved yet" in capsys.readouterr().err and not os.path.exists("b/checkpoint.pt")


def test_ctrl_c_saves_the_step_and_says_how_to_go_on(here, monkeypatch, capsys):
    straight = run("--out", "straight", "--save-every", "50")
    count, step = [0], sdft.sdft_step

    def interrupted(*args, **kwargs):
        count[0] += 1
        if count[0] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(*args, **kwargs)

    monkeypatch.setattr(sdft, "sdft_step", interrupted)
    with pytest.raises(SystemExit):
        train.main([*lessons(), *TINY, "--out", "a", "--save-every", "50"])
    assert "--out a --resume" in capsys.readouterr().err
    assert saved_by("a", "step") == 3
    assert repr(run("--out", "a", "--resume")["R"]) == repr(straight["R"])


# ---------------------------------------------------------------------------------------------------------------------
# The guard.


def test_a_small_loss_with_a_broken_teacher_does_not_end_a_task(here):
    """Student and teacher of an untrained model agree at once; the guard says that this is not convergence."""
    result = run("--out", "a", "--guard", "0.9", "--converged", "9", "--steps", "30", tasks=1)
    assert result["steps"] == [30] and result["guard_trips"] > 0


def test_the_guard_acts(here):
    """An untrained model answers no demonstration rightly: every look rolls both models back and halves the rates."""
    result = run("--out", "a", "--guard", "0.9")
    assert result["guard_trips"] == 4
    # two looks a task; the next task starts afresh, and the second look follows the last step
    assert saved_by("a", "rate") == 1 / 2**2
    assert saved_by("a", "optimizer")["param_groups"][0]["lr"] == pytest.approx(0.001 / 2)


@pytest.mark.parametrize("options", [["--guard", "0"], ["--guard", "0.9", "--method", "sft"]])
def test_without_a_guard_nothing_is_kept(here, options):
    run("--out", "a", *options)
    assert saved_by("a", "good") is None


# ---------------------------------------------------------------------------------------------------------------------
# What is in memory.


def storages() -> Counter:
    """How many tensors of each size there are, {(device, numbers): storages of their own}.

    Gradients may be known to their parameter alone, and to no object of Python that gc could list.
    """
    gc.collect()
    # no fake ones, which a compilation may have left behind
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    tensors += [t.grad for t in tensors if t.is_leaf and t.grad is not None]
    found = {(t.device.type, t.untyped_storage().data_ptr()): t.untyped_storage().nbytes() // 4 for t in tensors}
    return Counter((device, numbers) for (device, _), numbers in found.items())


def copies(model, before) -> dict:
    """How often each matrix of a model is in memory, beside what was there before: {device: a figure for each size of
    matrix}. Vectors are left out: an activation may be as small."""
    now, sizes = storages(), Counter(p.numel() for p in model.parameters() if p.ndim == 2)
    return {device: [(now[device, size] - before[device, size]) / n for size, n in sizes.items()]
            for device in ("cpu", "cuda")}


DEVICES = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options, on_device, on_cpu", [
    ("--guard 0", 3, 0), ("--guard 0.9", 3, 2), ("--guard 0 --penalty replay", 3, 0), ("--guard 0 --penalty lwf", 4, 0),
    ("--guard 0 --penalty self-replay", 3, 0), ("--method sft --penalty l2", 4, 0), ("--method sft", 3, 0),
    ("--method sft --penalty ewc", 5, 0)])
def test_what_a_run_holds_in_memory(here, monkeypatch, device, options, on_device, on_cpu):
    """Student, gradients and teacher; nothing more that is as large as a model, unless a guard or a penalty needs it:
    the guard its last good pair, on the CPU, `previous` those penalties that compare with it, and EWC its Fisher
    information. Self-replay keeps the old head and hidden states.

    The width, 118, is no multiple of the batch: logits of a batch cannot be as large as the embedding.
    """
    init = tiny_base("--n-embd", "118", "--n-head", "1")
    before, expected = storages(), {"cpu": 0, "cuda": 0}
    expected[device] += on_device
    expected["cpu"] += on_cpu
    seen, make = [], train.sgd

    def watched(model, *args):
        optimizer = make(model, *args)
        optimizer.register_step_pre_hook(lambda *_: seen.append(copies(model, before)))
        return optimizer

    monkeypatch.setattr(train, "sgd", watched)
    run(*options.split(), "--init", init, "--device", device, "--out", "a")
    kinds = len(seen[0]["cpu"])
    assert len(seen) == 8 and kinds == 4                   # embedding and head, qkv, attention's output, the two of MLP
    for at_step in seen:
        # the largest kind is embedding and head: of the head alone the probe has one more
        probes = {"cpu": 0.5, "cuda": 0}
        probes[device] += 0.5 * ("self-replay" in options)
        assert at_step == {d: [n + probes[d], *[n] * (kinds - 1)] for d, n in expected.items()}
    model = evaluate.load_model(init)[0]
    assert copies(model, before) == {"cpu": [1] * kinds, "cuda": [0] * kinds}              # the run's are gone


# ---------------------------------------------------------------------------------------------------------------------
# The command line.


@pytest.mark.parametrize("options, message", [
    ("--lr nan", "--lr nan: must be from 0"), ("--batch-size 0", "--batch-size 0"), ("--alpha 1.5", "--alpha 1.5"),
    ("--beta 0", "--beta 0.0"), ("--tasks 28", "unrecognized arguments: --tasks 28"),
    ("--method sft --alpha 0.5", "--alpha 0.5 goes with --method sdft: leave it out, or add that"),
    ("--method ppo", "invalid choice: 'ppo'"), ("--n-embd 30 --n-head 4", "--n-embd 30"), ("--bogus", "--bogus"),
    ("--strength 0.1", "--strength 0.1 goes with --penalty replay, self-replay, lwf, l2 or ewc"),
    ("--penalty replay --strength 2", "--strength 2.0"), ("--tasks 3", "--tasks 3"),
    ("--beta 0.3", "--beta 0.3 goes with --divergence jsd"), ("--stream market", "--stream market"),
    ("--shown 9", "--shown 9: must be from 0 to 8"), ("--out=", "--out ''"), ("--device nonsense", "--device nonsense"),
    ("--method base", "invalid choice: 'base'"), ("--ste 3", "unrecognized arguments: --ste"),
    ("--method sft --sampler teacher", "--sampler teacher"), ("--sampler most", "--sampler most: choose student"),
    ("--sampler 1.5", "--sampler 1.5: choose student, teacher, or a share"), ("--contrast -2", "--contrast -2"),
    ("--contrast -0.5", "a number from 0 on, or -1"),
    ("--steps x", "--steps"), ("--grader return", "'return'"),
    ("--penalty ewc --when needed", "--when needed goes with --penalty self-replay, lwf or l2"),
    ("--init= --keep x", "--init is missing"), ("--init=", "--init is missing"),
    ("--method sft --shown 1", "--shown 1 goes with --method sdft"),
])
def test_bad_options_end_with_one_line(options, message):
    with pytest.raises(BadInput) as e:
        train.parse(["--init", "x", "--demos", "x", *options.split()])
    assert len(e.value.args) == 1 and e.value.args[0].isprintable() and message in e.value.args[0]


def test_without_demos_nothing_can_be_taught(capsys):
    with pytest.raises(BadInput, match="--demos is missing"):
        train.parse(["--init", "x", "--keep", "x"])
    with pytest.raises(SystemExit) as e:
        train.main(["--init", "x"])
    assert e.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_more_others_than_there_are(here):
    with pytest.raises(BadInput, match="--shown 8: the 6 demonstrations of a task"):
        run("--out", "a", "--shown", "8", demonstrations=6)


def test_zero_stands_for_what_was_tuned():
    def tuned(*options):
        config = train.parse(["--init", "x", "--demos", "x", *options])
        return config.lr, config.steps, config.strength

    assert tuned() == (0.001, 150, 0.0) and tuned("--penalty", "self-replay") == (0.001, 150, 1.0)
    for method in ("sft", "joint"):
        assert tuned("--method", method, "--penalty", "self-replay") == (0.03, 300, 0.1)
    found = {name: tuned("--method", "sft", "--penalty", name)[2] for name in penalties.PENALTIES}
    assert found == {"none": 0.0, "replay": 0.05, "self-replay": 0.1, "lwf": 0.003, "l2": 1e-6, "ewc": 1e4}
    assert tuned("--lr", "1", "--steps", "2", "--penalty", "l2", "--strength", "3") == (1.0, 2, 3.0)


def never_read(module, source) -> set:
    """The fields of a module's Config that its code never reads as config.NAME, or as given.get("NAME"); what `parse`
    does with a value before the run is no reading."""
    found = set()
    for part in ast.parse(source).body:
        for node in ast.walk(part):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "config":
                if isinstance(node.ctx, ast.Load) and getattr(part, "name", "") != "parse":
                    found.add(node.attr)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "given.get":
                found.add(node.args[0].value)
    return {f.name for f in dataclasses.fields(module.Config)} - found


@pytest.mark.parametrize("module", [train, pretrain, world_module])
def test_every_field_of_the_config_is_read_and_explained(module):
    source = inspect.getsource(module) + inspect.getsource(lessons_module) * (module is train)
    assert all(f.metadata["help"] for f in dataclasses.fields(module.Config))
    assert never_read(module, source) == set()
    assert never_read(module, source.replace("config.seed", "0")) == {"seed"}              # that it finds what it seeks
    assert never_read(module, source.replace("config.out", "config.out_") + "\nconfig.out = 1") == {"out"}


@pytest.mark.parametrize("module", [train, pretrain, world_module])
def test_the_help_fits_100_columns_and_its_options_stand_under_headings(module):
    text = make_parser(module.Config, module.__doc__).format_help()
    fields = dataclasses.fields(module.Config)
    headings = [f.metadata["group"] for f in fields if f.metadata["group"]]
    assert fields[0].metadata["group"] and len(set(headings)) == len(headings) >= 1
    begins = text.index(f"\n{headings[0]}:\n")
    assert all(len(line) <= 100 for line in text[begins:].splitlines())
    assert "  --" not in text[:begins].split("options:\n")[1].replace("  -h, --help", "")
    positions = [text.index(f"\n{heading}:\n") for heading in headings]
    assert positions == sorted(positions)
    heading = -1
    for f in fields:                                       # each option once, under its heading
        heading += bool(f.metadata["group"])
        section = text[positions[heading] : [*positions, None][heading + 1]]
        assert section.count(f"\n  --{f.name.replace('_', '-')}") >= 1, f.name
        assert " ".join(f.metadata["help"].split()) in " ".join(section.split()), f.name


def test_the_help_of_train_has_four_headings(capsys):
    with pytest.raises(SystemExit) as e:
        train.main(["--help"])
    said = capsys.readouterr().out
    assert e.value.code == 0 and "usage: " in said
    for heading in ("the method", "what is taught, and what is measured", "the training of a task",
                    "the run and the machine"):
        assert f"\n{heading}:\n" in said


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("decay", [0.98, 0.0, 1.0])
def test_every_divergence_and_teacher_runs(here, divergence, decay):
    more = ["--beta", "0.4"] * (divergence == "jsd")
    result = run("--out", "a", "--steps", "2", "--divergence", divergence, *more, "--ema-decay", str(decay),
                 "--alpha", "0.3", "--micro-batch", "3", tasks=1)
    state, base = saved_by("a"), weights_of(tiny_base())
    same = {0.0: state["student"], 1.0: base}.get(decay)   # a live teacher, a frozen one
    assert same is None or equal(same, state["teacher"])
    assert not math.isnan(result["learning_accuracy"])


def test_new_words_take_no_name_that_has_a_meaning(here):
    """Neither one of the base world nor one that the run to start from was taught; and a second update keeps the words
    of the first."""
    run("--out", "taught")
    for n, words in enumerate(("janvier février mars avril", "lundi mardi mercredi janvier"), 1):
        rows = "".join(f'{{"prompt": "say {w}", "response": "January"}}\n' for w in words.split())
        (here / f"{n}.jsonl").write_text(rows)
        init = "taught" if n == 1 else "update1"
        train.main(["--init", init, "--demos", f"{n}.jsonl", "--out", f"update{n}", "--steps", "2", "--guard", "0",
                    "--device", "cpu"])
    base, first, second = map(words_of, (tiny_base(), "update1", "update2"))
    world = world_module.World(0)

    def new(words):
        return {word: taken for word, taken in zip(words, base) if word != taken}

    text = " ".join(f"{e.prompt} {e.response}" for task in world.stream(2, 12, 4) for e in task.train + task.test)
    taught = set(re.findall(r"\w+", text)) & set(world.free)
    assert taught and words_of("taught") == base
    assert list(new(first)) and set(new(first)) == set("janvier février mars avril".split())
    assert new(second).items() >= new(first).items() and len(new(second)) == 7
    assert set(new(second).values()) <= set(world.free) - taught and len(set(new(second).values())) == 7
    assert len(first) == len(second) == len(base)
