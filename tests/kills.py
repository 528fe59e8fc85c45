"""Does a run that is killed, wherever it is and however often, end as if nothing had happened?

    python tests/kills.py --kills 50        some minutes; writes results/kills.json, exit status 1 if anything differs

Every run of RUNS runs once untouched. Then it runs in an empty folder and is killed (SIGKILL: it cannot clean up) at a
moment drawn uniformly from the time that the untouched run took, Python's start included; it is started again (a run
of train.py with --resume, pretraining with the same command), killed again, up to three times, and then left to end.
What it leaves must be what the untouched run left, bit for bit: every entry of model, checkpoint, log and result, but
for the clock's.

The processes are those of a user: `python train.py`, `python lab/pretrain.py`, each with a hash seed of its own, so
that nothing can hang on the order of a set.
"""
import argparse
import json
import math
import os
import pathlib
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

import torch

from model import read_weights

BASE = "--n-layer 1 --n-head 2 --n-embd 16 --steps 120 --docs 16 --save-every 10 --threads 1 --device cpu"
WORLD = "--tasks 2 --demonstrations 12 --tests 16 --kept 64"
TINY = ("--steps 40 --batch-size 8 --lr 0.01 --guard 0 --converged 0 --watch-every 4 --save-every 2 --threads 1 "
        "--device cpu --init base")
STREAM = "--demos world/tasks/*.jsonl --keep world/keep.jsonl --reading world/reading.jsonl"
RUNS = {"base": BASE, "sft": f"{TINY} {STREAM} --method sft", "sdft": f"{TINY} {STREAM}",
        "sdft+self-replay": f"{TINY} {STREAM} --penalty self-replay",
        "sft+ewc": f"{TINY} {STREAM} --method sft --penalty ewc", "demos": f"{TINY} --demos colors.jsonl animals.jsonl",
        # a chat model of random weights: AdamW, a folder behind each task
        "chat": TINY.replace("base", "chat") + (" --demos colors.jsonl animals.jsonl --sampler 0.5 --contrast 1 "
                                                "--blend 0.5")}
LINES = {"colors": "rouge red bleu blue vert green noir black blanc white gris gray",
         "animals": "chat cat chien dog loup wolf ours bear âne donkey coq rooster"}
# what may differ; log_bytes: by a digit
CLOCK = {"seconds", "wall_seconds", "saving_seconds", "ms", "peak_mb", "left", "log_bytes", "command", "resume"}


def start(program, options, folder):
    """A program of the project in a process of its own, at work in a folder; what it prints goes to output.txt."""
    with open(os.path.join(folder, "output.txt"), "a") as output:
        return subprocess.Popen([sys.executable, os.path.join(ROOT, program), *options], cwd=folder, stdout=output,
                                stderr=output, env=os.environ | {"PYTHONHASHSEED": "random"})


def command_of(name, folder, home) -> tuple:
    """The program and the options of a run; the files that it reads are put into its folder, out of home."""
    if name == "base":
        return "lab/pretrain.py", [*BASE.split(), "--out", "run"]
    shutil.copytree(os.path.join(home, "base", "run", "model"), os.path.join(folder, "base"))
    shutil.copytree(os.path.join(home, "world"), os.path.join(folder, "world"))
    if name == "chat":
        from test_chat_train import write_model            # here: what imports this file has no need of transformers
        write_model(pathlib.Path(folder, "chat"))
    for file, words in LINES.items():
        pairs = zip(words.split()[::2], words.split()[1::2])
        rows = [{"prompt": f"{asked} in English", "response": said} for asked, said in pairs]
        with open(os.path.join(folder, file + ".jsonl"), "w", encoding="utf-8") as f:
            f.writelines(json.dumps(row) + "\n" for row in rows)
    tasks = " ".join(f"world/tasks/{file}" for file in sorted(os.listdir(os.path.join(folder, "world", "tasks"))))
    return "train.py", [*RUNS[name].replace("world/tasks/*.jsonl", tasks).split(), "--out", "run"]


def started_again(program, options) -> list:
    """The options with which a user goes on."""
    return options if program == "lab/pretrain.py" else ["--out", "run", "--resume"]


