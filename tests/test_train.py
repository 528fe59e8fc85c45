"""Training: the optimisers, resume after a kill, faults, the command line's bounds."""
import copy
import dataclasses
import json
import math
import os
import random
import re
import signal

import pytest
import torch

import data
import sdft
import train
from conftest import ROOT, random_gpt, small_probes
from data import ANSWER, END, PROMPT, VOCAB_SIZE

TINY = ["--pretrain-steps", "2", "--pretrain-docs", "8", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--tasks", "2", "--steps", "4", "--batch-size", "8",
        "--demonstrations", "12", "--guard", "0", "--converged", "0", "--watch-every", "2", "--save-every", "1", "--threads", "1", "--device", "cpu"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder of one's own: caches and runs stay out of the checkout. The probes are made small."""
    monkeypatch.chdir(tmp_path)
    small_probes(monkeypatch.setattr)
    monkeypatch.setattr(train, "FISHER", 4)
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


def test_dreams_are_prompts():
    """A model that was trained to write one document, over and over, dreams its prompt and its answer."""
    torch.manual_seed(0)
    gpt = random_gpt()
    document = torch.tensor([[PROMPT, 300, 301, ANSWER, 302, END]])
    adam = torch.optim.Adam(gpt.parameters(), lr=0.01)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(gpt(document[:, :-1])[0], document[0, 1:])
        adam.zero_grad(), loss.backward(), adam.step()
    prompt, length, response, mask = train.dream(gpt, 64)
    assert len(prompt) == len(length) == len(response) == len(mask) <= 64
    rows = [row[:n] for row, n in zip(prompt.tolist(), length.tolist())]
    assert rows.count(document[0, :4].tolist()) > 40 and all(row[0] == PROMPT and row[-1] == ANSWER for row in rows)
    assert response[0, 0] == 302


def penalty(student, previous, stream, kind, task=1, **options):
    config = train.parse(["--penalty", kind, "--batch-size", "8", *(x for k, v in options.items() for x in (f"--{k}", str(v)))])
    memory = train.remember(config, previous, stream, task, None)
    return train.penalty_loss(config, student, previous, train.collate(stream[task].train), stream, task, memory, random.Random(0))


@pytest.mark.parametrize("kind", ["self-replay", "lwf"])
def test_a_penalty_is_nothing_for_an_unchanged_model_and_something_for_another(world, monkeypatch, kind):
    gpt, other, stream = random_gpt(), random_gpt(1), world.stream(2, 8, 8)
    prompt = torch.tensor([[PROMPT, 300, ANSWER]] * 4)
    monkeypatch.setattr(train, "dream", lambda model, n: (prompt, torch.full((4,), 3), *model.generate(prompt, torch.full((4,), 3), 5, end=-1)))
    torch.manual_seed(0)
    assert penalty(gpt, gpt, stream, kind)(gpt).item() == 0.0
    found = []
    for strength in (1, 2):
        torch.manual_seed(0)
        found.append(penalty(other, gpt, stream, kind, strength=strength)(other).item())
    assert found[0] > 1e-3 and found[1] == pytest.approx(2 * found[0])


@pytest.mark.parametrize("kind, strength", [("l2", 0.01), ("l2", 3.0), ("ewc", 0.5), ("ewc", 1e6)])
def test_l2_and_ewc_take_an_implicit_step(kind, strength):
    """θ = argmin of (θ - now)² / (2 rate) + strength / 2 * F (θ - old)²: there the gradient is zero. F is 1 for l2."""
    old, student = random_gpt(), random_gpt(1)
    now, frequency = copy.deepcopy(student), torch.rand(VOCAB_SIZE) / 1000
    optimizer = train.make_optimizer(student, train.Config(lr=0.1, embed_lr=20.0), frequency)
    importance = [torch.rand_like(p) for p in student.parameters()] if kind == "ewc" else None
    train.pull_back(student, old, optimizer, train.row_scale(frequency, train.Config.f0), importance, strength)
    for i, ((name, new), was, before) in enumerate(zip(student.named_parameters(), old.parameters(), now.parameters())):
        rate = 20.0 / (1 + frequency[:, None] / 0.001) if name == "embed.weight" else torch.tensor(0.1)
        F = importance[i] if importance else 1.0
        torch.testing.assert_close(new.data, (before / rate + strength * F * was) / (1 / rate + strength * F), atol=1e-5, rtol=1e-4)


def test_l2_holds_the_student_as_the_strength_says(here):
    def moved(strength):
        run("--out", "a", "--method", "sft", "--penalty", "l2", "--strength", strength, "--tasks", "1")
        saved = torch.load("a/checkpoint.pt", weights_only=True)
        return sum((saved["student"][k] - saved["base"][k]).norm().item() for k in saved["base"])

    weak, strong, stiff = map(moved, ("1e-9", "0.3", "1e9"))
    assert weak > 1.2 * strong and strong > 100 * stiff


def test_fisher_is_the_mean_square_of_single_gradients(monkeypatch):
    """Two prompts, and answers of one token that are fixed: against gradients taken one by one by the slow way."""
    gpt = random_gpt()
    prompt, length = torch.tensor([[PROMPT, 300, ANSWER], [PROMPT, 301, ANSWER]]), torch.tensor([3, 3])
    answer = torch.tensor([[310], [311]])
    monkeypatch.setattr(train, "sample", lambda *_: (answer, torch.ones(2, 1, dtype=torch.bool)))
    found = train.fisher(gpt, prompt, length)
    squares = []
    for row in range(2):
        gpt.zero_grad()
        (-gpt(prompt[row : row + 1])[0, -1].log_softmax(-1)[answer[row, 0]]).backward()
        squares.append([p.grad.square() for p in gpt.parameters()])
    for f, a, b in zip(found, *squares):
        torch.testing.assert_close(f, (a + b) / 2)


def test_regularise_where_needed():
    assert train.forgotten([[0.0, 0.0]], [1.0]) == 0.0
    assert train.forgotten([[0.0, 0.0], [0.9, 0.0], [0.7, 0.8]], [1.0, 0.98, 0.97]) == pytest.approx(0.1)       # 0.2 and 0 on the tasks seen
    assert train.forgotten([[0.0, 0.0], [0.9, 0.0], [0.9, 0.8]], [1.0, 0.98, 0.97]) == pytest.approx(0.03)      # the base skills


def test_penalty_where_needed_runs_on_the_tasks_that_need_it(here, monkeypatch):
    monkeypatch.setattr(train, "forgotten", lambda R, base: 0.5 * (len(R) == 2))
    assert run("--out", "a", "--penalty", "l2", "--when", "needed")["regularised"] == [False, True]


def test_alpha_one_is_sft_bit_for_bit(here):
    a, b = run("--out", "a", "--method", "sft"), run("--out", "b", "--alpha", "1", "--lr", "0.03")
    states = [torch.load(f"{folder}/checkpoint.pt", weights_only=True)["student"] for folder in "ab"]
    assert a["R"][-1] == b["R"][-1] and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def test_joint_trains_on_all_tasks_at_once(here, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "collate", lambda examples, *rest, collate=train.collate: seen.append([e.prompt for e in examples]) or collate(examples, *rest))
    run("--out", "a", "--method", "joint", "--watch-every", "100")
    families = train.World(0).stream(2, 12)
    prompts = [{e.prompt for e in task.train} for task in families]
    batches = [batch for batch in seen if len(batch) == 8 and all(p in prompts[0] | prompts[1] for p in batch)]
    assert any(set(batch) & prompts[0] and set(batch) & prompts[1] for batch in batches)


def test_the_market_stream_is_graded_by_return(here):
    i = TINY.index("--tasks")
    result = train.learn(train.parse([*TINY[:i], *TINY[i + 2 :], "--stream", "market", "--out", "a"]))
    assert result["families"] == list(data.REGIMES) and len(result["R"]) == 7


def test_others_are_of_the_same_task_and_of_other_prompts(world):
    train_set = world.stream(1, 40, 4)[0].train
    shown = train.others(train_set[0], train_set, 4, random.Random(0))
    assert len(shown) == 4 and all(e in train_set and e.prompt != train_set[0].prompt for e in shown)


def test_products_on_a_cpu_are_fp32():
    train.choose_matmul(train.Config(device="cpu"))
    a, b = torch.randn(300, 200), torch.randn(200, 100)
    assert ((a @ b - (a.double() @ b.double())).norm() / (a @ b).norm()) < 1e-5


def test_replay_stores_the_same_share_of_every_past_task(world):
    stream = world.stream(4, 40, 4)
    stored = train.past_demonstrations(stream, 3, 0.1)
    assert stored == train.past_demonstrations(stream, 3, 0.1) and len(stored) == 12
    assert [sum(any(e is x for x in t.train) for e in stored) for t in stream] == [4, 4, 4, 0]


def test_off_policy_trains_on_what_the_teacher_says(here, monkeypatch):
    asked = []
    generate = train.GPT.generate
    monkeypatch.setattr(train.GPT, "generate", lambda self, prompt, *a, **k: asked.append(prompt[0, 0].item()) or generate(self, prompt, *a, **k))
    monkeypatch.setattr(train.Probe, "measure", lambda self, s, done, task: done["R"].append([0.0] * 2) or [done[k].append(1.0) for k in ("base_accuracy", "voice", "teacher_accuracy")])
    run("--out", "a", "--watch-every", "100")
    on_policy = asked.count(PROMPT)
    asked.clear()
    run("--out", "b", "--watch-every", "100", "--off-policy")
    assert on_policy == 8 and asked.count(PROMPT) == 0


@pytest.mark.parametrize("options", [["--method", "sft", "--penalty", "replay", "--strength", "0.2"], ["--penalty", "self-replay"], ["--penalty", "ewc", "--shown", "1"]])
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
        assert repr(resumed[key]) == repr(straight[key]), key                                 # repr: NaN is not equal to itself
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
        assert repr(resumed[key]) == repr(straight[key]), key                                 # repr: NaN is not equal to itself


def test_a_new_run_in_an_old_folder_leaves_no_old_result(here, monkeypatch):
    run("--out", "a")
    monkeypatch.setattr(sdft, "sdft_step", lambda *a, **k: (_ for _ in ()).throw(SystemError("killed")))
    with pytest.raises(SystemError):
        train.main([*TINY, "--out", "a"])
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

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
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
    assert repr(run("--out", "a", "--resume")["R"]) == repr(straight["R"])


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
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.001 / 2**2)                          # two looks a task; the next task starts afresh


