"""Does a run that is killed, wherever it is and however often, end as if nothing had happened?

    python tests/kills.py --kills 50        some minutes; writes results/kills.json, exit status 1 if anything differs

Every run of RUNS runs once untouched. Then it runs in an empty folder and is killed (SIGKILL: it cannot clean up) at a moment drawn uniformly
from the time that the untouched run took, Python's start included; it is resumed, killed again, up to three times, and then left to end. What it
leaves must be what the untouched run left, bit for bit: every entry of checkpoint, base model, log and result, but for the clock's.

The processes are those of a user: `python train.py`, each with a hash seed of its own, so that nothing can hang on the order of a set.
"""
import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import torch  # noqa: E402

TINY = ("--n-layer 1 --n-head 2 --n-embd 16 --pretrain-steps 120 --pretrain-docs 16 --steps 40 --batch-size 8 --lr 0.01 --guard 0 --converged 0 "
        "--watch-every 4 --save-every 2 --threads 1 --device cpu")
STREAM = "--tasks 2 --demonstrations 12"
RUNS = {"base": "--method base", "sft": f"{STREAM} --method sft", "sdft": STREAM, "sdft+self-replay": f"{STREAM} --penalty self-replay",
        "sft+ewc": f"{STREAM} --method sft --penalty ewc", "demos": "--demos colors.jsonl animals.jsonl --init init.pt"}
LINES = {"colors": "rouge red bleu blue vert green noir black blanc white gris gray",
         "animals": "chat cat chien dog loup wolf ours bear âne donkey coq rooster"}
CLOCK = {"seconds", "wall_seconds", "ms", "peak_mb", "left", "log_bytes", "command", "resume"}     # what may differ; log_bytes: by a digit


def start(options, folder):
    """train.py in a process of its own, at work in folder/run; what it prints goes to folder/output.txt."""
    with open(os.path.join(folder, "output.txt"), "a") as output:
        return subprocess.Popen([sys.executable, os.path.join(ROOT, "train.py"), *options, "--out", "run"], cwd=folder, stdout=output, stderr=output,
                                env=os.environ | {"PYTHONHASHSEED": "random"})


def options_of(name, folder, init):
    """The command line of a run; the files that it reads are put into its folder."""
    if name == "demos":
        for file, words in LINES.items():
            pairs = zip(words.split()[::2], words.split()[1::2])
            with open(os.path.join(folder, file + ".jsonl"), "w", encoding="utf-8") as f:
                f.writelines(json.dumps({"prompt": f"{asked} in English", "response": said}) + "\n" for asked, said in pairs)
        shutil.copy(init, os.path.join(folder, "init.pt"))
    return f"{TINY} {RUNS[name]}".split()


def everything(folder) -> dict:
    """What a run has left: all that its checkpoint, base model, log and result hold."""
    run, out = os.path.join(folder, "run"), os.path.join(folder, "out")
    left = {"checkpoint": torch.load(os.path.join(run, "checkpoint.pt"), weights_only=True)}
    for name in os.listdir(out) if os.path.isdir(out) else []:
        if name.endswith(".pt"):                           # a .part of it may stay: it might be another run's, which is writing it
            left[name] = torch.load(os.path.join(out, name), weights_only=True)
    with open(os.path.join(run, "log.jsonl")) as f:
        left["log"] = [json.loads(line) for line in f]
    if os.path.exists(os.path.join(run, "result.json")):
        with open(os.path.join(run, "result.json")) as f:
            left["result"] = json.load(f)
    left["files"] = sorted(os.listdir(run))
    return left


