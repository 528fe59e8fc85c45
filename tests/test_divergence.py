"""The divergence operator, its Triton kernel, and the losses made of it.

Every test called test_arithmetic_* runs twice: on the plain PyTorch path, and, in a process of its own with
TRITON_INTERPRET=1, on the Triton source, interpreted on CPU tensors. Two more sides of the kernel are seen without a
GPU: that it compiles for two of them, and that its machine code spills no registers. What cannot be seen here (races,
speed, rounding of the device) is marked `gpu`.

Bugs that were planted one at a time, and the first test to fail (I: interpreted kernel, P: plain path, C: compiled
ahead of time):

    row offsets in 32 bits                          I  offsets_past_2_to_31 (the process dies)
    running maximum starts at -inf                  I  masked_words
    sum not rescaled when the maximum moves         I  float64[9000]
    log 0 left at -inf                              I  three_tokens_by_hand
    log 0 by a maximum that drops NaN               C  compiles_for_a_gpu_without_spills
    no series for a small log-ratio                 I  float64[2]
    a wrong coefficient in the series               I  float64[2]
    the terms - A + B left out                      I  float64[2]
    padding counted as words                        I  padded_vocabulary
    one column too many stored                      I  three_tokens_by_hand (the process dies)
    gradient not divided by the temperature         I  float64[2]
    KL missing from the reverse gradient            I  three_tokens_by_hand[reverse]
    jsd keeps its whole where KL(Q ‖ M) belongs     I  float64[2-jsd]
    jsd's two weights swapped                       I  float64[2-jsd]
    log(M / Q) not bounded                          I  one_hot_rows[jsd]
    the student's stride used for the teacher       I  strided_rows
    bf16 not made fp32 on loading                   I  half[bfloat16]
    NaN * 0 in the gradient of a masked row         I, P  zero_weight_is_zero_gradient
    close rows not summed again                     P  float64[2]
    B lost where A is 0 to fp32                     P  a_word_only_one_side_allows
    exp(-30) rounded to 1e-13                       P  a_word_only_one_side_allows
    -inf not made finite                            P  identical_is_zero
    maximum not subtracted first                    P  three_tokens_by_hand
    len(x) in the fake operator pins N              P  compile_fullgraph_with_any_number_of_tokens
    loss * mask in place of where                   P  distill_loss_ignores_what_is_masked_out
    mean over all tokens, not those of the mask     P  distill_loss_mask_and_denominator
    linear loss: bf16 logits                        P  bf16_matrices_keep_the_gradient
    linear loss: autocast rounds its products       P  bf16_matrices_keep_the_gradient
    linear loss: head's gradient of the last chunk  P  linear_chunks_equal_the_whole
    linear loss: backward does not scale            P  linear_chunks_equal_the_whole

exp(-30) rounded was a real bug before it was a planted one: it cost 7 % of such a KL, and no test saw it until that one
was written.
"""
import ast
import functools
import math
import os
import re
import subprocess
import sys
import tempfile

import pytest
import torch

import divergence
import sdft
from divergence import distill_loss, divergence_reference, linear_distill_loss, token_divergence

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED:
    # CPU tensors go to the kernel, too.
    divergence.uses_triton = lambda x: x.dtype != torch.float64
KINDS = ["forward", "reverse", "jsd"]
kinds = pytest.mark.parametrize("kind", KINDS)
needs_triton = pytest.mark.skipif(divergence.triton is None, reason="triton is not installed")


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


def oracle(student, teacher, kind, beta=0.3, temperature=1.0):
    """The definition in float64, with 0 log 0 = 0."""
    q, p = (student.double() / temperature).log_softmax(-1), (teacher.double() / temperature).log_softmax(-1)
    m = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))

    def kl(a, b):
        return torch.where(a > -math.inf, a.exp() * (a - b), 0).sum(-1)

    if kind == "forward":
        return kl(p, q)
    if kind == "reverse":
        return kl(q, p)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def check(student, teacher, kind, beta=0.3, temperature=1.0, vocab=None, rtol=5e-5, atol=1e-9, grad_tol=2e-5,
          grad_atol=0.0):
    """Operator against oracle: the loss of each row, and the gradient in relative L2.

    5e-5 and 2e-5: fp32 rounds to 6e-8, a log-probability near 16 to 1e-6, and a KL near 0.01, the smallest that the
    plain path sums plainly, is a difference of such terms; the largest seen is 3e-5 and 2e-6.
    """
    V = vocab or student.shape[1]
    g = torch.rand(len(student), device=student.device) + 0.1
    exact = student[:, :V].double().detach().requires_grad_()
    want = oracle(exact, teacher[:, :V], kind, beta, temperature)
    want.backward(g.double())

    # No clone: that would drop the strides.
    student = student.detach().requires_grad_()
    got = token_divergence(student, teacher, kind, beta, temperature, vocab)
    got.backward(g)

    assert got.dtype == torch.float32 and (got >= -1e-12).all()
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=atol)
    error = (student.grad[:, :V].double() - exact.grad).norm()
    assert error <= grad_tol * exact.grad.norm() + grad_atol * g.norm(), (error / exact.grad.norm()).item()
    assert (student.grad[:, V:] == 0).all()


