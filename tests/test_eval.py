"""Metrics by hand, what a probe measures, tables and pictures from runs on disk, models' folders."""
import copy
import json
import math

import numpy as np
import pytest
import torch

import eval as evaluate
from conftest import VOCAB_SIZE, random_gpt
from data import Example, Task, collate
from runs import BadInput, load_checkpoint, write_json

NAN = float("nan")


def test_metrics_of_a_3x3_worked_by_hand():
    R = [[0.1, 0.2, 0.0],
         [0.9, 0.3, 0.0],
         [0.7, 0.8, 0.1],
         [0.6, 0.9, 1.0]]
    m = evaluate.continual_metrics(R)
    assert m["average_accuracy"] == pytest.approx((0.6 + 0.9 + 1.0) / 3)
    assert m["learning_accuracy"] == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert m["forgetting"] == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)      # the final row is not in the maximum
    assert m["backward_transfer"] == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
    assert m["forward_transfer"] == pytest.approx(((0.3 - 0.2) + (0.1 - 0.0)) / 2)
    assert m["retention"] == pytest.approx((0.6 / 0.9 + 0.9 / 0.8) / 2)
    assert m["never_learned"] == 0


def test_metrics_leave_out_what_was_not_evaluated_or_never_learned():
    lower = [[0.0, 0.0, 0.0], [0.5, NAN, NAN], [0.5, 0.0, NAN], [0.25, 0.0, 1.0]]
    m = evaluate.continual_metrics(lower)
    assert m["forgetting"] == pytest.approx(0.125) and m["retention"] == pytest.approx(0.5) and m["never_learned"] == 1
    assert math.isnan(m["forward_transfer"])
    one = evaluate.continual_metrics([[0.0], [1.0]])
    assert one["average_accuracy"] == 1.0
    assert all(math.isnan(one[k]) for k in ("forgetting", "backward_transfer", "forward_transfer", "retention"))
    with pytest.raises(ValueError, match=r"expected \[T\+1, T\]"):
        evaluate.continual_metrics(np.zeros((3, 3)))


# ---------------------------------------------------------------------------------------------------------------------
# What a probe measures.


def test_answers_do_not_depend_on_their_batch(world, tokenizer):
    gpt, examples = random_gpt(), world.stream(4, 4, 2)[0].train
    alone = [evaluate.answers(gpt, tokenizer, [e])[0] for e in examples]
    assert evaluate.answers(gpt, tokenizer, examples) == evaluate.answers(gpt, tokenizer, examples, batch=3) == alone
    shown = evaluate.answers(gpt, tokenizer, examples, shown=True)
    batch = collate(examples, tokenizer)
    said, _ = gpt.generate(batch.demo_prompt, batch.demo_length, batch.room, tokenizer.end, temperature=0)
    assert shown == [tokenizer.decode(ids) for ids in said] != alone
    assert evaluate.answers(gpt, tokenizer, []) == [] and math.isnan(evaluate.accuracy(gpt, tokenizer, []))


def test_drift_is_the_divergence_along_the_answers_of_the_base(world, tokenizer):
    """Against float64, one answer at a time; the base may change once it has been asked."""
    base, other, examples = random_gpt(0), random_gpt(1), world.stream(4, 4, 2)[0].train
    first, asked = copy.deepcopy(base), evaluate.Drift(base, tokenizer, examples)
    assert asked(base) == 0 and asked.hidden.device.type == "cpu"
    with torch.no_grad():
        base.head.weight.mul_(2)
    base, other = first.double(), other.double()
    kl, n = 0.0, 0
    for e in examples:
        ids = torch.tensor([tokenizer.prompt(e.prompt)])
        room = collate(examples, tokenizer).room
        said, mask = base.generate(ids, torch.tensor([ids.shape[1]]), room, tokenizer.end, temperature=0)
        whole, at = torch.cat([ids, said[:, : mask.sum()]], 1), slice(ids.shape[1] - 1, -1)
        p, q = (model(whole)[0, at].log_softmax(-1) for model in (base, other))
        kl, n = kl + (p.exp() * (p - q)).sum().item(), n + len(p)
    assert asked(other.float()) == pytest.approx(kl / n, rel=1e-4)
    assert math.isnan(evaluate.Drift(base, tokenizer, [])(other))


