"""Training: the optimisers, resume after a kill, faults, the command line's bounds."""
import dataclasses
import json
import math
import os
import re
import signal

import pytest
import torch

import sdft
import train
from conftest import ROOT, random_gpt
from data import ANSWER, PROMPT, VOCAB_SIZE

TINY = ["--pretrain-steps", "2", "--pretrain-docs", "8", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--tasks", "2", "--steps", "4", "--batch-size", "8",
        "--demonstrations", "12", "--guard", "0", "--converged", "0", "--watch-every", "2", "--save-every", "1", "--threads", "1", "--device", "cpu"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder of one's own: caches and runs stay out of the checkout. The probes are made small."""
    monkeypatch.chdir(tmp_path)
    init = train.Probe.__init__

    def small(self, *args):
        init(self, *args)
        self.base, self.shown = self.base[:8], self.shown[:8]
        for task in self.stream:
            task.test = task.test[:4]

    monkeypatch.setattr(train.Probe, "__init__", small)
    monkeypatch.setattr(train, "gates", lambda model, world: {name: 0.0 for name in train.GATES})
    return tmp_path


def run(*options):
    return train.learn(train.parse([*TINY, *options]))


def raise_after(monkeypatch, steps, error):
    """Lets some steps of training pass; the next one raises."""
    count, step = [0], sdft.sdft_step

    def counted(*args, **kwargs):
        if count[0] == steps:
            raise error
        count[0] += 1
        return step(*args, **kwargs)

    monkeypatch.setattr(sdft, "sdft_step", counted)


def test_muon_agrees_with_torch():
    """torch.optim.Muon computes in bf16 (8 bits of mantissa): the directions agree to a few percent."""
    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16), (32, 32)):
        ours, theirs = torch.nn.Parameter(torch.randn(shape)), None
        theirs = torch.nn.Parameter(ours.detach().clone())
        start = ours.detach().clone()
        a = train.Muon([ours], lr=0.02)
        b = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, momentum=0.95, nesterov=True, ns_steps=5, adjust_lr_fn="original")
        for _ in range(3):
            g = torch.randn(shape)
            ours.grad, theirs.grad = g.clone(), g.clone()
            a.step(), b.step()
        moved, expected = ours.detach() - start, theirs.detach() - start
        assert (moved - expected).norm() / expected.norm() < 0.05


def test_a_frequent_word_moves_less():
    gpt = random_gpt()
    frequency = torch.zeros(VOCAB_SIZE)
    frequency[1], frequency[2] = train.Config.f0, 9 * train.Config.f0
    optimizer = train.make_optimizer(gpt, train.Config(lr=0.5, embed_lr=2.0), frequency)
    before = gpt.embed.weight.detach().clone()
    gpt.embed.weight.sum().backward()
    optimizer.step()
    moved = (before - gpt.embed.weight.detach())[:, 0]
    torch.testing.assert_close(moved[:4], torch.tensor([2.0, 1.0, 0.2, 2.0]), rtol=1e-4, atol=1e-4)


def test_dreamt_prompts_are_prompts():
    torch.manual_seed(0)
    gpt = random_gpt()
    with torch.no_grad():
        gpt.head.weight[ANSWER] *= 4                                                        # so that an untrained model ends a prompt now and then
    prompt, length, response, mask = train.dream(gpt, 64)
    assert 0 < len(prompt) == len(length) == len(response) == len(mask)
    for row, n in zip(prompt.tolist(), length.tolist()):
        assert row[0] == PROMPT and row[n - 1] == ANSWER and ANSWER not in row[: n - 1]


def test_replay_stores_the_same_share_of_every_past_task(world):
    stream = world.stream(4, 40, 4)
    stored = train.past_demonstrations(stream, 3, 0.1)
    assert stored == train.past_demonstrations(stream, 3, 0.1) and len(stored) == 12
    assert [sum(any(e is x for x in t.train) for e in stored) for t in stream] == [4, 4, 4, 0]


def test_off_policy_trains_on_what_the_teacher_says(here, monkeypatch):
    asked = []
    generate = train.GPT.generate
    monkeypatch.setattr(train.GPT, "generate", lambda self, prompt, *a, **k: asked.append(prompt[0, 0].item()) or generate(self, prompt, *a, **k))
    monkeypatch.setattr(train.Probe, "measure", lambda self, s, t, done, task: done["R"].append([0.0] * 2) or [done[k].append(1.0) for k in ("base_accuracy", "voice", "teacher_accuracy")])
    run("--out", "a", "--watch-every", "100")
    on_policy = asked.count(PROMPT)
    asked.clear()
    run("--out", "b", "--watch-every", "100", "--off-policy")
    assert on_policy == 8 and asked.count(PROMPT) == 0


