"""Train: pretrain a small base model, then teach it task after task by SFT or by SDFT. One run, one folder, one log.

    python train.py --method base                                   pretrain (or find) the base model and print its gates
    python train.py --method sdft --tasks 10 --out out/demo/sdft    teach ten tasks in a row
    python train.py --out out/demo/sdft --resume                    go on where a killed run stopped

Every field of `Config` is an option. Left out: more than one machine, and everything else that a trainer framework is for.
"""
import argparse
import contextlib
import copy
import dataclasses
import fcntl
import hashlib
import inspect
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.fx.experimental._config
import torch.nn.functional as F

import sdft
from data import ANSWER, END, PROMPT, VOCAB_SIZE, World, collate, decode, grade, in_own_voice, pack, pad, text_example
from eval import GATES, MAX_NEW, accuracy, answers, continual_metrics, fail, load_checkpoint, well_formed, write_json
from model import GPT, GPTConfig

DREAMS = 1024                     # prompts that self-replay dreams before each task
LINEAR_FROM = 8192                # size of vocabulary from which the loss is made in chunks, from hidden states


def option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass
class Config:
    method: str = option("sdft", "base (pretrain alone), sft (learn the expert's words) or sdft (learn from oneself, shown the expert's words)")
    self_replay: bool = option(False, "also distil the model before the task on prompts that it dreams itself; no data is stored")
    replay: float = option(0.0, "share of each past task's demonstrations that is stored and trained on again, a batch a step; for comparison")
    off_policy: bool = option(False, "sdft on the teacher's answers in place of the student's own, for comparison")
    tasks: int = option(10, "length of the stream")
    seed: int = option(0, "draws the world, the base model and the stream")
    out: str = option("out/run", "folder of the run: checkpoint, log, result")
    resume: bool = option(False, "go on from the checkpoint in the folder")
    # one task
    lr: float = option(0.001, "learning rate of all weights but the embedding (SGD)")
    embed_lr: float = option(30.0, "rate of the embedding; a row moves at embed_lr / (1 + f / f0), f the word's share of the pretraining tokens")
    f0: float = option(1e-3, "share of the pretraining tokens at which a row moves at half the rate; inf: all rows alike")
    steps: int = option(0, "most steps a task; 0: as tuned, 300 for sft and 150 for sdft")
    batch_size: int = option(64, "demonstrations a step")
    micro_batch: int = option(0, "rows of the loss scored at once; 0 is the whole batch. The gradient is the same")
    demonstrations: int = option(256, "training examples a task")
    voice: str = option("expert", "who speaks in the demonstrations: expert, or own (the model's own voice, which separates the methods no more)")
    divergence: str = option("forward", "forward = KL(teacher ‖ student), reverse = KL(student ‖ teacher), or jsd")
    beta: float = option(0.5, "weight of the teacher in the mixture of jsd")
    alpha: float = option(0.0, "share of the supervised loss in sdft: alpha * SFT + (1 - alpha) * distillation")
    teacher: str = option("ema", "ema (weights follow the student's), live (the student's own) or frozen (the base model's)")
    ema_decay: float = option(0.98, "share of its weights that the teacher keeps at each step")
    converged: float = option(0.01, "a task ends when the mean loss of 20 steps, in nats a token, is below this")
    guard: float = option(0.9, "least share of demonstrations that the teacher must answer rightly; below it both roll back")
    # the model and its pretraining
    n_layer: int = option(3, "blocks")
    n_head: int = option(4, "attention heads")
    n_embd: int = option(128, "width")
    pretrain_steps: int = option(1800, "steps of pretraining")
    pretrain_docs: int = option(128, "documents a step of pretraining")
    dropout: float = option(0.1, "dropout in pretraining; none afterwards")
    vocab_size: int = option(VOCAB_SIZE, "rows of embedding and head; what the tokenizer does not need is padding")
    # the machine
    preset: str = option("", "gpu: a model of 30 million parameters, 50,304 words, bf16, compiled; other options override it")
    bf16: bool = option(False, "matrix products in bfloat16 (autocast), those of the head in TF32 where there is such; weights, logits and losses are fp32")
    compile: bool = option(False, "torch.compile the forward pass of pretraining and the on-policy loss (both models in it); no gain on a CPU")
    device: str = option("auto", "auto, cpu, cuda, ...")
    threads: int = option(0, "CPU threads; 0 leaves torch's choice")
    save_every: int = option(50, "steps between checkpoints")
    watch_every: int = option(10, "steps between looks at the teacher, and lines of the log")


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
    """Next-token prediction on the world's documents; the tokens of the answer count 1, the others PROMPT_WEIGHT.

    Returns each token's share (V,) of what was read.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [Muon(matrices, lr=0.006), torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)]
    peak = [o.param_groups[0]["lr"] for o in optimizers]
    rng = random.Random(f"pretraining {config.seed}")
    torch.manual_seed(config.seed)
    n, count = config.pretrain_steps, torch.zeros(config.vocab_size)
    forward = torch.compile(model, dynamic=True) if config.compile else model
    model.train()
    for step in range(n):
        documents = [world.document(rng) for _ in range(config.pretrain_docs)]
        count += torch.bincount(torch.tensor([i for ids, _ in documents for i in ids]), minlength=config.vocab_size)
        tokens, targets, weights, mask = (t.to(config.device) for t in pack(documents))
        scale = min(1, (step + 1) / 50) * min(1, (1 - step / n) / 0.6 + 0.02)              # warm up, hold, and go down over the last 60 %
        for optimizer, lr in zip(optimizers, peak):
            optimizer.param_groups[0]["lr"] = lr * scale
        with autocast(config):
            logits = forward(tokens, mask=mask)
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = (nll * weights.flatten()).sum() / weights.sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 50 == 49 or step == n - 1:
            log.progress(f"pretraining {step + 1}/{n} loss {loss.item():.3f}", (step + 1) / n, (step + 1) * tokens.numel())
    model.eval()
    return count / count.sum()


def autocast(config):
    return torch.autocast(config.device, torch.bfloat16, enabled=config.bf16)


def new_model(config):
    return GPT(GPTConfig(config.vocab_size, config.n_layer, config.n_head, config.n_embd, dropout=config.dropout)).to(config.device).eval()


def base_path(config):
    """Where the base model of these settings is kept: the name holds a hash of all that makes it, code included."""
    settings = {f: getattr(config, f) for f in ("seed", "n_layer", "n_head", "n_embd", "vocab_size", "pretrain_steps", "pretrain_docs", "dropout", "bf16")}
    here = os.path.dirname(os.path.abspath(__file__))
    source = b"".join(open(os.path.join(here, f), "rb").read() for f in ("data.py", "model.py")) + (inspect.getsource(Muon) + inspect.getsource(pretrain)).encode()
    digest = hashlib.sha256(json.dumps(settings).encode() + source).hexdigest()[:12]
    return os.path.join("out", f"base-{config.seed}-{digest}.pt")


def base_model(config, world, log):
    """The base model of a seed and a set of settings: pretrained once, then found again under out/ by a hash of all that made it.

    Returns the model, each token's share of its pretraining (V,), and its gates.
    """
    torch.manual_seed(config.seed)
    model = new_model(config)
    path = base_path(config)
    if os.path.exists(path):
        log.say(f"base model: {path}, made before")
        saved = torch.load(path, map_location=config.device, weights_only=True)
        model.load_state_dict(saved["student"])
    else:
        log.say(f"base model: pretraining {sum(p.numel() for p in model.parameters()):,} parameters")
        log.start()
        frequency = pretrain(model, world, config, log)
        state = model.state_dict()
        saved = {"settings": dataclasses.asdict(config), "student": state, "teacher": state, "frequency": frequency}
        saved["gates"] = gates(model, world)
        save(path, saved)
        log.say(f"base model: wrote {path}")
    for name, value in saved["gates"].items():
        bound, most = GATES[name], name == "new_without_demonstration"
        ok = value <= bound if most else value >= bound
        log.say(f"gate {name.replace('_', ' '):28s} {value:6.1%}  ({'<=' if most else '>='} {bound:.0%})  {'ok' if ok else 'MISSED'}")
    return model.eval(), saved["frequency"], saved["gates"]


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


def gates(model, world) -> dict:
    """What the base model must be able to do before it can teach itself anything: {name of GATES: share of answers}."""
    rng = random.Random(f"gates {world.seed}")
    base = [world.base_example(rng) for _ in range(512)]
    new = [e for task in world.stream(20) for e in task.test[:16]]
    contradicting = [world.fresh_example(rng, known=True) for _ in range(256)]
    said = answers(model, base)
    return {
        "base": float(np.mean([grade(e, a) for e, a in zip(base, said)])),
        "new_without_demonstration": accuracy(model, new),
        "new_with_demonstration": accuracy(model, new, shown=True),
        "contradicting_demonstration": accuracy(model, contradicting, shown=True),
        "text_with_demonstration": accuracy(model, [text_example(rng) for _ in range(256)], shown=True),
        "well_formed": float(np.mean([well_formed(e, a) for e, a in zip(base, said)])),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Task after task.


def make_optimizer(model, config, frequency):
    """Plain SGD, no momentum, and a step of its own for each row of the embedding.

    A new word is learned in its row; what hurts the old skills is that the rows they all stand on (letters, signs, structure words)
    move as well. So a row moves at embed_lr / (1 + f / f0), f being the word's share of the pretraining tokens (V,): a word never met
    moves at the full rate, one of every hundred tokens at a tenth of it. All methods train like this.
    """
    embed = model.embed.weight
    scale = 1 / (1 + frequency.to(embed.device) / config.f0)
    embed.register_hook(lambda grad: grad * scale[:, None])
    others = [p for p in model.parameters() if p is not embed]
    return torch.optim.SGD([{"params": others, "lr": config.lr}, {"params": [embed], "lr": config.embed_lr}])


def dream(model, n):
    """Self-replay, first half: the model writes n prompts of its own past and answers them. No data is stored.

    A dreamt prompt is what the model writes after the token that begins one. Returns prompt (n', P), length (n',), response and
    mask (n', R), n' <= n: what did not become a prompt is dropped.
    """
    start = torch.full((n, 1), PROMPT, device=model.head.weight.device)
    written, mask = model.generate(start, torch.ones_like(start[:, 0]), MAX_NEW, end=ANSWER)
    rows = [[PROMPT, *r[: sum(m)]] for r, m in zip(written.tolist(), mask.tolist())]
    rows = [r for r in rows if r[-1] == ANSWER and END not in r]
    if not rows:
        fail("self-replay: none of the model's dreams is a prompt; pretrain it longer (--pretrain-steps), or leave --self-replay out")
    prompt, length = (t.to(start.device) for t in pad(rows))
    return prompt, length, *model.generate(prompt, length, MAX_NEW, END)


def self_replay(student, previous, dreams, n):
    """Self-replay, second half: KL(model before the task ‖ student) on n of the dreams."""
    i = torch.randint(len(dreams[0]), (n,)).to(dreams[0].device)
    prompt, length, response, mask = (t[i] for t in dreams)
    with torch.no_grad():
        target = sdft.score(previous, prompt, length, response)
    return sdft.distill_loss(sdft.score(student, prompt, length, response), target, mask)


def past_demonstrations(stream, task, share) -> list:
    """What `--replay` has stored when a task begins: the same share of every task before it, always the same examples."""
    return [e for i, t in enumerate(stream[:task]) for e in random.Random(f"stored {i}").sample(t.train, max(1, round(share * len(t.train))))]


def learn(config):
    """Teach the stream's tasks one after another; returns the result that is also written to result.json."""
    world = World(config.seed)
    stream = world.stream(config.tasks, config.demonstrations)
    if config.voice == "own":
        for example in (e for task in stream for e in task.train + task.test):
            example.demo = example.own
    path = os.path.join(config.out, "checkpoint.pt")
    saved = load_checkpoint(path) if config.resume else None
    log = Log(config, saved["log_bytes"] if saved else 0)
    if saved:                                              # the base model is in the checkpoint: it is not made or looked for again
        student, frequency, gate = new_model(config), saved["frequency"], saved["gates"]
        student.load_state_dict(saved["base"])
    else:
        student, frequency, gate = base_model(config, world, log)
    probe = Probe(world, stream, student)
    teacher = copy.deepcopy(student).requires_grad_(False)
    if config.compile:                                     # dynamic: other lengths must not compile it again, nor lengths that happen to be equal
        torch.fx.experimental._config.use_duck_shape = False
        sdft.on_policy_loss = torch.compile(sdft.on_policy_loss, fullgraph=True, dynamic=True)
    optimizer = make_optimizer(student, config, frequency)
    guard = sdft.TeacherGuard(config.guard, student, teacher)
    previous, dreams = copy.deepcopy(teacher), ()
    rng = random.Random(f"training {config.seed}")
    torch.manual_seed(config.seed)
    # what has been measured so far; plain lists, so that it goes into the checkpoint and the result as it is
    done = {k: [] for k in ("R", "base_accuracy", "base_by_kind", "voice", "teacher_accuracy", "drift_base", "drift_new", "teacher_curve", "steps")}
    done |= {"generated_tokens": 0, "guard_trips": 0, "seconds": 0.0}
    task, step, recent = 0, 0, []
    if saved:
        for module, name in ((student, "student"), (teacher, "teacher"), (previous, "previous"), (optimizer, "optimizer")):
            module.load_state_dict(saved[name])
        guard.good, dreams, done, task, step, recent = (saved[k] for k in ("good", "dreams", "done", "task", "step", "recent"))
        rng.setstate(saved["python_rng"])
        torch.set_rng_state(saved["torch_rng"])
        torch.cuda.set_rng_state_all(saved["cuda_rng"])
        dreams = tuple(t.to(config.device) for t in dreams)
        log.say(f"going on at task {task + 1} step {step}" if task < len(stream) else "all tasks were learned before")
    else:
        probe.measure(student, teacher, done, 0)
    log.start(done["seconds"], sum(done["steps"]) + step)

    def checkpoint():
        done["seconds"] = round(log.seconds(), 2)
        save(path, {"settings": dataclasses.asdict(config), "student": student.state_dict(), "teacher": teacher.state_dict(),
                    "previous": previous.state_dict(), "optimizer": optimizer.state_dict(), "good": guard.good, "dreams": dreams,
                    "base": probe.reference.state_dict(), "frequency": frequency, "gates": gate, "done": done, "task": task, "step": step, "recent": recent,
                    "python_rng": rng.getstate(), "torch_rng": torch.get_rng_state(),
                    "cuda_rng": torch.cuda.get_rng_state_all(), "log_bytes": log.bytes()})

    if not saved:
        result_path = os.path.join(config.out, "result.json")
        if os.path.exists(result_path):                    # of an older run: this one's comes when it has ended
            os.remove(result_path)
        checkpoint()
    alpha = 1.0 if config.method == "sft" else config.alpha
    decay = {"ema": config.ema_decay, "live": 0.0, "frozen": 1.0}[config.teacher]
    stop = []

    def interrupt(*_):                                     # Ctrl-C: the step is finished, saved, and then the run ends; a second one ends it at once
        stop.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, interrupt)
    while task < len(stream):
        if step == 0:
            previous.load_state_dict(student.state_dict())
            dreams, recent = dream(previous, DREAMS) if config.self_replay else (), []
            for group, lr in zip(optimizer.param_groups, (config.lr, config.embed_lr)):     # what a guard has halved
                group["lr"] = lr
        examples = rng.sample(stream[task].train, min(config.batch_size, len(stream[task].train)))
        batch = collate(examples).to(config.device)
        penalty, draw = None, sample
        if config.self_replay:
            penalty = lambda student: self_replay(student, previous, dreams, config.batch_size)
        if config.replay and task > 0:
            old = collate(rng.choices(past_demonstrations(stream, task, config.replay), k=config.batch_size)).to(config.device)
            penalty = lambda student: sdft.sft_loss(sdft.score(student, old.prompt, old.length, old.response), old.response, old.response_mask)
        if config.off_policy:
            draw = lambda student, prompt, length: sample(teacher, batch.demo_prompt, batch.demo_length)
        # ---- the method
        try:
            with autocast(config):
                figures = sdft.sdft_step(
                    student, teacher, optimizer, batch, draw, divergence=config.divergence, beta=config.beta, alpha=alpha,
                    ema_decay=decay, penalty=penalty, micro_batch=config.micro_batch or None, linear=config.vocab_size >= LINEAR_FROM)
        except FloatingPointError as e:
            fail(f"task {task + 1} step {step}: {e}. The last good checkpoint is {path}; lower --lr or --embed-lr and begin again")
        # ---- what follows is watching, logging, saving
        step += 1
        recent = [*recent[-19:], figures["loss"]]
        done["generated_tokens"] += figures["sampled"]
        over = step == config.steps or (len(recent) == 20 and np.mean(recent) < config.converged)
        if step % config.watch_every == 0 or over:
            right = shown_accuracy(teacher, batch, examples)
            done["teacher_curve"].append([sum(done["steps"]) + step, right])
            if config.method == "sdft" and not guard.check(right, student, teacher):
                done["guard_trips"] += 1
                recent, over = [], step == config.steps    # agreement with a broken teacher is no reason to stop
                for group in optimizer.param_groups:
                    group["lr"] /= 2
                log.say(f"task {task + 1} step {step}: the teacher answers {right:.0%} of its demonstrations rightly: rolled back, rates halved")
            log.step({"task": task + 1, "step": step, **figures, "lr": optimizer.param_groups[0]["lr"], "teacher": right}, sum(done["steps"]) + step,
                     f"task {task + 1}/{len(stream)} {stream[task].family:12s} step {step}/{config.steps}", (task + step / config.steps) / len(stream))
        if over:
            done["steps"].append(step)
            task, step = task + 1, 0
            probe.measure(student, teacher, done, task)
            learned, seen = done["R"][task][task - 1], np.mean(done["R"][task][:task])
            log.say(f"task {task}/{len(stream)} learned to {learned:.2f} in {done['steps'][-1]} steps; all seen {seen:.2f}, "
                    f"base {done['base_accuracy'][task]:.2f}, own voice {done['voice'][task]:.2f}, shown demonstrations {done['teacher_accuracy'][task]:.2f}")
        if over or stop or step % config.save_every == 0:
            checkpoint()
        if stop:
            raise KeyboardInterrupt
    kept = {"base_retention": "base_accuracy", "voice_retention": "voice", "teacher_retention": "teacher_accuracy"}
    ratio = {name: done[k][-1] / (done[k][0] or float("nan")) for name, k in kept.items()}
    result = {"method": run_name(config), "settings": dataclasses.asdict(config), **provenance(), "gates": gate,
              "families": [t.family for t in stream], **continual_metrics(done["R"]), **ratio, **done}
    write_json(os.path.join(config.out, "result.json"), result)
    log.say(f"wrote {config.out}/result.json")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return result


