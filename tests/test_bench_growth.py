"""What the benchmark of growth makes of its points; a point itself, at tiny sizes."""
import pytest

import bench_growth


def test_a_slope_is_the_exponent_and_a_doubling_the_ratio():
    points = [{"x": x, "sampling_ms": 3 * x, "training_ms": 0.5 * x**2, "peak_mb": 100 + x} for x in (4, 8, 16, 32)]
    found = bench_growth.growth(points)
    assert found["slope"]["sampling_ms"] == 1 and found["slope"]["training_ms"] == 2
    assert 0 < found["slope"]["peak_mb"] < 0.2
    assert found["last_doubling"] == {"sampling_ms": 2, "training_ms": 4, "peak_mb": pytest.approx(132 / 116, abs=0.01)}
    said = bench_growth.table({"rows": {"points": points, **found}})
    assert said.splitlines()[0].split() == ["rows", "sampling", "ms", "training", "ms", "peak", "MB"]
    assert "last doubling" in said and said.count("\n") == 6


def test_a_point_is_measured():
    found = bench_growth.one_step(rows=2, answer=3, words=128, width=64)
    assert found["sampling_ms"] > 0 and found["training_ms"] > 0 and found["peak_mb"] >= 0
    assert found["parameters"] > 128 * 64
