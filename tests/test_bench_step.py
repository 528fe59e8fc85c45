"""The benchmark of a step: what it counts, what it makes of its rounds, and a profile of the small world's step."""
import bench_step
import pytest
import torch
import torch.nn.functional as F

from conftest import random_gpt
from divergence import linear_distill_loss
from model import bf16_copy


def test_counts_of_operations_and_bytes():
    """A product reads both factors and writes a result; a view is free; of a table only what is looked up is read."""
    a, b, table = torch.randn(30, 20), torch.randn(20, 10), torch.randn(1000, 50)
    gflop, gb = bench_step.counted(lambda: a @ b)
    assert gflop == pytest.approx(2 * 30 * 20 * 10 / 1e9) and gb == pytest.approx(4 * (600 + 200 + 300) / 1e9)
    assert bench_step.counted(lambda: a.t().reshape(20, 30)[:3]) == (0, 0)
    at = torch.tensor([3, 5])
    assert bench_step.counted(lambda: F.embedding(at, table))[1] == pytest.approx((16 + 2 * 400) / 1e9)


@pytest.mark.parametrize("contrast, products", [(0.0, 4), (1.0, 6)])
def test_products_of_the_loss_in_chunks_are_counted(contrast, products):
    """Of the student's logits and each teacher's, and of both gradients."""
    N, D, V = 12, 8, 40
    hidden, *teachers = (torch.randn(N, D) for _ in range(4))
    head = torch.randn(V, D)
    beside = {"contrast": contrast, "bare": teachers[1], "other": teachers[2]} if contrast else {}
    gflop, _ = bench_step.counted(lambda: linear_distill_loss(hidden, head, teachers[0], head, torch.ones(N), **beside))
    assert gflop == pytest.approx(2 * N * D * V * products / 1e9)


def test_products_of_a_copy_that_samples_are_counted():
    """Packed or not: of one token in each of two rows all weights but the embedding, and the head where it is read."""
    model = random_gpt(0)
    tokens, n = torch.randint(300, (2, 1)), sum(p.numel() for p in model.parameters() if p.ndim == 2)
    looked_up = model.embed.weight.numel()
    gflop, _ = bench_step.counted(lambda: bf16_copy(model)(tokens))
    attention = 2 * 2 * 2 * model.config.n_embd * model.config.n_layer                # its scores, and their sums
    assert gflop == pytest.approx((2 * 2 * (n - looked_up) + attention) / 1e9)


def test_rounds_are_compared_in_turns():
    said = {"ours": [{"step": 10.0, "peak_mb": 5}, {"step": 20.0, "peak_mb": 7}, {"step": 12.0, "peak_mb": 6}],
            "trl": [{"step": 20.0, "version": "1"}, {"step": 30.0, "version": "1"}, {"step": 30.0, "version": "1"}]}
    assert bench_step.compared(said) == {
        "step_ms": 12.0, "peak_mb": 7, "trl": {"version": "1", "step_ms": 30.0},
        "times_faster_than_trl": [2.0, 1.5, 2.5]}
    assert bench_step.compared({"ours": said["ours"], "trl": []}) == {"step_ms": 12.0, "peak_mb": 7}


def test_the_parts_of_a_step_do_what_the_step_does(monkeypatch):
    monkeypatch.setattr(bench_step, "machine", lambda bf16: {"gflop_per_s": 1.0, "gb_per_s": 1e9})
    monkeypatch.setattr("bench_kernel.milliseconds", lambda part, *_, **__: 1.0)
    *parts, step = bench_step.profile(bench_step.small(), False)["parts"].values()
    assert sum(part["gflop"] for part in parts) == pytest.approx(step["gflop"], rel=0.01) and step["gflop"] > 5
    assert step["floor_ms"] == pytest.approx(1000 * step["gflop"], rel=0.01)