class Probe:
    """Everything that is measured after each task, on examples that no task trains on."""

    def __init__(self, world, stream, base):
        rng = random.Random(f"probe {world.seed}")
        updated = {fact for task in stream if task.family == "update" for fact in task.items}   # these are scored by their new value
        self.stream, self.reference = stream, copy.deepcopy(base)
        self.base = [world.base_example(rng, updated) for _ in range(512)]
        self.shown = [world.fresh_example(rng) for _ in range(256)]

    def measure(self, student, teacher, done, task):
        said = answers(student, self.base)
        done["R"].append([accuracy(student, t.test) for t in self.stream])
        right = np.array([grade(e, a) for e, a in zip(self.base, said)])
        kinds = np.array([e.kind for e in self.base])
        done["base_accuracy"].append(float(right.mean()))
        done["base_by_kind"].append({k: float(right[kinds == k].mean()) for k in sorted(set(kinds.tolist()))})
        done["voice"].append(float(np.mean([in_own_voice(a) for a in said])))
        done["teacher_accuracy"].append(accuracy(student, self.shown, shown=True))
        done["drift_base"].append(drift(self.reference, student, self.base[:128]))
        done["drift_new"].append(drift(self.reference, student, self.stream[max(task - 1, 0)].test))


def drift(base, model, examples) -> float:
    """Mean KL(base ‖ model) in nats a token, over answers of the base to the bare prompts."""
    b = collate(examples).to(base.head.weight.device)
    response, mask = base.generate(b.prompt, b.length, MAX_NEW, END, temperature=0)
    with torch.no_grad():
        p, q = (sdft.score(m, b.prompt, b.length, response) for m in (base, model))
    return sdft.distill_loss(q, p, mask).item()