def is_short(said):
    return len(said) < 50


def some_right(gpt, tokenizer, examples, right, shown=False):
    """The examples as text, the first so many with the very answer that the model gives."""
    said = evaluate.answers(gpt, tokenizer, examples, shown)
    return [Example(e.prompt, e.response, a if i < right else "-", "content") for i, (e, a) in
            enumerate(zip(examples, said))]


def test_a_probe_measures_what_was_learned_what_was_kept_and_what_comes_next(world, tokenizer, monkeypatch):
    monkeypatch.setattr(evaluate, "in_own_voice", is_short)
    stream, base, gpt = world.stream(7, 4, 6), random_gpt(0), random_gpt(1)
    tasks = [Task(t.name, some_right(gpt, tokenizer, t.train, 3 - i), some_right(gpt, tokenizer, t.test, i + 1))
             for i, t in enumerate(stream[:4])]
    reading = some_right(gpt, tokenizer, stream[4].train, 3, shown=True)
    neighbours = some_right(gpt, tokenizer, stream[5].train, 1)
    keep = some_right(gpt, tokenizer, stream[6].test, 5)
    for i, e in enumerate(keep):
        e.task = "odd" if i % 2 else "even"
    open_prompts = stream[6].train
    probe = evaluate.Probe(base, tokenizer, tasks, keep, reading, neighbours, open_prompts)
    for learned, known in ((0, 4), (1, 2), (2, 3), (3, 4), (4, 4)):               # what is seen, and the next
        found = probe.measure(gpt, learned)
        assert found["R"][:known] == [1 / 6, 2 / 6, 3 / 6, 4 / 6][:known] and np.isnan(found["R"][known:]).all()
        about = tasks[max(learned - 1, 0)].test
        assert found["drift_new"] == evaluate.Drift(base, tokenizer, about)(gpt) > 0
        # of the last task; the first before it
        assert found["learned"] == [3 / 4, 3 / 4, 2 / 4, 1 / 4, 0][learned]
    assert found["base_accuracy"] == 5 / 6 and found["base_by_kind"] == {"even": 1, "odd": 2 / 3}
    assert found["voice"] == np.mean([is_short(a) for a in evaluate.answers(gpt, tokenizer, keep)]) != 0
    assert found["teacher_accuracy"] == 3 / 4 and found["neighbours"] == 1 / 4
    assert found["drift_base"] == evaluate.Drift(base, tokenizer, keep + open_prompts)(gpt)
    said = evaluate.answers(gpt, tokenizer, open_prompts, room=64)
    assert found["open_words"] == np.mean([len(a.split()) for a in said]) > 0
    # of the five that were right at first, as measured with gpt
    still = [evaluate.grade(e, a) for e, a in zip(keep, evaluate.answers(base, tokenizer, keep))][:5]
    assert found["kept"] == 1 and probe.measure(base, 1)["kept"] == np.mean(still) < 1
    # the one neighbour that was right at first
    still = [evaluate.accuracy(base, tokenizer, neighbours[:1])]
    assert found["neighbours_kept"] == 1 and probe.measure(base, 1)["neighbours_kept"] == still[0] == 0
    # what was said first and last, to each
    first, last = (evaluate.answers(m, tokenizer, keep) for m in (gpt, base))
    kept = [row for row in probe.asked if row["of"] == "keep"]
    assert [row["said"] for row in kept] == [list(pair) for pair in zip(first, last)]
    assert [row["grade"] for row in kept] == [[evaluate.grade(e, a) for a in pair]
                                              for e, pair in zip(keep, zip(first, last))]
    assert [(row["task"], row["prompt"], row["right"]) for row in kept] == [(e.task, e.prompt, e.answer) for e in keep]
    assert {row["of"]: len(row["said"]) for row in probe.asked} == {
        "task 1": 2, "task 2": 2, "task 3": 2, "task 4": 2, "keep": 2, "neighbours": 2, "open": 2,
        "learned 0": 1, "learned 1": 2, "learned 2": 1, "learned 3": 1, "learned 4": 1}
    trained_on = [len(t.train) for t in (tasks[0], *tasks)]
    assert len(probe.asked) == sum(len(t.test) for t in tasks) + sum(trained_on) + len(keep) + len(neighbours) + len(
        open_prompts)
    assert probe.measure(base, 0)["drift_base"] == 0 and all(len(row["said"]) == 1 for row in probe.asked)


