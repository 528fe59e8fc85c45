"""Teach a model the demonstrations of files, task after task, by SDFT, SFT, or a baseline.

    python train.py --init out/base --demos out/world/tasks/*.jsonl --out out/demo/sdft
    python train.py --init out/base --demos new.jsonl --keep old.jsonl --out out/mine
    python train.py --out out/mine --resume          go on where a killed run stopped

A model and files go in; a model, a log and a result come out, in one folder. A model is a Hugging
Face folder: a chat model's, or our own small GPT's, of which lab/pretrain.py makes a first one.
Left out: more than one machine, and all else that a trainer framework is for.
"""
import contextlib
import dataclasses
import functools
import math
import os
import random
import shlex
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
import torch.fx.experimental._config

import sdft
from data import GRADERS, OF_RETURNS, another, collate, grade, in_own_words, leave_out, others
from divergence import token_divergence
from eval import Probe, accuracy, answers, both_prompts, changes, continual_metrics, is_chat, mean, settings_of
from lessons import Lessons, check_fits, check_others, read_lessons
from model import GPT, Sampler, bf16_copy, frozen_copy
from penalties import PENALTIES, Penalty
from runs import (MANY, BadInput, Log, bf16_pays, check_options, check_out, ends_in_one_line, find_device, first_ten,
                  flag, give_back_memory, given_options, load_checkpoint, locked, option, provenance, quoted,
                  random_states, remove_run, save_checkpoint, set_random_states, set_up_machine, write_json, write_rows)

SDFT = {"method": ["sdft"]}       # the options that mean something there alone
TEXT_GRADERS = [name for name in GRADERS if name not in OF_RETURNS]