def test_replay_of_an_unchanged_model_costs_nothing():
    torch.manual_seed(0)
    gpt = random_gpt()
    prompt = torch.tensor([[PROMPT, 300, ANSWER]] * 4)
    dreams = prompt, torch.full((4,), 3), *gpt.generate(prompt, torch.full((4,), 3), 5, end=-1)
    assert train.self_replay(gpt, gpt, dreams, 4).item() == 0.0
    assert train.self_replay(random_gpt(1), gpt, dreams, 4).item() > 0.01


@pytest.mark.parametrize("options", [["--method", "sft", "--replay", "0.2"], ["--method", "sdft", "--self-replay"]])
@pytest.mark.parametrize("killed_at", [1, 3, 4, 5, 7])
def test_a_killed_run_resumed_equals_the_straight_run_bit_for_bit(here, monkeypatch, options, killed_at):
    straight = run(*options, "--out", "straight")
    step = sdft.sdft_step
    raise_after(monkeypatch, killed_at, SystemError("killed"))
    with pytest.raises(SystemError):
        run(*options, "--out", "killed", "--save-every", "2")                               # not every step: some work is done again
    monkeypatch.setattr(sdft, "sdft_step", step)
    torch.manual_seed(99)                                                                   # a new process has another random state
    resumed = run(*options, "--out", "killed", "--resume")
    for key in ("R", "base_accuracy", "voice", "teacher_accuracy", "drift_base", "teacher_curve", "steps", "generated_tokens"):
        assert resumed[key] == straight[key], key
    a, b = (torch.load(f"{folder}/checkpoint.pt", weights_only=True) for folder in ("straight", "killed"))
    for name in ("student", "teacher"):
        assert all(torch.equal(v, b[name][k]) for k, v in a[name].items())
    lines = [[json.loads(line) for line in open(f"{folder}/log.jsonl")][1:] for folder in ("straight", "killed")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]] and len(lines[0]) == 4


def test_resume_refuses_other_settings(here, capsys):
    run("--out", "a")
    with pytest.raises(SystemExit):
        run("--out", "a", "--resume", "--lr", "0.5")
    assert "--lr 0.5" in capsys.readouterr().err


def test_the_log_begins_with_what_the_run_is(here):
    run("--out", "a", "--seed", "3")
    first = json.loads(open("a/log.jsonl").readline())
    assert first["settings"]["seed"] == 3 and {"command", "commit", "versions", "machine"} <= first.keys()


def test_resume_needs_no_cached_base_and_remembers_the_guard(here, monkeypatch):
    """With trips, with convergence, and with the base model's cache gone."""
    options = ["--guard", "0.9", "--converged", "0.5", "--steps", "30", "--tasks", "1"]
    straight = run("--out", "straight", *options)
    step = sdft.sdft_step
    raise_after(monkeypatch, 11, SystemError("killed"))
    with pytest.raises(SystemError):
        run("--out", "killed", *options, "--save-every", "5")
    monkeypatch.setattr(sdft, "sdft_step", step)
    for path in (here / "out").iterdir():
        path.unlink()
    resumed = run("--out", "killed", "--resume", *options)
    assert straight["guard_trips"] > 0
    for key in ("R", "teacher_curve", "steps", "guard_trips", "drift_base"):
        assert resumed[key] == straight[key], key


def test_a_new_run_in_an_old_folder_leaves_no_old_result(here, monkeypatch):
    run("--out", "a")
    monkeypatch.setattr(sdft, "sdft_step", lambda *a, **k: (_ for _ in ()).throw(SystemError("killed")))
    with pytest.raises(SystemError):
        run("--out", "a")
    assert not os.path.exists("a/result.json")


def test_a_small_loss_with_a_broken_teacher_does_not_end_a_task(here):
    """Student and teacher of an untrained model agree at once; the guard says that this is not convergence."""
    result = run("--out", "a", "--guard", "0.9", "--converged", "9", "--steps", "30", "--tasks", "1")
    assert result["steps"] == [30] and result["guard_trips"] > 0


