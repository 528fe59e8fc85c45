"""Train: pretrain a small base model, then teach it task after task by SFT or by SDFT. One run, one folder, one log.

    python train.py --method base --out out/base                    pretrain (or find) the base model and print its gates
    python train.py --method sdft --tasks 10 --out out/demo/sdft    teach ten tasks in a row
    python train.py --out out/demo/sdft --resume                    go on where a killed run stopped
    python train.py --init out/base --demos new.jsonl --keep old.jsonl --out out/mine    teach it demonstrations of your own

Every field of `Config` is an option. Left out: more than one machine, and everything else that a trainer framework is for.
"""
import argparse
import contextlib
import copy
import dataclasses
import fcntl
import hashlib
import inspect
import io
import json
import os
import platform
import random
import resource
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.fx.experimental._config
import torch.nn.functional as F

import sdft
from data import (ANSWER, END, GRADERS, PROMPT, PROMPT_WEIGHT, REAL_WORDS, VOCAB_SIZE, BadInput, Example, World, collate, decode, earned, grade,
                  in_own_voice, new_words, pack, pad, read_tasks, split_holdout, take_names, text_example)
from eval import GATES, accuracy, answers, continual_metrics, fail, load_checkpoint, load_model, room, well_formed, write_json
from model import GPT, GPTConfig

DREAMS = 512                      # prompts that self-replay dreams before each task
FISHER = 256                      # answers from which EWC estimates the Fisher information of a task
NEEDED = 0.01                     # forgetting above which `--when needed` regularises the next task
LINEAR_FROM = 8192                # size of vocabulary from which the loss is made in chunks, from hidden states


def option(default, help):
    return field(default=default, metadata={"help": help})


@dataclass
class Config:
    # A method is how it samples, what its target is, and what its penalty is.
    method: str = option("sdft", "base (pretrain alone), sft (learn the expert's words), joint (sft on all tasks at once, a bound), or sdft (learn from "
                         "oneself, shown the expert's words)")
    off_policy: bool = option(False, "sdft on the teacher's answers in place of the student's own")
    alpha: float = option(0.0, "share of the supervised loss in sdft: alpha * SFT + (1 - alpha) * distillation")
    penalty: str = option("none", "what holds the student: replay (of stored demonstrations), self-replay (of prompts that it dreams), lwf (its old answers "
                          "to the new prompts), l2 or ewc (its old weights)")
    strength: float = option(0.0, "weight of the penalty; of replay, the share of past demonstrations that is stored; 0: the default of each")
    when: str = option("always", "penalise always, or where needed: in a task before which more than 1 % was forgotten of what is tested")
    # what is taught
    stream: str = option("mixed", "mixed (all families) or market (regimes from a calm market to a crash, graded by return)")
    tasks: int = option(10, "length of the mixed stream")
    seed: int = option(0, "draws the world, the base model and the stream")
    demonstrations: int = option(256, "training examples a task")
    voice: str = option("expert", "who speaks in the demonstrations: expert, or own (the model's own voice, which separates the methods no more)")
    shown: int = option(0, "demonstrations that the teacher is shown: 0 is that of the same prompt, k are k others of the same task")
    # ... or what a file says
    demos: tuple = option((), "with --init: teach the tasks of these files of {\"prompt\", \"response\", optional \"task\"} lines")
    keep: tuple = option((), "with --demos: files of what the model should still know, measured and not trained on, as the world's base skills are")
    init: str = option("", "with --demos: the checkpoint (or folder of a run) to start from")
    holdout: float = option(0.2, "with --demos: share of each task's demonstrations that is not trained on but tested")
    grader: str = option("exact", "with --demos: exact, contains or last-line, all blind to case and spaces")
    task_order: str = option("", "with --demos: names of the tasks in another order, comma-separated")
    # the run
    out: str = option("out/run", "folder of the run: checkpoint, log, result")
    resume: bool = option(False, "go on from the checkpoint in the folder")
    # one task
    lr: float = option(0.0, "learning rate of all weights but the embedding (SGD); 0: as tuned, 0.03 for sft and 0.001 for sdft")
    embed_lr: float = option(30.0, "rate of the embedding; a row moves at embed_lr / (1 + f / f0), f the word's share of the pretraining tokens")
    f0: float = option(1e-3, "share of the pretraining tokens at which a row moves at half the rate; smaller keeps more and takes more steps; inf: all rows alike")
    steps: int = option(0, "most steps a task; 0: 300 for sft and 150 for sdft")
    batch_size: int = option(32, "demonstrations a step")
    micro_batch: int = option(0, "rows of the loss scored at once; 0 is the whole batch. The gradient is the same")
    divergence: str = option("forward", "forward = KL(teacher ‖ student), reverse = KL(student ‖ teacher), or jsd")
    beta: float = option(0.5, "weight of the teacher in the mixture of jsd")
    ema_decay: float = option(0.98, "share of its weights that the teacher keeps at each step; 0 is a live teacher (the student's own weights), 1 a frozen one")
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
    save_every: int = option(50, "steps between checkpoints (pretraining: five times that)")
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


