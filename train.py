"""Train: pretrain a small base model, then teach it task after task by SFT or by SDFT. One run, one folder, one log.

    python train.py --method base                                   pretrain (or find) the base model and print its gates
    python train.py --method sdft --tasks 10 --out out/demo/sdft    teach ten tasks in a row
    python train.py --method sdft --out out/demo/sdft --resume      go on where a killed run stopped

Every field of `Config` is an option. Left out: more than one machine, and everything else that a trainer framework is for.
"""
import argparse
import dataclasses
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

import sdft
from data import ANSWER, END, PROMPT, VOCAB_SIZE, World, collate, grade, pack, pad, prompt_ids, text_example
from eval import accuracy, answers, continual_metrics, in_own_voice, well_formed, write_json
from model import GPT, GPTConfig


def option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass
class Config:
    method: str = option("sdft", "base (pretrain alone), sft (learn the expert's words) or sdft (learn from oneself, shown the expert's words)")
    self_replay: bool = option(False, "also distil the model before the task on prompts that it dreams itself; no data is stored")
    tasks: int = option(10, "length of the stream")
    seed: int = option(0, "draws the world, the base model and the stream")
    out: str = option("out/run", "folder of the run: checkpoint, log, results")
    resume: bool = option(False, "go on from the checkpoint in the folder")
    # one task
    lr: float = option(0.0, "learning rate of the matrices; 0 takes the method's tuned value")
    steps: int = option(0, "most steps a task; 0 takes the method's tuned value")
    batch_size: int = option(64, "demonstrations a step")
    micro_batch: int = option(0, "rows scored at once; 0 is the whole batch. The gradient is the same")
    demonstrations: int = option(256, "training examples a task")
    divergence: str = option("forward", "forward = KL(teacher ‖ student), reverse = KL(student ‖ teacher), or jsd")
    beta: float = option(0.5, "weight of the teacher in the mixture of jsd")
    alpha: float = option(0.0, "share of the supervised loss: alpha * SFT + (1 - alpha) * distillation")
    teacher: str = option("ema", "ema (weights follow the student's), live (the student's own) or frozen (the base model's)")
    ema_decay: float = option(0.98, "share of its weights that the teacher keeps at each step")
    converged: float = option(0.01, "a task ends when the mean on-policy divergence of 20 steps, in nats a token, is below this")
    guard: float = option(0.9, "least share of demonstrations that the teacher must answer rightly; below it both roll back")
    # the model and its pretraining
    n_layer: int = option(3, "blocks")
    n_head: int = option(4, "attention heads")
    n_embd: int = option(128, "width")
    pretrain_steps: int = option(2000, "steps of pretraining")
    pretrain_docs: int = option(128, "documents a step of pretraining")
    dropout: float = option(0.1, "dropout in pretraining; none afterwards")
    # the machine
    device: str = option("auto", "auto, cpu, cuda, ...")
    threads: int = option(0, "CPU threads; 0 leaves torch's choice")
    save_every: int = option(50, "steps between checkpoints")
    log_every: int = option(10, "steps between lines of the log")


