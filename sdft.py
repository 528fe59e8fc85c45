"""Self-Distillation Fine-Tuning (SDFT; Shenfeld, Damani, Hübotter, Agrawal 2026, arXiv 2601.19897): the method.

A model learns from demonstrations, but trains on its own samples: the student answers the bare prompt, the same model
shown a demonstration scores that answer, and a KL over the vocabulary pulls the student towards its better-informed
self. `sdft_step` is the method. A model is any nn.Module with the forward named there; of this project only the losses
of divergence.py are imported, so that the two files can be lifted out together.

Differences of this file from the paper (P) and from the official code (C, github.com/idanshen/Self-Distillation):
 1. The default divergence is KL(teacher ‖ student), as in C; P's equation 1 is KL(student ‖ teacher). JSD is here too.
 2. The loss is the sum over all response tokens of the batch / their number; C takes the mean of each sequence first.
 3. No token at the start of a response is skipped (C: 3, here train.py's --skip): answers are short, and their first
    tokens carry the signal.
 4. `alpha` mixes in the supervised loss on the demonstration (P and C: 0). At alpha = 1 nothing is sampled: it is SFT.
 5. The teacher is watched: how often it answers a demonstration rightly is measured; if that falls, a guard rolls back.
 6. `penalty` adds a loss of one's own; penalties.py uses it for self-replay and for the baselines.
 7. `contrast` c is our extension (P and C: 0; train.py's default for a chat model: 1). Shown a demonstration, a teacher
    also says what any demonstration makes it say ("The answer to this question is ..."), and that is learned first.
    Another demonstration of the same form (another row's, or what it said itself to another prompt) brings that habit
    without the information. So the target is the softmax of

        log p(y | demo, x) + c [log p(y | x) - log p(y | other demo, x)],    the bracket cut at 3 nats either way,

    all from the teacher's weights. Where the demonstration says nothing the target is the bare teacher, and nothing
    moves (c = 1). Its relatives are rules of decoding: classifier-free guidance, contrastive decoding (Li et al. 2022),
    context-aware decoding (Shi et al. 2023); as a target of self-distillation we know of no earlier use.

Shapes: B batch, P prompt, R response, V vocabulary, D width, N tokens.
"""
import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from divergence import contrasted, distill_loss, linear_distill_loss

LOGITS = 2**24                    # of the supervised loss at once: 64 MB, and again as much for their gradient


def sdft_step(student, teacher, optimizer, batch, sample, *, divergence="forward", beta=0.5, alpha=0.0, ema_decay=0.98,
              contrast=0.0, penalty=None, micro_batch=None, clip=1.0, linear=False, loss_fn=None):
    """One step of SDFT: sample, score twice, KL, step, EMA.

    student, teacher: modules with model(tokens (B, T), at=(B, R), return_hidden=False) -> logits (B, R, V) of the token
    behind each position in `at`, or what their `head`, a Linear without bias, reads there, (B, R, D).
    batch: prompt (B, P), demo_prompt (B, Q) int64 padded on the right, length, demo_length (B,); of the demonstration
    response (B, R), response_mask. sample(student, prompt, length) -> response (B, R) int64, mask (B, R) bool.
    divergence: "forward" KL(teacher ‖ student), "reverse" KL(student ‖ teacher), or "jsd", in which beta is the
    teacher's weight. alpha: share of the supervised loss. ema_decay: what the teacher keeps of its weights. contrast: c
    above; the batch then has other_prompt and other_length too.
    penalty(student) -> scalar, trained on as well. clip: largest norm of the gradient.
    micro_batch: rows scored at once; the gradient is that of the whole batch. linear: the loss from hidden states, in
    chunks. loss_fn: takes the place of on_policy_loss below, such as that function compiled.

    Returns {"loss", "penalty", "grad_norm", "sampled": tokens sampled, "tokens": these, or at alpha 1 the
    demonstrations'}. A loss or gradient that is not finite raises FloatingPointError before any weight has moved.
    """
    # 1. The student answers the bare prompts. Samples are data: no gradient flows through them.
    if alpha < 1:
        response, mask = sample(student, batch.prompt, batch.length)

    # 2. and 3. Student and teacher score these answers; their divergence is the loss. alpha of it may be supervised.
    loss_fn = loss_fn or on_policy_loss
    total, extra = 0.0, 0.0
    B = len(batch.prompt)
    for rows in torch.arange(B, device=batch.prompt.device).split(micro_batch or B):
        loss = 0.0
        if alpha < 1:
            distilled = loss_fn(student, teacher, batch, rows, response, mask, divergence, beta, linear, contrast)
            loss = (1 - alpha) * distilled
        if alpha > 0:
            demonstrated = batch.response[rows], batch.response_mask[rows]
            supervised = sft_loss(student, batch.prompt[rows], batch.length[rows], *demonstrated,
                                  denominator=batch.response_mask.sum())
            loss = loss + alpha * supervised
        loss.backward()
        total += loss.item()
    if penalty is not None:
        cost = penalty(student)
        cost.backward()
        extra = cost.item()

    # 4. One step of the optimiser.
    grad_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), clip).item()
    if not (math.isfinite(total + extra) and math.isfinite(grad_norm)):
        optimizer.zero_grad(set_to_none=True)
        raise FloatingPointError(f"loss {total}, penalty {extra}, gradient norm {grad_norm}: no step was taken")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    # 5. The teacher's weights follow.
    ema_update(teacher, student, ema_decay)
    sampled = int(mask.sum()) if alpha < 1 else 0
    return {"loss": total, "penalty": extra, "grad_norm": grad_norm,
            "sampled": sampled, "tokens": sampled or int(batch.response_mask.sum())}