def pretrain(model, world, config, log, saved=None, keep=None):
    """Next-token prediction on the world's documents; the tokens of the answer count 1, the others PROMPT_WEIGHT.

    `keep` is called with all that is needed to go on, `saved` is what it was called with last. Returns each token's share (V,) of what
    was read.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [Muon(matrices, lr=0.006), torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)]
    peak = [o.param_groups[0]["lr"] for o in optimizers]
    rng = random.Random(f"pretraining {config.seed}")
    torch.manual_seed(config.seed)
    n, begin, count = config.pretrain_steps, 0, torch.zeros(config.vocab_size)
    if saved:
        begin, count = saved["step"], saved["count"]
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        set_random_states(rng, saved)
    forward = torch.compile(model, dynamic=True) if config.compile else model
    model.train()
    for step in range(begin, n):
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
            log.progress(f"pretraining {step + 1}/{n} loss {loss.item():.3f}", step + 1, begin, n, tokens.numel())
        if keep and (log.stop or (step + 1) % (5 * config.save_every) == 0):
            keep({"step": step + 1, "count": count, "optimizers": [o.state_dict() for o in optimizers], **random_states(rng)})
            log.leave()
    model.eval()
    return count / count.sum()


def random_states(rng):
    return {"python_rng": rng.getstate(), "torch_rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}


def set_random_states(rng, saved):
    rng.setstate(saved["python_rng"])
    torch.set_rng_state(saved["torch_rng"])
    torch.cuda.set_rng_state_all(saved["cuda_rng"])


def autocast(config):
    return torch.autocast(config.device, torch.bfloat16, enabled=config.bf16)


def choose_matmul(config):
    """The fastest products that are still fp32.

    On a CPU "medium" hands them to oneDNN, on AMD more than twice as fast as MKL. It may round the factors to bf16 where the processor
    has units for that; a trial tells, and then MKL keeps the work.
    """
    if config.device != "cpu":
        return torch.set_float32_matmul_precision("high" if config.bf16 else "highest")
    torch.set_float32_matmul_precision("medium")
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    if (a @ a - a.double() @ a.double()).norm() > 1e-5 * (a @ a).norm():
        torch.set_float32_matmul_precision("highest")


def new_model(config):
    return GPT(GPTConfig(config.vocab_size, config.n_layer, config.n_head, config.n_embd, dropout=config.dropout)).to(config.device).eval()


def base_path(config, world):
    """Where the base model of these settings is kept: the name holds a hash of all that makes it, documents and code included."""
    settings = {f: getattr(config, f) for f in ("seed", "n_layer", "n_head", "n_embd", "vocab_size", "pretrain_steps", "pretrain_docs", "dropout", "bf16")}
    rng = random.Random("what the documents look like")
    made_by = [settings, [world.document(rng) for _ in range(256)], PROMPT_WEIGHT, *map(inspect.getsource, (inspect.getmodule(GPT), Muon, pretrain, pack, gates))]
    return os.path.join("out", f"base-{config.seed}-{hashlib.sha256(repr(made_by).encode()).hexdigest()[:12]}.pt")


def base_model(config, world, log, saved=None):
    """The base model of a seed and a set of settings: pretrained once, then found again under out/ by a hash of all that made it.

    `saved` is the checkpoint of a run that was stopped while it pretrained. Returns the model, each token's share of its pretraining
    (V,), and its gates.
    """
    torch.manual_seed(config.seed)
    model = new_model(config)
    path = base_path(config, world)
    if os.path.exists(path):
        log.say(f"base model: {path}, made before")
        made = load_checkpoint(path)
        model.load_state_dict(made["student"])
    else:
        log.say(f"base model: pretraining {sum(p.numel() for p in model.parameters()):,} parameters")
        log.start()

        def snapshot(**more):
            state = model.state_dict()
            return {"settings": dataclasses.asdict(config), "student": state, "teacher": state, **more}

        def keep(state):
            save(os.path.join(config.out, "checkpoint.pt"), snapshot(pretraining=state, log_bytes=log.bytes()))

        if saved:
            model.load_state_dict(saved["student"])
        frequency = pretrain(model, world, config, log, saved and saved["pretraining"], keep)
        made = snapshot(frequency=frequency)
        made["gates"] = gates(model, world)
        save(path, made)
        log.say(f"base model: wrote {path}")
    for name, value in made["gates"].items():
        bound, most = GATES[name], name == "new_without_demonstration"
        ok = value <= bound if most else value >= bound
        log.say(f"gate {name.replace('_', ' '):30s} {value:6.1%}  ({'<=' if most else '>='} {bound:.0%})  {'ok' if ok else 'MISSED'}")
    return model.eval(), made["frequency"], made["gates"]


def save(path, value):
    """Written beside and renamed: a crash or a full disk leaves the previous file whole."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    buffer, part = io.BytesIO(), f"{path}.{os.getpid()}.part"
    torch.save(value, buffer)                              # in memory first: writing the file then fails with a plain OSError, if it does
    try:
        with open(part, "wb") as f:
            f.write(buffer.getbuffer())
            f.flush()
            os.fsync(f.fileno())
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
    words = [Example(rng.choice(REAL_WORDS), word, word, (), "exact") for word in REAL_WORDS * 4]
    said = answers(model, base)
    return {
        "base": float(np.mean([grade(e, a) for e, a in zip(base, said)])),
        "new_without_demonstration": accuracy(model, new),
        "new_with_demonstration": accuracy(model, new, shown=True),
        "contradicting_demonstration": accuracy(model, contradicting, shown=True),
        "text_with_demonstration": accuracy(model, [text_example(rng, 12) for _ in range(512)], shown=True),
        "real_words_with_demonstration": accuracy(model, words, shown=True),
        "well_formed": float(np.mean([well_formed(e, a) for e, a in zip(base, said)])),
    }


# ---------------------------------------------------------------------------------------------------------------------
# What is taught and what is measured.


@dataclass
class Lessons:
    """A stream of tasks, and examples that no task trains on: what the model can do already, each with the name of its kind, what it
    is asked behind a demonstration, and the neighbours of facts that a task changes."""

    stream: list
    base: list
    kinds: list
    shown: list
    neighbours: list


