"""The divergence of two next-token distributions, the student's and the teacher's, and its gradient in the student.

"forward" is KL(teacher ‖ student), "reverse" KL(student ‖ teacher), "jsd" the Jensen-Shannon divergence. They stand
here as plain formulas (`divergence_reference`), in PyTorch for a CPU, and as fused Triton kernels: log-softmax and KL
in one, no softmax in memory. The last two are one operator, which torch.compile takes whole. `token_divergence` calls
it; `distill_loss` averages over the tokens of a mask; `linear_distill_loss` starts from hidden states, in chunks.

Left out: gradients for the teacher, second derivatives (except by the formulas), and top-k approximations. Nothing of
this project is imported. Shapes: N tokens, V vocabulary, D width.
"""
import math

import torch
import torch.nn.functional as F

try:
    import triton
    import triton.language as tl
except ImportError:  # macOS, Windows: plain PyTorch takes over
    triton = None


# ---------------------------------------------------------------------------------------------------------------------
# The formulas. P = softmax(teacher / T), Q = softmax(student / T), M = beta P + (1 - beta) Q, one row a token; T is the
# temperature.
#
#               divergence                                  gradient in the student's logits
#
#     forward   KL(P ‖ Q) = sum P log(P / Q)                (Q - P) / T
#     reverse   KL(Q ‖ P) = sum Q log(Q / P)                Q (log(Q / P) - KL(Q ‖ P)) / T
#     jsd       beta KL(P ‖ M) + (1 - beta) KL(Q ‖ M)       (1 - beta) Q (log(Q / M) - KL(Q ‖ M)) / T
#
# A KL is summed as  sum A log(A / B) - A + B.  The terms added sum to zero, but now each summand is >= 0 and its error
# is of second order: summed plainly, a KL of 1e-7 drowns in the rounding of terms near 1, and student and teacher are
# that close here.

def divergence_reference(student, teacher, divergence="forward", beta=0.5, temperature=1.0):
    """The formulas as they stand: logits (N, V) -> (N,), both in the precision of the logits.

    The slow twin of `token_divergence`, differentiable twice in `student`; the teacher is a constant. Options are not
    checked.
    """
    q = (student / temperature).log_softmax(-1)
    p = (teacher.detach() / temperature).log_softmax(-1)
    if divergence == "forward":
        return (p.exp() * (p - q)).sum(-1)
    if divergence == "reverse":
        return (q.exp() * (q - p)).sum(-1)
    m = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))
    return beta * (p.exp() * (p - m)).sum(-1) + (1 - beta) * (q.exp() * (q - m)).sum(-1)


# ---------------------------------------------------------------------------------------------------------------------
# The kernels, in Triton. Logs are base 2 inside them: exp2 is one instruction, exp is several.

