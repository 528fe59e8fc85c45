"""Penalties: what holds the student to what it could do before. Baselines of SFT, and self-replay for SDFT.

A penalty is a class of a few lines with the name that the literature uses: `begin` remembers as a task begins, `loss`
is added to the loss of a step, `pull_back` follows the optimiser's step. A new one is a class here, with a
strength of its own, and a word in PENALTIES. Only replay stores data. Shapes: B batch, P prompt, R response, n dreams.
"""
import random

import torch

import sdft
from data import collate, pad
from divergence import linear_distill_loss
from model import frozen_copy
from runs import BadInput

DREAMS = 512                      # that self-replay begins before each task; those that end are its prompts
FISHER = 256                      # answers from which EWC estimates the Fisher information of a task


class Penalty:
    """No penalty, and the interface of all others.

    strength: weight of the penalty. tasks: what is taught. sample: generates, and counts. scale (V,): how far each row
    of the embedding moves, as a share of the full rate. rng: draws examples. `state`: what a checkpoint must keep.
    """

    strength = 0.0                # as tuned with SFT; a method of its own may set another

    def __init__(self, strength, batch_size, tasks, tokenizer, sample, scale, rng):
        self.strength, self.batch_size, self.tasks, self.tokenizer = strength, batch_size, tasks, tokenizer
        self.sample, self.scale, self.rng = sample, scale, rng
        self.previous, self.memory, self.task = None, None, 0

    def begin(self, student, task):
        """A task begins, the `task`-th from 0. What compares with the student of now keeps what it needs of it."""
        self.task = task

    def rest(self):
        """A task begins in which nothing is penalised."""
        self.previous, self.memory = None, None

    def loss(self, batch):
        """What is added to the loss of this step: a function of the student, or None."""

    def pull_back(self, optimizer, *_):
        """Called after each step of the optimiser."""

    def state(self) -> dict:
        return {"previous": self.previous and self.previous.state_dict(), "memory": self.memory}

    def load_state(self, state, student, task):
        """Goes on in a task that has begun; student: any model of its architecture."""
        self.task, self.memory = task, state["memory"]
        if self.memory is not None:
            self.memory = [t.to(student.head.weight.device) for t in self.memory]
        if state["previous"] is not None:
            self.previous = frozen_copy(self.compared(student))
            self.previous.load_state_dict(state["previous"])

    def compared(self, student):
        """The part of a student that `previous` is an older copy of."""
        return student


class Replay(Penalty):
    """Past demonstrations are trained on beside the new ones. strength: the share of each past task that is stored."""

    strength = 0.05

    def loss(self, batch):
        if self.task == 0:
            return None
        stored = past_demonstrations(self.tasks[: self.task], self.strength)
        old = collate(self.rng.choices(stored, k=self.batch_size), self.tokenizer).to(batch.prompt.device)

        def supervised(student):
            return sdft.sft_loss(student, old.prompt, old.length, old.response, old.response_mask)

        return supervised


class SelfReplay(Penalty):
    """The model before the task dreams prompts of its own past; the student is held to its old answers to them.

    Of the old model stay its dreams, its hidden states along them, and the head that makes logits of these.
    """

    strength = 0.1

    def begin(self, student, task):
        super().begin(student, task)
        dreams = dream(student, self.tokenizer, self.sample, DREAMS, self.tokenizer.least)
        with torch.no_grad():
            hidden = [sdft.score(student, *part, return_hidden=True)
                      for part in zip(*(t.split(self.batch_size) for t in dreams))]
        self.previous, self.memory = frozen_copy(student.head), (*dreams, torch.cat(hidden))

    def loss(self, batch):
        rows = torch.randint(len(self.memory[0]), (self.batch_size,)).to(batch.prompt.device)
        prompt, length, response, mask, hidden = (t[rows] for t in self.memory)
        # the memory is as wide as its longest dream
        prompt, longest = prompt[:, : length.max()], mask.sum(1).max()
        response, mask, hidden = (t[:, :longest] for t in (response, mask, hidden))
        return lambda student: self.strength * follow(student, prompt, length, response, mask, hidden, self.previous)

    def compared(self, student):
        return student.head


class LwF(Penalty):
    """Learning without Forgetting (Li and Hoiem 2016): what the old model would have said to the new prompts."""

    strength = 0.003

    def begin(self, student, task):
        super().begin(student, task)
        self.previous = frozen_copy(student)

    def loss(self, batch):
        def old_answers(student):
            response, mask = self.sample(self.previous, batch.prompt, batch.length, batch.room)
            answered = batch.prompt, batch.length, response, mask
            with torch.no_grad():
                hidden = sdft.score(self.previous, *answered, return_hidden=True)
            return self.strength * follow(student, *answered, hidden, self.previous.head)

        return old_answers


