"""Metrics by hand, tables and pictures from runs on disk, checkpoints that are none."""
import json
import math

import numpy as np
import pytest
import torch

import eval as evaluate
from conftest import random_gpt

NAN = float("nan")


def test_metrics_of_a_3x3_worked_by_hand():
    R = [[0.1, 0.2, 0.0],
         [0.9, 0.3, 0.0],
         [0.7, 0.8, 0.1],
         [0.6, 0.9, 1.0]]
    m = evaluate.continual_metrics(R)
    assert m["average_accuracy"] == pytest.approx((0.6 + 0.9 + 1.0) / 3)
    assert m["learning_accuracy"] == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert m["forgetting"] == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)               # the final row is not in the maximum
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
    assert one["average_accuracy"] == 1.0 and all(math.isnan(one[k]) for k in ("forgetting", "backward_transfer", "forward_transfer", "retention"))
    with pytest.raises(ValueError, match=r"expected \[T\+1, T\]"):
        evaluate.continual_metrics(np.zeros((3, 3)))


@pytest.mark.parametrize("df, value", [(2, 4.3027), (5, 2.5706), (30, 2.0423)])             # printed tables of Student's t
def test_t_quantile(df, value):
    assert evaluate.t_quantile_975(df) == pytest.approx(value, abs=2e-3)


def fake_run(folder, name, seed, accuracy):
    R = [[0.0, 0.0], [accuracy, 0.0], [accuracy / 2, accuracy]]
    run = {"method": name, "settings": {"seed": seed}, "command": "c", "commit": "d", "versions": {}, "machine": "m", "gates": {"base": 1.0}, "R": R,
           "base_accuracy": [1.0, 0.9, 0.8], "teacher_curve": [[1, 1.0], [2, 0.9]], "seconds": [4.0, 6.0], "steps": [5, 6], "guard_trips": 0, "generated_tokens": [3, 4], "base_retention": 0.8, "teacher_retention": 1.0,
           "voice_retention": 1.0, **evaluate.continual_metrics(R)}
    evaluate.write_json(str(folder / name / "result.json"), run)


def test_table_summary_and_picture_from_disk(tmp_path, capsys, monkeypatch):
    for name in ("sdft", "sft", "other"):
        fake_run(tmp_path, name, 0, 0.9)
    (tmp_path / "running").mkdir()                                                          # no result yet: not in the table
    monkeypatch.setattr("sys.argv", ["eval.py", str(tmp_path)])
    evaluate.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:-1]] == ["| sft", "| sdft", "| other"] and lines[-1] == f"in percent; wrote {tmp_path}/forgetting.png"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary["methods"]) == {"sft", "sdft", "other"} and summary["methods"]["sft"]["forgetting"] == pytest.approx(0.45)
    assert (tmp_path / "forgetting.png").read_bytes()[:4] == b"\x89PNG"


def test_no_picture_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    evaluate.draw({}, str(tmp_path / "x.png"))
    assert "matplotlib is missing" in capsys.readouterr().out and not (tmp_path / "x.png").exists()


def test_readme_tables_come_from_results(tmp_path):
    evaluate.write_json(str(tmp_path / "step_cpu.json"), {"milliseconds": {"step": 12.5}})
    evidence = {"id": "i", "claim": "c", "source": "paper", "figure": {"x": 0.5}, "ci95": {"x": 0.01}, "seeds": [0, 1], "verdict": "holds"}
    evaluate.write_json(str(tmp_path / "evidence.json"), {"claims": [evidence]})
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- step -->\nold\n<!-- end -->\n<!-- claims -->\nold\n<!-- end -->\nafter\n")
    evaluate.write_readme(str(readme), str(tmp_path))
    text = readme.read_text()
    assert "| **whole step** | 12.5 |" in text and "50.0 ± 1.0" in text and "\nold\n" not in text and text.startswith("before") and text.endswith("after\n")


def test_a_folder_of_runs_at_work(tmp_path, capsys, monkeypatch):
    """Each stage that a run can be in: a line tells it, and nothing fails."""
    log = {"lock": None, "half": '{"settings"', "begun": '{"settings": {}}\n', "working": '{"settings": {}}\n{"task": 2, "step": 30, "loss": 0.5}\n{"task": 2'}
    for name, text in log.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "lock").touch()
        if text:
            (tmp_path / name / "log.jsonl").write_text(text)
    monkeypatch.setattr("sys.argv", ["eval.py", str(tmp_path)])
    evaluate.main()
    said = capsys.readouterr().out.splitlines()
    assert said == ["begun: not finished; before its first task", "half: not finished; before its first task", "working: not finished; task 2, step 30, loss 0.5000"]
    fake_run(tmp_path, "sdft", 0, 0.9)
    evaluate.main()
    assert "| sdft |" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated", "list", "pickle"])
def test_a_file_that_is_no_checkpoint_ends_with_one_line(tmp_path, capsys, content):
    path = tmp_path / "checkpoint.pt"
    if content == "list":
        torch.save([1, 2], path)
    elif content == "pickle":
        torch.save({"settings": Boom(), "student": {}, "teacher": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as e:
        evaluate.load_checkpoint(str(tmp_path))
    err = capsys.readouterr().err
    assert e.value.code == 2 and str(path) in err and err.count("\n") == 1 and not Boom.ran


class Boom:
    """Would run code when unpickled."""
    ran = False

    def __reduce__(self):
        return (exec, ("import test_eval; test_eval.Boom.ran = True",))


def test_no_checkpoint(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate.load_checkpoint(str(tmp_path / "none"))
    assert "no such checkpoint" in capsys.readouterr().err


def test_ask_refuses_what_does_not_fit(tmp_path, capsys):
    model = random_gpt(context=256)
    torch.save({"settings": {"n_layer": 2, "n_head": 2}, "student": model.state_dict(), "teacher": model.state_dict()}, tmp_path / "checkpoint.pt")
    assert isinstance(evaluate.ask(str(tmp_path), "zorp: c a d b"), str)
    with pytest.raises(SystemExit):
        evaluate.ask(str(tmp_path), "x " * 300)
    assert "does not fit the context of 256" in capsys.readouterr().err
