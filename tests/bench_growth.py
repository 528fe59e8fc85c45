"""How the time and the memory of a step grow: with rows, tokens of an answer, words, and the size of the model.

    python tests/bench_growth.py           a table, and results/growth_cpu.json; two minutes on two cores

Random models of four layers take steps of SDFT as train.py makes them for a chat model: AdamW, losses from hidden
states in chunks, prompts of 32 tokens, demonstration prompts of 96, answers of full length. One thing is doubled three
times while the others stay. Each point is a process of its own; its memory is the most that it held, less what it held
before the model was there. slope: the exponent a of y ~ x^a, fitted by least squares of logarithms; 1 is linear, and
less says that something in it does not grow. last doubling: how many times more the last point takes than the one
before, where what does not grow weighs least: 2 is linear, and 3.3 of a width, which makes so many times the
parameters. Left out: the GPU (tests/gpu.py has its sizes).
"""
import argparse
import json
import os
import subprocess
import sys

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "lab"), os.path.join(ROOT, "tests")]

SMALLEST = {"rows": 8, "answer": 32, "words": 16_384, "width": 256}
AXES = {"rows": (4, 8, 16, 32), "answer": (16, 32, 64, 128), "words": (8_192, 16_384, 32_768, 65_536),
        "width": (128, 256, 512, 1024)}
MEASURED = ("sampling_ms", "training_ms", "peak_mb")


def one_step(rows, answer, words, width) -> dict:
    """Medians of a step's sampling and of the rest, in milliseconds, the memory in MB, and the model's parameters."""
    import sdft
    import train
    from bench_kernel import milliseconds
    from gpu import random_batch, random_model
    from model import GPTConfig, Sampler, frozen_copy
    from runs import peak_mb, set_up_machine

    set_up_machine("cpu", 0, False)
    before = peak_mb()
    student = random_model(GPTConfig(words, 4, width // 64, width, gated=True, tied=True), "cpu")
    teacher, optimizer = frozen_copy(student), train.adamw(student, 1e-7)
    batch, sampler = random_batch((rows, 32, 96, answer), words, "cpu"), Sampler(-1)

    def sample(model, prompt, length):
        return sampler(model, prompt, length, answer)

    step_ms = milliseconds(lambda: sdft.sdft_step(student, teacher, optimizer, batch, sample,
                                                  linear=words >= train.LINEAR_FROM), "cpu", seconds=2)
    sampling_ms = milliseconds(lambda: sample(student, batch.prompt, batch.length), "cpu", seconds=1)
    return {"sampling_ms": sampling_ms, "training_ms": step_ms - sampling_ms, "peak_mb": peak_mb() - before,
            "parameters": sum(p.numel() for p in student.parameters())}


def growth(points) -> dict:
    """points: [{"x", and what was measured}]. Returns {"slope": {...}, "last_doubling": {...}}."""
    x = np.log([p["x"] for p in points])
    return {"slope": {m: round(float(np.polyfit(x, np.log([p[m] for p in points]), 1)[0]), 2) for m in MEASURED},
            "last_doubling": {m: round(points[-1][m] / points[-2][m], 2) for m in MEASURED}}


def table(axes) -> str:
    lines = []
    for name, axis in axes.items():
        lines.append(f"{name:>12} {'sampling ms':>12} {'training ms':>12} {'peak MB':>9}")
        for p in axis["points"]:
            lines.append(f"{p['x']:12,} {p['sampling_ms']:12,.0f} {p['training_ms']:12,.0f} {p['peak_mb']:9,.0f}")
        for label in ("slope", "last_doubling"):
            lines.append(f"{label.replace('_', ' '):>13}" + "{:12.2f} {:12.2f} {:9.2f}".format(*axis[label].values()))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(one_step(**args.point)))
        return

    from runs import provenance, write_json

    axes = {}
    for name, values in AXES.items():
        points = []
        for x in values:
            command = [sys.executable, __file__, "--point", json.dumps(SMALLEST | {name: x})]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            points.append({"x": x, **json.loads(done.stdout.splitlines()[-1])})
            print(f"{name} {x}: " + ", ".join(f"{m} {points[-1][m]:,.0f}" for m in MEASURED), flush=True)
        if name == "width":
            # of the size of the model: its parameters
            points = [p | {"x": p["parameters"]} for p in points]
        axes["parameters" if name == "width" else name] = {"points": points, **growth(points)}
    print(table(axes))
    write_json(os.path.join(ROOT, "results", "growth_cpu.json"),
               {**provenance(), "command": "python tests/bench_growth.py", "others": SMALLEST, "axes": axes})


if __name__ == "__main__":
    main()