@dataclass
class Config:
    """All options, in the order of --help. A method is how it samples, what its target is, and what its penalty is."""

    method: str = option(
        "sdft", "sft (learn the expert's words), joint (sft on all tasks at once, a bound), or sdft (learn from "
        "oneself, shown the expert's words)", group="the method", choices=["sft", "joint", "sdft"])
    sampler: str = option(
        "student", "who answers, and is trained on that: student, teacher (shown its demonstration), or the share of "
        "a batch's rows, rounded, that the teacher answers, such as 0.5", only=SDFT)
    temperature: float = option(
        1.0, "of the answers that are trained on; what penalties sample is at 1", within=(0.01, 100), only=SDFT)
    skip: int = option(
        0, "tokens at the beginning of a sample that the loss leaves out, its last one never (official code: 3)",
        within=(0, MANY), only=SDFT)
    contrast: float = option(
        -1.0, "how much of what any demonstration makes the teacher say is taken out of the target: 0 nothing, as in "
        "the paper, 1 all (sdft.py, 7). -1: as tuned, 1 for sdft of a chat model without --shown, else 0",
        within=(-1, 10))
    against: str = option(
        "own", "what a contrast shows instead: own, what the model itself said to another prompt before the task (that "
        "takes out the habit of the words around it), or row, another demonstration (and what a task's rows share: "
        "the form of bare values)",
        choices=["own", "row"], only=SDFT)
    alpha: float = option(
        0.0, "share of the supervised loss: alpha * SFT + (1 - alpha) * distillation", within=(0, 1), only=SDFT)
    divergence: str = option(
        "forward", "forward = KL(teacher ‖ student), reverse = KL(student ‖ teacher), or jsd",
        choices=["forward", "reverse", "jsd"], only=SDFT)
    beta: float = option(
        0.5, "weight of the teacher in the mixture of jsd", within=(1e-6, 1 - 1e-6),
        only=SDFT | {"divergence": ["jsd"]})
    ema_decay: float = option(
        0.98, "share of its weights that the teacher keeps at each step: 0 is a live teacher (the student's own "
        "weights), 1 a frozen one", within=(0, 1), only=SDFT)
    shown: int = option(
        0, "demonstrations that the teacher is shown: 0 is that of the same prompt, k are k others of the same task",
        within=(0, 8), only=SDFT)
    template: str = option(
        "", "how a chat model is shown a demonstration: a text or a file with {prompt} and {demo} in it, or "
        "earlier-turn; none: the words of the official code", only=SDFT)
    guard: float = option(
        -1.0, "least share of demonstrations that the teacher must answer rightly; below it both models roll back, and "
        "a chat model is not taught at all. -1: as tuned, 0.9, or 0.5 for a chat model, less "
        "what may be a batch's chance", within=(-1, 1))
    helped_only: bool = option(
        False, "train on those demonstrations alone that let the teacher answer rightly (chat models)", only=SDFT)
    penalty: str = option(
        "none", "what holds the student: replay (of stored demonstrations), self-replay (of prompts that it dreams), "
        "lwf (its old answers to the new prompts), l2 or ewc (its old weights)", choices=list(PENALTIES))
    strength: float = option(
        0.0, "weight of the penalty; of replay, the share of past demonstrations that is stored; 0: as tuned for each",
        within=(0, 1e9), only={"penalty": list(PENALTIES)[1:]})
    when: str = option(
        "always", "penalise always, or where needed: in a task before which more than 1 % of what is tested was "
        "forgotten", choices=["always", "needed"], only={"penalty": ["self-replay", "lwf", "l2"]})

    init: str = option(
        "", "the model to start from: its folder, or that of the run or the pretraining that has left it",
        group="what is taught, and what is measured")
    demos: tuple = option(
        (), 'files to teach, a line {"prompt", "response", and if you like "task", "split", "grader", "answer"}')
    context: int = option(
        0, "longest sequence in tokens: prompt, demonstration and answer together; a row may take half of it. 0: what "
        "the model promises, at most 4096", within=(0, MANY))
    keep: tuple = option(
        (), "files of what the model should still know: measured, and not trained on")
    reading: tuple = option(
        (), "files asked with their own demonstration in the prompt: can the model still read?")
    neighbours: tuple = option(
        (), "files of facts close to what is taught, which should not change: measured, apart from --keep")
    open_prompts: tuple = option(
        (), "files of prompts without one right answer: the words of the answers are counted")
    holdout: float = option(
        0.2, "share of each task's lines that is tested and not trained on, where the file does not say it",
        within=(0, 0.9))
    grader: str = option(
        "exact", "of lines that do not name their own: exact, contains or last-line, all blind to case and spaces, or "
        "content, which is blind to the voices of the small world too", choices=TEXT_GRADERS)
    drop_unusable: bool = option(
        False, "leave out rows that cannot be used, and tell how many and why; by default they are refused")
    task_order: str = option(
        "", "names of the tasks in another order, comma-separated")

    steps: int = option(
        0, "most steps per task; 0: 300 for sft and 150 for sdft", group="the training of a task", within=(0, MANY))
    converged: float = option(
        -1.0, "a task ends when the mean loss of 20 steps, in nats a token, is below this (that of jsd is small by "
        "itself); 0: never. -1: 0.01, or 0 for a chat model, whose answers are mostly words that cost nothing",
        within=(-1, 1e3))
    blend: float = option(
        1.0, "share of what a task has changed in the weights that stays at its end; the rest is as it was before the "
        "task (WiSE-FT). Below 1 less is forgotten, and a little less is learned", within=(0.01, 1))
    max_new_tokens: int = option(
        0, "tokens that a sample may have, and an answer to a task where that is more; 0: a little more than the "
        "longest demonstration of a batch, and at least 16, of a chat model 32", within=(0, MANY))
    batch_size: int = option(
        32, "demonstrations per step", within=(1, MANY))
    micro_batch: int = option(
        0, "rows of the loss scored at once; 0 is the whole batch. The gradient is the same; a penalty's rows, as many "
        "as a batch's, are always scored at once", within=(0, MANY), machine=True)
    lr: float = option(
        0.0, "learning rate; 0: as tuned. Of a chat model (AdamW) 2e-5 for sft and 5e-5 for sdft; of the small GPT "
        "(SGD, all weights but the embedding) 0.03 for sft and 0.001 for sdft", within=(0, 1e3))
    warmup: int = option(
        0, "steps of a task in which the rates rise to their full height; 0: as tuned, 5 for a chat model and 1 "
        "otherwise", within=(0, MANY))
    schedule: str = option(
        "constant", "of the rates after that: constant, or cosine, which ends a task of --steps steps at rate 0",
        choices=["constant", "cosine"])
    embed_lr: float = option(
        30.0, "rate of the embedding; a row moves at embed_lr / (1 + f / f0), f the word's share of the pretraining "
        "tokens", within=(0, 1e6))
    f0: float = option(
        1e-3, "share of the pretraining tokens at which a row moves at half the rate; smaller keeps more and takes "
        "more steps; inf: all rows alike", within=(1e-12, float("inf")))

    dry_run: bool = option(
        False, "read everything, say what was found in the files and show a prompt of each task; train nothing",
        group="the run and the machine", machine=True)
    out: str = option(
        "out/run", "folder of the run: model, checkpoint, log, result", machine=True)
    resume: bool = option(
        False, "go on from the checkpoint in the folder", machine=True)
    seed: int = option(
        0, "draws the batches, the samples, and what --holdout holds out", within=(0, MANY))
    bf16: bool = option(
        False, "matrix products in bfloat16 (autocast), those of the head in fp32 of factors rounded to TF32 or "
        "bfloat16; of a chat model samples and answers from a bfloat16 copy too. Weights, logits and losses are fp32. "
        "Left out, and said, where a CPU multiplies no faster so", machine=True)
    compile: bool = option(
        False, "torch.compile the on-policy loss (both models in it); no gain on a CPU", only=SDFT)
    device: str = option(
        "auto", "auto, cpu, cuda, ...", machine=True)
    threads: int = option(
        0, "CPU threads; 0 leaves torch's choice", within=(0, 1024), machine=True)
    save_every: int = option(
        50, "steps between checkpoints", within=(1, MANY), machine=True)
    watch_every: int = option(
        10, "steps between looks at the teacher, and lines of the log", within=(1, MANY))
    measure_every: int = option(
        0, "steps of a task between measurements of all that is measured after a task; 0: there alone",
        within=(0, MANY))


NEEDED = 0.01                     # forgetting above which `--when needed` regularises the next task
CHECKPOINT_FORM = 4               # raised when other things are kept in it
LINEAR_FROM = 8192                # size of vocabulary from which the loss is made in chunks, from hidden states
LOOKED_AT = 512                   # demonstrations of a task that are asked before it, at most


# ---------------------------------------------------------------------------------------------------------------------
# Task after task.