@pytest.mark.parametrize("options, message", [
    (["--lr", "nan"], "--lr nan: must be from 0"), (["--batch-size", "0"], "--batch-size 0"), (["--alpha", "1.5"], "--alpha 1.5"),
    (["--beta", "0"], "--beta 0.0"), (["--tasks", "28"], "--tasks 28"), (["--method", "sft", "--alpha", "0.5"], "--alpha 0.5"),
    (["--method", "ppo"], "invalid choice: 'ppo'"), (["--n-embd", "30", "--n-head", "4"], "--n-embd 30"), (["--bogus"], "--bogus"), (["--strength", "0.1"], "--strength 0.1 goes with a --penalty"), (["--penalty", "replay", "--strength", "2"], "--strength 2.0"),
    (["--keep", "x"], "goes with --demos"), (["--demos", "x", "--tasks", "3"], "--tasks 3 goes with"), (["--beta", "0.3"], "--beta 0.3 goes with"),
    (["--stream", "market", "--tasks", "3"], "--tasks 3 goes with"), (["--shown", "3", "--demonstrations", "3"], "--shown 3"), (["--out", ""], "--out ''"),
    (["--device", "nonsense"], "--device nonsense"), (["--method", "base", "--demos", "x"], "--demos teaches"), (["--ste", "3"], "unrecognized arguments: --ste"),
    (["--method", "sft", "--off-policy"], "--off-policy"), (["--steps", "x"], "--steps"),
])
def test_bad_options_end_with_one_line(capsys, options, message):
    with pytest.raises(SystemExit) as e:
        train.parse(options)
    assert e.value.code == 2 and len(lines := capsys.readouterr().err.splitlines()) == 1 and message in lines[0]