if triton is not None:
    LN2 = tl.constexpr(math.log(2))
    LOG_ZERO = tl.constexpr(-1e6)  # finite, so that 0 * log 0 is 0

    @triton.jit
    def load_logits(X, cols, V, vocab):
        # V guards memory and vocab meaning, apart: a V divisible by 16 keeps 16-byte loads whatever vocab is.
        x = tl.load(X + cols, mask=cols < V, other=-float("inf")).to(tl.float32)
        return tl.where(cols < vocab, x, -float("inf"))

    @triton.jit
    def softmax_stats(X, V, vocab, scale, BLOCK: tl.constexpr):
        """One sweep over a row (online softmax): its maximum, and log2 of the sum of 2^(scale (x - maximum))."""
        top = -1e30  # finite: a block of -inf alone must not make -inf - -inf
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
        # tl.maximum would turn NaN into a number.
        return tl.where(lp < LOG_ZERO, LOG_ZERO, lp)

    @triton.jit
    def kl_terms(a, b, log2_ratio):
        """a d - a + b where d = log(a / b). Small d cancels: there it is a times the series of d - 1 + exp(-d)."""
        d = log2_ratio * LN2
        series = d * d * (1 / 2 - d * (1 / 6 - d * (1 / 24 - d * (1 / 120))))
        return tl.where(tl.abs(d) < 0.125, a * series, a * d - a + b)

    @triton.jit
    def log2_mixture_ratio(lp, lq, beta):
        """log2(P / Q), bounded, and log2(M / Q), exactly 0 where P = Q.

        The bound keeps exp2 finite; beyond it Q is 0 to fp32 and M / P is beta all the same.
        """
        d = tl.minimum(lp - lq, 100.0)
        return d, tl.log2(1 + beta * (tl.exp2(d) - 1))

    @triton.jit
    def forward_kernel(S, T, LOSS, SAVED, stride_s, stride_t, V, vocab, scale, beta,
                       KIND: tl.constexpr, BLOCK: tl.constexpr):
        """One program a row: its loss, and the five numbers from which backward makes the softmaxes again."""
        # 64 bits: N * V passes 2^31 near 43,000 tokens of 50,000 words.
        row = tl.program_id(0).to(tl.int64)
        S += row * stride_s
        T += row * stride_t

        # The first sweep normalises both rows.
        top_s, log_s = softmax_stats(S, V, vocab, scale, BLOCK)
        top_t, log_t = softmax_stats(T, V, vocab, scale, BLOCK)

        # The second sums the loss: the row was just read, so much of it comes from the cache.
        loss = 0.0
        kl_qm = 0.0
        for start in range(0, vocab, BLOCK):
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

        # The fifth is the KL that stands in the gradient (of reverse and jsd).
        if KIND == "jsd":
            tl.store(SAVED + 4, kl_qm)
            tl.store(LOSS + row, beta * loss + (1 - beta) * kl_qm)
        else:
            tl.store(SAVED + 4, loss)
            tl.store(LOSS + row, loss)

    @triton.jit
    def backward_kernel(S, T, G, SAVED, DS, stride_s, stride_t, V, vocab, scale, beta,
                        KIND: tl.constexpr, BLOCK: tl.constexpr):
        """One program a block of a row: G times the gradient in the student's logits."""
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

        # g == 0 is a row masked out, which may hold NaN. scale * LN2 is 1 / temperature.
        g = tl.load(G + row)
        ds = tl.where(g == 0, 0.0, g * scale * LN2 * ds)
        tl.store(DS + row * V + cols, ds.to(DS.dtype.element_ty), mask=cols < V)


def launch(kernel, blocks, student, teacher, others, divergence, beta, temperature, vocab):
    N, V = student.shape
    if N == 0:
        return
    student, teacher = (x if x.stride(-1) == 1 else x.contiguous() for x in (student, teacher))
    scale = 1 / (temperature * math.log(2))

    # Triton launches on the current device, not on the tensor's.
    with torch.cuda.device_of(student):
        kernel[(N, blocks)](student, teacher, *others, student.stride(0), teacher.stride(0), V, vocab, scale, beta,
                            KIND=divergence, BLOCK=4096, num_warps=8)


def triton_forward(student, teacher, *options):
    """Returns the loss (N,) and what backward needs: five numbers a row. The softmaxes are never in memory."""
    loss = student.new_empty(len(student), dtype=torch.float32)
    saved = student.new_empty(len(student), 5, dtype=torch.float32)
    launch(forward_kernel, 1, student, teacher, (loss, saved), *options)
    return loss, saved


def triton_backward(g, student, teacher, saved, *options):
    grad = torch.empty_like(student, memory_format=torch.contiguous_format)
    blocks = triton.cdiv(student.shape[1], 4096)
    launch(backward_kernel, blocks, student, teacher, (g.contiguous(), saved, grad), *options)
    return grad


# ---------------------------------------------------------------------------------------------------------------------
# The same in plain PyTorch, for the CPU and for float64.

