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
 6. `penalty` adds a loss of one's own; train.py uses it for self-replay and for the baselines.

Shapes: B batch, P prompt, R response, V vocabulary, D width, N tokens.
"""
import copy
import math

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:                       # macOS, Windows: plain PyTorch takes over
    triton = None


def sdft_step(student, teacher, optimizer, batch, sample, *, divergence="forward", beta=0.5, alpha=0.0, ema_decay=0.98,
              penalty=None, micro_batch=None, clip=1.0, linear=False):
    """One step of SDFT: sample, score twice, KL, step, EMA.

    student, teacher: modules with model(tokens (B, T), at=(B, R)) -> logits (B, R, V). batch: prompt, demo_prompt (B, P) int64
    padded on the right, length, demo_length (B,), response and response_mask (B, R). sample(student, prompt, length) -> response
    (B, R), mask (B, R), at temperature 1. penalty(student) -> scalar, trained on as well. micro_batch: rows scored at once; the
    gradient is that of the whole batch. linear: the KL in chunks from hidden states, for large vocabularies. Returns {"loss",
    "penalty", "grad_norm", "sampled" and "tokens" (of the loss)}. A loss or gradient that is not finite raises FloatingPointError
    before any weight has moved.
    """
    # 1. The student answers the bare prompts. Samples are data: no gradient flows through them.
    if alpha < 1:
        response, mask = sample(student, batch.prompt, batch.length)
    total, extra = 0.0, 0.0
    for rows in torch.arange(len(batch.prompt), device=batch.prompt.device).split(micro_batch or len(batch.prompt)):
        loss = 0.0
        if alpha < 1:
            # 2. and 3. Student and teacher score that answer; their divergence is the loss.
            loss = (1 - alpha) * on_policy_loss(student, teacher, batch, rows, response, mask, divergence, beta, linear)
        if alpha > 0:
            logits = score(student, batch.prompt[rows], batch.length[rows], batch.response[rows])
            loss = loss + alpha * sft_loss(logits, batch.response[rows], batch.response_mask[rows], batch.response_mask.sum())
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
    return {"loss": total, "penalty": extra, "grad_norm": grad_norm, "sampled": sampled, "tokens": sampled or int(batch.response_mask.sum())}


def on_policy_loss(student, teacher, batch, rows, response, mask, divergence="forward", beta=0.5, linear=False):
    """The student's answers, scored by both, compared token by token: the sum over some rows / the number of tokens of the batch."""
    # 2. The same answer behind two prompts: the bare one, and the one with the demonstration.
    x = score(student, batch.prompt[rows], batch.length[rows], response[rows], return_hidden=linear)
    with torch.no_grad():
        y = score(teacher, batch.demo_prompt[rows], batch.demo_length[rows], response[rows], return_hidden=linear)
    # 3. The divergence of the two next-token distributions, exact over the vocabulary.
    if linear:
        return linear_distill_loss(x, student.head.weight, y, teacher.head.weight, mask[rows], divergence, beta, denominator=mask.sum())
    return distill_loss(x, y, mask[rows], divergence, beta, denominator=mask.sum())


@torch.no_grad()
def ema_update(teacher, student, decay):
    """teacher <- decay * teacher + (1 - decay) * student. decay 1 is a frozen teacher, 0 a live one.

    The teacher's weights must be fp32: in bf16 a change of 1 - decay = 0.01 is rounded away and most weights never move.
    """
    for phi, theta in zip(teacher.parameters(), student.parameters()):
        phi.lerp_(theta.to(phi.dtype), 1 - decay)