def world_lessons(config, world) -> Lessons:
    stream = world.market_stream(config.demonstrations) if config.stream == "market" else world.stream(config.tasks, config.demonstrations)
    for task in stream:
        prompts = Counter(e.prompt for e in task.train)
        if len(task.train) - max(prompts.values()) < config.shown:
            raise BadInput(f"--shown {config.shown}: the {len(task.train)} demonstrations of a task ({task.family}) have only {len(prompts)} "
                           "different prompts; show fewer, or make more (--demonstrations)")
    if config.voice == "own":
        for example in (e for task in stream for e in task.train + task.test):
            example.demo = example.own
    rng = random.Random(f"probe {world.seed}")
    updated = {fact for task in stream if task.family == "update" for fact in task.items}       # these are scored by their new value
    base = [world.base_example(rng, updated) for _ in range(256)]
    beings = {e for e, _ in updated}
    neighbours = [world.fact(e, a, v, rng, 0) for (e, a), v in world.facts.items() if e in beings and (e, a) not in updated]
    return Lessons(stream, base, [e.kind for e in base], [world.fresh_example(rng) for _ in range(128)], neighbours)


def file_lessons(config, words, world_seed, taught) -> Lessons:
    """The tasks of --demos, in their order or that of --task-order. What the model can do already: the world's base skills, and --keep.

    `words`, `world_seed` and `taught` are a checkpoint's; new words of the files get tokens, as long as there are names without a meaning.
    """
    take_names(words)                                      # what has a token is not new: a resumed run must not give it another
    context = GPTConfig.context // 2                       # half: the longest prompt of a batch may meet its longest answer
    tasks, kept = (read_tasks(list(paths), context, config.grader) for paths in (config.demos, config.keep))
    world = World(world_seed)
    spare = [name for name in world.free if name not in words.values() and name not in taught]
    words.update(zip(new_words(tasks + kept), spare))
    take_names(words)
    world.free = [name for name in world.free if name not in words.values()]
    stream = [split_holdout(task, config.holdout, config.seed) for task in tasks]
    names = [task.family for task in stream]
    if config.task_order:
        order = [name.strip() for name in config.task_order.split(",")]
        if sorted(order) != sorted(names):
            raise BadInput(f"--task-order {config.task_order!r}: name every task of --demos once; they are {', '.join(names)}")
        stream = [stream[names.index(name)] for name in order]
    rng = random.Random(f"probe {world.seed}")
    base = [(e, f"base: {e.kind}") for e in (world.base_example(rng) for _ in range(256))] + [(e, task.family) for task in kept for e in task.train]
    return Lessons(stream, [e for e, _ in base], [kind for _, kind in base], [world.fresh_example(rng, known=True) for _ in range(128)], [])


def fingerprint(lessons) -> str:
    return hashlib.sha256(repr(dataclasses.astuple(lessons)).encode()).hexdigest()[:16]


class Probe:
    """Everything that is measured after each task; NaN where there is nothing to measure."""

    def __init__(self, lessons, reference, by_return=False):
        self.lessons, self.reference = lessons, copy.deepcopy(reference)
        self.score = earned if by_return else grade

    def measure(self, student, done, task):
        has = self.lessons
        said = answers(student, has.base)
        right = np.array([grade(e, a) for e, a in zip(has.base, said)])
        kinds = np.array(has.kinds)
        asked = len(has.stream) if task == 0 else task + 1                                   # all of the base; then what is seen, and the next
        done["R"].append([accuracy(student, t.test, score=self.score) if j < asked else float("nan") for j, t in enumerate(has.stream)])
        done["base_accuracy"].append(mean(right))
        done["base_by_kind"].append({k: mean(right[kinds == k]) for k in dict.fromkeys(has.kinds)})
        done["voice"].append(mean([in_own_voice(a) for e, a in zip(has.base, said) if e.kind not in GRADERS]))      # a file's answers have no voice
        done["teacher_accuracy"].append(accuracy(student, has.shown, shown=True))
        done["neighbours"].append(accuracy(student, has.neighbours))
        done["drift_base"].append(drift(self.reference, student, has.base[:64]))
        done["drift_new"].append(drift(self.reference, student, has.stream[max(task - 1, 0)].test))


def mean(values) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def drift(base, model, examples) -> float:
    """Mean KL(base ‖ model) in nats a token, over answers of the base to the bare prompts."""
    if not examples:
        return float("nan")
    b = collate(examples).to(base.head.weight.device)
    response, mask = base.generate(b.prompt, b.length, room(b), END, temperature=0)
    with torch.no_grad():
        p, q = (sdft.score(m, b.prompt, b.length, response) for m in (base, model))
    return sdft.distill_loss(q, p, mask).item()


def shown_accuracy(teacher, batch, examples) -> float:
    """How often the teacher answers the demonstrations of a batch rightly (greedily)."""
    response, _ = teacher.generate(batch.demo_prompt, batch.demo_length, room(batch), END, temperature=0)
    return mean([grade(e, decode(r)) for e, r in zip(examples, response.tolist())])


# ---------------------------------------------------------------------------------------------------------------------
# Penalties: what holds the student to what it could do before. `remember` is what a penalty keeps, made anew as a task begins;
# `penalty_loss` is the second loss of one step or, where the penalty is on the weights, `pull_back` what follows the step. Only replay
# stores data; `--when needed` takes tests of past tasks.


def remember(config, model, stream, task, memory):
    if config.penalty == "replay":
        return None                                        # the demonstrations are in the stream
    if config.penalty == "self-replay":
        return dream(model, DREAMS)
    if config.penalty == "ewc":                            # online EWC: one sum for all tasks (Schwarz et al. 2018, without decay)
        if task == 0:                                      # what the base knows: estimated on its own dreams
            prompt, length = (t[:FISHER] for t in dream(model, DREAMS)[:2])
        else:
            batch = collate(stream[task - 1].train[:FISHER]).to(model.head.weight.device)
            prompt, length = batch.prompt, batch.length
        new = fisher(model, prompt, length)
        return [old + f for old, f in zip(memory, new)] if memory else new


