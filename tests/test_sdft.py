"""The method: the step, its gradients, the alignment of the two prompts, the teacher."""
import ast
import copy
import dataclasses
import math
import os

import pytest
import torch
import torch._dynamo
import torch.fx.experimental._config
import torch.nn.functional as F

import sdft
from conftest import ROOT, random_gpt
from data import WordTokenizer, collate
from world import words

END = WordTokenizer(words()).end


def sample(model, prompt, length):
    return model.generate(prompt, length, 6, END)


def models(seed=0):
    student = random_gpt(seed)
    teacher = copy.deepcopy(student).requires_grad_(False)
    return student, teacher, torch.optim.SGD(student.parameters(), lr=0.1)


def gradients(batch, **options):
    """The gradient of one step, read before the optimiser would have used it."""
    student, teacher, _ = models()
    kept = {}

    class Keep(torch.optim.SGD):
        def step(self):
            kept.update({n: p.grad.clone() for n, p in student.named_parameters()})

    torch.manual_seed(0)
    figures = sdft.sdft_step(student, teacher, Keep(student.parameters(), lr=0.1), batch, sample, clip=1e9, **options)
    return figures, kept


@pytest.mark.parametrize("name, needs", [("sdft", {"divergence"}), ("divergence", set()), ("model", set())])
def test_it_can_be_lifted_out(name, needs):
    """The method imports the divergences alone of the project; they and the model nothing."""
    with open(os.path.join(ROOT, f"{name}.py")) as f:
        tree = ast.parse(f.read())
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    files = os.listdir(ROOT) + os.listdir(os.path.join(ROOT, "lab"))
    project = {file.removesuffix(".py") for file in files if file.endswith(".py")} | {"lab", "tests"}
    assert project >= {"data", "model", "train", "eval", "runs", "penalties", "world", "pretrain", name}
    assert {i.split(".")[0] for i in imported} & project == needs


def test_divergences_by_hand_on_three_tokens():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    mask = torch.ones(1)

    def loss(divergence, beta=0.5):
        return sdft.distill_loss(q.log()[None], p.log()[None], mask, divergence, beta).item()

    assert loss("forward") == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), rel=1e-5)
    assert loss("reverse") == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), rel=1e-5)
    m = [0.375, 0.25, 0.375]
    kl_pm = 0.5 * math.log(0.5 / m[0]) + 0.25 * math.log(0.25 / m[2])
    assert loss("jsd") == pytest.approx(kl_pm, rel=1e-5)   # p and q mirror each other: both halves are equal
    p2 = torch.tensor([0.5, 0.5, 0.0])
    found = sdft.distill_loss(q.log()[None], p2.log()[None], mask).item()
    assert found == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2), rel=1e-5)


def test_forward_and_reverse_are_told_apart():
    g = torch.Generator().manual_seed(0)
    s, t, mask = torch.randn(5, 7, generator=g), torch.randn(5, 7, generator=g), torch.ones(5)
    p, q = t.double().softmax(-1), s.double().softmax(-1)
    forward, reverse = (p * (p / q).log()).sum(-1).mean().item(), (q * (q / p).log()).sum(-1).mean().item()
    assert sdft.distill_loss(s, t, mask, "forward").item() == pytest.approx(forward, rel=1e-5)
    assert sdft.distill_loss(s, t, mask, "reverse").item() == pytest.approx(reverse, rel=1e-5)


def test_tokens_are_counted_over_the_mask():
    s, t = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    counted = (0, 0), (0, 1), (1, 0)
    each = [sdft.distill_loss(s[i, j][None], t[i, j][None], torch.ones(1)).item() for i, j in counted]
    assert sdft.distill_loss(s, t, mask).item() == pytest.approx(sum(each) / 3, rel=1e-5)


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_equal_prompts_and_weights_give_exactly_zero(batch, divergence):
    batch.demo_prompt, batch.demo_length = batch.prompt, batch.length
    student, teacher, optimizer = models()
    before = copy.deepcopy(student.state_dict())
    figures = sdft.sdft_step(student, teacher, optimizer, batch, sample, divergence=divergence)
    assert figures["loss"] == 0.0 and figures["grad_norm"] < 1e-6
    assert all((before[k] - v).abs().max() < 1e-6 for k, v in student.state_dict().items())


