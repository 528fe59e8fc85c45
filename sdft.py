"""Self-Distillation Fine-Tuning.

Shapes: B batch, P prompt, R response, T = P + R, V vocabulary, N tokens.
"""
import copy

import torch
import torch.nn.functional as F


def sdft_step(student, teacher, optimizer, batch, sample, *, divergence="forward", beta=0.5, alpha=0.0, ema_decay=0.98,
              clip=1.0, micro_batch=None, penalty=None):
    B = batch.prompt.shape[0]
    # 1. Sample: the student answers the bare prompts. No graph.
    if alpha < 1:
        response, mask = sample(student, batch.prompt, batch.length)
    loss_sum = 0.0
    for r in torch.arange(B, device=batch.prompt.device).split(micro_batch or B):
        loss = 0.0
        if alpha < 1:
            # 2. Score twice
            logits = response_logits(student, batch.prompt[r], batch.length[r], response[r])
            with torch.no_grad():
                target = response_logits(teacher, batch.demo_prompt[r], batch.demo_length[r], response[r])
            # 3. KL
            loss = (1 - alpha) * distill_loss(logits, target, mask[r], divergence, beta) * mask[r].sum() / mask.sum()
        if alpha > 0:
            logits = response_logits(student, batch.prompt[r], batch.length[r], batch.response[r])
            loss = loss + alpha * F.cross_entropy(logits[batch.response_mask[r]], batch.response[r][batch.response_mask[r]], reduction="sum") / batch.response_mask.sum()
        loss.backward()
        loss_sum += loss.item()
    if penalty is not None:
        p = penalty(student)
        p.backward()
    # 4. Step
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    # 5. EMA
    ema_update(teacher, student, ema_decay)
    return loss_sum, norm.item()


@torch.no_grad()
def ema_update(teacher, student, decay):
    for phi, theta in zip(teacher.parameters(), student.parameters()):
        phi.lerp_(theta, 1 - decay)


def response_logits(model, prompt, length, response):
    R = response.shape[1]
    at = length[:, None] - 1 + torch.arange(R, device=prompt.device)
    tokens = F.pad(prompt, (0, R)).scatter(1, at + 1, response)[:, :-1]
    return model(tokens, at=at)


def distill_loss(student_logits, teacher_logits, mask, divergence="forward", beta=0.5):
    q, p = student_logits.float().log_softmax(-1), teacher_logits.float().log_softmax(-1)
    if divergence == "forward":
        kl = (p.exp() * (p - q)).sum(-1)
    elif divergence == "reverse":
        kl = (q.exp() * (q - p)).sum(-1)
    else:
        m = torch.logaddexp(p + torch.tensor(beta).log(), q + torch.tensor(1 - beta).log())
        kl = beta * (p.exp() * (p - m)).sum(-1) + (1 - beta) * (q.exp() * (q - m)).sum(-1)
    return (kl * mask).sum() / mask.sum()