def penalty_loss(config, student, previous, batch, stream, task, memory, rng):
    """`previous`: the student as the task began; `memory`: of `remember`. Returns a function of the student, or None: there is none."""
    n, strength = config.batch_size, config.strength
    if config.penalty == "replay":
        if task == 0:
            return None
        old = collate(rng.choices(past_demonstrations(stream, task, strength), k=n)).to(batch.prompt.device)
        return lambda student: sdft.sft_loss(sdft.score(student, old.prompt, old.length, old.response), old.response, old.response_mask)
    if config.penalty == "self-replay":
        rows = torch.randint(len(memory[0]), (n,)).to(batch.prompt.device)
        prompt, length, response, mask = (t[rows] for t in memory)
        prompt, long = prompt[:, : length.max()], mask.sum(1).max()                         # of these rows; memory is as wide as its longest dream
        response, mask = response[:, :long], mask[:, :long]
        return lambda student: strength * follow(student, previous, prompt, length, response, mask)
    if config.penalty == "lwf":                            # Li and Hoiem 2016: what the old model would have said to the new prompts
        return lambda student: strength * follow(student, previous, batch.prompt, batch.length, *sample(previous, batch.prompt, batch.length, room(batch)))


@torch.no_grad()
def pull_back(student, previous, optimizer, scale, importance, strength):
    """L2 and EWC (Kirkpatrick et al. 2017): the penalty strength / 2 * Σ F (θ - θ_old)², F the importance of each weight (None: 1, which is L2), after a
    step of SGD on the loss. The step on the penalty is implicit, θ <- argmin of (θ - θ_now)² / (2 rate) + penalty: stable at any strength, where a gradient
    step on the embedding, at its rate of 30, would diverge. scale (V,): that of the embedding's rows.
    """
    others, embed = (group["lr"] for group in optimizer.param_groups)
    for i, (new, old) in enumerate(zip(student.parameters(), previous.parameters())):
        pull = strength * (embed * scale[:, None] if new is student.embed.weight else others) * (importance[i] if importance else 1.0)
        new.lerp_(old, pull / (1 + pull))


def follow(student, previous, prompt, length, response, mask):
    """KL(previous ‖ student) along answers of the previous model."""
    with torch.no_grad():
        target = sdft.score(previous, prompt, length, response)
    return sdft.distill_loss(sdft.score(student, prompt, length, response), target, mask)


def dream(model, n):
    """The model writes n prompts of its own past and answers them. A dreamt prompt is what it writes after the token that begins one.

    Returns prompt (n', P), length (n',), response and mask (n', R), n' <= n: what did not become a prompt is dropped.
    """
    start = torch.full((n, 1), PROMPT, device=model.head.weight.device)
    written, mask = sample(model, start, torch.ones_like(start[:, 0]), 16, ANSWER)
    rows = [[PROMPT, *r[: sum(m)]] for r, m in zip(written.tolist(), mask.tolist())]
    rows = [r for r in rows if r[-1] == ANSWER and END not in r]
    if not rows:
        fail("none of the model's dreams is a prompt: pretrain it longer (--pretrain-steps), or use another --penalty")
    prompt, length = (t.to(start.device) for t in pad(rows))
    return prompt, length, *sample(model, prompt, length, 16)


def fisher(model, prompt, length) -> list:
    """Diagonal of the Fisher information, a tensor for each parameter: the mean square of one answer's gradient, the answer sampled
    from the model itself (Kunstner et al. 2019: with labels of the data it would be another matrix)."""
    response, mask = sample(model, prompt, length, 16)
    information = [torch.zeros_like(p) for p in model.parameters()]
    for i in range(len(prompt)):
        row = slice(i, i + 1)
        logits = sdft.score(model, prompt[row], length[row], response[row])
        gradient = torch.autograd.grad(sdft.sft_loss(logits, response[row], mask[row], denominator=1), list(model.parameters()))
        for f, g in zip(information, gradient):
            f += g.square() / len(prompt)
    return information


def past_demonstrations(stream, task, share) -> list:
    """What replay has stored when a task begins: the same share of every task before it, always the same examples."""
    return [e for i, t in enumerate(stream[:task]) for e in random.Random(f"stored {i}").sample(t.train, max(1, round(share * len(t.train))))]


def forgotten(R, base) -> float:
    """How much has been lost by now: the larger of the mean drop on the tasks seen and the drop on the base skills."""
    task = len(R) - 1
    drops = [R[j + 1][j] - R[task][j] for j in range(task)]
    return max(mean(drops), base[0] - base[-1]) if task else 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Task after task.


def row_scale(frequency, f0):
    """How far each row of the embedding moves, (V,), as a share of the full rate."""
    return 1 / (1 + frequency / f0)


def make_optimizer(model, config, frequency):
    """Plain SGD, no momentum, and a step of its own for each row of the embedding.

    A new word is learned in its row; what hurts the old skills is that the rows they all stand on (letters, signs, structure words)
    move as well. So a row moves at embed_lr / (1 + f / f0), f being the word's share of the pretraining tokens (V,): a word never met
    moves at the full rate, one of every hundred tokens at a tenth of it. All methods train like this.
    """
    embed = model.embed.weight
    scale = row_scale(frequency, config.f0).to(embed.device)
    embed.register_hook(lambda grad: grad * scale[:, None])
    others = [p for p in model.parameters() if p is not embed]
    return torch.optim.SGD([{"params": others, "lr": config.lr}, {"params": [embed], "lr": config.embed_lr}])