def pair(N, V, noise=1.0, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(N, V, generator=generator) * 3
    return (teacher + noise * torch.randn(N, V, generator=generator)).to(**options), teacher.to(**options)


# ---- both paths ----

@kinds
def test_arithmetic_three_tokens_by_hand(kind):
    P, Q, M = (0.5, 0.25, 0.25), (0.25, 0.25, 0.5), (3 / 8, 2 / 8, 3 / 8)

    # 0.5 log 2 + 0 - 0.25 log 2, the same the other way round; M is that of beta = 1/2.
    kl_qm = 0.5 * math.log(4 / 3) - 0.25 * math.log(3 / 2)
    want = {"forward": 0.25 * math.log(2), "reverse": 0.25 * math.log(2), "jsd": kl_qm}[kind]
    slope = {
        "forward": (-0.25, 0, 0.25),
        "reverse": (-0.25 * math.log(2) * 1.25, -0.25 * math.log(2) * 0.25, 0.5 * math.log(2) * 0.75),
        "jsd": tuple(0.5 * q * (math.log(q / m) - kl_qm) for q, m in zip(Q, M)),
    }[kind]

    # A constant added to a row of logits changes nothing.
    s, t = torch.tensor([Q]).log() + 5, torch.tensor([P]).log() - 5
    s.requires_grad_()
    loss = token_divergence(s, t, kind)
    loss.backward()

    # 1e-5: a few roundings of logits near 5.
    torch.testing.assert_close(loss, torch.tensor([want]), rtol=1e-5, atol=0)
    torch.testing.assert_close(s.grad, torch.tensor([slope]), rtol=1e-5, atol=1e-6)


@kinds
@pytest.mark.parametrize("V", [2, 7, 1000, 4096, 4097, 9000, 50257])
def test_arithmetic_float64(kind, V):
    """The widths lie inside, at and across the edge of a block."""
    check(*pair(3, V, seed=V), kind, temperature=2.0)


@kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_arithmetic_half(kind, dtype):
    # The gradient is rounded to 8 bits: 2^-9, or 2^-8 truncated.
    check(*pair(8, 1000, dtype=dtype), kind, grad_tol=6e-3)


@kinds
@pytest.mark.parametrize("noise,rtol", [(1e-1, 1e-4), (1e-2, 1e-3), (1e-3, 1e-2)])
def test_arithmetic_tiny_divergence_keeps_its_digits(kind, noise, rtol):
    """The loss is about noise² / 2, down to 5e-7; a log-ratio of size `noise` carries the 1e-6 of its two logs."""
    check(*pair(8, 5000, noise), kind, rtol=rtol, atol=0, grad_tol=max(2e-5, 2e-6 / noise))


@kinds
def test_arithmetic_identical_is_zero(kind):
    s = pair(4, 5000)[0]
    s[1, :50] = -math.inf
    s[2, 7] = 1e4
    t = s.clone()
    s.requires_grad_()
    loss = token_divergence(s, t, kind, beta=0.3, temperature=0.7)
    loss.sum().backward()
    assert (loss == 0).all() and (s.grad == 0).all()


@kinds
def test_arithmetic_one_hot_rows(kind):
    """Student and teacher sure of different words, by 100 nats and by 1e4.

    The true gradient is near 0: absolute 2e-3 of a log-ratio, since fp32 steps by 1e-3 near 1e4.
    """
    s, t = pair(4, 5000)
    s[:, 7], t[:, 9] = 200, 150
    check(s, t, kind, grad_atol=2e-5)
    s[:, 7], t[:, 9] = 1e4, -1e4
    check(s, t, kind, grad_atol=2e-3)
    s[:, 7] = -1e4
    t[:, 9] = 1e4
    check(s, t, kind, grad_atol=2e-3)


@kinds
def test_arithmetic_shifted_rows(kind):
    """The input is exact: the row's maximum is subtracted first."""
    s, t = pair(4, 1000)
    check(s + 1000, t - 1000, kind)


@kinds
def test_arithmetic_masked_words(kind):
    """-inf in both is as if the words were not there; a whole block of them, and in the teacher alone."""
    s, t = pair(4, 5000)
    for cut in (50, 4096):
        a, b = s.clone(), t.clone()
        a[:, :cut] = b[:, :cut] = -math.inf
        a.requires_grad_()
        loss = token_divergence(a, b, kind, beta=0.3)
        loss.sum().backward()
        torch.testing.assert_close(loss.double(), oracle(s[:, cut:], t[:, cut:], kind), rtol=5e-5, atol=1e-9)
        assert a.grad.isfinite().all() and (a.grad[:, :cut] == 0).all()

    b = t.clone()
    b[:, :50] = -math.inf
    s.requires_grad_()
    loss = token_divergence(s, b, kind, beta=0.3)
    loss.sum().backward()
    assert loss.isfinite().all() and s.grad.isfinite().all() and (loss > 0).all()
    # The true reverse KL is infinite; log 0 is -1e6 here.
    if kind != "reverse":
        torch.testing.assert_close(loss.double(), oracle(s.detach(), b, kind), rtol=5e-5, atol=1e-9)


@kinds
def test_arithmetic_a_word_only_one_side_allows(kind):
    """One side has exp(-200), 0 in fp32, where the other has 0.003; all else agrees.

    So the KL is only 0.003, and fp32 errs by about 1e-7. The reverse gradient is 0 here but for rounding, hence the
    absolute tolerance: 1e-7 of one.
    """
    s = pair(4, 1000)[0]
    s[:, 7] = -math.inf
    s[:, 7] = s.logsumexp(-1) + math.log(0.003)
    t = s.clone()
    (s if kind == "reverse" else t)[:, 7] = -200
    check(s, t, kind, rtol=1e-4, grad_tol=1e-4, grad_atol=1e-7)


@kinds
@pytest.mark.parametrize("where", [0, 4500])
def test_arithmetic_nan_in_nan_out(kind, where):
    for role in range(2):
        s, t = pair(3, 5000)
        (s, t)[role][1, where] = math.nan
        s.requires_grad_()
        loss = token_divergence(s, t, kind)
        loss.sum().backward()
        assert loss.isnan().tolist() == [False, True, False]
        assert s.grad[1].isnan().any() and s.grad[[0, 2]].isfinite().all()


@kinds
def test_arithmetic_zero_weight_is_zero_gradient(kind):
    s, t = pair(3, 100)
    s[1] = math.nan
    s.requires_grad_()
    token_divergence(s, t, kind)[[0, 2]].sum().backward()
    assert (s.grad[1] == 0).all() and s.grad.isfinite().all()


@kinds
@pytest.mark.parametrize("V,vocab", [(1008, 1003), (5008, 4097), (9000, 100)])
def test_arithmetic_padded_vocabulary(kind, V, vocab):
    s, t = pair(4, V)
    s[:, vocab:], t[:, vocab:] = 1e4, math.nan  # whatever stands there
    check(s, t, kind, temperature=0.5, vocab=vocab)


@kinds
def test_arithmetic_strided_rows(kind):
    big = torch.randn(2, 6, 1200, generator=torch.Generator().manual_seed(0))
    check(big[0, ::2, :1000], big[1, ::2, 100:1100], kind)
    # Columns apart in memory; one row for all.
    check(big[0, :, :600].T[:100], big[1, 0, :6].expand(100, 6), kind)


def test_arithmetic_offsets_past_2_to_31():
    """4 GiB of addresses, of which three rows are ever touched."""
    s, t = pair(3, 1000, dtype=torch.bfloat16)
    far = torch.empty(2**31 + 1000, dtype=torch.bfloat16).as_strided((3, 1000), (2**30, 1))
    check(far.copy_(s), t, "forward", grad_tol=6e-3)
    check(s, far.copy_(t), "forward", grad_tol=6e-3)


@kinds
@pytest.mark.parametrize("N", [0, 1])
def test_arithmetic_few_rows(kind, N):
    s, t = pair(N, 300)
    s.requires_grad_()
    token_divergence(s, t, kind).sum().backward()
    assert s.grad.shape == (N, 300)
    check(s, t, kind) if N else None


# ---- the module ----

def test_nothing_of_the_project_is_imported():
    with open(divergence.__file__) as f:
        tree = ast.parse(f.read())
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} == {"math", "torch", "triton"}


