"""What is ready for a GPU: the day's program (gpu.py) at its smallest, on a CPU; and tests of the device itself, which
need one where they are marked so."""
import math
import os
import random
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import bench_kernel
import gpu
import runs
import sdft
import train
from conftest import ROOT, random_gpt
from model import GPT, GPTConfig, Sampler
from runs import read_json, write_json

DEVICES = ["cpu", pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")])]
on_devices = pytest.mark.parametrize("device", DEVICES)


# ---------------------------------------------------------------------------------------------------------------------
# The day's program.


def test_the_day_at_its_smallest(tmp_path):
    """Every part, from a copy of the tree without its history, and with no more than a bare machine has."""
    project, out = tmp_path / "project", tmp_path / "out"
    project.mkdir()
    for name in os.listdir(ROOT):
        if name.endswith(".py") or name in ("lab", "tests"):
            source = os.path.join(ROOT, name)
            (shutil.copytree if os.path.isdir(source) else shutil.copy)(source, project / name)
    # which take most of the time
    pretrain = project / "lab" / "pretrain.py"
    pretrain.write_text(pretrain.read_text().replace("gates(model, world),", "dict.fromkeys(GATES, 0.0),"))
    done = subprocess.run([sys.executable, "tests/gpu.py", "--small", "--minutes", "60", "--out", str(out)],
                          cwd=project, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert sorted(os.listdir(out)) == sorted(f"{part}.json" for part in gpu.PARTS)

    found = {part: read_json(out / f"{part}.json") for part in gpu.PARTS}
    for part, f in found.items():
        assert "error" not in f and f["seconds"] >= 0 and len(f["source"]) == 16 and f["commit"] == "unknown", part
        assert not [row for row in f.get("rows", []) if "error" in row], part
    assert found["speed"]["tflops"].keys() == gpu.PRODUCTS.keys() and found["speed"]["copy_gb_per_s"] > 0
    assert found["tests"]["passed"] and len(found["tests"]["tests"]) == found["tests"]["collected"] == 6
    # two vocabularies, two lengths, three divergences, two types; three methods, and Liger's where it is
    kernel = found["kernel"]
    assert len(kernel["rows"]) == 24 * (3 + kernel["liger"]) and not kernel["skipped"]
    assert all(row["ms"] > 0 and row["share_of_copy"] > 0 for row in kernel["rows"])
    steps = found["step"]["rows"]
    assert [row["model"] for row in steps] == [name for name, *_ in gpu.STEPS]
    for row in steps:
        # of a random model that a demonstration moves a little
        assert 0 < row["loss"] < 1 and row["step_ms"] > row["sampling_ms"] > 0
        assert all(row[name] > 0 for name in row if name.startswith(("share", "sampled", "trained")))
    commands = found["demo"]["rows"]
    assert len(commands) == len(gpu.COMMANDS)
    taught = [row["found"]["learning_accuracy"] for row in commands if row.get("found")]
    assert len(taught) == 5 and all(map(math.isfinite, taught))
    # the table, last of all
    table = done.stdout[done.stdout.rindex("commit unknown") :]
    for text in ("6 of 6 passed", "Qwen2.5-1.5B", "compiled", "--preset gpu", "jsd"):
        assert text in table, text


def test_without_a_gpu_the_remedy_is_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit) as e:
        gpu.main()
    assert e.value.code == 2 and "--small" in capsys.readouterr().err


def day(monkeypatch, out, *options) -> int:
    """Exit status of the program in this process; its parts are others."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--small", "--out", str(out), *options])
    with pytest.raises(SystemExit) as e:
        gpu.main()
    return e.value.code


def test_when_the_time_is_up_the_rest_is_left_out_and_said_so(monkeypatch, tmp_path, capsys):
    assert day(monkeypatch, tmp_path, "--minutes", "0.01") == 1
    assert all(read_json(tmp_path / f"{part}.json") == {"error": "not begun: the time was up"} for part in gpu.PARTS)
    assert capsys.readouterr().out.count("not begun: the time was up") == len(gpu.PARTS)


def test_a_part_that_hangs_or_dies_keeps_what_it_has_found(monkeypatch, tmp_path, capsys):
    """One waits for ever, one is killed by its device, one fails; the last passes, and counts."""
    write_json(tmp_path / "demo.json", {"error": "of another time"})
    program = tmp_path / "part.py"
    program.write_text(f"""
import sys, time
if sys.argv[1] == "kernel":
    time.sleep(600)
sys.path[:0] = [{os.path.join(ROOT, "tests")!r}, {ROOT!r}]
import gpu
def die(keep, left, small):
    import os, signal
    keep(tflops={{"bf16": 1.0}})
    os.kill(os.getpid(), signal.SIGKILL)
def fail(keep, left, small, tflops):
    row = {{"model": "a", "compiled": False, "type": "fp32", "rows": 1, "answer": 1}}
    keep(rows=[row | {{"error": str(tflops)}}])
    raise ValueError("two\\nlines")
gpu.PARTS = {{"speed": die, "tests": lambda keep, left, small: keep(passed=True), "step": fail}}
gpu.work(sys.argv[1], sys.argv[4], 100, True)
""")
    monkeypatch.setattr(gpu, "__file__", str(program))
    monkeypatch.setattr(gpu, "LEAST", 1)
    write_json(tmp_path / "kernel.json", {"rows": []})                     # as it would, before it hangs
    for part in ("speed", "tests", "kernel", "step"):
        gpu.run_part(part, str(tmp_path), 1.0 if part == "kernel" else 3000.0, False)
    found = {part: read_json(tmp_path / f"{part}.json") for part in gpu.PARTS}
    assert found["speed"]["error"] == "ended with status -9" and found["speed"]["tflops"] == {"bf16": 1.0}
    assert found["kernel"]["error"] == "stopped after 1 s" and found["kernel"]["rows"] == []
    assert found["step"]["error"] == "ValueError: two lines"
    assert found["step"]["rows"][0]["error"] == "{'bf16': 1.0}"            # the speed of the same day
    assert found["tests"]["passed"] and "error" not in found["tests"]
    table = gpu.table(str(tmp_path))
    assert "speed: ended with status -9" in table and "demo: of another time" in table
    # some parts alone: what the others have left stays
    monkeypatch.setattr(gpu, "run_part", lambda part, *_: write_json(tmp_path / f"{part}.json", {"seconds": 1}))
    assert day(monkeypatch, tmp_path, "step") == 0
    assert read_json(tmp_path / "speed.json") == found["speed"] and read_json(tmp_path / "step.json") == {"seconds": 1}


def test_a_model_that_does_not_fit_leaves_the_others(monkeypatch, tmp_path):
    def one_step(name, *_):
        if name == "Qwen2.5-1.5B":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate ...")
        return dict.fromkeys(("step_ms", "sampling_ms", "sampled_per_s", "trained_per_s", "share_of_speed",
                              "share_training", "peak_gb"), 1.0)

    monkeypatch.setattr(gpu, "one_step", one_step)
    kept = {}
    gpu.step(lambda **found: kept.update(found), lambda: 100, True)
    errors = {row["model"]: row["error"] for row in kept["rows"] if "error" in row}
    assert errors == {"Qwen2.5-1.5B": "OutOfMemoryError: CUDA out of memory. Tried to allocate ..."}
    assert len(kept["rows"]) == len(gpu.STEPS) and "GB" in "\n".join(gpu.show_step(kept))
    gpu.step(lambda **found: kept.update(found), lambda: 1, True)
    assert {row["error"] for row in kept["rows"]} == {"TimeoutError: the time was up"}


@pytest.mark.parametrize("status, outcomes, passed", [
    (0, ("passed", "passed"), True), (0, ("passed", "skipped"), False), (1, ("passed", "failed"), False),
    (3, ("passed",), False), (5, (), False)])
def test_only_what_ran_and_passed_counts(monkeypatch, status, outcomes, passed):
    """Where triton is missing tests are skipped: that is no pass. 5 is pytest's status of no test at all."""
    kept = {}

    def main(arguments, plugins):
        recorder, = plugins
        recorder.pytest_collection_finish(SimpleNamespace(items=outcomes))
        for i, outcome in enumerate(outcomes):
            for when in ("setup", "call", "teardown"):
                at = outcome if when == ("setup" if outcome == "skipped" else "call") else "passed"
                recorder.pytest_runtest_logreport(SimpleNamespace(
                    when=when, outcome=at, nodeid=f"test_{i}", duration=1.0, longrepr="why"))
        return status

    monkeypatch.setattr(pytest, "main", main)
    gpu.tests(lambda **found: kept.update(found), None, False)
    assert kept["passed"] is passed and kept["collected"] == len(outcomes)
    told = [test for test in kept.get("tests", []) if test.get("told") == "why"]
    assert [test["outcome"] for test in told] == [outcome for outcome in outcomes if outcome != "passed"]


def test_the_marked_tests_need_nothing_that_a_bare_machine_lacks():
    absent = ("hypothesis", "transformers", "tokenizers", "safetensors", "matplotlib", "gguf", "xdist")
    program = (f"import sys; sys.modules |= dict.fromkeys({absent}); import pytest; "
               "sys.exit(pytest.main(['-q', '--collect-only', '-m', 'gpu', '-p', 'no:cacheprovider', *sys.argv[1:]]))")
    done = subprocess.run([sys.executable, "-c", program, *gpu.marked_gpu()], capture_output=True, text=True,
                          env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert done.returncode == 0, done.stdout[-3000:]
    for file in ("test_divergence.py::", "test_model.py::", "test_train.py::", "test_gpu.py::"):
        assert file in done.stdout, file


@pytest.mark.parametrize("name, parameters", [
    ("small world", 836_480), ("preset gpu", 30_477_568), ("SmolLM2-135M", 134_515_008),
    ("Qwen2.5-0.5B", 494_032_768), ("Qwen2.5-1.5B", 1_543_714_304)])
def test_the_shapes_are_those_of_the_models(name, parameters):
    """As their model cards say; of the first two by hand."""
    with torch.device("meta"):
        model = GPT(GPTConfig(**gpu.SHAPES[name]))
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_operations_by_hand():
    """Two tokens, one of them read by the head; a block of width 4, two heads of 2, one of keys, 8 inside the MLP."""
    model = GPT(GPTConfig(10, n_layer=1, n_head=2, n_embd=4, n_kv_head=1, n_mlp=8, qkv_bias=True))
    blocks = 4 * 8 + 4 * 4 + 2 * 4 * 8
    attention = 2 * (2 + 2) * 2 * 3                        # heads, numbers of query and value, 2, pairs
    assert gpu.forward_flops(model, 2, 1) == 2 * blocks * 2 + 2 * 4 * 10 + attention
    bare, shown = gpu.forward_flops(model, 4, 2), gpu.forward_flops(model, 7, 2)
    assert gpu.step_flops(model, (5, 3, 6, 2)) == (5 * bare, 5 * (3 * bare + shown))


def test_the_benchmark_of_the_kernel_keeps_its_rows_as_it_goes(monkeypatch):
    """What fails is a row as well; when the time is up the rest is counted."""
    small = {"device": "cpu", "columns": (8,), "tokens": (4, 2), "copied": 2**10}
    monkeypatch.setattr(bench_kernel, "token_divergence", None)
    monkeypatch.setattr(bench_kernel, "METHODS", ("kernel", "eager"))
    kept = []
    results = bench_kernel.bench_gpu(**small, keep=lambda found: kept.append(len(found["rows"])))
    assert kept == list(range(1, 25)) and len(results["rows"]) == 24
    assert all(("error" in row) == (row["method"] == "kernel") for row in results["rows"])
    assert results["rows"][0]["error"] == "TypeError: 'NoneType' object is not callable"
    assert bench_kernel.bench_gpu(**small, seconds=-1)["skipped"] == 24


def test_the_source_is_told_apart(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "ROOT", str(tmp_path))
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "a.py").write_text("1")
    first = gpu.source()
    (tmp_path / "lab" / "a.py").write_text("2")
    assert gpu.source() != first
    (tmp_path / "lab" / "a.py").write_text("1")
    (tmp_path / "notes.txt").write_text("1")
    assert gpu.source() == first


# ---------------------------------------------------------------------------------------------------------------------
# The device.


def work(device, vocab=320):
    student, teacher = random_gpt(0, vocab).to(device), random_gpt(1, vocab).to(device)
    batch = gpu.random_batch((6, 4, 9, 5), vocab, device)
    return student, teacher.requires_grad_(False), batch


@on_devices
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("contrast", [0.0, 1.0])
def test_the_loss_in_bf16_is_nearly_that_of_float64(device, linear, contrast, compiled):
    """With autocast, from whole logits or in chunks; on a GPU compiled, too. In bf16 the first two digits agree."""
    if compiled and device == "cpu":
        pytest.skip("test_sdft.py compiles on a CPU")
    torch.manual_seed(0)
    student, teacher, batch = work(device)
    batch.other_prompt, batch.other_length = batch.demo_prompt.roll(1, 0), batch.demo_length
    rows, options = torch.arange(6, device=device), ("forward", 0.5, linear, contrast)
    loss_fn = train.compiled(sdft.on_policy_loss) if compiled else sdft.on_policy_loss
    with torch.autocast(device, torch.bfloat16):
        loss = loss_fn(student, teacher, batch, rows, batch.response, batch.response_mask, *options)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in student.parameters()]).cpu().double()

    student.zero_grad()
    student, teacher, batch = student.cpu().double(), teacher.cpu().double(), batch.to("cpu")
    exact = sdft.on_policy_loss(student, teacher, batch, rows.cpu(), batch.response, batch.response_mask,
                                "forward", 0.5, False, contrast)
    exact.backward()
    expected = torch.cat([p.grad.flatten() for p in student.parameters()])
    torch.testing.assert_close(loss.cpu().double(), exact, rtol=0.02, atol=0)
    assert torch.cosine_similarity(gradient, expected, 0) > 0.99


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunked_loss_keeps_bf16_factors_apart_from_bf16_logits(device, dtype):
    """The product of the head comes out in fp32 from factors in bf16: student and teacher are 0.03 nats apart."""
    torch.manual_seed(0)
    hidden, head = torch.randn(50, 64, device=device), torch.randn(2000, 64, device=device) / 8 * 3
    teacher = (head + 0.004 * torch.randn_like(head)).to(dtype)
    hidden, head = hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_()
    mask = torch.arange(50, device=device) % 3 > 0
    sdft.linear_distill_loss(hidden, head, hidden.detach(), teacher, mask, chunk=20).backward()

    h, w, t = (x.detach().cpu().double() for x in (hidden, head, teacher))
    h.requires_grad_(), w.requires_grad_()
    sdft.distill_loss(h @ w.T, h.detach() @ t.T, mask.cpu()).backward()
    for ours, exact in ((hidden.grad, h.grad), (head.grad, w.grad)):
        assert (ours.cpu().double() - exact).norm() < (0.01 if dtype == torch.bfloat16 else 1e-3) * exact.norm()