def learn(config, lessons=None, start=None, **passed_on):
    """Teach a stream's tasks one after another; returns the result that is also written to result.json.

    lessons: what is taught, the world's stream when left out. start: the checkpoint to begin with, the base model when left out.
    passed_on: what else the checkpoint hands to a run that starts from it.
    """
    world = World(config.seed)
    lessons = lessons or world_lessons(config, world)
    passed_on = passed_on or {"taught": sorted(set().union(*(task.names() for task in lessons.stream)))}
    stream, lessons_hash = lessons.stream, fingerprint(lessons)
    path = os.path.join(config.out, "checkpoint.pt")
    saved = load_checkpoint(path) if config.resume and os.path.exists(path) else None
    log = Log(config, saved["log_bytes"] if saved else 0)
    if saved and "pretraining" in saved:                   # stopped before the first task
        student, frequency, gate = base_model(config, world, log, saved)
        saved = None
    elif saved or start:                                   # the base model is in the checkpoint: it is not made or looked for again
        student, frequency, gate = new_model(config), *((saved or start)[k] for k in ("frequency", "gates"))
        student.load_state_dict(saved["base"] if saved else start["student"])
        if saved and saved.get("lessons_hash") != lessons_hash:
            fail(f"{config.out}: what it teaches has changed since this run began (the files of --demos or --keep, or data.py); put it back, or start "
                 "again in another folder")
    else:
        student, frequency, gate = base_model(config, world, log)
    probe = Probe(lessons, student, config.stream == "market")
    teacher = copy.deepcopy(student).requires_grad_(False)
    if config.compile:                                     # dynamic: other lengths must not compile it again, nor lengths that happen to be equal
        torch.fx.experimental._config.use_duck_shape = False
        sdft.on_policy_loss = torch.compile(sdft.on_policy_loss, fullgraph=True, dynamic=True)
    optimizer = make_optimizer(student, config, frequency)
    guard = sdft.TeacherGuard(config.guard, student, teacher)
    previous, memory = copy.deepcopy(student), None
    if config.penalty in ("l2", "ewc"):
        scale = row_scale(frequency, config.f0).to(config.device)
        optimizer.register_step_post_hook(lambda *_: pull_back(student, previous, optimizer, scale, memory, config.strength) if done["regularised"][-1] else None)
    rng = random.Random(f"training {config.seed}")
    torch.manual_seed(config.seed)
    # what has been measured so far; plain lists, so that it goes into the checkpoint and the result as it is
    done = {k: [] for k in ("R", "base_accuracy", "base_by_kind", "voice", "teacher_accuracy", "neighbours", "drift_base", "drift_new",
                            "teacher_curve", "steps", "generated_tokens", "seconds", "regularised")}
    done |= {"guard_trips": 0, "wall_seconds": 0.0}
    task, step, recent = 0, 0, []
    if saved:
        for module, name in ((student, "student"), (teacher, "teacher"), (previous, "previous"), (optimizer, "optimizer")):
            module.load_state_dict(saved[name])
        guard.good, memory, done, task, step, recent = (saved[k] for k in ("good", "memory", "done", "task", "step", "recent"))
        memory = memory and type(memory)(t.to(config.device) for t in memory)
        set_random_states(rng, saved)
        log.say(f"going on at task {task + 1} step {step}" if task < len(stream) else "all tasks were learned before")
    else:
        probe.measure(student, done, 0)
    log.start(done["wall_seconds"], done["steps"], step)

    def checkpoint():
        done["wall_seconds"] = round(log.seconds(), 2)
        save(path, {"settings": dataclasses.asdict(config), "student": student.state_dict(), "teacher": teacher.state_dict(),
                    "previous": previous.state_dict(), "optimizer": optimizer.state_dict(), "good": guard.good, "memory": memory,
                    "base": probe.reference.state_dict(), "frequency": frequency, "gates": gate, **passed_on, "done": done, "task": task, "step": step,
                    "recent": recent, "lessons_hash": lessons_hash, "log_bytes": log.bytes(), **random_states(rng)})

    if not saved:
        checkpoint()
    alpha = config.alpha if config.method == "sdft" else 1.0
    pool = [e for t in stream for e in t.train]
    while task < len(stream):
        began, generated = time.perf_counter(), sample.tokens
        # ---- a task begins
        if step == 0:
            done["seconds"].append(0.0)
            done["generated_tokens"].append(0)
            previous.load_state_dict(student.state_dict())
            done["regularised"].append(config.penalty != "none" and (config.when == "always" or forgotten(done["R"], done["base_accuracy"]) > NEEDED))
            memory, recent = remember(config, previous, stream, task, memory) if done["regularised"][-1] else None, []
            for group, lr in zip(optimizer.param_groups, (config.lr, config.embed_lr)):     # what a guard has halved
                group["lr"] = lr
        train = pool if config.method == "joint" else stream[task].train
        examples = rng.sample(train, min(config.batch_size, len(train)))
        batch = collate(examples, None if config.shown == 0 else [others(e, train, config.shown, rng) for e in examples]).to(config.device)
        draw = lambda student, prompt, length: sample(student, prompt, length, room(batch))
        if config.off_policy:
            draw = lambda student, prompt, length: sample(teacher, batch.demo_prompt, batch.demo_length, room(batch))
        penalty = penalty_loss(config, student, previous, batch, stream, task, memory, rng) if done["regularised"][-1] else None
        # ---- the method
        try:
            with autocast(config):
                figures = sdft.sdft_step(
                    student, teacher, optimizer, batch, draw, divergence=config.divergence, beta=config.beta, alpha=alpha,
                    ema_decay=config.ema_decay, penalty=penalty, micro_batch=config.micro_batch or None, linear=config.vocab_size >= LINEAR_FROM)
        except FloatingPointError as e:
            fail(f"task {task + 1} step {step}: {e}. The last good checkpoint is {path}; lower --lr or --embed-lr and begin again")
        # ---- what follows is watching, logging, saving
        step += 1
        done["seconds"][-1] += time.perf_counter() - began
        done["generated_tokens"][-1] += sample.tokens - generated
        recent = [*recent[-19:], figures["loss"]]
        over = step == config.steps or (len(recent) == 20 and np.mean(recent) < config.converged)
        if step % config.watch_every == 0 or over:
            right = shown_accuracy(teacher, batch, examples)
            done["teacher_curve"].append([sum(done["steps"]) + step, right])
            if alpha < 1 and not guard.check(right, student, teacher):
                done["guard_trips"] += 1
                recent, over = [], step == config.steps    # agreement with a broken teacher is no reason to stop
                for group in optimizer.param_groups:
                    group["lr"] /= 2
                log.say(f"task {task + 1} step {step}: the teacher answers {right:.0%} of its demonstrations rightly: rolled back, rates halved")
            log.step({"task": task + 1, "step": step, **figures, "lr": optimizer.param_groups[0]["lr"], "teacher": right}, done["steps"],
                     [t.family for t in stream], config.steps)
        if over:
            done["steps"].append(step)
            task, step = task + 1, 0
            probe.measure(student, done, task)
            learned, seen = done["R"][task][task - 1], np.mean(done["R"][task][:task])
            log.say(f"task {task}/{len(stream)} {stream[task - 1].family}: {done['R'][task - 1][task - 1]:.2f} before, learned to {learned:.2f} in "
                    f"{done['steps'][-1]} steps; all seen {seen:.2f}, base {done['base_accuracy'][task]:.2f}, own voice {done['voice'][task]:.2f}, "
                    f"shown demonstrations {done['teacher_accuracy'][task]:.2f}")
        if over or log.stop or step % config.save_every == 0:
            checkpoint()
        log.leave()
    kept = {"base_retention": "base_accuracy", "voice_retention": "voice", "teacher_retention": "teacher_accuracy"}
    ratio = {name: done[k][-1] / (done[k][0] or float("nan")) for name, k in kept.items()}
    result = {"method": run_name(config), "settings": dataclasses.asdict(config), **provenance(), "gates": gate,
              "families": [t.family for t in stream], **continual_metrics(done["R"]), **ratio, **done}
    write_json(os.path.join(config.out, "result.json"), result)
    if config.demos:
        log.say("\n" + changes(result))
    log.say(f"wrote {config.out}/result.json")
    return result