def shown_accuracy(teacher, batch, examples) -> float:
    """How often the teacher answers the demonstrations of a batch rightly (greedily)."""
    response, _ = teacher.generate(batch.demo_prompt, batch.demo_length, MAX_NEW, END, temperature=0)
    return float(np.mean([grade(e, decode(r)) for e, r in zip(examples, response.tolist())]))


def sample(model, prompt, length):
    return model.generate(prompt, length, MAX_NEW, END)


class Log:
    """One line for people and one line of JSON for programs at each logged step; the file begins with what the run is."""

    def __init__(self, config, at=0):
        self.path, self.name = os.path.join(config.out, "log.jsonl"), run_name(config)
        os.makedirs(config.out, exist_ok=True)
        with open(self.path, "ab") as f:
            f.truncate(at)                         # on resume: lines behind the checkpoint are written again
        self.start()
        if at == 0:
            self.write({"settings": dataclasses.asdict(config)} | provenance())

    def start(self, already=0.0, step=0):
        self.began = time.perf_counter() - already
        self.last = time.perf_counter(), step

    def seconds(self):
        return time.perf_counter() - self.began

    def bytes(self):
        return os.path.getsize(self.path)

    def write(self, record):
        with open(self.path, "a") as f:
            f.write(json.dumps(record) + "\n")

    def say(self, text):
        print(f"{self.name:16s} {text}", flush=True)

    def progress(self, text, share, tokens):
        s = self.seconds()
        self.say(f"{text} | {tokens / s:,.0f} tokens/s | {s:.0f} s, {s / share - s:.0f} s left")

    def step(self, record, step, text, share):
        now = time.perf_counter()
        ms = 1000 * (now - self.last[0]) / max(1, step - self.last[1])
        self.last = now, step
        self.write(record | {"ms": round(ms, 1)})
        left = self.seconds() / share - self.seconds()
        self.say(f"{text} loss {record['loss']:.4f} gradient {record['grad_norm']:.2f} teacher {record['teacher']:.2f} lr {record['lr']:g} | "
                 f"{ms:.0f} ms/step, {record['tokens'] / ms * 1000:,.0f} tokens/s | {left:.0f} s left")