def differences(a, b, where="") -> list:
    """Where two values are not the same bit for bit: paths of entries. NaN is NaN; what the clock says may differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [f"{where}.{k}: in one of the two" for k in a.keys() ^ b.keys()] + [
            d for k in a.keys() & b.keys() if k not in CLOCK for d in differences(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{where}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    else:
        same = a == b or isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return [] if same else [f"{where}: differs"]


def phase(folder, began=0.0) -> str:
    """What a process that was started at `began` was at when it died, told by what lies in its folder: starting, pretraining, pretrained (gates
    and the measures before the first task), in a task, evaluating a task, saving, or ending (all tasks are learned)."""
    run = os.path.join(folder, "run")

    def written(name):
        return os.path.exists(path := os.path.join(run, name)) and os.path.getmtime(path) >= began

    if not written("lock"):                                # each process opens it anew, before anything else
        return "starting"
    if any(name.endswith(".part") and written(name) for name in os.listdir(run)):
        return "saving"
    saved = torch.load(path, weights_only=True) if os.path.exists(path := os.path.join(run, "checkpoint.pt")) else {}
    if "done" not in saved:
        made = os.path.isdir(os.path.join(folder, "out")) and any(name.endswith(".pt") for name in os.listdir(os.path.join(folder, "out")))
        return "pretrained" if made or "frequency" in saved else "pretraining"
    with open(os.path.join(run, "log.jsonl")) as f:
        *_, last = [json.loads(line) for line in f if line.endswith("\n")]
    if saved["task"] == len(saved["done"]["R"][0]):
        return "ending"
    ended = last.get("task", 0) > saved["task"] and last["step"] == saved["settings"]["steps"]
    return "evaluating a task" if ended else "in a task"


def trial(name, straight, life, init, rng, most) -> tuple[list, list]:
    """One run, killed up to `most` times, in a fresh folder. Returns the phases in which it was killed, and what differs in the end."""
    with tempfile.TemporaryDirectory() as folder:
        options, struck = options_of(name, folder, init), []
        how = options
        while True:
            moment, began = rng.uniform(0, life) if len(struck) < most else 1000.0, time.time()
            process = start(how, folder)
            try:
                status = process.wait(moment)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                status = process.wait()
            if status == 0:
                return struck, differences(straight, everything(folder))
            with open(os.path.join(folder, "output.txt")) as f:
                said = f.read()
            if status == 2 and how == ["--resume"] and said.splitlines()[-1].startswith("run/checkpoint.pt: no such checkpoint"):
                struck[-1] += ", nothing to resume yet"    # documented: one line says so, and the run is simply started again
                how = options
                continue
            if status != -signal.SIGKILL:
                return struck, [f"exit status {status}: {said[-2000:]}"]
            struck.append(phase(folder, began))
            print(f"{name:18s} killed {moment:5.2f} s after its start: {struck[-1]}", flush=True)
            how = ["--resume"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    args = parser.parse_args()
    import train                                           # here: a machine without a file of the project fails with its own message

    rng, straight, life, begun = random.Random(args.seed), {}, {}, time.time()
    phases, per_run, mismatches, trials = Counter(), Counter(), 0, 0
    with tempfile.TemporaryDirectory() as home:
        init = os.path.join(home, "base", "run", "checkpoint.pt")
        for name in RUNS:
            folder = os.path.join(home, name)
            os.makedirs(folder)
            began = time.time()
            if start(options_of(name, folder, init), folder).wait():
                sys.exit(f"{name}: {open(os.path.join(folder, 'output.txt')).read()}")
            straight[name], life[name] = everything(folder), time.time() - began
            print(f"{name:18s} untouched: {life[name]:.1f} s", flush=True)
        while phases.total() < args.kills:
            name = list(RUNS)[trials % len(RUNS)]
            struck, wrong = trial(name, straight[name], life[name], init, rng, min(3, args.kills - phases.total()))
            phases.update(struck)
            per_run[name] += len(struck)
            trials += 1
            if wrong:
                mismatches += 1
                print(f"{name:18s} DIFFERS in {len(wrong)} entries:", *wrong[:10], sep="\n   ", flush=True)
    about = train.provenance() | {"command": f"python tests/kills.py --kills {args.kills} --seed {args.seed}"}
    train.write_json(os.path.join(ROOT, "results", "kills.json"), {
        **about, "seed": args.seed, "kills": phases.total(), "runs": trials, "mismatches": mismatches, "phases": dict(phases.most_common()),
        "kills_of_each_run": dict(per_run), "options": {name: f"{TINY} {more}" for name, more in RUNS.items()}})
    print(f"{phases.total()} kills in {trials} runs, {mismatches} with differences, {time.time() - begun:.0f} s: {dict(phases.most_common())}")
    sys.exit(bool(mismatches))


if __name__ == "__main__":
    main()