@on_devices
@pytest.mark.parametrize("bf16", [False, True])
def test_samples_are_drawn_from_the_model(device, bf16):
    """The first tokens of many answers are spread as its probabilities are; a mask ends behind the first end token."""
    torch.manual_seed(0)
    model, n, end = random_gpt(0, 12).to(device), 20_000, 3
    prompt = torch.randint(12, (1, 4), device=device).repeat(n, 1)
    length = torch.full((n,), 4, device=device)
    sample = Sampler(end, bf16)
    response, mask = sample(model, prompt, length, 3)
    expected = model(prompt[:1])[0, -1].softmax(-1).cpu()
    seen = torch.bincount(response[:, 0].cpu(), minlength=12) / n
    # three standard errors of the likeliest are 0.01; bf16 moves a probability by as much again
    assert (seen - expected).abs().max() < (0.03 if bf16 else 0.015)
    ended = (response == end).cumsum(1) - (response == end).int()
    assert torch.equal(mask, ended == 0) and sample.tokens == int(mask.sum()) and response.device.type == device


@on_devices
def test_random_states_come_back_from_a_checkpoint(device, tmp_path):
    rng = random.Random(0)
    torch.manual_seed(0)
    torch.rand(1, device=device)
    path = str(tmp_path / "checkpoint.pt")
    student = {"w": torch.zeros(2, device=device)}
    runs.save_checkpoint(path, {"settings": {}, "student": student, **runs.random_states(rng)})
    drawn = torch.rand(5, device=device), rng.random()
    saved = runs.load_checkpoint(path)
    runs.set_random_states(rng, saved)
    assert torch.equal(torch.rand(5, device=device), drawn[0]) and rng.random() == drawn[1]
    assert saved["student"]["w"].device.type == "cpu"


@on_devices
@pytest.mark.parametrize("bf16, copied", [(False, False), (True, False), (True, True)])
def test_one_step_moves_every_weight_and_the_teacher_follows(device, bf16, copied):
    """By AdamW, samples and losses under one autocast, which must not take the weights that sampling has cast, without
    a gradient, for those of the loss; samples from a copy in bf16, too. Then the guard puts both models back."""
    student, teacher, batch = work(device)
    teacher.load_state_dict(student.state_dict())
    before = [p.detach().clone() for p in student.parameters()]
    guard = sdft.TeacherGuard(0.5, student, teacher)
    sampler = Sampler(-1, copied)
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        sdft.sdft_step(student, teacher, train.adamw(student, 1e-3), batch, lambda *sampled: sampler(*sampled, 5),
                       linear=True, ema_decay=0.9)
    for old, new, taught in zip(before, student.parameters(), teacher.parameters()):
        assert new.isfinite().all() and not torch.equal(old, new)
        torch.testing.assert_close(taught, old.lerp(new.detach(), 0.1))
    assert not guard.check(0.0, student, teacher)
    assert all(torch.equal(old, new) for old, new in zip(before, student.parameters()))
    assert next(student.parameters()).device.type == device