def test_a_base_model_is_made_once_and_not_reused_for_other_settings(here):
    run("--out", "a")
    (path,) = (here / "out").iterdir()
    made = path.stat().st_mtime_ns
    run("--out", "b")
    assert path.stat().st_mtime_ns == made
    run("--out", "c", "--pretrain-steps", "3")
    assert len(list((here / "out").iterdir())) == 2


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(here, monkeypatch, capsys):
    raise_after(monkeypatch, 3, FloatingPointError("loss nan, gradient norm nan: no step was taken"))
    with pytest.raises(SystemExit) as e:
        run("--out", "a")
    assert e.value.code == 2 and "loss nan" in capsys.readouterr().err
    state = torch.load("a/checkpoint.pt", weights_only=True)
    assert state["step"] == 3 and all(v.isfinite().all() for v in state["student"].values())


def test_a_full_disk_leaves_the_previous_checkpoint_whole(here, monkeypatch):
    train.save("c.pt", {"x": torch.ones(3)})

    def full(value, path):
        with open(path, "wb") as f:
            f.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError):
        train.save("c.pt", {"x": torch.zeros(3)})
    assert torch.load("c.pt", weights_only=True)["x"].sum() == 3 and os.listdir(".") == ["c.pt"]


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
        train.main([*TINY, "--out", "a", "--save-every", "50"])
    assert "--out a --resume" in capsys.readouterr().err
    assert torch.load("a/checkpoint.pt", weights_only=True)["step"] == 3
    assert run("--out", "a", "--resume")["R"] == straight["R"]


def test_two_runs_in_one_folder_and_a_folder_that_cannot_be_written(here, capsys):
    with train.locked("a"), pytest.raises(SystemExit):
        train.main([*TINY, "--out", "a"])
    assert "another run is at work" in capsys.readouterr().err
    open("file", "w").close()
    with pytest.raises(SystemExit) as e:
        train.main([*TINY, "--out", "file/run"])
    assert e.value.code == 2 and capsys.readouterr().err.startswith("file/run: Not a directory")


def test_the_guard_acts(here):
    """An untrained model answers no demonstration rightly: every look rolls both models back and halves the rates."""
    result = run("--out", "a", "--guard", "0.9")
    assert result["guard_trips"] == 4
    state = torch.load("a/checkpoint.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(train.Config.lr / 2**2)                          # two looks a task; the next task starts afresh


@pytest.mark.parametrize("options, message", [
    (["--lr", "nan"], "--lr nan: must be from 0"), (["--batch-size", "0"], "--batch-size 0"), (["--alpha", "1.5"], "--alpha 1.5"),
    (["--beta", "0"], "--beta 0.0"), (["--tasks", "28"], "--tasks 28"), (["--method", "sft", "--alpha", "0.5"], "--alpha 0.5"),
    (["--method", "ppo"], "invalid choice: 'ppo'"), (["--n-embd", "30", "--n-head", "4"], "--n-embd 30"), (["--bogus"], "--bogus"), (["--self-replay", "--replay", "0.1"], "--self-replay and --replay"),
    (["--method", "sft", "--off-policy"], "--off-policy"), (["--steps", "x"], "--steps"),
])
def test_bad_options_end_with_one_line(capsys, options, message):
    with pytest.raises(SystemExit) as e:
        train.parse(options)
    assert e.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_every_field_of_the_config_is_read_and_explained():
    source = open(os.path.join(ROOT, "train.py")).read().split("def option", 1)[1]
    body = source[source.index("# Pretraining") :]
    for f in dataclasses.fields(train.Config):
        assert f.metadata["help"]
        assert re.search(rf'config\.{f.name}\b|"{f.name}"', body.split("RANGES = ")[0] + body.split("def main")[1]), f"{f.name} is never read"


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("teacher", ["ema", "live", "frozen"])
def test_every_divergence_and_teacher_runs(here, divergence, teacher):
    result = run("--out", "a", "--tasks", "1", "--steps", "2", "--divergence", divergence, "--teacher", teacher, "--alpha", "0.3", "--micro-batch", "3")
    state = torch.load("a/checkpoint.pt", weights_only=True)
    base = torch.load(next((here / "out").glob("base*")), weights_only=True)["student"]
    same = {"live": state["student"], "frozen": base}.get(teacher)
    assert same is None or all(torch.equal(v, state["teacher"][k]) for k, v in same.items())
    assert not math.isnan(result["learning_accuracy"])