def test_both_roles_score_the_same_tokens_behind_their_own_prompts(batch):
    """One row at a time without any padding must give the same logits as the padded batch, for both prompts."""
    gpt = random_gpt()
    response, mask = sample(gpt, batch.prompt, batch.length)
    for prompt, length in ((batch.prompt, batch.length), (batch.demo_prompt, batch.demo_length)):
        logits = sdft.score(gpt, prompt, length, response)
        for row, n in enumerate(length):
            alone = gpt(torch.cat([prompt[row, :n], response[row]])[None])[0, n - 1 : -1]
            torch.testing.assert_close(logits[row], alone, rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing(batch):
    student, teacher, _ = models()
    response, mask = sample(student, batch.prompt, batch.length)

    def kl(filler):
        prompt, demo_prompt, r = batch.prompt.clone(), batch.demo_prompt.clone(), torch.where(mask, response, filler)
        for row in range(len(prompt)):
            prompt[row, batch.length[row] :], demo_prompt[row, batch.demo_length[row] :] = filler, filler
        of_student = sdft.score(student, prompt, batch.length, r, mask)
        return sdft.distill_loss(of_student, sdft.score(teacher, demo_prompt, batch.demo_length, r, mask), mask)

    assert torch.equal(kl(END), kl(5))


def test_behind_the_end_of_a_response_nothing_is_asked():
    """A mask may leave out first tokens too (--skip): a row is read up to its last one."""
    gpt, asked = random_gpt(), []
    prompt, length, response = torch.randint(0, 900, (3, 5)), torch.tensor([5, 2, 4]), torch.randint(0, 900, (3, 4))
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.bool)

    def model(tokens, at):
        asked.append(at.tolist())
        return gpt(tokens, at=at)

    every, some = sdft.score(model, prompt, length, response), sdft.score(model, prompt, length, response, mask)
    assert asked == [[[4, 5, 6, 7], [1, 2, 3, 4], [3, 4, 5, 6]], [[4, 5, 6, 7], [1, 2, 2, 2], [3, 4, 5, 5]]]
    torch.testing.assert_close(some[mask], every[mask])


@pytest.mark.parametrize("options", [{}, {"divergence": "reverse"}, {"divergence": "jsd", "beta": 0.3}, {"alpha": 0.4},
                                     {"alpha": 1.0}])
@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_micro_batches_give_the_gradient_of_the_whole_batch(batch, options, micro_batch):
    whole, small = gradients(batch, **options), gradients(batch, micro_batch=micro_batch, **options)
    assert small[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)
    for name, g in whole[1].items():
        torch.testing.assert_close(small[1][name], g, rtol=1e-3, atol=1e-5)       # fp32 sums in another order


def test_the_gradient_is_that_of_the_loss(batch):
    """Against an oracle written with other means: per-row log-softmax in float64, teacher and sample held fixed."""
    _, found = gradients(batch)
    student, teacher, _ = models()
    torch.manual_seed(0)
    response, mask = sample(student, batch.prompt, batch.length)
    student, teacher = student.double(), teacher.double()

    def logp(model, prompt, length, row):
        x = torch.cat([prompt[row, : length[row]], response[row, : int(mask[row].sum())]])[None]
        return model(x)[0, length[row] - 1 : -1].log_softmax(-1)

    total = 0.0
    for row in range(len(response)):
        p = logp(teacher, batch.demo_prompt, batch.demo_length, row).detach()
        total = total + (p.exp() * (p - logp(student, batch.prompt, batch.length, row))).sum()
    (total / mask.sum()).backward()
    for name, p in student.named_parameters():
        torch.testing.assert_close(found[name].double(), p.grad, rtol=1e-3, atol=1e-5)