def test_of_many_demonstrations_a_probe_asks_some_from_all_over(world, tokenizer):
    task, gpt = world.stream(1, 40, 4)[0], random_gpt()
    some = [task.train[i] for i in (0, 4, 8, 13, 17, 21, 26, 30, 34, 39)]
    probe = evaluate.Probe(gpt, tokenizer, [task], most=10)
    probe.measure(gpt, 0)
    assert [row["prompt"] for row in probe.asked if row["of"] == "learned 0"] == [e.prompt for e in some]
    assert evaluate.spread(task.train, 10) == some
    assert evaluate.spread(task.train, 128) == task.train and evaluate.spread([], 5) == []


def test_of_what_there_is_not_a_probe_measures_nothing(world, tokenizer):
    task, gpt = world.stream(1, 4, 4)[0], random_gpt()
    found = evaluate.Probe(gpt, tokenizer, [task]).measure(gpt, 0)
    assert found.pop("base_by_kind") == {} and found.pop("drift_new") == 0 and 0 <= found.pop("R")[0] <= 1
    assert 0 <= found.pop("learned") <= 1
    assert len(found) == 8 and all(math.isnan(value) for value in found.values()), found
    texts = [copy.copy(e) for e in task.test]              # whose graders know no voices
    for e in texts:
        e.grader = "exact"
    assert math.isnan(evaluate.Probe(gpt, tokenizer, [task], keep=texts).measure(gpt, 0)["voice"])


# ---------------------------------------------------------------------------------------------------------------------
# Runs on disk.


def fake_run(folder, name, seed, accuracy):
    R = [[0.0, 0.0], [accuracy, 0.0], [accuracy / 2, accuracy]]
    run = {"method": name, "settings": {"seed": seed}, "command": "c", "commit": "d", "versions": {}, "machine": "m",
           "gates": {"base": 1.0}, "R": R, "base_accuracy": [1.0, 0.9, 0.8], "teacher_curve": [[1, 1.0], [2, 0.9]],
           "seconds": [4.0, 6.0], "steps": [5, 6], "guard_trips": 0, "generated_tokens": [3, 4], "base_retention": 0.8,
           "teacher_retention": 1.0, "voice_retention": 1.0, **evaluate.continual_metrics(R)}
    write_json(str(folder / name / "result.json"), run)


def test_table_summary_and_picture_from_disk(tmp_path, capsys, monkeypatch):
    for name in ("sdft", "sft", "other"):
        fake_run(tmp_path, name, 0, 0.9)
    (tmp_path / "running").mkdir()                         # no result yet: not in the table
    monkeypatch.setattr("sys.argv", ["eval.py", str(tmp_path)])
    evaluate.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:-1]] == ["| sft", "| sdft", "| other"]
    assert lines[-1] == f"in percent; wrote {tmp_path}/forgetting.png"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["methods"]) == {"sft", "sdft", "other"}
    assert summary["methods"]["sft"]["forgetting"] == pytest.approx(0.45)
    assert (tmp_path / "forgetting.png").read_bytes()[:4] == b"\x89PNG"