def torch_forward(student, teacher, divergence, beta, temperature, vocab):
    """Returns the loss (N,) and what backward needs: here the gradient itself, (N, vocab).

    Where the loss has just been made, the gradient costs one more operation; in backward it would cost both softmaxes
    a second time.
    """
    N = student.shape[0]
    dtype = torch.promote_types(student.dtype, torch.float32)
    loss = student.new_empty(N, dtype=dtype)
    grad = student.new_empty(N, vocab, dtype=dtype)

    # So many rows at once are half a MB, which stays in the CPU's cache.
    step = max(1, 2**17 // vocab)
    for start in range(0, N, step):
        rows = slice(start, start + step)

        # The largest logit becomes 0, and -inf finite. clamp_min copies, so what follows may work in place.
        s, t = (x[rows, :vocab].to(dtype).clamp_min(-1e30) for x in (student, teacher))
        s, t = (x.sub_(x.amax(-1, True)).div_(temperature) for x in (s, t))

        # Hence log q = s + log(max q), and the same for p. d is log(P / Q), exactly 0 for equal logits.
        q, p = s.softmax(-1), t.softmax(-1)
        shift = p.amax(-1, True).log() - q.amax(-1, True).log()
        d = t.sub_(s).add_(shift).clamp_(-1e6, 1e6)

        if divergence == "forward":
            loss[rows] = torch_kl(p, q, d)
            torch.sub(q, p, out=grad[rows])
        elif divergence == "reverse":
            kl = torch_kl(q, p, d.neg_())
            loss[rows] = kl
            torch.mul(q, d.sub_(kl[:, None]), out=grad[rows])
        else:
            # beta P log(P / M) + (1 - beta) Q log(Q / M) needs no terms added: those of the two KLs cancel.
            # r is log(M / Q); above 80 nats Q is 0 to fp32.
            r = d.clamp(max=80).expm1_().mul_(beta).log1p_()
            kl_qm = -torch.linalg.vecdot(q, r)
            kl_pm = torch.linalg.vecdot(p, d.clamp_(max=80).sub_(r))
            loss[rows] = beta * kl_pm + (1 - beta) * kl_qm
            torch.mul(q, r.add_(kl_qm[:, None]).mul_(beta - 1), out=grad[rows])
    return loss, grad.div_(temperature)


def torch_kl(a, b, d):
    """KL(A ‖ B) of each row (N,), from the probabilities and d = log(A / B), all (N, V)."""
    kl = torch.linalg.vecdot(a, d)

    # Only in rows this close are digits lost, so only they are summed again, as sum A (d - 1 + exp(-d)).
    close = (kl < 0.01).nonzero()[:, 0]
    a, b, d = (x.index_select(0, close) for x in (a, b, d))

    # Where A is 0 to fp32 its term is still B: d is cut at -30, and A is there B exp(-30).
    torch.maximum(a, b.mul_(math.exp(-30)), out=a)
    d.clamp_(min=-30)
    terms = torch.neg(d, out=b).expm1_().add_(d)
    return kl.index_copy_(0, close, torch.linalg.vecdot(a, terms))


def torch_backward(g, student, teacher, saved, divergence, beta, temperature, vocab):
    # A row masked out may hold NaN, and NaN * 0 is NaN.
    masked_out = (g == 0).nonzero()[:, 0]
    grad = (saved * g[:, None]).index_fill_(0, masked_out, 0)

    V = student.shape[1]
    if vocab != V:
        grad = F.pad(grad, (0, V - vocab))
    return grad.to(student.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# One operator, two implementations. To torch.compile it is a closed box of known shape; autograd sees the student only.

def uses_triton(x):
    return triton is not None and x.is_cuda and x.dtype != torch.float64


@torch.library.custom_op("sdft::divergence", mutates_args=())
def divergence_op(student: torch.Tensor, teacher: torch.Tensor, divergence: str, beta: float, temperature: float,
                  vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss (N,), and what backward needs."""
    forward = triton_forward if uses_triton(student) else torch_forward
    return forward(student, teacher, divergence, beta, temperature, vocab)


@torch.library.custom_op("sdft::divergence_grad", mutates_args=())
def divergence_grad_op(g: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor, saved: torch.Tensor,
                       divergence: str, beta: float, temperature: float, vocab: int) -> torch.Tensor:
    """g (N,) times the gradient in the student's logits: (N, V)."""
    backward = triton_backward if uses_triton(student) else torch_backward
    return backward(g, student, teacher, saved, divergence, beta, temperature, vocab)


@divergence_op.register_fake
def _(student, teacher, divergence, beta, temperature, vocab):
    # shape[0], since len would pin N to a number.
    N = student.shape[0]
    dtype = torch.promote_types(student.dtype, torch.float32)
    saved = 5 if uses_triton(student) else vocab
    return student.new_empty(N, dtype=dtype), student.new_empty(N, saved, dtype=dtype)


@divergence_grad_op.register_fake
def _(g, student, teacher, saved, divergence, beta, temperature, vocab):
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def save_for_backward(ctx, inputs, output):
    student, teacher, *ctx.options = inputs
    ctx.save_for_backward(student, teacher, output[1])
    ctx.mark_non_differentiable(output[1])


def divergence_backward(ctx, g, _):
    return divergence_grad_op(g, *ctx.saved_tensors, *ctx.options), *[None] * 5


def refuse_second_derivative(ctx, *_):
    raise RuntimeError("this loss can be differentiated once only; "
                       "use divergence_reference where second derivatives are needed")


divergence_op.register_autograd(divergence_backward, setup_context=save_for_backward)
divergence_grad_op.register_autograd(refuse_second_derivative)


# ---------------------------------------------------------------------------------------------------------------------
# The divergence of tokens, and the loss made of it.

def check_options(divergence, beta, temperature):
    if divergence not in ("forward", "reverse", "jsd"):
        raise ValueError(f'divergence is {divergence!r}; choose "forward", "reverse" or "jsd"')
    if not 0 < beta < 1:
        raise ValueError(f'beta is {beta}; choose 0 < beta < 1, or "forward" or "reverse" for its ends')
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; choose one above 0")


def token_divergence(student, teacher, divergence="forward", beta=0.5, temperature=1.0, vocab=None):
    """The divergence of each token: logits (N, V) of any float type -> (N,) in fp32 (float64 for float64).

    Differentiable once, in `student`; the teacher is a constant. vocab: the true size of a padded vocabulary; columns
    from there on are ignored and get no gradient. A NaN in a row makes that row's loss NaN. -inf is a probability of 0,
    and log 0 a finite -1e6. Shapes that differ and options out of range raise ValueError, a second derivative raises
    RuntimeError.
    """
    check_options(divergence, beta, temperature)
    if student.dim() != 2 or student.shape != teacher.shape:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"logits are {shapes}; flatten both to one shape (N, V)")
    V = student.shape[1]
    if vocab is not None and not 0 < vocab <= V:
        raise ValueError(f"vocab is {vocab}, but the logits have {V} columns; choose 1 to {V}")

    loss, _ = divergence_op(student, teacher.detach(), divergence, float(beta), float(temperature), vocab or V)
    return loss


def distill_loss(student_logits, teacher_logits, mask, divergence="forward", beta=0.5, temperature=1.0, vocab=None,
                 denominator=None):
    """The divergence summed over the tokens that `mask` keeps / their number.

    Logits (..., V) of any float type, mask (...) of bools or numbers -> scalar in fp32 (float64 for float64).
    denominator: divides instead, such as the number of tokens of the whole batch when this is a part of it. What stands
    in rows masked out does not matter, NaN included. A mask of nothing gives 0. Errors are those of `token_divergence`.
    """
    mask = mask.flatten().bool()
    student, teacher = student_logits.flatten(0, -2), teacher_logits.flatten(0, -2)
    loss = token_divergence(student, teacher, divergence, beta, temperature, vocab)
    if denominator is None:
        denominator = mask.sum().clamp(min=1)

    # where, not loss[mask]: shapes that depend on data break a compiled graph. Not loss * mask: NaN * 0 is NaN.
    return torch.where(mask, loss, 0).sum() / denominator


def contrasted(contrast, shown, bare=None, other=None):
    """The teacher's logits (..., V) with less of what its template alone says, in fp32; `shown` itself at contrast 0.

    shown + contrast [log p(y | bare prompt) - log p(y | another demonstration)], the bracket cut at 3 nats either way:
    a token that one of the two all but rules out must not decide. The softmax of the result is the target.
    """
    if not contrast:
        return shown
    bracket = bare.float().log_softmax(-1) - other.float().log_softmax(-1)
    return shown.float() + contrast * bracket.clamp(-3, 3)


# ---------------------------------------------------------------------------------------------------------------------
# The same loss from hidden states: the head's product and the divergence, a chunk of tokens at a time.

def matmul_fp32(a, b):
    """a @ b in fp32 out of bf16 factors. Logits in bf16 would cost most of the gradient where the models are close."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


@torch.library.custom_op("sdft::linear_divergence", mutates_args=())
def linear_divergence_op(student_hidden: torch.Tensor, student_head: torch.Tensor, teacher_hidden: torch.Tensor,
                         teacher_head: torch.Tensor, weight: torch.Tensor, divergence: str, beta: float, chunk: int,
                         contrast: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of the divergences of N tokens, each times its weight, and its gradients in the student's two.

    hidden (N, D), the teacher's (1, N, D) or, for a contrast, (3, N, D); heads (V, D), weight (N,) in fp32 or float64
    -> scalar, (N, D), (V, D).
    """
    V, dtype = len(student_head), student_head.dtype
    total = weight.new_zeros(())
    grad_hidden = torch.zeros_like(student_hidden)
    grad_head = torch.zeros_like(student_head, dtype=weight.dtype)  # fp32: a sum over many chunks

    with torch.autocast(weight.device.type, enabled=False):
        for rows in weight.nonzero()[:, 0].split(chunk):
            hidden = student_hidden[rows]                     # (chunk, D)
            logits = matmul_fp32(hidden, student_head.T)      # (chunk, V)
            target = contrasted(contrast, *(matmul_fp32(h[rows], teacher_head.T) for h in teacher_hidden))

            loss, saved = divergence_op(logits, target, divergence, beta, 1.0, V)
            total += (loss * weight[rows]).sum()
            grad = divergence_grad_op(weight[rows], logits, target, saved, divergence, beta, 1.0, V).to(dtype)
            del logits, target, saved  # before the next chunk's are made

            grad_hidden[rows] = matmul_fp32(grad, student_head).to(dtype)
            if dtype == weight.dtype:
                grad_head.addmm_(grad.T, hidden)              # in place: half the time
            else:
                grad_head += matmul_fp32(grad.T, hidden)
    return total, grad_hidden, grad_head.to(dtype)


@linear_divergence_op.register_fake
def _(student_hidden, student_head, teacher_hidden, teacher_head, weight, divergence, beta, chunk, contrast):
    return weight.new_empty(()), torch.empty_like(student_hidden), torch.empty_like(student_head)


def save_gradients(ctx, inputs, output):
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


def scale_gradients(ctx, g, *_):
    # Gradients are recorded here only for create_graph=True.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        refuse_second_derivative(ctx)
    return *(x * g for x in ctx.saved_tensors), *[None] * 7


linear_divergence_op.register_autograd(scale_gradients, setup_context=save_gradients)


def linear_distill_loss(student_hidden, student_head, teacher_hidden, teacher_head, mask, divergence="forward",
                        beta=0.5, denominator=None, contrast=0.0, bare=None, other=None, chunk=256):
    """distill_loss(student_hidden @ student_head.T, teacher_hidden @ teacher_head.T, mask), the logits never whole.

    Hidden states (..., D) and heads (V, D) of any float type, mask (...) of bools or numbers -> scalar in fp32 (float64
    for float64). The teacher's D may be its own. There are never more than `chunk` rows of logits; they are fp32 even
    where the factors are bf16. The gradients are made in the forward pass, while a chunk's logits exist; backward only
    scales them. Differentiable once, in the student's two; tokens masked out are skipped. Options out of range raise
    ValueError, a second derivative raises RuntimeError. contrast: as in `contrasted`, which needs the teacher's hidden
    states after the bare prompt and after another demonstration.
    """
    check_options(divergence, beta, 1.0)
    mask = mask.flatten().bool()
    if denominator is None:
        denominator = mask.sum().clamp(min=1)
    dtype = student_hidden.dtype
    weight = mask.to(torch.promote_types(dtype, torch.float32)) / denominator

    student = student_hidden.flatten(0, -2), student_head.to(dtype)
    needed = [teacher_hidden, bare, other] if contrast else [teacher_hidden]
    hidden = torch.stack([h.detach().flatten(0, -2) for h in needed])
    teacher = hidden, teacher_head.detach().to(teacher_hidden.dtype)
    loss, *_ = linear_divergence_op(*student, *teacher, weight, divergence, float(beta), chunk, float(contrast))
    return loss