def test_sdft_hands_on_both_losses():
    assert sdft.distill_loss is divergence.distill_loss
    assert sdft.linear_distill_loss is divergence.linear_distill_loss


# ---- the operator in PyTorch ----

@kinds
def test_reference(kind):
    s, t = pair(5, 50, dtype=torch.float64)
    torch.testing.assert_close(divergence_reference(s, t, kind, 0.3, 2.0), oracle(s, t, kind, 0.3, 2.0))
    torch.testing.assert_close(token_divergence(s, t, kind, 0.3, 2.0), oracle(s, t, kind, 0.3, 2.0))


@kinds
def test_gradcheck(kind):
    s, t = pair(3, 20, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: token_divergence(s, t, kind, 0.3, 2.0, 17), s.requires_grad_())


@kinds
def test_opcheck(kind):
    s, t = pair(4, 40)
    for student in (s, s.clone().requires_grad_()):
        torch.library.opcheck(divergence.divergence_op, (student, t, kind, 0.3, 2.0, 37))
    saved = divergence.divergence_op(s, t, kind, 0.3, 2.0, 37)[1]
    torch.library.opcheck(divergence.divergence_grad_op, (torch.rand(4), s, t, saved, kind, 0.3, 2.0, 37))


def test_second_derivative_is_refused():
    s, t = pair(2, 10)
    s.requires_grad_()
    grad, = torch.autograd.grad(token_divergence(s, t).sum(), s, create_graph=True)
    with pytest.raises(RuntimeError, match="once only"):
        grad.sum().backward()
    h, W = torch.randn(4, 8, requires_grad=True), torch.randn(10, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.grad(linear_distill_loss(h, W, h, W + 1, torch.ones(4)), h, create_graph=True)


def test_teacher_gets_no_gradient():
    s, t = (x.requires_grad_() for x in pair(2, 10))
    token_divergence(s, t).sum().backward()
    assert t.grad is None and s.grad is not None


def test_errors_name_value_and_remedy():
    s, t = pair(4, 10)
    cases = [
        ({"divergence": "kl"}, "'kl'.*forward.*jsd"),
        ({"beta": 1.0}, "beta is 1.0"),
        ({"beta": math.nan}, "beta is nan"),
        ({"temperature": 0}, "temperature is 0"),
        ({"vocab": 11}, "11.*10"),
        ({"vocab": 0}, "vocab is 0"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            token_divergence(s, t, **options)
    with pytest.raises(ValueError, match=r"\(4, 10\) and \(4, 9\)"):
        token_divergence(s, t[:, :9])
    with pytest.raises(ValueError, match="'kl'"):
        linear_distill_loss(s, s, s, s, torch.ones(4), "kl")


# ---- the loss ----

@kinds
def test_distill_loss_mask_and_denominator(kind):
    s, t = (x.view(2, 3, 50) for x in pair(6, 50))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    rows = divergence_reference(s.flatten(0, 1), t.flatten(0, 1), kind)[mask.flatten()]
    torch.testing.assert_close(distill_loss(s, t, mask, kind), rows.mean())
    torch.testing.assert_close(distill_loss(s, t, mask.float(), kind, denominator=12), rows.sum() / 12)

    # Micro-batches add up to the batch.
    parts = [distill_loss(s[i], t[i], mask[i], kind, denominator=mask.sum()) for i in range(2)]
    torch.testing.assert_close(sum(parts), rows.mean())


@kinds
def test_distill_loss_ignores_what_is_masked_out(kind):
    s, t = (x.view(2, 3, 50) for x in pair(6, 50))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    results = []
    for garbage in (0.0, math.nan, math.inf):
        a, b = s.clone(), t.clone()
        a[~mask] = b[~mask] = garbage
        a.requires_grad_()
        loss = distill_loss(a, b, mask, kind)
        loss.backward()
        assert (a.grad[~mask] == 0).all() and (a.grad[mask] != 0).any()
        results.append((loss.item(), a.grad))
    assert all(loss == results[0][0] and torch.equal(grad, results[0][1]) for loss, grad in results)

    # A mask of nothing.
    assert distill_loss(a, b, torch.zeros_like(mask), kind) == 0


@kinds
def test_compile_fullgraph_with_any_number_of_tokens(kind):
    torch._dynamo.reset()
    compiled = torch.compile(distill_loss, fullgraph=True, backend="aot_eager")
    counts = []
    for N in (16, 24, 40, 7):
        s, t = pair(N, 60, seed=N)
        mask = torch.rand(N) < 0.7
        a, b = s.clone().requires_grad_(), s.clone().requires_grad_()
        want, got = distill_loss(a, t, mask, kind, 0.3, 2.0, 57), compiled(b, t, mask, kind, 0.3, 2.0, 57)
        want.backward(), got.backward()
        torch.testing.assert_close(got, want, rtol=1e-6, atol=0)  # the mean may be summed in another order
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-6, atol=1e-9)
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    # One graph for 16, one for any N.
    assert counts[1] == counts[-1], counts


def linear_problem(N=50, V=300, D=16, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(N, D, generator=g), torch.randn(V, D, generator=g) / D**0.5 * 3
    # Logits apart by 0.03.
    teacher_head = head + 0.03 / D**0.5 * torch.randn(V, D, generator=g)
    student = hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_()
    return *student, hidden.to(dtype), teacher_head.to(dtype)


@kinds
@pytest.mark.parametrize("chunk", [1, 16, 1000])
def test_linear_chunks_equal_the_whole(kind, chunk):
    h, W, th, tW = linear_problem()
    mask = (torch.rand(5, 10, generator=torch.Generator().manual_seed(1)) < 0.7)
    h.data.view(5, 10, 16)[~mask] = math.nan  # never looked at
    logits = torch.where(mask.flatten()[:, None], h, 0) @ W.T
    want = distill_loss(logits, th @ tW.T + torch.arange(300) / 100, mask.flatten(), kind, 0.3, denominator=60)
    grads = torch.autograd.grad(want, (h, W))

    # The teacher's own width: one more column of hidden states carries the shift of its logits.
    th, tW = torch.cat([th, torch.ones(50, 1)], 1), torch.cat([tW, torch.arange(300)[:, None] / 100], 1)
    got = linear_distill_loss(h.view(5, 10, 16), W, th.view(5, 10, 17), tW, mask, kind, 0.3, 60, chunk=chunk)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=0)  # two orders of summing the logits
    for x, y in zip(torch.autograd.grad(3 * got, (h, W)), grads):
        assert (x - 3 * y).norm() <= 1e-5 * (3 * y).norm()


def test_linear_mask_of_nothing():
    h, W, th, tW = linear_problem()
    loss = linear_distill_loss(h, W, th, tW, torch.zeros(50))
    loss.backward()
    assert loss == 0 and (W.grad == 0).all() and (h.grad == 0).all()


def test_linear_gradcheck():
    h, W, th, tW = linear_problem(6, 12, 4, torch.float64)
    mask = torch.tensor([1, 1, 0, 1, 0, 1])
    loss = functools.partial(linear_distill_loss, teacher_hidden=th + 1, teacher_head=tW, mask=mask, divergence="jsd",
                             beta=0.3, chunk=3)
    assert torch.autograd.gradcheck(loss, (h, W))


def test_bf16_matrices_keep_the_gradient():
    """Student and teacher 0.03 nats apart: logits rounded to bf16 would leave noise, so only the matrices are bf16."""
    h, W, th, tW = linear_problem(64, 2000, 64, torch.bfloat16)
    h64, W64 = (x.detach().double().requires_grad_() for x in (h, W))
    oracle(h64 @ W64.T, th.double() @ tW.double().T, "forward").mean().backward()

    def error(loss):
        grads = torch.autograd.grad(loss, (h, W))
        return max(((x.double() - y).norm() / y.norm()).item() for x, y in zip(grads, (h64.grad, W64.grad)))
    mask = torch.ones(64)

    # bf16 rounds the gradients, 2^-9 twice; the second line is what the chunked loss avoids.
    assert error(linear_distill_loss(h, W, th, tW, mask, chunk=20)) < 0.01
    assert error(distill_loss(h @ W.T, th @ tW.T, mask)) > 0.3

    # Autocast must not round its products either.
    with torch.autocast("cpu", torch.bfloat16):
        assert error(linear_distill_loss(h, W.float(), th, tW.float(), mask, chunk=20)) < 0.01


# ---- the Triton kernel without a GPU ----

@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_triton_interpreted():
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-k", "arithmetic", "-p", "no:cacheprovider"]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert run.returncode == 0 and "passed" in run.stdout, run.stdout[-3000:] + run.stderr[-1000:]


def compile_for(capability, kernel, dtype, kind, sixteen=True):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    scalars = {"scale": "fp32", "beta": "fp32", "KIND": "constexpr", "BLOCK": "constexpr"}
    logits = {"S": "*" + dtype, "T": "*" + dtype, "DS": "*" + dtype}
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        integer = name in ("V", "vocab") or name.startswith("stride")
        signature[name] = "i32" if integer else (scalars | logits).get(name, "*fp32")
        # What a launch finds out from its arguments.
        if signature[name][0] == "*" or sixteen and integer and name != "vocab":
            attributes[(i,)] = [["tt.divisibility", 16]]

    source = ASTSource(kernel, signature, {"KIND": kind, "BLOCK": 4096}, attributes)
    compiled = divergence.triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    tool = os.path.join(os.path.dirname(divergence.triton.__file__), "backends", "nvidia", "bin", "cuobjdump")

    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(compiled.asm["cubin"])
        f.flush()
        usage, code = (subprocess.run([tool, flag, f.name], capture_output=True, text=True, check=True).stdout
                       for flag in ("--dump-resource-usage", "-sass"))
    return {name: int(n) for name, n in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}, code


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="needs the Triton compiler")
@pytest.mark.parametrize("capability,dtype", [(80, "bf16"), (90, "bf16"), (90, "fp32")])
@kinds
def test_compiles_for_a_gpu_without_spills(capability, dtype, kind):
    for kernel in (divergence.forward_kernel, divergence.backward_kernel):
        usage, code = compile_for(capability, kernel, dtype, kind)
        # STACK and LDL/STL show spills; 128 registers a thread let two blocks of 8 warps share a multiprocessor.
        assert usage["STACK"] == 0 and not re.search(r"\b(LDL|STL)\b", code) and usage["REG"] <= 128, usage
        # 16 bytes a load, though vocab is any number.
        assert "LDG.E.128" in code and "LDG.E.U16" not in code

    # The interpreter's maximum keeps NaN and the GPU's plain one does not: backward (without the bound of jsd) may hold
    # only FMNMX.NAN.
    assert kind == "jsd" or not re.search(r"FMNMX(?!\.NAN)", code)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="needs the Triton compiler")