def test_no_picture_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    evaluate.draw({}, str(tmp_path / "x.png"))
    assert "matplotlib is missing" in capsys.readouterr().out and not (tmp_path / "x.png").exists()


def test_a_folder_of_runs_at_work(tmp_path, capsys, monkeypatch):
    """Each stage that a run can be in: a line tells it, and nothing fails."""
    log = {"lock": None, "half": '{"settings"', "begun": '{"settings": {}}\n',
           "working": '{"settings": {}}\n{"task": 2, "step": 30, "loss": 0.5}\n{"task": 2'}
    for name, text in log.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
        if text:
            (tmp_path / name / "log.jsonl").write_text(text)
    monkeypatch.setattr("sys.argv", ["eval.py", str(tmp_path)])
    evaluate.main()
    said = capsys.readouterr().out.splitlines()
    assert said == ["begun: not finished; before its first task", "half: not finished; before its first task",
                    "working: not finished; task 2, step 30, loss 0.5000"]
    fake_run(tmp_path, "sdft", 0, 0.9)
    evaluate.main()
    assert "| sdft |" in capsys.readouterr().out


def test_a_folder_without_a_run(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadInput) as e:
            evaluate.read_runs(str(folder))
        assert str(e.value).startswith(f"{folder}: no run in it") and "\n" not in str(e.value)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log.jsonl").touch()
    with pytest.raises(BadInput, match=f"a: a run; a table is of .*: python eval.py {tmp_path}$"):
        evaluate.read_runs(str(tmp_path / "a"))


def test_changes_are_told_task_by_task():
    kinds = [{"fact": 1.0, "chain": 0.9}, {"fact": 0.5, "chain": 0.9}, {"fact": 0.25, "chain": NAN}]
    result = {"R": [[0.0, NAN], [0.9, 0.1], [0.8, 1.0]], "tasks": ["01-update", "x" * 40], "base_by_kind": kinds}
    header, *lines = evaluate.changes(result).splitlines()
    assert header.split() == ["task", "before", "learned", "now"]
    cells = [(line[:32].rstrip(), *line[32:].split()) for line in lines]
    assert cells == [("new: 01-update", "0.00", "0.90", "0.80"), ("new: " + "x" * 27, "0.10", "1.00", "1.00"),
                     ("kept: fact", "1.00", "–", "0.25"), ("kept: chain", "0.90", "–", "–")]
    assert {len(line) for line in (header, *lines)} == {len(header)}


def test_changes_leave_names_as_they_are():
    result = {"R": [[0.0], [1.0]], "tasks": ["finance"], "base_by_kind": [{"banana": NAN}, {"banana": 1.0}]}
    said = evaluate.changes(result)
    assert "new: finance " in said and "kept: banana " in said and "nan " not in said


