"""Self-Distillation Fine-Tuning (SDFT; Shenfeld, Damani, Hübotter, Agrawal 2026, arXiv 2601.19897), whole in this file.

A model learns from demonstrations, but trains on its own samples: the student answers the bare prompt, the same model shown a
demonstration scores that answer, and a KL over the vocabulary pulls the student towards its better-informed self. `sdft_step` is
the method. Models are callables, and nothing of this project is imported: the file can be lifted out.

Differences from the paper (P) and from the official code (C), all of them:
 1. The default divergence is KL(teacher ‖ student), as in C; P's equation 1 is KL(student ‖ teacher). Both are here, and JSD.
 2. The loss is the sum over all response tokens of the batch divided by their number; C takes the mean of each sequence first.
 3. No token at the start of a response is skipped (C: 3). Answers here are short, and their first tokens carry the signal.
 4. `alpha` mixes in the supervised loss on the demonstration (P and C: 0). At alpha = 1 nothing is sampled: that is SFT.
 5. The teacher is watched: how often it answers a demonstration rightly is measured, and a guard rolls back when that falls.
 6. `penalty` adds a loss of one's own; train.py uses it for self-replay.

Shapes: B batch, P prompt, R response, V vocabulary, D width, N tokens.
"""
import copy
import math

import torch
import torch.nn.functional as F


def sdft_step(student, teacher, optimizer, batch, sample, *, divergence="forward", beta=0.5, alpha=0.0, ema_decay=0.98,
              penalty=None, micro_batch=None, clip=1.0):
    """One step of SDFT: sample, score twice, KL, step, EMA.

    student, teacher: modules with model(tokens (B, T), at=(B, R)) -> logits (B, R, V). batch: prompt, demo_prompt (B, P) int64
    padded on the right, length, demo_length (B,), response and response_mask (B, R). sample(student, prompt, length) -> response
    (B, R), mask (B, R), at temperature 1. penalty(student) -> scalar, added to the loss. micro_batch: rows scored at once; the
    gradient is that of the whole batch. Returns {"loss", "grad_norm", "tokens"}; a loss or gradient that is not finite raises
    FloatingPointError before any weight has moved.
    """
    # 1. The student answers the bare prompts. Samples are data: no gradient flows through them.
    if alpha < 1:
        response, mask = sample(student, batch.prompt, batch.length)
    total = 0.0
    for rows in torch.arange(len(batch.prompt), device=batch.prompt.device).split(micro_batch or len(batch.prompt)):
        loss = 0.0
        if alpha < 1:
            # 2. Student and teacher score the same answer; the teacher has seen the demonstration.
            student_logits = response_logits(student, batch.prompt[rows], batch.length[rows], response[rows])
            with torch.no_grad():
                teacher_logits = response_logits(teacher, batch.demo_prompt[rows], batch.demo_length[rows], response[rows])
            # 3. The divergence of the two next-token distributions, per token of the whole batch.
            loss = (1 - alpha) * distill_loss(student_logits, teacher_logits, mask[rows], divergence, beta, denominator=mask.sum())
        if alpha > 0:
            logits = response_logits(student, batch.prompt[rows], batch.length[rows], batch.response[rows])
            loss = loss + alpha * sft_loss(logits, batch.response[rows], batch.response_mask[rows], denominator=batch.response_mask.sum())
        loss.backward()
        total += loss.item()
    if penalty is not None:
        extra = penalty(student)
        extra.backward()
        total += extra.item()
    # 4. One step of the optimiser.
    grad_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), clip).item()
    if not (math.isfinite(total) and math.isfinite(grad_norm)):
        raise FloatingPointError(f"loss {total}, gradient norm {grad_norm}: no step was taken")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    # 5. The teacher's weights follow.
    ema_update(teacher, student, ema_decay)
    return {"loss": total, "grad_norm": grad_norm, "tokens": int((batch.response_mask if alpha == 1 else mask).sum())}


@torch.no_grad()
def ema_update(teacher, student, decay):
    """teacher <- decay * teacher + (1 - decay) * student. decay 1 is a frozen teacher, 0 a live one.

    The teacher's weights must be fp32: in bf16 a change of 1 - decay = 0.01 is rounded away and most weights never move.
    """
    for phi, theta in zip(teacher.parameters(), student.parameters()):
        phi.lerp_(theta.to(phi.dtype), 1 - decay)


def response_logits(model, prompt, length, response):
    """Logits (B, R, V) that predict `response` (B, R) behind `prompt` (B, P) of true lengths (B,), in one forward pass.

    The position arithmetic of both roles, once: token t stands at length + t and is predicted at length + t - 1. A row with a prompt
    of 2 tokens padded to 3 (.) and a response of 2 becomes

        prompt  p0 p1 .        tokens  p0 p1 r0 [r1 .]     scored at  1, 2
    """
    R = response.shape[1]
    at = length[:, None] - 1 + torch.arange(R, device=prompt.device)
    tokens = F.pad(prompt, (0, R)).scatter(1, at + 1, response)
    return model(tokens[:, :-1], at=at)                                 # the last token predicts nothing


def sft_loss(logits, response, mask, denominator=None):
    """Cross-entropy of the demonstrated response: logits (B, R, V), response and mask (B, R); summed over the mask / denominator."""
    nll = F.cross_entropy(logits.flatten(0, 1).float(), response.flatten(), reduction="none")
    return (nll * mask.flatten()).sum() / (mask.sum() if denominator is None else denominator)


class TeacherGuard:
    """A small loss proves agreement, not quality: student and teacher can forget together. So the teacher is watched.

    The right answer to a demonstration is known, so the share of demonstrations that the teacher answers rightly can be measured as
    training runs. `check` keeps a copy of both models while it is at least `floor` and puts the last good copy back when it is not.
    """

    def __init__(self, floor, student, teacher):
        self.floor, self.trips = floor, 0
        self.good = copy.deepcopy((student.state_dict(), teacher.state_dict()))

    def check(self, accuracy, student, teacher) -> bool:
        """Returns whether the teacher is fit to teach; if not, both models are what they were when it last was."""
        if accuracy >= self.floor:
            self.good = copy.deepcopy((student.state_dict(), teacher.state_dict()))
            return True
        student.load_state_dict(self.good[0])
        teacher.load_state_dict(self.good[1])
        self.trips += 1
        return False


def distill_loss(student_logits, teacher_logits, mask, divergence="forward", beta=0.5, denominator=None):
    q, p = student_logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    if divergence == "forward":
        kl = (p.exp() * (p - q)).sum(-1)
    elif divergence == "reverse":
        kl = (q.exp() * (q - p)).sum(-1)
    else:
        m = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))
        kl = beta * (p.exp() * (p - m)).sum(-1) + (1 - beta) * (q.exp() * (q - m)).sum(-1)
    return (kl * mask).sum() / (mask.sum() if denominator is None else denominator)