def test_an_odd_number_of_columns_loads_two_bytes_at_a_time():
    """Why a head is padded to 50,304 rows and the true 50,257 passed as vocab."""
    assert "LDG.E.U16" in compile_for(90, divergence.forward_kernel, "bf16", "forward", sixteen=False)[1]


# ---- on a GPU ----

@on_gpu
@needs_triton
@kinds
@pytest.mark.parametrize("V,vocab", [(1000, None), (50257, None), (50304, 50257), (128256, None)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_device_matches_float64(kind, V, vocab, dtype):
    s, t = pair(16, V, device="cuda", dtype=dtype)
    # exp2 of the device errs by 2 roundings.
    check(s, t, kind, vocab=vocab, grad_tol=2e-5 if dtype == torch.float32 else 6e-3)


@on_gpu
@needs_triton
def test_device_edges():
    s, t = pair(4, 5000, device="cuda")
    same = s.clone().requires_grad_()
    token_divergence(same, s, "jsd", 0.3).sum().backward()
    assert (same.grad == 0).all()
    s[1, 7] = math.nan
    assert token_divergence(s, t).isnan().tolist() == [False, True, False, False]


@on_gpu
@needs_triton
@kinds
def test_device_memory_is_inputs_and_gradient(kind):
    s, t = pair(2048, 8192, device="cuda", dtype=torch.bfloat16)
    s.requires_grad_()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    token_divergence(s, t, kind).sum().backward()
    extra = torch.cuda.max_memory_allocated() - before

    # The gradient and a few numbers a row, no second (N, V).
    assert extra <= 1.05 * s.numel() * s.element_size()


@on_gpu
@needs_triton
@kinds
def test_device_compiled_equals_eager(kind):
    s, t = pair(64, 1000, device="cuda")
    mask = torch.arange(64, device="cuda") % 3 > 0
    compiled = torch.compile(distill_loss, fullgraph=True)
    a, b = s.clone().requires_grad_(), s.clone().requires_grad_()
    distill_loss(a, t, mask, kind).backward()
    compiled(b, t, mask, kind).backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-9)