# ---------------------------------------------------------------------------------------------------------------------
# Models' folders, and checkpoints.


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated", "list", "pickle"])
def test_a_file_that_is_no_checkpoint_ends_with_one_line(tmp_path, tokenizer, content):
    save_run(tmp_path, tokenizer)
    path = tmp_path / "checkpoint.pt"
    if content == "list":
        torch.save([1, 2], path)
    elif content == "pickle":
        torch.save({"settings": Boom(), "student": {}, "teacher": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(BadInput) as e:
        load_checkpoint(str(path))
    assert len(e.value.args) == 1 and str(path) in str(e.value) and "\n" not in str(e.value) and not Boom.ran


class Boom:
    """Would run code when unpickled."""
    ran = False

    def __reduce__(self):
        return (exec, ("import test_eval; test_eval.Boom.ran = True",))


def save_run(folder, words):
    """What a run leaves of a model that nobody has trained."""
    student = random_gpt(0)
    student.save_pretrained(folder / "model", files=words.files())
    return student


def test_a_runs_model_and_its_tokenizer(tmp_path, tokenizer):
    student = save_run(tmp_path, tokenizer)
    for path in (tmp_path, tmp_path / "model"):
        model, words, pretraining = evaluate.load_model(str(path))
        assert model.config == student.config and not model.training and pretraining == {}
        assert all(torch.equal(w, student.state_dict()[name]) for name, w in model.state_dict().items())
        assert words.files() == tokenizer.files()


def test_no_model_and_none_yet(tmp_path, tokenizer):
    for path in (tmp_path, tmp_path / "none", tmp_path / "a\0b"):
        for ask in (evaluate.load_model, evaluate.looks, lambda path: evaluate.ask(path, "tanu")):
            with pytest.raises(BadInput, match="no model there.*; check the path, or make .* lab/pretrain.py") as e:
                ask(str(path))
            assert len(e.value.args) == 1 and str(e.value).startswith(f"{path}: ")
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(BadInput, match=f"no model yet.*; go on with it first: python train.py --out {tmp_path} --res"):
        evaluate.load_model(str(tmp_path))


CONFIG = {"num_hidden_layers": 3}, {"num_attention_heads": 0}, {"num_attention_heads": 3}, {"model_type": "gemma2"}
MANY_WORDS = {"words": [f"w{i}" for i in range(VOCAB_SIZE)]}
SOME = {"made_by": "a", "gates": {}}


@pytest.mark.parametrize("name, other", [
    *(("config.json", other) for other in CONFIG), ("config.json", None), ("config.json", []), ("config.json", "{"),
    *(("words.json", other) for other in ({"spare": []}, {"words": ["a", "a"]}, {"words": [1]}, {"words": None},
                                          MANY_WORDS, [], None, "{", '{"words": ["\\ud800"]}', b"\xff")),
    *(("pretraining.json", other) for other in (
        SOME, SOME | {"frequency": [0.5]}, SOME | {"frequency": {}}, SOME | {"frequency": [float("nan")] * VOCAB_SIZE},
        SOME | {"frequency": ["x"] * VOCAB_SIZE}, SOME | {"frequency": [[0.5]] * VOCAB_SIZE}, [], None, "{")),
    ("model.safetensors", b""), ("model.safetensors", b"weights" * 9)])
def test_a_damaged_folder_ends_with_one_line(tmp_path, tokenizer, name, other):
    """Whatever stands in one of its files: settings that are changed, other JSON, or what is none."""
    save_run(tmp_path, tokenizer)
    path = tmp_path / "model" / name
    if isinstance(other, dict) and name == "config.json":
        other = json.loads(path.read_text()) | other
    text = other if isinstance(other, (str, bytes)) else json.dumps(other)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as e:
        evaluate.load_model(str(tmp_path))
    said = str(e.value)
    assert len(e.value.args) == 1 and "\n" not in said and said.startswith(f"{tmp_path}/model") and "; " in said
    # what contradicts, both at fault
    assert name in said or name == "config.json" or "1220 tokens, and the model has 960 rows" in said


@pytest.mark.parametrize("name, said", [
    ("model.safetensors", "tensors are missing"), ("words.json", "tokenizer.json: cannot be read"),
    ("config.json", "no model there")])
def test_a_folder_that_lacks_a_file(tmp_path, tokenizer, name, said):
    save_run(tmp_path, tokenizer)
    (tmp_path / "model" / name).unlink()
    with pytest.raises(BadInput, match=said) as e:
        evaluate.load_model(str(tmp_path))
    assert len(e.value.args) == 1 and str(tmp_path) in str(e.value)


def test_ask_refuses_what_does_not_fit(tmp_path, tokenizer):
    save_run(tmp_path, tokenizer)
    assert isinstance(evaluate.ask(str(tmp_path), "zorp: c a d b"), str)
    with pytest.raises(BadInput, match="does not fit the context of 256"):
        evaluate.ask(str(tmp_path), "x " * 300)