def learn(run) -> dict:
    """Teach the tasks of a run one after another: learn(begin(config, read_lessons(config))), config from `parse`.

    Returns the result that is also written to result.json. A loss that is not finite raises FloatingPointError; the
    last checkpoint stays as it was.
    """
    config, log, history = run.config, run.log, run.history
    tasks, tokenizer = run.lessons.tasks, run.lessons.tokenizer
    alpha = config.alpha if config.method == "sdft" else 1.0
    pool = [e for task in tasks for e in task.train]
    loss_fn = compiled(sdft.on_policy_loss) if config.compile else None
    linear = run.student.config.vocab_size >= LINEAR_FROM

    while run.task < len(tasks):
        began, generated = time.perf_counter(), run.sample.tokens
        if run.step == 0:
            begin_task(run)
        set_rates(run)

        # ---- a batch: what the student is asked, what the teacher is shown besides, and who answers
        train = pool if config.method == "joint" else tasks[run.task].train
        examples = run.rng.sample(train, min(config.batch_size, len(train)))
        shown = [others(e, train, config.shown, run.rng) for e in examples] if config.shown else None
        against = None
        if config.contrast:
            against = [others(e, run.own, 1, run.rng)[0] if run.own else another(e, train, run.rng) for e in examples]
        batch = collate(examples, tokenizer, shown, against).to(config.device)
        sample = who_answers(run, batch)
        penalty = run.penalty.loss(batch) if history.regularised[-1] else None

        # ---- the method
        with autocast(config), said_where(run):
            figures = sdft.sdft_step(
                run.student, run.teacher, run.optimizer, batch, sample,
                divergence=config.divergence, beta=config.beta, alpha=alpha, ema_decay=config.ema_decay,
                contrast=config.contrast, penalty=penalty, micro_batch=config.micro_batch or None,
                linear=linear, loss_fn=loss_fn)

        # ---- what follows is watching, measuring, saving
        run.step += 1
        history.seconds[-1] += time.perf_counter() - began
        history.generated_tokens[-1] += run.sample.tokens - generated
        run.recent = [*run.recent[-19:], figures["loss"]]
        over = run.step == config.steps or (len(run.recent) == 20 and np.mean(run.recent) < config.converged)
        if run.step % config.watch_every == 0 or over:
            over = watch(run, batch, examples, shown, figures, over)
        if linear and config.device == "cpu" and run.step % 5 == 0:
            # a small model's steps would take longer
            give_back_memory()
        if over:
            end_task(run)
        elif config.measure_every and run.step % config.measure_every == 0:
            measure_within(run)
        if over or log.stop or run.step % config.save_every == 0:
            checkpoint(run)
        log.leave()

    result = result_of(run)
    write_rows(os.path.join(config.out, "answers.jsonl"), run.probe.asked)
    write_json(path := os.path.join(config.out, "result.json"), result)
    log.say("what was learned, and what is left:\n" + changes(result))
    log.say(f"wrote {path}")
    return result


def autocast(config):
    """Products in the precision of all losses of a run."""
    return torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.bf16)


@contextlib.contextmanager
def said_where(run):
    """A loss that is not finite is told with its step, what is saved, and the remedy."""
    try:
        yield
    except FloatingPointError as e:
        before = f"{run.path} is from before" if os.path.exists(run.path) else "Nothing was saved yet"
        rates = "--lr" if run.lessons.chat else "--lr or --embed-lr"
        raise FloatingPointError(f"task {run.task + 1} step {run.step}: {e}. {before}; lower {rates} and begin again")


def watch(run, batch, examples, shown, figures, over) -> bool:
    """A look at the teacher, which the guard may roll back, and a line of the log. Returns whether the task is over."""
    config, history = run.config, run.history
    right = accuracy(to_ask(run), run.lessons.tokenizer, examples, shown or True, room=config.max_new_tokens)
    history.teacher_curve.append([sum(history.steps) + run.step, right])
    if run.said:
        with autocast(config):
            figures |= token_figures(run, batch, *run.said)
        if run.lessons.chat:
            # of a ceiling just above the guard a batch may be below it by chance
            ceiling = 1.0 if history.left_out[-1] else history.ceiling[-1]
            noise = 2 * math.sqrt(ceiling * (1 - ceiling) / len(examples))
            run.guard.floor = config.guard and max(1e-9, min(config.guard, ceiling - noise))
        if not run.guard.check(right, run.student, run.teacher):
            rolled_back(run, right)
            # agreement with a broken teacher is no reason to stop
            over = run.step == config.steps
    log_step(run, figures, right, over)
    return over


def who_answers(run, batch):
    """The sample(student, prompt, length) of a step: the teacher answers a share of the rows, shown its
    demonstrations, and the student the others, the bare prompts."""
    config = run.config
    share, room = share_of_teacher(config.sampler), config.max_new_tokens or batch.room
    answer = functools.partial(run.sample, n_new=room, temperature=config.temperature)

    def sample(student, prompt, length):
        n = round(share * len(prompt))
        asked = (run.teacher, batch.demo_prompt[:n], batch.demo_length[:n]), (student, prompt[n:], length[n:])
        parts = [answer(*who) for who in asked if len(who[1])]
        R = max(response.shape[1] for response, _ in parts)
        response, mask = zip(*((F.pad(r, (0, R - r.shape[1]), value=run.sample.end), F.pad(m, (0, R - m.shape[1])))
                               for r, m in parts))
        response, mask = run.said = torch.cat(response), torch.cat(mask)
        first = (mask.sum(1, keepdim=True) - 1).clamp(max=config.skip)
        return response, mask & (torch.arange(R, device=mask.device) >= first)

    return sample