# ---------------------------------------------------------------------------------------------------------------------
# Pretraining: Muon for the matrices of the blocks, AdamW for embedding, head and norms.


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): momentum, made orthogonal by five Newton-Schulz iterations, so that every direction learns.

    The arithmetic of torch.optim.Muon in fp32: torch's is fixed to bf16, which a CPU without bf16 instructions runs 15 times slower.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(state["momentum"], group["momentum"])                    # Nesterov
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):                                                       # drives the singular values towards 1
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                p.add_(x.T if tall else x, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def pretrain(model, world, config, log):
    """Next-token prediction on the world's documents; the tokens of the answer count 1, the others PROMPT_WEIGHT."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [Muon(matrices, lr=0.02), torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    peak = [o.param_groups[0]["lr"] for o in optimizers]
    rng = random.Random(f"pretraining {config.seed}")
    device, n = next(model.parameters()).device, config.pretrain_steps
    model.train()
    for step in range(n):
        tokens, targets, weights, mask = (t.to(device) for t in pack([world.document(rng) for _ in range(config.pretrain_docs)]))
        scale = min(1, (step + 1) / 50) * min(1, (1 - step / n) / 0.6 + 0.02)              # warm up, hold, and go down over the last 60 %
        for optimizer, lr in zip(optimizers, peak):
            optimizer.param_groups[0]["lr"] = lr * scale
        nll = F.cross_entropy(model(tokens, mask=mask).flatten(0, 1), targets.flatten(), reduction="none")
        loss = (nll * weights.flatten()).sum() / weights.sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        log(step, n, loss)
    model.eval()


def base_model(config, world, log):
    """The base model of a seed and a set of settings: pretrained once, then found again under out/ by a hash of all that made it."""
    model = GPT(GPTConfig(VOCAB_SIZE, config.n_layer, config.n_head, config.n_embd, dropout=config.dropout)).to(config.device)
    settings = {f: getattr(config, f) for f in ("seed", "n_layer", "n_head", "n_embd", "pretrain_steps", "pretrain_docs", "dropout")}
    source = b"".join(open(os.path.join(os.path.dirname(os.path.abspath(__file__)), f), "rb").read() for f in ("data.py", "model.py"))
    digest = hashlib.sha256(json.dumps(settings).encode() + source).hexdigest()[:12]
    path = os.path.join("out", f"base-{config.seed}-{digest}.pt")
    if os.path.exists(path):
        log.say(f"base model: {path} (cached)")
        model.load_state_dict(torch.load(path, map_location=config.device, weights_only=True))
        return model.eval()
    log.say(f"base model: pretraining {path}, {sum(p.numel() for p in model.parameters()):,} parameters")
    pretrain(model, world, config, log)
    save(path, model.state_dict())
    return model


def save(path, value):
    """Written beside and renamed: a crash or a full disk leaves the previous file whole."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    part = f"{path}.{os.getpid()}.part"
    try:
        torch.save(value, part)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def gates(model, world, log) -> dict:
    """What the base model must be able to do before it can teach itself anything (accuracy, each with its bound)."""
    rng = random.Random(f"gates {world.seed}")
    base = [world.base_example(rng) for _ in range(512)]
    new = [e for task in world.stream(20) for e in task.test[:16]]
    contradicting = [world.fresh_example(rng, known=True) for _ in range(256)]
    texts = [text_example(rng) for _ in range(256)]
    said = answers(model, base)
    values = {
        "base": (np.mean([grade(e, a) for e, a in zip(base, said)]), 0.97),
        "new_without_demonstration": (accuracy(model, new), -0.20),                     # negative: at most
        "new_with_demonstration": (accuracy(model, new, shown=True), 0.95),
        "contradicting_demonstration": (accuracy(model, contradicting, shown=True), 0.90),
        "text_with_demonstration": (accuracy(model, texts, shown=True), 0.95),
        "well_formed": (np.mean([well_formed(e, a) for e, a in zip(base, said)]), 0.98),
    }
    for name, (value, bound) in values.items():
        ok = value >= bound if bound > 0 else value <= -bound
        log.say(f"gate {name.replace('_', ' '):28s} {value:6.1%}  ({'>=' if bound > 0 else '<='} {abs(bound):.0%})  {'ok' if ok else 'MISSED'}")
    return {name: round(float(value), 4) for name, (value, _) in values.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Task after task.


def dream_prompts(model, n, device):
    """Self-replay, first half: the model dreams n prompts of its own past (no data is stored) and answers them.

    A dreamt prompt is what the model writes after the token that begins one. Returns prompt (n', P), length (n',), n' <= n: what
    did not become a prompt is dropped.
    """
    start = torch.full((n, 1), PROMPT, device=device)
    written, mask = model.generate(start, torch.ones(n, dtype=torch.long, device=device), 16, end=ANSWER)
    rows = [[PROMPT, *r[: sum(m)]] for r, m in zip(written.tolist(), mask.tolist()) if r[sum(m) - 1] == ANSWER and END not in r[: sum(m)]]
    return pad(rows)


class Log:
    """One line for people and one line of JSON for programs at each logged step; the file begins with what the run is."""

    def __init__(self, config, at=0):
        self.path, self.config = os.path.join(config.out, "log.jsonl"), config
        os.makedirs(config.out, exist_ok=True)
        with open(self.path, "ab") as f:
            f.truncate(at)                         # on resume: lines behind the checkpoint are written again
        self.started = time.perf_counter()
        if at == 0:
            self.write({"settings": dataclasses.asdict(config)} | provenance())

    def write(self, record):
        with open(self.path, "a") as f:
            f.write(json.dumps(record) + "\n")

    def say(self, text):
        print(f"{run_name(self.config):16s} {text}", flush=True)


def run_name(config):
    return config.method + "+self-replay" * config.self_replay


def provenance() -> dict:
    """What a figure must be kept with: command, versions, commit, kind of machine."""
    here = os.path.dirname(os.path.abspath(__file__))
    git = subprocess.run(["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "commit": git.stdout.strip() or "unknown",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "machine": gpu or f"{os.cpu_count()}-core {platform.machine()} CPU",
    }