def everything(folder) -> dict:
    """What a run has left in folder/run: all that its model, checkpoint, log and result hold."""
    run = os.path.join(folder, "run")
    model = os.path.join(run, "model")
    left = {"files": sorted(os.listdir(run)), "in model": sorted(os.listdir(model)), "model": read_weights(model)}
    if "checkpoint.pt" in left["files"]:
        left["checkpoint"] = torch.load(os.path.join(run, "checkpoint.pt"), weights_only=True)
    with open(os.path.join(run, "log.jsonl")) as f:
        left["log"] = [json.loads(line) for line in f]
    for part in (run, model):
        for name in os.listdir(part):
            if name.endswith(".json"):
                with open(os.path.join(part, name)) as f:
                    left[name] = json.load(f)
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
    """What a process that was started at `began` was at when it died, told by what lies in its folder: starting,
    pretraining, its gates, before the first task (which is when all is measured for the first time), in a task,
    evaluating a task, saving, or ending (all tasks are learned, or the base model is made)."""
    run = os.path.join(folder, "run")

    def written(name):
        return os.path.exists(path := os.path.join(run, name)) and os.path.getmtime(path) >= began

    if not written("lock"):                                # each process opens it anew, before anything else
        return "starting"
    if any(name.endswith(".part") and written(name) for name in os.listdir(run)):
        return "saving"
    lines = []
    if os.path.exists(path := os.path.join(run, "log.jsonl")):
        with open(path) as f:
            lines = [json.loads(line) for line in f if line.endswith("\n")]
    if not lines:
        return "starting"
    saved = torch.load(path, weights_only=True) if os.path.exists(path := os.path.join(run, "checkpoint.pt")) else {}
    settings = lines[0]["settings"]
    if "demos" not in settings:
        if os.path.exists(os.path.join(run, "model")):
            return "ending"
        pretrained = saved.get("pretraining", {}).get("step") == settings["steps"]
        return "its gates" if pretrained else "pretraining"
    if not saved:
        return "before the first task"
    if saved["task"] == len(saved["history"]["R"][0]):
        return "ending"
    last = lines[-1]
    ended = last.get("task", 0) > saved["task"] and last["step"] == settings["steps"]
    return "evaluating a task" if ended else "in a task"


def trial(name, straight, life, home, rng, most) -> tuple[list, list]:
    """One run, killed up to `most` times, in a fresh folder. Returns the phases in which it was killed, and what
    differs in the end."""
    with tempfile.TemporaryDirectory() as folder:
        program, options = command_of(name, folder, home)
        struck, how, again = [], options, started_again(program, options)
        while True:
            moment, began = rng.uniform(0, life) if len(struck) < most else 1000.0, time.time()
            process = start(program, how, folder)
            try:
                status = process.wait(moment)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                status = process.wait()
            if status == 0:
                return struck, differences(straight, everything(folder))
            with open(os.path.join(folder, "output.txt")) as f:
                said = f.read()
            last_line = said.rpartition("\n")[0].rpartition("\n")[2]
            if status == 2 and how != options and last_line.startswith("run/checkpoint.pt: no such checkpoint"):
                struck[-1] += ", nothing to resume yet"    # documented: one line says so, and the run is begun again
                how = options
                continue
            if status != -signal.SIGKILL:
                return struck, [f"exit status {status}: {said[-2000:]}"]
            struck.append(phase(folder, began))
            print(f"{name:18s} killed {moment:5.2f} s after its start: {struck[-1]}", flush=True)
            how = again


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="draws the moments")
    parser.add_argument("--out", default=os.path.join(ROOT, "results", "kills.json"), help="the file that is written")
    args = parser.parse_args()
    import runs                                            # here: where a file of the project is missing, it says so

    rng, straight, life, begun = random.Random(args.seed), {}, {}, time.time()
    phases, per_run, mismatches, trials = Counter(), Counter(), 0, 0
    with tempfile.TemporaryDirectory() as home:

        def untouched(name, folder, program, options):
            began = time.time()
            if start(program, options, folder).wait():
                sys.exit(f"{name}: {open(os.path.join(folder, 'output.txt')).read()}")
            print(f"{name:18s} untouched: {time.time() - began:.1f} s", flush=True)
            return time.time() - began

        untouched("world", home, "lab/world.py", [*WORLD.split(), "--out", "world"])
        for name in RUNS:
            folder = os.path.join(home, name)
            os.makedirs(folder)
            life[name] = untouched(name, folder, *command_of(name, folder, home))
            straight[name] = everything(folder)
        while phases.total() < args.kills:
            name = list(RUNS)[trials % len(RUNS)]
            most = min(3, args.kills - phases.total())
            struck, wrong = trial(name, straight[name], life[name], home, rng, most)
            phases.update(struck)
            per_run[name] += len(struck)
            trials += 1
            if wrong:
                mismatches += 1
                print(f"{name:18s} DIFFERS in {len(wrong)} entries:", *wrong[:10], sep="\n   ", flush=True)
    about = runs.provenance() | {"command": f"python tests/kills.py --kills {args.kills} --seed {args.seed}"}
    runs.write_json(args.out, {
        **about, "seed": args.seed, "kills": phases.total(), "runs": trials, "mismatches": mismatches,
        "phases": dict(phases.most_common()), "kills_of_each_run": dict(per_run),
        "options": {"world": WORLD, **RUNS}})
    print(f"{phases.total()} kills in {trials} runs, {mismatches} with differences, {time.time() - begun:.0f} s: "
          f"{dict(phases.most_common())}")
    sys.exit(bool(mismatches))


if __name__ == "__main__":
    main()
