"""What figures over seeds say: means, intervals, verdicts, rank correlations.

A figure is an array, one number a seed, or a pair (mean, half of its 95 % interval)."""
import math

import numpy as np

from report import over_seeds

NAN = float("nan")
# Seeds without which nothing is said: one has no interval.
FEWEST = 2


def interval(values) -> tuple[float, float]:
    """(mean, half of the 95 % t-interval) of an array over seeds, NaN left out; one number has no interval (NaN).

    A pair is one already.
    """
    if isinstance(values, tuple):
        return values
    mean, _, high = over_seeds(values)
    return mean, NAN if high is None else float(high - mean)


def verdict(margins, directions=()) -> str:
    """What the margins and directions of a claim say of it.

    holds: of every margin the whole 95 % interval is at or above 0. holds partly: every margin's mean is, or every
    direction's whole interval is above 0. not measured: a margin has no interval, or a seed that has not the margin.
    """
    whole = not any(np.isnan(m).any() for m in margins)
    margins, directions = ([interval(m) for m in figures] for figures in (margins, directions))
    if not whole or np.isnan(margins).any():
        return "not measured"
    if all(mean - half >= -1e-9 for mean, half in margins):
        return "holds"
    right = directions and all(mean - half > 1e-9 for mean, half in directions)
    return "holds partly" if right or all(mean >= -1e-9 for mean, _ in margins) else "does not hold here"


def ranks(x) -> np.ndarray:
    """1 is the smallest; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def spearman(x, y) -> float:
    """Rank correlation: Pearson's of the ranks; NaN where x or y is constant."""
    a, b = (ranks(v) - (len(v) + 1) / 2 for v in (x, y))
    return float(a @ b / math.sqrt((a @ a) * (b @ b))) if a.any() and b.any() else NAN


def rank_correlation(x, y, draws=1000) -> tuple[float, float]:
    """(Spearman's rho, half of its 95 % interval by a seeded bootstrap over the points)."""
    x, y = np.array(x, dtype=float), np.array(y, dtype=float)
    rho = spearman(x, y)
    if math.isnan(rho):
        return NAN, NAN
    chosen = np.random.default_rng(0).integers(len(x), size=(draws, len(x)))
    low, high = np.nanpercentile([spearman(x[i], y[i]) for i in chosen], [2.5, 97.5])
    return rho, float(high - low) / 2