def test_every_field_of_the_config_is_read_and_explained():
    source = open(os.path.join(ROOT, "train.py")).read().split("def option", 1)[1]
    body = source[source.index("# Pretraining") :]
    for f in dataclasses.fields(train.Config):
        assert f.metadata["help"]
        assert re.search(rf'config\.{f.name}\b|"{f.name}"', body.split("RANGES = ")[0] + body.split("def main")[1]), f"{f.name} is never read"


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
@pytest.mark.parametrize("decay", [0.98, 0.0, 1.0])
def test_every_divergence_and_teacher_runs(here, divergence, decay):
    more = ["--beta", "0.4"] * (divergence == "jsd")
    result = run("--out", "a", "--tasks", "1", "--steps", "2", "--divergence", divergence, *more, "--ema-decay", str(decay), "--alpha", "0.3", "--micro-batch", "3")
    state = torch.load("a/checkpoint.pt", weights_only=True)
    base = torch.load(next((here / "out").glob("base*")), weights_only=True)["student"]
    same = {0.0: state["student"], 1.0: base}.get(decay)                                    # a live teacher, a frozen one
    assert same is None or all(torch.equal(v, state["teacher"][k]) for k, v in same.items())
    assert not math.isnan(result["learning_accuracy"])


def test_new_words_take_no_name_that_has_a_meaning(here, tmp_path):
    """Neither one of the base world nor one that the run to start from was taught; and a second update keeps the words of the first."""
    run("--out", "taught")
    for n, words in enumerate(("janvier février mars avril", "lundi mardi mercredi janvier"), 1):
        (tmp_path / f"{n}.jsonl").write_text("".join(f'{{"prompt": "say {w}", "response": "January"}}\n' for w in words.split()))
        train.main(["--init", "taught" if n == 1 else "update1", "--demos", f"{n}.jsonl", "--out", f"update{n}", "--steps", "2", "--guard", "0", "--device", "cpu"])
    first, second = (torch.load(f"update{n}/checkpoint.pt", weights_only=True)["words"] for n in (1, 2))
    world = data.World(0)
    taught = set().union(*(task.names() for task in world.stream(2)))
    assert list(first) == "janvier février mars avril".split() and second.items() >= first.items() and len(second) == 7
    assert set(second.values()) <= set(world.free) - taught and len(set(second.values())) == 7
    data.take_names({})