def run_name(config):
    return config.method + "+self-replay" * config.self_replay + f"+replay {config.replay:.0%}" * (config.replay > 0)


def provenance() -> dict:
    """What a figure must be kept with: command, versions, commit, kind of machine."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        commit = subprocess.run(["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    except OSError:                                        # no git here
        commit = ""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(["python", os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        "commit": commit or "unknown",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "machine": gpu or f"{os.cpu_count()}-core {platform.machine()} CPU",
    }


# ---------------------------------------------------------------------------------------------------------------------
# The command line.

CHOICES = {"method": ["base", "sft", "sdft"], "divergence": ["forward", "reverse", "jsd"], "teacher": ["ema", "live", "frozen"],
           "preset": ["gpu"], "voice": ["expert", "own"]}


def parse(argv=None) -> Config:
    """The command line as a Config; what is out of range or contradicts ends with one line and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS)
    for f in dataclasses.fields(Config):
        help = f"{f.metadata['help']} (default: {f.default})".replace("%", "%%")
        kind = {"action": "store_true"} if f.type is bool else {"type": f.type}
        kind |= {"choices": CHOICES[f.name]} if f.name in CHOICES else {} if f.type is bool else {"metavar": f.type.__name__}
        parser.add_argument("--" + f.name.replace("_", "-"), help=help, **kind)
    given = vars(parser.parse_args(argv))
    config = Config(**PRESETS[given.get("preset", "")] | given)
    if config.resume:                                      # a run goes on with its own settings; the machine's may change
        began = load_checkpoint(config.out)["settings"]
        for name in given.keys() - {"resume", "out", "device", "threads", "save_every"}:
            if given[name] != began[name]:
                option_name = "--" + name.replace("_", "-")
                parser.error(f"{option_name} {given[name]}: the run in {config.out} began with {began[name]}; leave it out, or use another folder")
        config = Config(**began | given)
    for name, (low, high) in RANGES.items():
        value = getattr(config, name)
        if not low <= value <= high:                       # NaN fails this too
            parser.error(f"--{name.replace('_', '-')} {value}: must be from {low} to {high}")
    if config.method != "sdft" and config.alpha:
        parser.error(f"--alpha {config.alpha} is a share within sdft: leave it out, or use --method sdft")
    if config.method != "sdft" and config.off_policy:
        parser.error("--off-policy is a variant of sdft: leave it out, or use --method sdft")
    if config.self_replay and config.replay:
        parser.error("--self-replay and --replay are alternatives: choose one")
    if config.n_embd % (2 * config.n_head):
        parser.error(f"--n-embd {config.n_embd}: must be a multiple of 2 * --n-head ({2 * config.n_head})")
    config.steps = config.steps or {"sft": 300}.get(config.method, 150)
    if config.device == "auto":
        config.device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {config.device}: this machine or this build of torch has no CUDA; leave it out for the CPU")
    return config


