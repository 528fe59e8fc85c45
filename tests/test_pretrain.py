"""Pretraining: Muon, a base model that is made once and found again, resume after a kill, the gates."""
import os
import shutil
import signal

import pytest
import torch

import kills
import pretrain
import train
from conftest import random_gpt
from eval import load_model
from runs import BadInput
from test_train import TINY, TINY_BASE, equal, lessons, no_gates, saved_by, tiny_base, weights_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    no_gates(monkeypatch.setattr)
    return tmp_path


def make(*options):
    pretrain.main([*TINY_BASE, "--out", "base", *options])


def struck_at_step(monkeypatch, step, strike):
    """`strike` is called as the loss of that step of pretraining (from 1) is made; returns how many were made. The
    code of lab/pretrain.py itself stays: other code would make another base model."""
    count, loss = [0], pretrain.F.cross_entropy

    def counted(*args, **kwargs):
        count[0] += 1
        if count[0] == step:
            strike()
        return loss(*args, **kwargs)

    monkeypatch.setattr(pretrain.F, "cross_entropy", counted)
    return count


def killed():
    raise SystemError("killed")


def test_muon_agrees_with_torch():
    """torch.optim.Muon computes in bf16 (8 bits of mantissa): the directions agree to a few percent."""
    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16), (32, 32)):
        ours = torch.nn.Parameter(torch.randn(shape))
        theirs = torch.nn.Parameter(ours.detach().clone())
        start = ours.detach().clone()
        a = pretrain.Muon([ours], lr=0.02)
        b = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, momentum=0.95, nesterov=True, ns_steps=5,
                             adjust_lr_fn="original")
        for _ in range(3):
            g = torch.randn(shape)
            ours.grad, theirs.grad = g.clone(), g.clone()
            a.step(), b.step()
        moved, expected = ours.detach() - start, theirs.detach() - start
        assert (moved - expected).norm() / expected.norm() < 0.05


# ---------------------------------------------------------------------------------------------------------------------
# The folder is its own cache.


def test_a_base_model_is_made_once_and_not_reused_for_other_settings(here, capsys):
    make()
    made, log = os.stat("base/model/model.safetensors").st_mtime_ns, (here / "base" / "log.jsonl").read_bytes()
    weights = weights_of("base")
    capsys.readouterr()
    make()
    make("--save-every", "1", "--threads", "2")            # of the machine: what is made is the same
    assert os.stat("base/model/model.safetensors").st_mtime_ns == made
    assert (here / "base" / "log.jsonl").read_bytes() == log
    said = capsys.readouterr().out
    assert said.count("base/model: made before") == 2 and said.count("gate base ") == 2
    make("--steps", "3")
    assert load_model("base")[2]["settings"]["steps"] == 3 and "made before" not in capsys.readouterr().out
    assert not torch.equal(weights_of("base")["embed.weight"], weights["embed.weight"])
    make()                                                 # and back again
    assert equal(weights_of("base"), weights)


@pytest.mark.parametrize("options", ["--seed 1", "--n-embd 20", "--docs 9", "--dropout 0", "--vocab-size 1024",
                                     "--n-layer 2", "--n-head 1", "--bf16"])
def test_each_setting_that_makes_another_model_makes_it_anew(here, options):
    world = pretrain.World(0)
    one, other = (pretrain.parse([*TINY_BASE, *more]) for more in ([], options.split()))
    assert pretrain.made_by(one, world) != pretrain.made_by(other, pretrain.World(other.seed))


def test_other_code_makes_it_anew(here, monkeypatch):
    config, world = pretrain.parse(TINY_BASE), pretrain.World(0)
    made = pretrain.made_by(config, world)
    assert made == pretrain.made_by(config, pretrain.World(0))
    monkeypatch.setattr(pretrain, "PROMPT_WEIGHT", 0.2)
    assert pretrain.made_by(config, world) != made


def test_a_base_model_holds_what_a_run_starts_from(here):
    make("--n-layer", "2")
    model, tokenizer, state = load_model("base")
    assert set(state) == {"made_by", "settings", "command", "commit", "versions", "machine", "gates", "frequency"}
    assert state["gates"].keys() == pretrain.GATES.keys()
    assert len(state["frequency"]) == 960 and state["frequency"].sum().item() == pytest.approx(1.0)
    assert len(model.blocks) == 2 and not model.training and tokenizer.n_vocab <= 960
    assert tokenizer.files() == pretrain.World(0).tokenizer.files()
    assert sorted(os.listdir("base")) == ["lock", "log.jsonl", "model"]
    assert sorted(os.listdir("base/model")) == ["config.json", "model.safetensors", "pretraining.json", "words.json"]