def test_supervised_loss_in_chunks_is_the_cross_entropy_of_all_logits(batch, monkeypatch):
    """Both its value and its gradient; and no more rows of logits stand at once than a chunk has."""
    gpt, asked = random_gpt(), (batch.prompt, batch.length, batch.response)
    logits = sdft.score(gpt, *asked)
    nll = F.cross_entropy(logits[batch.response_mask].float(), batch.response[batch.response_mask], reduction="sum")
    expected = torch.autograd.grad(nll / 7, list(gpt.parameters()))
    seen = []
    gpt.head.register_forward_hook(lambda module, hidden, out: seen.append(len(out)))
    for rows in (10**6, 3):
        monkeypatch.setattr(sdft, "LOGITS", rows * gpt.config.vocab_size)
        seen.clear()
        loss = sdft.sft_loss(gpt, *asked, batch.response_mask, denominator=7)
        assert loss.item() == pytest.approx(nll.item() / 7, rel=1e-5)
        for g, e in zip(torch.autograd.grad(loss, list(gpt.parameters())), expected):
            torch.testing.assert_close(g, e, rtol=1e-3, atol=1e-5)
        n_tokens = int(batch.response_mask.sum())
        # in chunks all are made twice
        assert max(seen) == min(rows, n_tokens) and sum(seen) == n_tokens * (2 if rows < n_tokens else 1)
    assert sdft.sft_loss(gpt, *asked, batch.response_mask).item() == pytest.approx(nll.item() / n_tokens, rel=1e-5)


def test_alpha_one_is_sft_and_samples_nothing(batch):
    def no_sample(*_):
        raise AssertionError("sampled")

    student, teacher, optimizer = models()
    figures = sdft.sdft_step(student, teacher, optimizer, batch, no_sample, alpha=1.0)
    reference, _, _ = models()
    nll = []
    for row in range(len(batch.prompt)):
        n, r = batch.length[row], batch.response[row][batch.response_mask[row]]
        logits = reference(torch.cat([batch.prompt[row, :n], r])[None])[0, n - 1 : -1]
        nll.append(F.cross_entropy(logits, r, reduction="sum"))
    assert figures["loss"] == pytest.approx((sum(nll) / batch.response_mask.sum()).item(), rel=1e-5)
    assert figures["sampled"] == 0 and figures["tokens"] == batch.response_mask.sum()


def test_teacher_gets_no_gradient_and_follows_by_ema(batch):
    student, teacher, optimizer = models()
    before = {n: p.clone() for n, p in teacher.named_parameters()}
    teacher.requires_grad_(True)                           # even a teacher that could take one
    sdft.sdft_step(student, teacher, optimizer, batch, sample, ema_decay=0.9)
    assert all(p.grad is None for p in teacher.parameters())
    for name, p in teacher.named_parameters():
        torch.testing.assert_close(p, 0.9 * before[name] + 0.1 * dict(student.named_parameters())[name])


def test_ema_closed_form_frozen_and_live():
    student, teacher = random_gpt(1), random_gpt(2)
    start = copy.deepcopy(teacher)
    for _ in range(10):
        sdft.ema_update(teacher, student, 0.8)
    for t, s, t0 in zip(teacher.parameters(), student.parameters(), start.parameters()):
        torch.testing.assert_close(t, s + 0.8**10 * (t0 - s), rtol=1e-4, atol=1e-5)
    sdft.ema_update(start, student, 1.0)
    frozen = random_gpt(2)
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), frozen.parameters()))
    sdft.ema_update(start, student, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), student.parameters()))


def test_ema_of_a_bf16_student_moves_an_fp32_teacher():
    """An EMA kept in bf16 with decay 0.99 never moves: the change is rounded away. Ours is kept in fp32."""
    student, teacher = torch.nn.Linear(8, 8).bfloat16(), torch.nn.Linear(8, 8)
    teacher.load_state_dict(student.float().state_dict())
    student = copy.deepcopy(student).bfloat16()
    with torch.no_grad():
        student.weight.mul_(1.125)
    start = teacher.weight.clone()
    for _ in range(100):
        sdft.ema_update(teacher, student, 0.99)
    goal = student.weight.float()
    torch.testing.assert_close(teacher.weight, goal + 0.99**100 * (start - goal), rtol=1e-4, atol=1e-6)