class L2(Penalty):
    """strength / 2 * Σ F (θ - θ_old)²: the weights are held to what they were as the task began. Of L2 all F are 1.

    The step on the penalty is implicit, θ <- argmin of (θ - θ_now)² / (2 rate) + penalty: stable at any strength,
    where a gradient step on the embedding, at its rate of 30, would diverge.
    """

    strength = 1e-6

    def begin(self, student, task):
        super().begin(student, task)
        self.previous, self.student = frozen_copy(student), student

    @torch.no_grad()
    def pull_back(self, optimizer, *_):
        if self.previous is None:
            return
        others, embed = (group["lr"] for group in optimizer.param_groups)
        for i, (new, old) in enumerate(zip(self.student.parameters(), self.previous.parameters())):
            rate = embed * self.scale[:, None] if new is self.student.embed.weight else others
            pull = self.strength * rate * (1.0 if self.memory is None else self.memory[i])
            new.lerp_(old, pull / (1 + pull))

    def load_state(self, state, student, task):
        super().load_state(state, student, task)
        self.student = student


class EWC(L2):
    """Online elastic weight consolidation (Kirkpatrick et al. 2017, Schwarz et al. 2018 without decay): F is the Fisher
    information of each weight, one sum for all tasks; what the base model knows is estimated on its own dreams."""

    strength = 1e4

    def begin(self, student, task):
        super().begin(student, task)
        if task == 0:
            dreams = dream(student, self.tokenizer, self.sample, DREAMS, self.tokenizer.least)
            prompt, length = (t[:FISHER] for t in dreams[:2])
        else:
            batch = collate(self.tasks[task - 1].train[:FISHER], self.tokenizer).to(student.head.weight.device)
            prompt, length = batch.prompt, batch.length
        # of the copy: the student's embedding scales its gradients for the optimiser
        new = fisher(self.previous.requires_grad_(), prompt, length, self.sample, self.tokenizer.least)
        self.previous.requires_grad_(False)
        self.memory = [old + f for old, f in zip(self.memory, new)] if self.memory else new


PENALTIES = {"none": Penalty, "replay": Replay, "self-replay": SelfReplay, "lwf": LwF, "l2": L2, "ewc": EWC}


def follow(student, prompt, length, response, mask, old_hidden, old_head):
    """KL(old ‖ student) along answers of an old model, of which the hidden states (B, R, D) and the head are known."""
    hidden = sdft.score(student, prompt, length, response, mask, return_hidden=True)
    return linear_distill_loss(hidden, student.head.weight, old_hidden, old_head.weight, mask)


def dream(model, tokenizer, sample, n, longest):
    """The model writes n prompts of its own past and answers them, each of at most `longest` tokens. A dreamt prompt is
    what it writes between the tokens that stand before a prompt's text and those after it. Returns prompt (n', P),
    length (n',), response and mask (n', R), n' <= n: what did not become a prompt is dropped.
    """
    header, (stop, *footer) = tokenizer.header, tokenizer.footer
    start = torch.tensor(header, device=model.head.weight.device).repeat(n, 1)
    written, mask = sample(model, start, torch.full_like(start[:, 0], len(header)), longest, stop)
    texts = [row[: sum(m)] for row, m in zip(written.tolist(), mask.tolist())]
    rows = [[*header, *text, *footer] for text in texts
            if text[-1] == stop and tokenizer.end not in text[:-1]]
    if not rows:
        raise BadInput("none of the model's dreams is a prompt: start from a model that was pretrained longer, or use "
                       "another --penalty")
    prompt, length = (t.to(start.device) for t in pad(rows, tokenizer.end))
    return prompt, length, *sample(model, prompt, length, longest)


def fisher(model, prompt, length, sample, longest) -> list:
    """Diagonal of the Fisher information, a tensor for each parameter: the mean square of one answer's gradient, the
    answer, of at most `longest` tokens, sampled from the model itself (Kunstner et al. 2019: with labels of the data it
    would be another matrix)."""
    response, mask = sample(model, prompt, length, longest)
    information = [torch.zeros_like(p) for p in model.parameters()]
    for i in range(len(prompt)):
        row = slice(i, i + 1)
        loss = sdft.sft_loss(model, prompt[row], length[row], response[row], mask[row], denominator=1)
        for f, g in zip(information, torch.autograd.grad(loss, list(model.parameters()))):
            f += g.square() / len(prompt)
    return information


def past_demonstrations(tasks, share) -> list:
    """What replay has stored of some tasks: the same share of each, always the same examples."""
    stored = []
    for i, task in enumerate(tasks):
        stored += random.Random(f"stored {i}").sample(task.train, max(1, round(share * len(task.train))))
    return stored