def changes(result) -> str:
    """What was learned and what was forgotten, task by task: accuracy before, when learned, now."""
    R, kinds = result["R"], result["base_by_kind"]
    rows = [(f"new: {name}", R[j][j], R[j + 1][j], R[-1][j]) for j, name in enumerate(result["families"])]
    rows += [(f"kept: {name}", kinds[0][name], float("nan"), kinds[-1][name]) for name in kinds[0]]
    header = f"{'task':32s} {'before':>8s} {'learned':>8s} {'now':>8s}"
    return "\n".join([header, *(f"{name:32.32s} {a:8.2f} {b:8.2f} {c:8.2f}".replace("nan", "  –") for name, a, b, c in rows)])


def others(example, train, k, rng) -> list:
    """k demonstrations of the same task, of other prompts."""
    return rng.sample([e for e in train if e.prompt != example.prompt], k)


def sample(model, prompt, length, n_new, end=END):
    """Everything that the loss needs is generated here, and counted; what the looks at the teacher and the tests generate is not."""
    response, mask = model.generate(prompt, length, n_new, end)
    sample.tokens += int(mask.sum())
    return response, mask


sample.tokens = 0


class Log:
    """One line for people and one line of JSON for programs at each logged step; the file begins with what the run is.

    Ctrl-C sets `stop`: the loop finishes its step, saves, and calls `leave`; a second Ctrl-C ends the run at once.
    """

    def __init__(self, config, at=0):
        self.path, self.name, self.stop = os.path.join(config.out, "log.jsonl"), run_name(config), False
        os.makedirs(config.out, exist_ok=True)
        with open(self.path, "ab") as f:
            f.truncate(min(at, f.tell()))          # on resume: lines behind the checkpoint are written again
        self.start()
        if at == 0:
            self.write({"settings": dataclasses.asdict(config)} | provenance())
        signal.signal(signal.SIGINT, self.interrupt)

    def interrupt(self, *_):
        self.stop = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def leave(self):
        if self.stop:
            raise KeyboardInterrupt

    def start(self, already=0.0, steps=(), step=0):
        self.began = time.perf_counter() - already
        self.last = time.perf_counter(), sum(steps) + step

    def seconds(self):
        return time.perf_counter() - self.began

    def bytes(self):
        return os.path.getsize(self.path)

    def write(self, record):
        with open(self.path, "a") as f:
            f.write(json.dumps(record) + "\n")

    def say(self, text):
        print(f"{self.name:16s} {text}", flush=True)

    def progress(self, text, step, begin, n, tokens):
        each = self.seconds() / (step - begin)
        self.say(f"{text} | {tokens / each:,.0f} tokens/s | {self.seconds():.0f} s, {each * (n - step):.0f} s left")

    def step(self, record, steps, families, most):
        """`steps`: those of the tasks that have ended; what the others will take is guessed from tasks of the same family, then of any."""
        now, task, total = time.perf_counter(), record["task"], sum(steps) + record["step"]
        ms = 1000 * (now - self.last[0]) / max(1, total - self.last[1])
        self.last = now, total

        def guess(family):
            return mean([n for n, f in zip(steps, families) if f == family] or steps or [most])

        left = max(0.0, guess(families[task - 1]) - record["step"]) + sum(map(guess, families[task:]))
        left = self.seconds() / total * left
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "linux" else 1024**2)
        self.write(record | {"ms": round(ms, 1), "peak_mb": peak, "seconds": round(self.seconds(), 1), "left": round(left, 1)})
        self.say(f"task {task}/{len(families)} {families[task - 1]:12s} step {record['step']}/{most} loss {record['loss']:.4f} gradient {record['grad_norm']:.2f} "
                 f"teacher {record['teacher']:.2f} lr {record['lr']:g} | {ms:.0f} ms/step, {record['tokens'] / ms * 1000:,.0f} tokens/s | {left:.0f} s left")