def score(model, prompt, length, response, **options):
    """Logits (B, R, V) that predict `response` (B, R) behind `prompt` (B, P) of true lengths (B,), in one forward pass.

    The position arithmetic of both roles, once: token t stands at length + t and is predicted at length + t - 1. A row with a prompt
    of 2 tokens padded to 3 (.) and a response of 2 becomes

        prompt  p0 p1 .        tokens  p0 p1 r0 [r1 .]     scored at  1, 2
    """
    R = response.shape[1]
    at = length[:, None] - 1 + torch.arange(R, device=prompt.device)
    tokens = F.pad(prompt, (0, R)).scatter(1, at + 1, response)
    return model(tokens[:, :-1], at=at, **options)                      # the last token predicts nothing


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
        self.floor = floor
        self.good = copy.deepcopy((student.state_dict(), teacher.state_dict()))

    def check(self, accuracy, student, teacher) -> bool:
        """Returns whether the teacher is fit to teach; if not, both models are what they were when it last was."""
        if accuracy >= self.floor:
            self.good = copy.deepcopy((student.state_dict(), teacher.state_dict()))
            return True
        student.load_state_dict(self.good[0])
        teacher.load_state_dict(self.good[1])
        return False


# ---- The divergence of two rows of logits, and its kernel ---------------------------------------------------------------------------
#
# P = softmax(teacher / T), Q = softmax(student / T), M = beta P + (1 - beta) Q, one row a token; T is the temperature.
#
#     forward   KL(P ‖ Q) = sum P log(P / Q)                  gradient in the student's logits   (Q - P) / T
#     reverse   KL(Q ‖ P) = sum Q log(Q / P)                                                     Q (log(Q / P) - KL(Q ‖ P)) / T
#     jsd       beta KL(P ‖ M) + (1 - beta) KL(Q ‖ M)                                            (1 - beta) Q (log(Q / M) - KL(Q ‖ M)) / T
#
# A KL is summed as  sum A log(A / B) - A + B.  The terms added sum to zero, but now each summand is >= 0 and its error is of second
# order: summed plainly, a KL of 1e-7 drowns in the rounding of terms near 1, and student and teacher are that close here.

def divergence_reference(student, teacher, divergence="forward", beta=0.5, temperature=1.0):
    """The formulas as they stand, in the precision of the logits: (N, V) -> (N,). The slow twin of `divergence`, differentiable twice."""
    q, p = (student / temperature).log_softmax(-1), (teacher.detach() / temperature).log_softmax(-1)
    if divergence == "forward":
        return (p.exp() * (p - q)).sum(-1)
    if divergence == "reverse":
        return (q.exp() * (q - p)).sum(-1)
    m = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))
    return beta * (p.exp() * (p - m)).sum(-1) + (1 - beta) * (q.exp() * (q - m)).sum(-1)