def test_penalty_is_added_to_the_loss_and_the_gradient(batch):
    weight = 0.5
    plain, g0 = gradients(batch)
    with_penalty, g1 = gradients(batch, penalty=lambda student: weight * student.head.weight.square().sum())
    head = models()[0].head.weight
    assert with_penalty["loss"] == plain["loss"]
    assert with_penalty["penalty"] == pytest.approx(weight * head.square().sum().item(), rel=1e-4)
    torch.testing.assert_close(g1["head.weight"] - g0["head.weight"], 2 * weight * head, rtol=1e-3, atol=1e-4)


def test_a_loss_that_is_not_finite_moves_nothing(batch):
    student, teacher, optimizer = models()
    before = copy.deepcopy((student.state_dict(), teacher.state_dict()))
    with pytest.raises(FloatingPointError, match="no step was taken"):
        sdft.sdft_step(student, teacher, optimizer, batch, sample, penalty=lambda s: s.head.weight.sum() * float("nan"))
    for model, state in ((student, before[0]), (teacher, before[1])):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_guard_puts_the_last_good_pair_back():
    student, teacher = random_gpt(1), random_gpt(2)
    guard = sdft.TeacherGuard(0.9, student, teacher)
    with torch.no_grad():
        student.head.weight.add_(1)
    assert guard.check(0.95, student, teacher)
    good = student.head.weight.clone()
    with torch.no_grad():
        student.head.weight.add_(1)
        teacher.head.weight.add_(1)
    assert not guard.check(0.5, student, teacher)
    assert torch.equal(student.head.weight, good) and torch.equal(teacher.head.weight, random_gpt(2).head.weight)


def test_guard_keeps_copies_on_the_cpu_and_none_without_a_floor():
    student, teacher = random_gpt(1), random_gpt(2)
    guard = sdft.TeacherGuard(0.9, student, teacher)
    for model, kept in zip((student, teacher), guard.good):
        for name, weight in model.state_dict().items():
            assert kept[name].device.type == "cpu" and torch.equal(kept[name], weight)
            assert kept[name].data_ptr() != weight.data_ptr() and not kept[name].requires_grad
    none = sdft.TeacherGuard(0.0, student, teacher)
    assert none.good is None and none.check(0.0, student, teacher) and none.good is None


@pytest.mark.parametrize("micro_batch, calls", [(None, 1), (3, 3), (1, 8)])
def test_another_function_may_make_the_loss(batch, micro_batch, calls):
    """Such as on_policy_loss compiled: it is called for all rows once, and what it returns is the loss."""
    asked = []

    def twice(student, teacher, batch, rows, *others):
        asked.append(rows.tolist())
        return 2 * sdft.on_policy_loss(student, teacher, batch, rows, *others)

    plain, doubled = gradients(batch), gradients(batch, loss_fn=twice, micro_batch=micro_batch)
    assert len(asked) == calls and sum(asked, []) == list(range(8))
    assert doubled[0]["loss"] == pytest.approx(2 * plain[0]["loss"], rel=1e-5)
    for name, g in plain[1].items():
        torch.testing.assert_close(doubled[1][name], 2 * g, rtol=1e-3, atol=1e-5)