def run_name(config):
    share = f" {config.strength:.0%}" * (config.penalty == "replay")
    return config.method + f"+{config.penalty}{share}" * (config.penalty != "none") + " where needed" * (config.when == "needed")


def provenance() -> dict:
    """What a figure must be kept with: command, versions, commit, kind of machine."""
    git = ["git", "-C", os.path.dirname(os.path.abspath(__file__))]
    try:
        commit, changed = (subprocess.run([*git, *args], capture_output=True, text=True).stdout.strip() for args in (
            ["describe", "--always"], ["diff", "--name-only", "HEAD", "--", "*.py", "*.jsonl"]))          # results and pictures change as they are made
        commit += "-dirty" * bool(changed)
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

CHOICES = {"method": ["base", "sft", "joint", "sdft"], "penalty": ["none", "replay", "self-replay", "lwf", "l2", "ewc"], "when": ["always", "needed"],
           "stream": ["mixed", "market"], "divergence": ["forward", "reverse", "jsd"], "preset": ["gpu"], "voice": ["expert", "own"],
           "grader": ["exact", "contains", "last-line"]}
# of each penalty, as tuned with sft; sdft's trials with self-replay were all alike
STRENGTH = {"none": 0.0, "replay": 0.05, "self-replay": 0.1, "lwf": 0.003, "l2": 1e-6, "ewc": 1e4, "sdft self-replay": 1.0}
MACHINE = {"resume", "out", "device", "threads", "save_every"}                                       # what a resumed run may change


def parse(argv=None) -> Config:
    """The command line as a Config; what is out of range or contradicts ends with one line and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS,
                                     allow_abbrev=False)
    parser.error = lambda message: fail(f"train.py: {message}; all options: python train.py --help")
    for f in dataclasses.fields(Config):
        default = "none" if f.default in ("", ()) else f.default
        help = f"{f.metadata['help']} (default: {default})".replace("%", "%%")
        kind = {"action": "store_true"} if f.type is bool else {"nargs": "+", "type": str, "metavar": "FILE"} if f.type is tuple else {"type": f.type}
        kind |= {"choices": CHOICES[f.name]} if f.name in CHOICES else {"metavar": f.type.__name__} if f.type not in (bool, tuple) else {}
        parser.add_argument("--" + f.name.replace("_", "-"), help=help, **kind)
    given = vars(parser.parse_args(argv))
    for name in given:
        if given[name] == []:                              # what argparse makes of --name=-- before Python 3.13
            parser.error(f"argument {flag(name)}: expected one argument")
    config = Config(**PRESETS[given.get("preset", "")] | given)
    if config.resume:                                      # a run goes on with its own settings; the machine's may change
        began = began_with(config.out)
        if not isinstance(began, dict) or began.keys() != {f.name for f in dataclasses.fields(Config)}:
            parser.error(f"--resume: the run in {config.out} was begun by another version of this project; go on with that, or use another folder")
        for name in given.keys() - MACHINE:
            if given[name] != began[name]:
                parser.error(f"{flag(name)} {given[name]}: the run in {config.out} began with {began[name]}; leave it out, or use another folder")
        config = Config(**began | given)
    for name, (low, high) in RANGES.items():
        value = getattr(config, name)
        if not low <= value <= high:                       # NaN fails this too
            parser.error(f"{flag(name)} {value}: must be from {low} to {high}")

    def only(condition, where, *names):
        for name in names:
            if not condition and getattr(config, name) not in (getattr(Config, name), []):       # []: the () of a log
                parser.error(f"{flag(name)} {getattr(config, name)} goes with {where}: leave it out, or add that")

    only(config.method == "sdft", "--method sdft", "alpha", "off_policy", "shown", "divergence", "beta", "ema_decay")
    only(config.divergence == "jsd", "--divergence jsd", "beta")
    only(config.penalty != "none", "a --penalty", "strength")
    only(config.penalty in ("self-replay", "lwf", "l2"), "--penalty self-replay, lwf or l2", "when")
    only(config.demos, "--demos", "keep", "init", "holdout", "grader", "task_order")
    only(not config.demos, "the world's streams, not with --demos", "stream", "tasks", "demonstrations", "voice", "shown")
    only(config.stream == "mixed", "--stream mixed", "tasks")
    if config.penalty == "replay" and config.strength > 1:
        parser.error(f"--strength {config.strength}: of replay it is a share, from 0 to 1")
    if config.method == "base" and config.demos:
        parser.error("--demos teaches: use --method sdft or sft")
    if config.demos and not config.init:
        parser.error("--demos needs --init, a checkpoint to start from; a first one: python train.py --method base --out out/base, then --init out/base")
    if config.shown >= config.demonstrations:
        parser.error(f"--shown {config.shown}: a task has only {config.demonstrations} demonstrations (--demonstrations)")
    if config.n_embd % (2 * config.n_head):
        parser.error(f"--n-embd {config.n_embd}: must be a multiple of 2 * --n-head ({2 * config.n_head})")
    if not config.out or not config.out.isprintable():
        parser.error(f"--out {config.out!r}: not the name of a folder that can be printed")
    config.lr = config.lr or {"sft": 0.03, "joint": 0.03}.get(config.method, 0.001)
    config.steps = config.steps or {"sdft": 150}.get(config.method, 300)
    config.strength = config.strength or STRENGTH.get(f"{config.method} {config.penalty}", STRENGTH[config.penalty])
    if config.device == "auto":
        config.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.zeros(1, device=config.device).item()    # "meta" has tensors, but nothing in them
    except Exception:                                      # RuntimeError, AssertionError, ImportError: each device has its own
        parser.error(f"--device {config.device}: this machine or this build of torch has no such device; leave it out for the CPU")
    if torch.device(config.device).type == "cpu":          # torch.load does not know cpu:0
        config.device = "cpu"
    return config


def flag(name):
    return "--" + name.replace("_", "-")


def began_with(folder) -> dict:
    """The settings of a run that was started in a folder: of its checkpoint or, if it died before the first one, of its log."""
    log = os.path.join(folder, "log.jsonl")
    if not os.path.exists(os.path.join(folder, "checkpoint.pt")) and os.path.exists(log):
        with open(log) as f:
            first = f.readline()
        try:
            return json.loads(first)["settings"]
        except (ValueError, KeyError, TypeError):
            pass                                           # it died while it wrote this line: there is nothing to resume
    return load_checkpoint(folder)["settings"]


PRESETS = {"": {}, "gpu": {"n_layer": 6, "n_head": 8, "n_embd": 256, "vocab_size": 50_304, "bf16": True, "compile": True, "batch_size": 256}}
MANY = 10**9
RANGES = {
    "tasks": (1, 27), "seed": (0, MANY), "lr": (0, 1e3), "embed_lr": (0, 1e6), "f0": (1e-12, float("inf")), "steps": (0, MANY), "strength": (0, 1e9),
    "batch_size": (1, MANY), "micro_batch": (0, MANY), "demonstrations": (2, 100_000), "shown": (0, 8), "holdout": (0, 0.9),
    "beta": (1e-6, 1 - 1e-6), "alpha": (0, 1), "ema_decay": (0, 1), "converged": (0, 1e3), "guard": (0, 1),
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
        for name in os.listdir(folder):                    # half-written files of a process that was killed
            if name.endswith(".part"):
                os.remove(os.path.join(folder, name))
        yield


def start_from(config) -> dict:
    """The checkpoint of --init; its architecture is the run's."""
    model, state = load_model(config.init)
    if not {"frequency", "gates"} <= state.keys():
        fail(f"--init {config.init}: its pretraining has not ended; go on with it first (--resume)")
    if os.path.realpath(config.init) in (os.path.realpath(config.out), os.path.realpath(os.path.join(config.out, "checkpoint.pt"))):
        fail(f"--out {config.out}: the new checkpoint would be written over the old one (--init); choose another folder")
    if not all(weight.isfinite().all() for weight in state["student"].values()):
        fail(f"--init {config.init}: some of its weights are not finite; start from a checkpoint before they were")
    for name in ("n_layer", "n_head"):
        setattr(config, name, state["settings"][name])
    config.vocab_size, config.n_embd = model.embed.weight.shape
    return state