PRESETS = {"": {}, "gpu": {"n_layer": 6, "n_head": 8, "n_embd": 256, "vocab_size": 50_304, "bf16": True, "compile": True, "batch_size": 256}}
MANY = 10**9
RANGES = {
    "replay": (0, 1), "tasks": (1, 27), "seed": (0, MANY), "lr": (0, 1e3), "embed_lr": (0, 1e6), "f0": (1e-12, float("inf")),
    "steps": (0, MANY), "batch_size": (1, MANY), "micro_batch": (0, MANY),
    "demonstrations": (2, MANY), "beta": (1e-6, 1 - 1e-6), "alpha": (0, 1), "ema_decay": (0, 1), "converged": (0, 1e3), "guard": (0, 1),
    "n_layer": (1, 1000), "n_head": (1, 1000), "n_embd": (2, 100_000), "vocab_size": (VOCAB_SIZE, MANY),
    "pretrain_steps": (1, MANY), "pretrain_docs": (1, MANY), "dropout": (0, 0.9),
    "threads": (0, 1024), "save_every": (1, MANY), "watch_every": (1, MANY),
}


@contextlib.contextmanager
def locked(folder):
    """Two runs in one folder would write over one another: the second is refused. The lock ends with its process, however it ends."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "lock"), "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"{folder}: another run is at work in this folder; wait for it, or choose another with --out")
        yield


def main(argv=None):
    config = parse(argv)
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.bf16:
        torch.set_float32_matmul_precision("high")
    try:
        with locked(config.out):
            if config.method == "base":
                base_model(config, World(config.seed), Log(config))
            else:
                learn(config)
    except OSError as e:
        fail(f"{e.filename or config.out}: {e.strerror or e}; what was saved before is whole")
    except KeyboardInterrupt:
        saved = os.path.exists(os.path.join(config.out, "checkpoint.pt"))
        fail("\ninterrupted; " + (f"go on with: python train.py --out {config.out} --resume" if saved else "nothing was saved yet"))


if __name__ == "__main__":
    main()