def share_of_teacher(sampler) -> float:
    """What --sampler says, as a number from 0 to 1. Raises BadInput."""
    with contextlib.suppress(ValueError):
        share = float({"student": 0, "teacher": 1}.get(sampler, sampler))
        if 0 <= share <= 1:
            return share
    raise BadInput(f"train.py: --sampler {sampler}: choose student, teacher, or a share from 0 to 1")


def to_ask(run):
    """The teacher, for greedy answers: with bf16 a copy."""
    return bf16_copy(run.teacher) if run.sample.bf16 else run.teacher


@torch.no_grad()
def token_figures(run, batch, response, mask, rows=8) -> dict:
    """What the mean loss of a step's samples, (B, R), hides: "cut", the share that their room has cut; and of the first
    rows KL(teacher ‖ student) in nats at the first token ("first_kl", which dwarfs the rest where the prompts differ
    in more than the demonstration) and over the rest ("rest_kl"), and "rather", the share of tokens at which the
    teacher would rather have said another word than the student. All of it after the step, and of the teacher itself,
    not of a contrast's target: these figures do not add up to the loss."""
    ended = ((response == run.sample.end) & mask).any(1)
    student, teacher = (
        sdft.score(model, prompt[:rows], n[:rows], response[:rows], mask[:rows], return_hidden=True)
        for model, prompt, n in ((run.student, batch.prompt, batch.length),
                                 (run.teacher, batch.demo_prompt, batch.demo_length)))
    first, rest, rather = [], [], []
    for s, t, kept in zip(student, teacher, mask):
        # one row at a time: the logits of a large vocabulary are large
        s, t = run.student.logits(s[kept]).float(), run.teacher.logits(t[kept]).float()
        kl = token_divergence(s, t).tolist()
        first, rest, rather = first + kl[:1], rest + kl[1:], rather + (s.argmax(-1) != t.argmax(-1)).tolist()
    return {"cut": 1 - ended.float().mean().item(), "first_kl": mean(first), "rest_kl": mean(rest or [0.0]),
            "rather": mean(rather)}


def compiled(loss_fn):
    """One graph for all lengths. Torch takes sizes that are equal at first for one and the same, and compiles again
    when they differ (pytorch issue 129456); a private switch stops that."""
    torch.fx.experimental._config.use_duck_shape = False
    return torch.compile(loss_fn, fullgraph=True, dynamic=True)


# ---------------------------------------------------------------------------------------------------------------------
# What a run consists of, how it begins, and how it goes on.


@dataclass
class History:
    """What has been measured so far, in plain lists: it goes into checkpoint and result as it is."""

    # before the first task and after each
    R: list = field(default_factory=list)
    base_accuracy: list = field(default_factory=list)      # on --keep, of the model of now
    kept: list = field(default_factory=list)               # of what was right before the first task
    learned: list = field(default_factory=list)            # of the last task's demonstrations
    open_words: list = field(default_factory=list)
    base_by_kind: list = field(default_factory=list)
    voice: list = field(default_factory=list)
    teacher_accuracy: list = field(default_factory=list)   # on --reading, of the student shown its demonstrations
    neighbours: list = field(default_factory=list)
    neighbours_kept: list = field(default_factory=list)    # of what was right before the first task
    drift_base: list = field(default_factory=list)
    drift_new: list = field(default_factory=list)
    # of each task
    steps: list = field(default_factory=list)
    generated_tokens: list = field(default_factory=list)
    seconds: list = field(default_factory=list)
    regularised: list = field(default_factory=list)
    ceiling: list = field(default_factory=list)            # of those asked before it, answered rightly when shown
    left_out: list = field(default_factory=list)           # numbers of the demonstrations not trained on
    # of the run
    teacher_curve: list = field(default_factory=list)      # [step of the run, share of demonstrations answered rightly]
    curve: list = field(default_factory=list)              # {"step" of the run, ...}: all of this within tasks
    guard_trips: int = 0
    wall_seconds: float = 0.0
    saving_seconds: float = 0.0                            # of these, for models and checkpoints

    def record(self, measured: dict):
        for name, value in measured.items():
            getattr(self, name).append(value)

    def forgotten(self) -> float:
        """How much has been lost by now: the larger of the mean drops, on the tasks seen and on what should stay."""
        task = len(self.R) - 1
        drops = [self.R[j + 1][j] - self.R[task][j] for j in range(task)]
        return max(mean(drops), self.base_accuracy[0] - self.base_accuracy[-1]) if task else 0.0


@dataclass
class Run:
    """A run at work. What changes as it trains is in `checkpoint`; all else is made again from options and files."""

    config: Config                # all options, as they were given or chosen
    path: str                     # of its checkpoint
    log: Log
    lessons: Lessons
    probe: Probe
    student: GPT
    teacher: GPT
    optimizer: torch.optim.Optimizer
    guard: sdft.TeacherGuard
    sample: Sampler
    penalty: Penalty
    rng: random.Random
    history: History
    fingerprint: str              # of the lessons: model, files and prompts
    before: list | None = None    # with --blend: the weights of both models before the task, on the CPU
    own: list = field(default_factory=list)                # with --contrast: prompts of the task, answered before it
    task: int = 0                 # tasks that are learned
    step: int = 0                 # steps of the task at work
    rate: float = 1.0             # share of the full rates: the guard halves it
    recent: list = field(default_factory=list)             # losses of its last 20 steps
    said: tuple = ()                                       # what was sampled last, (B, R), and its mask