def main(argv=None):
    config = parse(argv)
    if config.threads:
        torch.set_num_threads(config.threads)
    choose_matmul(config)
    try:
        path = os.path.join(config.out, "checkpoint.pt")
        start = load_checkpoint(path) if config.resume and os.path.exists(path) else start_from(config) if config.init else None
        passed_on, lessons = {}, None
        if config.demos:
            passed_on = {"words": dict(start.get("words", {})), "world_seed": start.get("world_seed", start["settings"]["seed"]),
                         "taught": start.get("taught", [])}
            lessons = file_lessons(config, **passed_on)
        with locked(config.out):
            if not config.resume:                          # what an older run has left: after a kill, --resume would go on with that
                for name in ("checkpoint.pt", "result.json"):
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(os.path.join(config.out, name))
            if config.method == "base":
                pretrain_only(config)
            else:
                learn(config, lessons, start if config.demos else None, **passed_on)
    except BadInput as e:
        fail(str(e))
    except OSError as e:
        fail(f"{e.filename or config.out}: {e.strerror or e}; make room there, or choose another folder with --out; what was saved before is whole")
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(e):       # the latter on a CPU
            raise
        fail("the model or its batch does not fit into memory; lower --n-embd, --n-layer, --vocab-size, --pretrain-docs or --batch-size")
    except KeyboardInterrupt:
        saved = os.path.exists(os.path.join(config.out, "checkpoint.pt"))
        print(file=sys.stderr)                             # behind the ^C of the terminal
        fail("interrupted; " + (f"go on with: python train.py --out {shlex.quote(config.out)} --resume" if saved else "nothing was saved yet"))


def pretrain_only(config):
    """The base model alone; a checkpoint of it is left in the folder too, to be asked, or taught by --init."""
    path = os.path.join(config.out, "checkpoint.pt")
    saved = load_checkpoint(path) if config.resume and os.path.exists(path) else None
    saved = saved if saved and "pretraining" in saved else None
    log = Log(config, saved["log_bytes"] if saved else 0)
    model, frequency, gate = base_model(config, World(config.seed), log, saved)
    state = model.state_dict()
    save(path, {"settings": dataclasses.asdict(config), "student": state, "teacher": state, "frequency": frequency, "gates": gate, "log_bytes": log.bytes()})


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")     # a terminal that does not know a character is no reason to stop
    main()