def on_policy_loss(student, teacher, batch, rows, response, mask, divergence="forward", beta=0.5, linear=False,
                   contrast=0.0):
    """The sampled answers, scored by both and compared token by token: summed over some rows / the batch's tokens.

    rows (B',) int64: which rows of the batch; response (B, R) int64 and mask (B, R) bool: what was sampled. Returns a
    scalar. linear: from hidden states, in chunks of tokens, so that the logits of a large vocabulary are never whole.
    """
    # 2. The same answer after two prompts: the bare one, and the one with the demonstration.
    n_tokens = mask.sum()
    response, mask = response[rows], mask[rows]
    student_out = score(student, batch.prompt[rows], batch.length[rows], response, mask, return_hidden=linear)
    prompts = [(batch.demo_prompt, batch.demo_length)]
    if contrast:
        prompts += [(batch.prompt, batch.length), (batch.other_prompt, batch.other_length)]
    with torch.no_grad():
        target, *rest = (score(teacher, prompt[rows], length[rows], response, mask, return_hidden=linear)
                         for prompt, length in prompts)
    # 3. The divergence of the two next-token distributions, exact over the vocabulary.
    if linear:
        return linear_distill_loss(student_out, student.head.weight, target, teacher.head.weight, mask, divergence,
                                   beta, n_tokens, contrast, *rest)
    return distill_loss(student_out, contrasted(contrast, target, *rest), mask, divergence, beta, denominator=n_tokens)


@torch.no_grad()
def ema_update(teacher, student, decay):
    """teacher <- decay * teacher + (1 - decay) * student. decay 1 is a frozen teacher, 0 a live one.

    The teacher's weights must be fp32: in bf16 a step of 2 % of a small difference is rounded away.
    """
    for phi, theta in zip(teacher.parameters(), student.parameters()):
        phi.lerp_(theta.to(phi.dtype), 1 - decay)


def score(model, prompt, length, response, mask=None, **options):
    """Logits (B, R, V) that predict `response` (B, R) after `prompt` (B, P) of true lengths (B,), in one forward pass.

    The position arithmetic of both roles, once: token t stands at length + t and is predicted at length + t - 1. A row
    with a prompt of 2 tokens padded to 3 (.) and a response of 2 becomes

        prompt  p0 p1 .        tokens  p0 p1 r0 [r1 .]     scored at  1, 2          [not read]

    mask (B, R) bool: after a row's last True its last position is scored again, so that no padding need be read.
    """
    R = response.shape[1]
    t = torch.arange(R, device=prompt.device)
    tokens = F.pad(prompt, (0, R)).scatter(1, length[:, None] + t, response)
    if mask is not None:
        t = torch.minimum(t, (mask * t).amax(1, keepdim=True))
    # the last token predicts nothing
    return model(tokens[:, :-1], at=length[:, None] - 1 + t, **options)


def sft_loss(model, prompt, length, response, mask, denominator=None):
    """Cross-entropy of `response` (B, R) int64 after `prompt` (B, P) of true lengths (B,), in fp32: summed over
    the tokens that `mask` (B, R) bool keeps / denominator (None: their number).

    Of more than LOGITS logits a part is made at a time, and once more for the gradient: they are never whole.
    """
    hidden, tokens = score(model, prompt, length, response, mask, return_hidden=True)[mask], response[mask]

    def nll(hidden, tokens):
        # in the precision of the weights, as all logits
        with torch.autocast(hidden.device.type, enabled=False):
            logits = model.head(hidden.to(model.head.weight.dtype))
        return F.cross_entropy(logits.float(), tokens, reduction="sum")

    chunk = max(1, LOGITS // len(model.head.weight))
    if len(tokens) <= chunk:
        total = nll(hidden, tokens)
    else:
        parts = zip(hidden.split(chunk), tokens.split(chunk))
        total = sum(checkpoint(nll, *part, use_reentrant=False, preserve_rng_state=False) for part in parts)
    return total / (len(tokens) if denominator is None else denominator)


class TeacherGuard:
    """A small loss proves agreement, not quality: student and teacher can forget together. So the teacher is watched.

    The right answer to a demonstration is known, so the share of demonstrations that the teacher answers rightly can be
    measured as training runs. `check` keeps a copy of both models, in the CPU's memory, while that share is at least
    `floor`, and puts the last good copy back when it is not. With floor 0 nothing is kept.
    """

    def __init__(self, floor, student, teacher):
        self.floor = floor
        self.good = None                                   # (weights of the student, of the teacher)
        self.keep(student, teacher)

    def keep(self, student, teacher):
        if self.floor > 0:
            self.good = tuple(on_cpu(model.state_dict()) for model in (student, teacher))

    def check(self, accuracy, student, teacher) -> bool:
        """Returns whether the teacher is fit to teach; if not, both models are what they were when it last was."""
        if accuracy >= self.floor:
            self.keep(student, teacher)
            return True
        student.load_state_dict(self.good[0])
        teacher.load_state_dict(self.good[1])
        return False


def on_cpu(weights) -> dict:
    """A copy of a state_dict that takes no memory of the device."""
    # tied weights are copied once
    copies = {weight.data_ptr(): weight.detach().to("cpu", copy=True) for weight in weights.values()}
    return {name: copies[weight.data_ptr()] for name, weight in weights.items()}