def begin(config, lessons) -> Run:
    """A run before its first step or, with --resume, where it stopped.

    The run takes the model of the lessons and trains it: read them again for another run. Raises BadInput where what is
    taught is not what was, before anything is written.
    """
    path, fingerprint = os.path.join(config.out, "checkpoint.pt"), lessons.fingerprint()
    saved = load_checkpoint(path) if config.resume and os.path.exists(path) else None
    if saved and saved.get("form") != CHECKPOINT_FORM:
        raise BadInput(f"{config.out}: the run in it was begun by another version of this project; go on with that, or "
                       "use another folder")
    if saved and saved["lessons"] != fingerprint:
        raise BadInput(f"{config.out}: what it teaches or starts from has changed since this run began (the files of "
                       "--demos, --keep, ..., --template or --init); put it back, or start again in another folder")
    about = {"settings": dataclasses.asdict(config), "lessons": fingerprint} | provenance()
    log = Log(config.out, run_name(config), about, saved["log_bytes"] if saved else 0)
    if told := [line for line in lessons.reports if lessons.chat or "not used" in line or "taught" in line]:
        log.say("\n".join(told))

    tokenizer, tasks = lessons.tokenizer, lessons.tasks
    student, lessons.model = lessons.model.to(config.device), None
    teacher = frozen_copy(student)
    low = lessons.chat and config.bf16
    probe = Probe(student, tokenizer, tasks, lessons.keep, lessons.reading, lessons.neighbours, lessons.open_prompts,
                  low, room=config.max_new_tokens)
    scale = row_scale(lessons.handed_on.get("frequency"), config.f0, student)
    optimizer = (adamw(student, config.lr) if lessons.chat else
                 sgd(student, config.lr, config.embed_lr, scale))
    # at alpha 1 nobody is taught by the teacher
    distils = config.method == "sdft" and config.alpha < 1
    guard = sdft.TeacherGuard(config.guard if distils else 0.0, student, teacher)
    rng, sample = random.Random(f"training {config.seed}"), Sampler(tokenizer.end, low)
    penalty = PENALTIES[config.penalty](strength=config.strength, batch_size=config.batch_size, tasks=tasks,
                                        tokenizer=tokenizer, sample=sample, scale=scale, rng=rng)
    # L2 and EWC pull the weights back after each step, before the teacher follows
    optimizer.register_step_post_hook(penalty.pull_back)
    run = Run(config, path, log, lessons, probe, student, teacher, optimizer, guard, sample, penalty, rng, History(),
              fingerprint)
    torch.manual_seed(config.seed)
    if saved:
        go_on(run, saved)
        at_work = run.task < len(tasks)
        log.say(f"going on at task {run.task + 1} step {run.step}" if at_work else "all tasks were learned before")
    else:
        measured = probe.measure(student, 0)
        run.history.record(measured)
        log.say(f"before the first task: {in_words(measured, len(tasks))}")
    log.start(run.history.wall_seconds, sum(run.history.steps) + run.step)
    return run


def row_scale(frequency, f0, model):
    """How far each row of the embedding moves, (V,), as a share of the full rate.

    A new word is learned in its row; what hurts the old skills is that the rows they all stand on (letters, signs,
    structure words) move as well. So a row moves at 1 / (1 + f / f0), f being the word's share of the pretraining
    tokens, (V,): a word never met moves at the full rate, with f0 = 0.001 one of every hundred tokens at a tenth of
    it. All methods train the small GPT like this; a chat model is trained by `adamw`.
    """
    weight = model.embed.weight
    if frequency is None:
        frequency = torch.zeros(len(weight))
    return (1 / (1 + frequency / f0)).to(weight.device)


def sgd(model, lr, embed_lr, scale):
    """Plain SGD, no momentum, with a rate of its own for the embedding and a step of its own for each of its rows."""
    embed = model.embed.weight
    embed.register_hook(lambda grad: grad * scale[:, None])
    rest = [p for p in model.parameters() if p is not embed]
    return torch.optim.SGD([{"params": rest, "lr": lr}, {"params": [embed], "lr": embed_lr}])


def adamw(model, lr):
    """What a chat model is trained by: its rows are all of them well used, and one rate does for all weights."""
    return torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def set_rates(run):
    """The rates of a step: they rise in the first steps of a task, and are what the guard has left of them."""
    config = run.config
    share = run.rate * min(1.0, (run.step + 1) / config.warmup)
    if config.schedule == "cosine" and run.step >= config.warmup:
        share *= 0.5 * (1 + math.cos(math.pi * (run.step - config.warmup) / (config.steps - config.warmup)))
    for group, lr in zip(run.optimizer.param_groups, (config.lr, config.embed_lr)):
        group["lr"] = lr * share