if triton is not None:                                   # logs are base 2 inside the kernels: exp2 is one instruction, exp is several
    LN2 = tl.constexpr(math.log(2))
    LOG_ZERO = tl.constexpr(-1e6)                        # finite, so that 0 * log 0 is 0

    @triton.jit
    def load_logits(X, cols, V, vocab):
        # Two comparisons, since V guards memory and vocab meaning: a V divisible by 16 keeps 16-byte loads whatever vocab is.
        x = tl.load(X + cols, mask=cols < V, other=-float("inf")).to(tl.float32)
        return tl.where(cols < vocab, x, -float("inf"))

    @triton.jit
    def softmax_stats(X, V, vocab, scale, BLOCK: tl.constexpr):
        """One sweep over a row (online softmax): its maximum, and log2 of the sum of 2^(scale (x - maximum))."""
        top = -1e30                                      # finite: a block of -inf alone must not make -inf - -inf
        total = 0.0
        for start in range(0, vocab, BLOCK):
            x = load_logits(X, start + tl.arange(0, BLOCK), V, vocab)
            new_top = tl.maximum(top, tl.max(x, 0))
            total = total * tl.exp2((top - new_top) * scale) + tl.sum(tl.exp2((x - new_top) * scale), 0)
            top = new_top
        return top, tl.log2(total)

    @triton.jit
    def log2_prob(X, cols, V, vocab, scale, top, log_total):
        lp = (load_logits(X, cols, V, vocab) - top) * scale - log_total
        return tl.where(lp < LOG_ZERO, LOG_ZERO, lp)     # tl.maximum would turn NaN into a number

    @triton.jit
    def kl_terms(a, b, log2_ratio):
        """a d - a + b where d = log(a / b). Small d cancels: there it is a times the series of d - 1 + exp(-d)."""
        d = log2_ratio * LN2
        series = d * d * (1 / 2 - d * (1 / 6 - d * (1 / 24 - d * (1 / 120))))
        return tl.where(tl.abs(d) < 0.125, a * series, a * d - a + b)

    @triton.jit
    def log2_mixture_ratio(lp, lq, beta):
        """log2(M / Q), exactly 0 where P = Q. The bound keeps exp2 finite; beyond it Q is 0 to fp32 and M / P is beta all the same."""
        d = tl.minimum(lp - lq, 100.0)
        return d, tl.log2(1 + beta * (tl.exp2(d) - 1))

    @triton.jit
    def forward_kernel(S, T, LOSS, SAVED, stride_s, stride_t, V, vocab, scale, beta, KIND: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)              # N * V passes 2^31 near 43,000 tokens of 50,000 words
        S += row * stride_s
        T += row * stride_t
        top_s, log_s = softmax_stats(S, V, vocab, scale, BLOCK)
        top_t, log_t = softmax_stats(T, V, vocab, scale, BLOCK)
        loss = 0.0
        kl_qm = 0.0
        for start in range(0, vocab, BLOCK):             # the second sweep: the row was just read, so much of it comes from the cache
            cols = start + tl.arange(0, BLOCK)
            lq = log2_prob(S, cols, V, vocab, scale, top_s, log_s)
            lp = log2_prob(T, cols, V, vocab, scale, top_t, log_t)
            q = tl.exp2(lq)
            p = tl.exp2(lp)
            if KIND == "forward":
                loss += tl.sum(kl_terms(p, q, lp - lq), 0)
            elif KIND == "reverse":
                loss += tl.sum(kl_terms(q, p, lq - lp), 0)
            else:
                d, r = log2_mixture_ratio(lp, lq, beta)
                m = q + beta * (p - q)
                loss += tl.sum(kl_terms(p, m, d - r), 0)
                kl_qm += tl.sum(kl_terms(q, m, -r), 0)
        SAVED += row * 5
        tl.store(SAVED, top_s)
        tl.store(SAVED + 1, log_s)
        tl.store(SAVED + 2, top_t)
        tl.store(SAVED + 3, log_t)
        if KIND == "jsd":
            tl.store(SAVED + 4, kl_qm)
            tl.store(LOSS + row, beta * loss + (1 - beta) * kl_qm)
        else:
            tl.store(SAVED + 4, loss)
            tl.store(LOSS + row, loss)

    @triton.jit
    def backward_kernel(S, T, G, SAVED, DS, stride_s, stride_t, V, vocab, scale, beta, KIND: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        SAVED += row * 5
        lq = log2_prob(S + row * stride_s, cols, V, vocab, scale, tl.load(SAVED), tl.load(SAVED + 1))
        lp = log2_prob(T + row * stride_t, cols, V, vocab, scale, tl.load(SAVED + 2), tl.load(SAVED + 3))
        kl = tl.load(SAVED + 4)
        q = tl.exp2(lq)
        if KIND == "forward":
            ds = q - tl.exp2(lp)
        elif KIND == "reverse":
            ds = q * ((lq - lp) * LN2 - kl)
        else:
            d, r = log2_mixture_ratio(lp, lq, beta)
            ds = (1 - beta) * q * (-r * LN2 - kl)
        g = tl.load(G + row)
        ds = tl.where(g == 0, 0.0, g * scale * LN2 * ds)                             # g == 0: a row masked out, which may hold NaN
        tl.store(DS + row * V + cols, ds.to(DS.dtype.element_ty), mask=cols < V)


def launch(kernel, blocks, student, teacher, others, divergence, beta, temperature, vocab):
    student, teacher = (x if x.stride(-1) == 1 else x.contiguous() for x in (student, teacher))
    if len(student) > 0:
        with torch.cuda.device_of(student):              # Triton launches on the current device, not on the tensor's
            kernel[(len(student), blocks)](student, teacher, *others, student.stride(0), teacher.stride(0), student.shape[1], vocab,
                                           1 / (temperature * math.log(2)), beta, KIND=divergence, BLOCK=4096, num_warps=8)


def triton_forward(student, teacher, *options):
    """Returns the loss (N,) and what backward needs: five numbers a row. The softmaxes are never in memory."""
    loss, saved = (student.new_empty(len(student), *size, dtype=torch.float32) for size in ((), (5,)))
    launch(forward_kernel, 1, student, teacher, (loss, saved), *options)
    return loss, saved


def triton_backward(g, student, teacher, saved, *options):
    grad = torch.empty_like(student, memory_format=torch.contiguous_format)
    launch(backward_kernel, triton.cdiv(student.shape[1], 4096), student, teacher, (g.contiguous(), saved, grad), *options)
    return grad


def torch_forward(student, teacher, divergence, beta, temperature, vocab):
    """The same in plain PyTorch. It keeps the gradient itself, (N, vocab): here, where the loss has just been made, it costs one more
    operation; made again in backward it would cost both softmaxes a second time."""
    N, dtype = student.shape[0], torch.promote_types(student.dtype, torch.float32)
    loss, grad = student.new_empty(N, dtype=dtype), student.new_empty(N, vocab, dtype=dtype)
    step = max(1, 2**17 // vocab)                                          # rows at once: half a MB, which stays in the CPU's cache
    for rows in (slice(i, i + step) for i in range(0, N, step)):
        s, t = (x[rows, :vocab].to(dtype).clamp_min(-1e30) for x in (student, teacher))
        s, t = (x.sub_(x.amax(-1, True)).div_(temperature) for x in (s, t))
        q, p = s.softmax(-1), t.softmax(-1)                                # the largest logit is 0, so that log q = s + log(max q)
        d = t.sub_(s).add_(p.amax(-1, True).log() - q.amax(-1, True).log()).clamp_(-1e6, 1e6)   # log(P / Q), 0 for equal logits
        if divergence == "jsd":
            # beta P log(P / M) + (1 - beta) Q log(Q / M) needs no terms added: those of the two KLs cancel.
            r = d.clamp(max=80).expm1_().mul_(beta).log1p_()               # log(M / Q); above 80 nats Q is 0 to fp32
            kl_qm = -torch.linalg.vecdot(q, r)
            loss[rows] = beta * torch.linalg.vecdot(p, d.clamp_(max=80).sub_(r)) + (1 - beta) * kl_qm
            torch.mul(q, r.add_(kl_qm[:, None]).mul_(beta - 1), out=grad[rows])
            continue
        a, b, d = (p, q, d) if divergence == "forward" else (q, p, d.neg_())                     # d is now log(A / B)
        kl = torch.linalg.vecdot(a, d)
        close = (kl < 0.01).nonzero()[:, 0]                                # only here are digits lost, so only here is it summed again
        a, b, y = (x.index_select(0, close) for x in (a, b, d))
        torch.maximum(a, b.mul_(math.exp(-30)), out=a)                     # where A is 0 to fp32 its term is still B: d is cut at -30
        y.clamp_(min=-30)
        loss[rows] = kl.index_copy_(0, close, torch.linalg.vecdot(a, torch.neg(y, out=b).expm1_().add_(y)))  # sum A (d - 1 + exp(-d))
        torch.sub(q, p, out=grad[rows]) if divergence == "forward" else torch.mul(q, d.sub_(kl[:, None]), out=grad[rows])
    return loss, grad.div_(temperature)


def torch_backward(g, student, teacher, saved, divergence, beta, temperature, vocab):
    grad = (saved * g[:, None]).index_fill_(0, (g == 0).nonzero()[:, 0], 0)                      # a row masked out may hold NaN
    return (grad if vocab == student.shape[1] else F.pad(grad, (0, student.shape[1] - vocab))).to(student.dtype)


# One operator, two implementations. To torch.compile it is a closed box of known shape; autograd sees the student only.

def uses_triton(x):
    return triton is not None and x.is_cuda and x.dtype != torch.float64


@torch.library.custom_op("sdft::divergence", mutates_args=())
def divergence_op(student: torch.Tensor, teacher: torch.Tensor, divergence: str, beta: float, temperature: float,
                  vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (triton_forward if uses_triton(student) else torch_forward)(student, teacher, divergence, beta, temperature, vocab)


@torch.library.custom_op("sdft::divergence_grad", mutates_args=())
def divergence_grad_op(g: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor, saved: torch.Tensor, divergence: str, beta: float,
                       temperature: float, vocab: int) -> torch.Tensor:
    return (triton_backward if uses_triton(student) else torch_backward)(g, student, teacher, saved, divergence, beta, temperature, vocab)


@divergence_op.register_fake
def _(student, teacher, divergence, beta, temperature, vocab):
    N, dtype = student.shape[0], torch.promote_types(student.dtype, torch.float32)
    return student.new_empty(N, dtype=dtype), student.new_empty(N, 5 if uses_triton(student) else vocab, dtype=dtype)


@divergence_grad_op.register_fake
def _(g, student, teacher, saved, divergence, beta, temperature, vocab):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def save_for_backward(ctx, inputs, output):
    student, teacher, *ctx.options = inputs
    ctx.save_for_backward(student, teacher, output[1])
    ctx.mark_non_differentiable(output[1])


def refuse_second_derivative(ctx, *_):
    raise RuntimeError("this loss can be differentiated once only; use divergence_reference where second derivatives are needed")


divergence_op.register_autograd(lambda ctx, g, _: (divergence_grad_op(g, *ctx.saved_tensors, *ctx.options), *[None] * 5),
                                setup_context=save_for_backward)
divergence_grad_op.register_autograd(refuse_second_derivative)


def check_options(divergence, beta, temperature):
    if divergence not in ("forward", "reverse", "jsd"):
        raise ValueError(f'divergence is {divergence!r}; choose "forward", "reverse" or "jsd"')
    if not 0 < beta < 1:
        raise ValueError(f'beta is {beta}; choose 0 < beta < 1, or "forward" or "reverse" for its ends')
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; choose one above 0")


def divergence(student, teacher, divergence="forward", beta=0.5, temperature=1.0, vocab=None):
    """The divergence of each token: logits (N, V) of any float type -> (N,) in fp32 (float64 for float64).

    Differentiable once, in `student`; the teacher is a constant. vocab: the true size of a padded vocabulary; columns from there on are
    ignored and get no gradient. A NaN in a row makes that row's loss NaN. -inf is a probability of 0, and log 0 a finite -1e6.
    """
    check_options(divergence, beta, temperature)
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(f"logits are {tuple(student.shape)} and {tuple(teacher.shape)}; flatten both to one shape (N, V)")
    if vocab is not None and not 0 < vocab <= student.shape[1]:
        raise ValueError(f"vocab is {vocab}, but the logits have {student.shape[1]} columns; choose 1 to {student.shape[1]}")
    return divergence_op(student, teacher.detach(), divergence, float(beta), float(temperature), vocab or student.shape[1])[0]


token_divergence = divergence                            # for functions in which an argument takes the name


def distill_loss(student_logits, teacher_logits, mask, divergence="forward", beta=0.5, temperature=1.0, vocab=None, denominator=None):
    """The divergence summed over the tokens that `mask` keeps / their number: logits (..., V), mask (...) -> scalar.

    denominator: divides instead, such as the number of tokens of the whole batch when this is a part of it. What stands in rows masked
    out does not matter, NaN included. A mask of nothing gives 0.
    """
    mask = mask.flatten().bool()
    loss = token_divergence(student_logits.flatten(0, -2), teacher_logits.flatten(0, -2), divergence, beta, temperature, vocab)
    # where, not loss[mask]: shapes that depend on data break a compiled graph. Not loss * mask: NaN * 0 is NaN.
    return torch.where(mask, loss, 0).sum() / (mask.sum().clamp(min=1) if denominator is None else denominator)


def matmul_fp32(a, b):
    """a @ b in fp32 out of bf16 factors. Logits rounded to bf16 would cost most of the gradient where student and teacher are close."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


@torch.library.custom_op("sdft::linear_divergence", mutates_args=())
def linear_divergence_op(student_hidden: torch.Tensor, student_head: torch.Tensor, teacher_hidden: torch.Tensor, teacher_head: torch.Tensor,
                         weight: torch.Tensor, divergence: str, beta: float, chunk: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The weighted sum of the divergences of N tokens, and its gradients in the student's hidden states (N, D) and head (V, D)."""
    V, dtype = len(student_head), student_head.dtype
    total, grad_hidden = weight.new_zeros(()), torch.zeros_like(student_hidden)
    grad_head = torch.zeros_like(student_head, dtype=weight.dtype)                               # fp32: a sum over many chunks
    with torch.autocast(weight.device.type, enabled=False):
        for rows in weight.nonzero()[:, 0].split(chunk):
            hidden = student_hidden[rows]                                                        # (chunk, D)
            logits = matmul_fp32(hidden, student_head.T)                                         # (chunk, V)
            target = matmul_fp32(teacher_hidden[rows], teacher_head.T)
            loss, saved = divergence_op(logits, target, divergence, beta, 1.0, V)
            total += (loss * weight[rows]).sum()
            grad = divergence_grad_op(weight[rows], logits, target, saved, divergence, beta, 1.0, V).to(dtype)
            del logits, target, saved                                                            # before the next chunk's are made
            grad_hidden[rows] = matmul_fp32(grad, student_head).to(dtype)
            grad_head += matmul_fp32(grad.T, hidden)
    return total, grad_hidden, grad_head.to(dtype)


@linear_divergence_op.register_fake
def _(student_hidden, student_head, teacher_hidden, teacher_head, weight, divergence, beta, chunk):
    return weight.new_empty(()), torch.empty_like(student_hidden), torch.empty_like(student_head)


def save_gradients(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def scale_gradients(ctx, g, *_):
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():                            # create_graph=True
        refuse_second_derivative(ctx)
    return (*(x * g for x in ctx.saved_tensors), *[None] * 6)


linear_divergence_op.register_autograd(scale_gradients, setup_context=save_gradients)


def linear_distill_loss(student_hidden, student_head, teacher_hidden, teacher_head, mask, divergence="forward", beta=0.5, chunk=256,
                        denominator=None):
    """distill_loss(student_hidden @ student_head.T, teacher_hidden @ teacher_head.T, mask), with never more than `chunk` rows of logits.

    hidden (..., D), heads (V, D), mask (...) -> scalar. The gradients are made in the forward pass, while a chunk's logits exist;
    backward only scales them. Differentiable once, in the student's two; tokens masked out are skipped.
    """
    check_options(divergence, beta, 1.0)
    mask = mask.flatten().bool()
    weight = mask / (mask.sum().clamp(min=1) if denominator is None else denominator)
    dtype = student_hidden.dtype
    return linear_divergence_op(student_hidden.flatten(0, -2), student_head.to(dtype), teacher_hidden.detach().flatten(0, -2),
                                teacher_head.detach().to(teacher_hidden.dtype), weight.to(torch.promote_types(dtype, torch.float32)),
                                divergence, float(beta), chunk)[0]