def test_the_step_learns_from_a_better_informed_teacher(batch):
    """A teacher that differs from the student is approached: the divergence on its answers falls by more than half."""
    student, teacher = random_gpt(0), random_gpt(7).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01)
    torch.manual_seed(0)
    losses = [sdft.sdft_step(student, teacher, optimizer, batch, sample, ema_decay=1.0)["loss"] for _ in range(40)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


@pytest.mark.parametrize("divergence, linear, contrast", [("forward", False, 0.0), ("jsd", True, 0.0),
                                                          ("forward", False, 0.7), ("forward", True, 0.7)])
@torch._dynamo.config.patch(error_on_recompile=True)
def test_student_step_compiles_whole_and_only_once_for_all_lengths(world, divergence, linear, contrast):
    """fullgraph: no graph break. dynamic: no second compilation when answers and prompts have other lengths."""
    torch.fx.experimental._config.use_duck_shape = False
    torch._dynamo.reset()
    student, teacher, _ = models()
    compiled = torch.compile(sdft.on_policy_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for i, task in enumerate(world.stream(5, 16, 8)):
        rows = task.train[: 8 + i]
        batch = collate(rows, world.tokenizer, against=rows[1:] + rows[:1])
        response, mask = sample(student, batch.prompt, batch.length)
        rows = torch.arange(len(response))
        losses, grads = [], []
        for loss in (sdft.on_policy_loss, compiled):
            student.zero_grad()
            losses.append(loss(student, teacher, batch, rows, response, mask, divergence, 0.5, linear, contrast))
            losses[-1].backward()
            grads.append([p.grad.clone() for p in student.parameters()])
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-7)
        for a, b in zip(*grads):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.fixture
def contrasted_batch(world):
    rows = world.stream(1, 16, 8)[0].train[:8]
    return collate(rows, world.tokenizer, against=rows[1:] + rows[:1])


def test_contrast_by_hand_on_three_tokens():
    shown, bare, other = (torch.tensor(p).log() for p in ([0.5, 0.25, 0.25], [0.2, 0.4, 0.4], [0.4, 0.4, 0.2]))
    target = sdft.contrasted(2.0, shown, bare, other).softmax(-1)
    by_hand = torch.tensor([0.5 * 0.5**2, 0.25, 0.25 * 2**2])
    torch.testing.assert_close(target, by_hand / by_hand.sum())
    # what the other demonstration all but rules out gains a factor of e^3 and no more
    cut = sdft.contrasted(1.0, shown, bare, torch.tensor([0.5, 0.5, 1e-9]).log()).softmax(-1)
    assert cut[2] / shown.exp()[2] / (cut[0] / shown.exp()[0]) == pytest.approx(math.exp(3) / (0.2 / 0.5), rel=1e-4)
    assert sdft.contrasted(0.0, shown) is shown


def test_contrast_of_a_demonstration_with_itself_moves_nothing(contrasted_batch):
    """What any demonstration says is not learned; and it is learned without contrast, or from two that differ."""
    same = dict(other_prompt=contrasted_batch.demo_prompt, other_length=contrasted_batch.demo_length)
    same = dataclasses.replace(contrasted_batch, **same)

    def grad_norm(batch, contrast):
        student, _, optimizer = models()
        with torch.no_grad():
            student.head.weight.mul_(0.05)                 # no bracket of 3 nats
        teacher = copy.deepcopy(student).requires_grad_(False)
        return sdft.sdft_step(student, teacher, optimizer, batch, sample, contrast=contrast)["grad_norm"]

    others = grad_norm(same, 0.0), grad_norm(contrasted_batch, 1.0)
    assert grad_norm(same, 1.0) < 1e-3 * min(others) and min(others) > 1e-3


@pytest.mark.parametrize("options", [{"micro_batch": 3}, {"linear": True}, {"linear": True, "micro_batch": 3}])
@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_contrast_in_parts_and_chunks_is_the_whole(contrasted_batch, options, divergence):
    whole = gradients(contrasted_batch, contrast=0.7, divergence=divergence)
    parts = gradients(contrasted_batch, contrast=0.7, divergence=divergence, **options)
    assert parts[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)
    assert parts[0]["loss"] != pytest.approx(gradients(contrasted_batch, divergence=divergence)[0]["loss"], rel=1e-2)
    for name, g in whole[1].items():
        torch.testing.assert_close(parts[1][name], g, rtol=1e-3, atol=1e-5)


def test_linear_step_has_the_gradient_of_the_whole_one(batch):
    whole, linear = gradients(batch), gradients(batch, linear=True)
    assert linear[0]["loss"] == pytest.approx(whole[0]["loss"], rel=1e-5)
    for name, g in whole[1].items():
        torch.testing.assert_close(linear[1][name], g, rtol=1e-3, atol=1e-5)


def test_a_copy_of_tied_weights_on_the_cpu_is_one():
    w = torch.ones(2, 2)
    kept = sdft.on_cpu({"embed": w, "head": w, "norm": w + 1})
    w.zero_()
    assert kept["embed"] is kept["head"] and (kept["embed"] == 1).all() and (kept["norm"] == 2).all()