def begin_task(run):
    """A task begins: rates are restored, the penalty remembers, --blend keeps the weights, the teacher is looked at."""
    config, history = run.config, run.history
    history.seconds.append(0.0)
    history.generated_tokens.append(0)
    needed = config.when == "always" or history.forgotten() > NEEDED
    history.regularised.append(config.penalty != "none" and needed)
    if history.regularised[-1]:
        with autocast(config):
            run.penalty.begin(run.student, run.task)
    else:
        run.penalty.rest()
    run.recent, run.rate = [], 1.0
    run.before = None
    if config.blend < 1:
        run.before = [sdft.on_cpu(dict(model.named_parameters())) for model in (run.student, run.teacher)]
    history.left_out.append([])
    look, own = run.lessons.chat and config.method == "sdft", config.contrast and config.against == "own"
    task, tokenizer = run.lessons.tasks[run.task], run.lessons.tokenizer
    if look or own:
        teacher = to_ask(run)
        asked = asked_first(config, task)
        if look:
            run.log.say(f"task {run.task + 1} {task.name}: {len(asked)} of {len(task.train)} demonstrations are asked "
                        "first, bare and shown")
        by_itself = answers(teacher, tokenizer, asked, room=config.max_new_tokens)
        with begins_anew(run):
            if own:
                run.own = in_own_words(asked, by_itself)
            if look:
                look_at_the_teacher(run, teacher, asked, by_itself)
            if own:
                check_others([dataclasses.replace(task, train=run.own)], config, tokenizer,
                             run.student.config.context)
                # of what is left to be taught
                check_fits(run.own, task, config, tokenizer, run.student.config.context)
    unseen = max(0.0, 1 - config.batch_size / len(task.train)) ** config.steps
    if unseen > 0.01 and config.method != "joint":
        run.log.say(f"task {run.task + 1}: {config.steps} steps of {config.batch_size}, drawn anew at each, leave "
                    f"about {unseen:.0%} of {len(task.train)} demonstrations out; more --steps reach more of them")


@contextlib.contextmanager
def begins_anew(run):
    """Where a task is refused, what other tasks have taught is not lost: the message says how to go on from there."""
    try:
        yield
    except BadInput as e:
        anew = (f"begin again from what is learned, with --init {run.config.out} and the tasks that are left, in "
                "another --out" if run.task else "begin again")
        raise BadInput(*e.args[:-1], f"{e.args[-1]}; {anew}")


def asked_first(config, task) -> list:
    """The demonstrations that are asked before a task: of many thousands some tell how well a teacher reads, and make
    what a contrast shows; with --helped-only all, since one that is left out must have been asked."""
    if config.helped_only or len(task.train) <= LOOKED_AT:
        return task.train
    chosen = random.Random(f"look {config.seed}").sample(range(len(task.train)), LOOKED_AT)
    return [task.train[i] for i in sorted(chosen)]


def look_at_the_teacher(run, model, asked, by_itself):
    """Before a task: what the model says without its demonstrations, and with them. What it cannot read it cannot
    teach. asked: which demonstrations; by_itself: the answers to their bare prompts. Raises BadInput where the guard
    would only roll back."""
    config, task, tokenizer = run.config, run.lessons.tasks[run.task], run.lessons.tokenizer
    bare = mean([grade(e, text) for e, text in zip(asked, by_itself)])
    rng = random.Random(f"look {config.seed}")
    shown = [others(e, task.train, config.shown, rng) for e in asked] if config.shown else True
    said = answers(model, tokenizer, asked, shown, room=config.max_new_tokens)
    unhelped = [i for i, text in enumerate(said) if grade(asked[i], text) < 1]
    ceiling = 1 - len(unhelped) / len(said)
    run.history.ceiling.append(ceiling)
    run.log.say(both_prompts(task, tokenizer, config.shown))
    run.log.say(f"task {run.task + 1} {task.name}: of {len(asked)} demonstrations the model answers {bare:.2f} "
                f"rightly by itself, {ceiling:.2f} when it is shown them")
    what = [" / ".join(d.shown[1] for d in (shown[i] if config.shown else [e])) for i, e in enumerate(asked)]
    told = [f"{asked[i].place}: shown {quoted(what[i])}, it answers {quoted(said[i])}" for i in unhelped]
    if config.helped_only and len(unhelped) < len(said):
        run.history.left_out[-1] = unhelped
        run.log.say("\n".join([f"trained on the {len(said) - len(unhelped)} that it reads; left out:", *told]))
        leave_out(task, unhelped)
        check_others([task], config, tokenizer, run.student.config.context)
    elif ceiling < config.guard or config.helped_only and unhelped:
        raise BadInput(*first_ten(told, "more"),
                       f"--guard {config.guard}: shown the demonstrations of a task ({task.name}), the model answers "
                       f"{ceiling:.2f} of them rightly, and what it cannot read it cannot teach; where it is right "
                       "in other words, try --grader contains with a short \"answer\" in each row; where it thinks "
                       "first and is cut, a larger --max-new-tokens; else another --template, demonstrations in whole "
                       "sentences, --helped-only, or a lower --guard")


def rolled_back(run, right):
    """The guard has put the last good pair of models back: the rates are halved."""
    run.history.guard_trips += 1
    run.recent, run.rate = [], run.rate / 2
    # Adam's moments lead to where the models were
    run.optimizer.state.clear()
    run.log.say(f"task {run.task + 1} step {run.step}: the teacher answers {right:.0%} of its demonstrations rightly: "
                "rolled back, rates halved")


def log_step(run, figures, right, over):
    """A line of the log, and of the terminal what has been done by now and what is left."""
    done, tasks, most, every = run.history.steps, run.lessons.tasks, run.config.steps, run.config.watch_every
    lr = run.optimizer.param_groups[0]["lr"]
    record = {"task": run.task + 1, "step": run.step, **figures, "lr": lr, "teacher": right}
    text = (f"task {run.task + 1}/{len(tasks)} {tasks[run.task].name} step {run.step}/{most} "
            f"loss {figures['loss']:.4f} gradient {figures['grad_norm']:.2f} teacher {right:.2f} lr {lr:g}")
    if "cut" in figures:
        text += " kl first {first_kl:.2f} rest {rest_kl:.2f} top-1 differs {rather:.2f} cut {cut:.2f}".format(**figures)
    # what another task will take, as far as one can tell
    a_task = mean(done or [most])
    steps = sum(done) + max(run.step, a_task) + a_task * (len(tasks) - run.task - 1)
    due = over or run.step * 10 // most > max(0, run.step - every) * 10 // most
    run.log.step(record, text, sum(done) + run.step, steps, due)