def test_a_base_model_is_left_bit_for_bit(here, monkeypatch):
    """What pretraining has at its end is what is read again: every weight, and each token's frequency."""
    made, real = {}, pretrain.pretrain

    def watched(model, *rest):
        made["frequency"] = real(model, *rest)
        made["weights"] = {name: weight.clone() for name, weight in model.state_dict().items()}
        return made["frequency"]

    monkeypatch.setattr(pretrain, "made_by", lambda *_: "the same")
    monkeypatch.setattr(pretrain, "pretrain", watched)
    make()
    assert equal(made["weights"], weights_of("base"))
    assert torch.equal(made["frequency"], load_model("base")[2]["frequency"])


# ---------------------------------------------------------------------------------------------------------------------
# What strikes it.


@pytest.mark.parametrize("killed_at", [1, 3, 4, 7, 12])
def test_a_killed_pretraining_goes_on_bit_for_bit(here, monkeypatch, killed_at):
    """With dropout: the random state is part of it. Its second start is the same command."""
    command = [*TINY_BASE, "--steps", "12", "--save-every", "3", "--out", "run"]
    for folder in ("straight", "killed"):
        os.mkdir(folder)
    monkeypatch.chdir("straight")
    pretrain.main(command)
    monkeypatch.chdir("../killed")
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        struck_at_step(patch, killed_at, killed)
        pretrain.main(command)
    torch.manual_seed(99)                                  # a new process has another random state
    with monkeypatch.context() as patch:
        made = struck_at_step(patch, 0, killed)            # never
        pretrain.main(command)
    assert made == [12 - (killed_at - 1) // 3 * 3]         # it went on at its last checkpoint
    assert kills.differences(kills.everything("../straight"), kills.everything(".")) == []


def test_ctrl_c_saves_the_step_and_the_same_command_goes_on(here, monkeypatch, capsys):
    command = [*TINY_BASE, "--steps", "6", "--out", "run"]
    os.mkdir("straight")
    monkeypatch.chdir("straight")
    pretrain.main(command)
    monkeypatch.chdir("..")
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as e:
        struck_at_step(patch, 3, lambda: os.kill(os.getpid(), signal.SIGINT))
        pretrain.main(command)
    assert e.value.code == 2 and "interrupted; go on with: the same command" in capsys.readouterr().err
    assert saved_by("run", "pretraining")["step"] == 3
    pretrain.main(command)
    assert "going on at step 3" in capsys.readouterr().out
    assert kills.differences(kills.everything("straight"), kills.everything(".")) == []


def test_what_was_stopped_with_other_settings_is_not_gone_on_with(here, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        struck_at_step(patch, 3, killed)
        make("--steps", "6", "--save-every", "1")
    make("--steps", "5", "--save-every", "1")
    assert "going on" not in capsys.readouterr().out
    make("--steps", "5", "--save-every", "1", "--out", "other")
    assert equal(weights_of("base"), weights_of("other"))


def test_a_base_model_at_work_cannot_be_started_from(here, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        struck_at_step(patch, 3, killed)
        make("--steps", "6", "--save-every", "1")
    with pytest.raises(BadInput, match="its pretraining has not ended"):
        train.read_lessons(train.parse([*lessons(), *TINY, "--init", "base", "--out", "run"]))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "words.json", "pretraining.json"])
def test_a_damaged_base_model_is_told_and_not_written_over(here, capsys, name):
    shutil.copytree(tiny_base(), "base")
    with open(f"base/model/{name}", "r+b") as f:
        f.truncate(200)
    with pytest.raises(SystemExit) as e:
        make()
    said = capsys.readouterr().err
    assert e.value.code == 2 and said.count("\n") == 1 and said.startswith("base/model")
    assert said.endswith("; to make it again, remove base/model\n")
    assert os.path.getsize(f"base/model/{name}") == 200


def test_a_damaged_checkpoint_is_told_and_not_written_over(here, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        struck_at_step(patch, 3, killed)
        make("--steps", "6", "--save-every", "1")
    with open("base/checkpoint.pt", "r+b") as f:
        f.truncate(5000)
    with pytest.raises(SystemExit) as e:
        make("--steps", "6")
    said = capsys.readouterr().err
    assert e.value.code == 2 and said.count("\n") == 1 and "base/checkpoint.pt: not a checkpoint, or damaged" in said
    assert os.path.getsize("base/checkpoint.pt") == 5000


def test_killed_between_the_model_and_the_end_of_its_checkpoint(here, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        patch.setattr(pretrain, "print_gates", lambda *_: None)
        patch.setattr(pretrain, "remove", lambda folder, *names: killed() if os.path.exists("base/model") else None)
        make("--steps", "2", "--save-every", "1")
    assert sorted(os.listdir("base")) == ["checkpoint.pt", "lock", "log.jsonl", "model"]
    make("--steps", "2")
    assert "base/model: made before" in capsys.readouterr().out
    assert sorted(os.listdir("base")) == ["lock", "log.jsonl", "model"]


# ---------------------------------------------------------------------------------------------------------------------
# Gates.


def test_a_run_of_train_is_not_written_over(here, capsys):
    train.main([*lessons(), *TINY, "--out", "base"])
    before = weights_of("base")
    for kept in ("result.json", "checkpoint.pt"):          # either of them tells
        shutil.copytree("base", "run")
        os.remove(f"base/{kept}")
        with pytest.raises(SystemExit) as e:
            make()
        assert e.value.code == 2 and "base: a run of train.py; choose another" in capsys.readouterr().err
        assert equal(weights_of("base"), before)
        shutil.rmtree("base")
        os.rename("run", "base")


def test_nobody_starts_from_an_older_model_while_a_new_one_is_made(here, monkeypatch):
    make()
    struck_at_step(monkeypatch, 1, killed)
    with pytest.raises(SystemError):
        make("--seed", "1")
    assert not {"checkpoint.pt", "model"} & set(os.listdir("base"))


def test_the_gates_of_a_model_that_can_do_nothing(world):
    found = pretrain.gates(random_gpt(n_layer=1, n_embd=16), world)
    assert found.keys() == pretrain.GATES.keys() and all(0 <= value < 0.1 for value in found.values())


def test_the_gates_of_a_model_that_says_what_is_right(world, monkeypatch):
    """In its own voice, by heart and from demonstrations; then in the words of the experts."""
    seen = {}

    def accuracy(model, tokenizer, examples, shown=False):
        seen[len(seen)] = len(examples), shown
        return 1.0

    monkeypatch.setattr(pretrain, "accuracy", accuracy)
    monkeypatch.setattr(pretrain, "answers", lambda model, tokenizer, examples: [e.own for e in examples])
    assert pretrain.gates(None, world) == dict.fromkeys(pretrain.GATES, 1.0)
    assert [shown for _, shown in seen.values()] == [False, True, True, True, True]
    monkeypatch.setattr(pretrain, "answers", lambda model, tokenizer, examples: [e.response for e in examples])
    found = pretrain.gates(None, world)
    assert found["base"] == 1.0 and found["well_formed"] == 0.0


def test_each_gate_says_whether_it_was_passed(capsys):
    class Loud:
        def say(self, text):
            print(text)

    at_the_bound = dict(pretrain.GATES)
    pretrain.print_gates(Loud(), at_the_bound)
    assert capsys.readouterr().out.count("  ok\n") == len(at_the_bound)
    beyond = {k: v + 0.01 if k in pretrain.AT_MOST else v - 0.01 for k, v in at_the_bound.items()}
    pretrain.print_gates(Loud(), beyond)
    said = capsys.readouterr().out
    assert said.count("  MISSED\n") == len(beyond) and "(<= 20%)" in said and said.count("(>= ") == len(beyond) - 1


# ---------------------------------------------------------------------------------------------------------------------
# The command line.


@pytest.mark.parametrize("options, message", [
    ("--n-embd 30 --n-head 4", "--n-embd 30: must be a multiple of 2 * --n-head (8)"), ("--preset tpu", "'tpu'"),
    ("--vocab-size 900", "--vocab-size 900: must be from 960"), ("--out=", "--out ''"), ("--steps 0", "--steps 0"),
    ("--dropout nan", "--dropout nan"), ("--device nonsense", "--device nonsense"), ("--resume", "--resume")])
def test_bad_options_end_with_one_line(options, message):
    with pytest.raises(BadInput) as e:
        pretrain.parse(options.split())
    assert len(e.value.args) == 1 and e.value.args[0].isprintable() and message in e.value.args[0]


def test_other_options_override_the_preset():
    config = pretrain.parse(["--preset", "gpu", "--n-layer", "2"])
    assert (config.n_layer, config.n_embd, config.vocab_size, config.bf16) == (2, 256, 50_304, True)
    assert pretrain.parse([]).vocab_size == 960