def end_task(run):
    """A task is learned: what of it stays is blended in, and all is measured again."""
    history = run.history
    if run.before:
        for model, before in zip((run.student, run.teacher), run.before):
            blend(model, before, run.config.blend)
        # neither the teacher nor a guard nor Adam's moments lead back to what was shed
        run.guard.keep(run.student, run.teacher)
        run.optimizer.state.clear()
        run.before = None
    history.steps.append(run.step)
    run.task, run.step = run.task + 1, 0
    if run.task == len(run.lessons.tasks):
        # nothing leads on from here: of eight times the weights two are left in the last checkpoint
        run.optimizer.state.clear()
        run.guard.good = None
    measured = run.probe.measure(run.student, run.task)
    history.record(measured)
    i, R, began = run.task, history.R, time.perf_counter()
    try:
        run.student.save_pretrained(os.path.join(run.config.out, "model"), run.lessons.folder,
                                    files=run.lessons.tokenizer.files())
    except ValueError as e:
        raise BadInput(f"the model of task {i} cannot be written: {e}")
    history.saving_seconds += time.perf_counter() - began
    run.log.say(f"task {i}/{len(R[0])} {run.lessons.tasks[i - 1].name}: {R[i - 1][i - 1]:.2f} before, learned to "
                f"{R[i][i - 1]:.2f} in {history.steps[-1]} steps; {in_words(measured, i)}")


@torch.no_grad()
def blend(model, before, share):
    """model <- before + share (model - before): WiSE-FT (Wortsman et al. 2022), which sheds more of a training's
    noise than of what it taught. before: {name of a parameter: its weight}, on any device."""
    for name, weight in model.named_parameters():
        weight.lerp_(before[name].to(weight.device), 1 - share)


def measure_within(run):
    """A task is being learned: all is measured for the curve of the run, as if it ended here."""
    student = run.student
    if run.before:
        blend(student := frozen_copy(student), run.before[0], run.config.blend)
    measured = run.probe.measure(student, run.task + 1)
    run.history.curve.append({"step": sum(run.history.steps) + run.step, **measured})
    run.log.say(f"task {run.task + 1} step {run.step}: {in_words(measured, run.task + 1)}")


def in_words(measured, seen) -> str:
    """What Probe.measure found, in a line; held-out accuracy is over the first `seen` tasks, or with 0 over all."""
    words = {"held out": mean(measured["R"][:seen]), "trained on": measured["learned"],
             "of --keep": measured["base_accuracy"], "of what was right there": measured["kept"],
             "own voice": measured["voice"], "shown demonstrations": measured["teacher_accuracy"],
             "neighbours": measured["neighbours"], "drift": measured["drift_base"],
             "words to open prompts": measured["open_words"]}
    return ", ".join(f"{name} {share:.2f}" for name, share in words.items() if not np.isnan(share))


def checkpoint(run):
    """All that is needed to go on as if nothing had happened."""
    run.history.wall_seconds, began = round(run.log.seconds(), 2), time.perf_counter()
    save_checkpoint(run.path, {
        "settings": dataclasses.asdict(run.config),
        "student": run.student.state_dict(),
        "teacher": run.teacher.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "good": run.guard.good,
        "form": CHECKPOINT_FORM, "penalty": run.penalty.state(),
        "asked": run.probe.asked,
        "before": run.before,
        "own": [e.shown[1] for e in run.own],
        "history": dataclasses.asdict(run.history),
        "task": run.task, "step": run.step, "recent": run.recent, "rate": run.rate,
        "lessons": run.fingerprint,
        "log_bytes": run.log.bytes(),
        **random_states(run.rng),
    })
    run.history.saving_seconds += time.perf_counter() - began


def go_on(run, saved):
    """Puts a run where its checkpoint was written."""
    for module, name in ((run.student, "student"), (run.teacher, "teacher"), (run.optimizer, "optimizer")):
        module.load_state_dict(saved[name])
    run.guard.good, run.probe.asked, run.before = saved["good"], saved["asked"], saved["before"]
    run.history = History(**saved["history"])
    run.task, run.step, run.recent, run.rate = (saved[k] for k in ("task", "step", "recent", "rate"))
    if run.task < len(run.lessons.tasks):
        run.own = in_own_words(asked_first(run.config, run.lessons.tasks[run.task]), saved["own"])
    for task, numbers in zip(run.lessons.tasks, run.history.left_out):
        leave_out(task, numbers)
    run.penalty.load_state(saved["penalty"], run.student, run.task)
    set_random_states(run.rng, saved)


def result_of(run) -> dict:
    return {"method": run.log.name, "settings": dataclasses.asdict(run.config), "lessons": run.fingerprint,
            **provenance(), "gates": run.lessons.handed_on.get("gates", {}),
            "tasks": [task.name for task in run.lessons.tasks], **figures_of(run.history)}


def figures_of(history) -> dict:
    done = dataclasses.asdict(history)
    kept = {"base_retention": "base_accuracy", "voice_retention": "voice", "teacher_retention": "teacher_accuracy"}
    ratios = {name: done[k][-1] / (done[k][0] or float("nan")) for name, k in kept.items()}
    return continual_metrics(history.R) | ratios | done


def run_name(config):
    share = f" {config.strength:.0%}" * (config.penalty == "replay")
    held = f"+{config.penalty}{share}" * (config.penalty != "none")
    return config.method + held + " where needed" * (config.when == "needed")


# ---------------------------------------------------------------------------------------------------------------------
# The command line.


def parse(argv=None) -> Config:
    """The command line as a Config. Raises BadInput for what is out of range or contradicts, in one line."""
    given = given_options(Config, __doc__, argv)
    config = Config(**given)
    if config.resume:
        # a run goes on with its own settings; the machine's may change, but not products that a CPU's trial has chosen
        began = settings_to_resume(config.out, given)
        if began["device"] == find_device(given.get("device", began["device"])) == "cpu":
            given.pop("bf16", None)
        config = Config(**began | given)
    check_options(config)
    refused = "train.py: "
    for name in ("init", "demos"):
        if not getattr(config, name):
            raise BadInput(f"{refused}{flag(name)} is missing: a model and files go in; a first model: "
                           "python lab/pretrain.py --out out/base; first files: python lab/world.py --out out/world; "
                           "then --init out/base --demos out/world/tasks/*.jsonl")
    if config.contrast > 0 and (config.shown or config.method != "sdft"):
        raise BadInput(f"{refused}--contrast {config.contrast}: goes with --method sdft without --shown; choose so, or "
                       "leave it out")
    share_of_teacher(config.sampler)
    if config.penalty == "replay" and config.strength > 1:
        raise BadInput(f"{refused}--strength {config.strength}: of replay it is a share, from 0 to 1")
    check_out(config.out)

    sdft_runs, chat = config.method == "sdft", is_chat(config.init)
    contrasts = chat and sdft_runs and config.alpha < 1 and not config.shown
    config.device = find_device(config.device)
    config.lr = config.lr or ((5e-5 if sdft_runs else 2e-5) if chat else 0.001 if sdft_runs else 0.03)
    for name, within, tuned in (("guard", "a share from 0 to 1", 0.5 if chat else 0.9),
                                ("converged", "a loss from 0 on", 0.0 if chat else 0.01),
                                ("contrast", "a number from 0 on", float(contrasts))):
        if -1 < (value := getattr(config, name)) < 0:
            raise BadInput(f"{refused}{flag(name)} {value}: {within}, or -1")
        setattr(config, name, tuned if value < 0 else value)
    config.warmup = config.warmup or (5 if chat else 1)
    config.steps = config.steps or (150 if sdft_runs else 300)
    # with sdft all strengths of self-replay that were tried did equally well
    tuned = 1.0 if sdft_runs and config.penalty == "self-replay" else PENALTIES[config.penalty].strength
    config.strength = config.strength or tuned
    return config


def set_up(config):
    """The machine, as the options say, but for bf16 where a CPU gains nothing by it. The products of a run that goes on
    stay what they were."""
    set_up_machine(config.device, config.threads)
    if config.bf16 and config.device == "cpu" and not config.resume and not bf16_pays():
        print("--bf16: this processor multiplies no faster so; products stay fp32")
        config.bf16 = False
    if config.bf16:
        # only now: the trial is of fp32 products that are not rounded
        set_up_machine(config.device, config.threads, config.bf16)


def settings_to_resume(folder, given) -> dict:
    """The settings with which the run in a folder began; raises BadInput where the command line says others."""
    began = began_with(folder)
    if not isinstance(began, dict) or began.keys() != {f.name for f in dataclasses.fields(Config)}:
        raise BadInput(f"train.py: --resume: the run in {folder} was begun by another version of this project, or by "
                       "another program of it; go on with that, or use another folder")
    # JSON has no tuples
    began = {k: tuple(v) if isinstance(v, list) else v for k, v in began.items()}
    for f in dataclasses.fields(Config):
        if f.name in given and not f.metadata["machine"] and given[f.name] != began[f.name]:
            raise BadInput(f"train.py: {flag(f.name)} {given[f.name]}: the run in {folder} began with {began[f.name]}; "
                           "leave it out, or use another folder")
    return began


def began_with(folder) -> dict:
    """The settings of a run in a folder: of its checkpoint or, if it died before the first one, of its log."""
    path = os.path.join(folder, "checkpoint.pt")
    if os.path.exists(path):
        return load_checkpoint(path)["settings"]
    # no log, or it died while it wrote the first line
    with contextlib.suppress(BadInput):
        if began := settings_of(folder):
            return began
    raise BadInput(f"{path}: no such checkpoint; begin the run first, without --resume")


def main(argv=None):
    with ends_in_one_line():
        config = parse(argv)
        set_up(config)
        lessons = read_lessons(config)
        if config.dry_run:
            print("\n".join(lessons.reports))
            for task in lessons.tasks:
                print(f"{task.name}: {len(task.train)} to train on, {len(task.test)} to test on\n"
                      f"{both_prompts(task, lessons.tokenizer, config.shown)}")
            return
    resume = f"python train.py --out {shlex.quote(config.out)} --resume"
    with ends_in_one_line(config.out, go_on=resume), locked(config.out):
        if not config.resume:
            # after a kill, --resume would go on with an older run
            remove_run(config.out)
        learn(begin(config, lessons))


if __name__ == "__main__":
    # a terminal that does not know a character is no reason to stop
    sys.stdout.reconfigure(errors="backslashreplace")
    main()
