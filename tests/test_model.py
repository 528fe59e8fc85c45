"""The GPT: fast attention against plain, cached against uncached, errors."""
import dataclasses

import pytest
import torch
import torch.nn.functional as F

import model as model_module
from conftest import VOCAB_SIZE, random_gpt
from model import GPT, GPTConfig

END = VOCAB_SIZE - 1


def prompts(rows=5, longest=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    length = torch.tensor([longest, 1, 4, 7, 2][:rows])
    return torch.randint(0, 900, (rows, longest), generator=g), length


@pytest.mark.parametrize("heads, keys", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("T, S", [(9, 9), (1, 12), (5, 12)])
def test_attention_agrees_with_sdpa(monkeypatch, heads, keys, T, S):
    """Shared keys, copied for each head that looks at them: outputs and gradients, causal and with a mask per row. And
    the fast kernel on what the plain one is given here."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, length, 8, requires_grad=True) for n, length in ((heads, T), (keys, S), (keys, S)))
    seen = torch.rand(2, 1, T, S) > 0.3
    seen[..., 0] = True
    for mask in (seen, seen[:1], None) if T == S else (seen,):
        copied = [x.repeat_interleave(heads // keys, dim=1) for x in (k, v)]
        slow = F.scaled_dot_product_attention(q, *copied, attn_mask=mask, is_causal=mask is None)
        fast = model_module.attention(q, k, v, mask)
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
        weight = torch.randn_like(fast)
        gradients = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (fast, slow)]
        for ours, theirs in zip(*gradients):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        with monkeypatch.context() as patched:
            patched.setattr(model_module, "plain_attention", F.scaled_dot_product_attention)
            torch.testing.assert_close(model_module.attention(q, k, v, mask), slow, rtol=1e-4, atol=1e-5)


def test_attention_is_causal_and_padding_changes_nothing():
    gpt = random_gpt()
    tokens, length = prompts()
    other = tokens.clone()
    for row, n in enumerate(length):
        other[row, n:] = 7
    a, b = gpt(tokens), gpt(other)
    for row, n in enumerate(length):
        assert torch.equal(a[row, :n], b[row, :n])
    assert not torch.equal(a, b)


def test_scoring_some_positions_equals_scoring_all():
    gpt = random_gpt()
    tokens, _ = prompts()
    at = torch.tensor([[0, 3, 8]] * 5)
    torch.testing.assert_close(gpt(tokens, at=at), gpt(tokens)[:, [0, 3, 8]])
    torch.testing.assert_close(F.linear(gpt(tokens, return_hidden=True), gpt.head.weight), gpt(tokens))


def test_cached_generation_equals_recomputing_every_token():
    """Unequal lengths, greedy: each new token must be what a full forward pass over the row so far would choose."""
    gpt = random_gpt()
    tokens, length = prompts()
    response, mask = gpt.generate(tokens, length, 12, end=-1, temperature=0)     # -1: no end, and all 12 are compared
    assert response.shape == (5, 12) and mask.all()
    for row, n in enumerate(length):
        so_far = tokens[row, :n].tolist()
        for token in response[row].tolist():
            logits = gpt(torch.tensor([so_far]))[0, -1]
            assert logits[token] >= logits.max() - 1e-4    # fp32 in another order of sums
            so_far.append(token)


def test_cached_logits_equal_uncached_logits(monkeypatch):
    gpt = random_gpt()
    tokens, length = prompts()
    cached, logits = [], gpt.logits
    monkeypatch.setattr(gpt, "logits", lambda x: cached.append(logits(x)) or cached[-1])
    torch.manual_seed(0)
    response, _ = gpt.generate(tokens, length, 8, end=-1)
    monkeypatch.undo()
    for row, n in enumerate(length):
        whole = gpt(torch.cat([tokens[row, :n], response[row]])[None])[0]
        for i, step in enumerate(cached):
            torch.testing.assert_close(step[row], whole[n - 1 + i], rtol=1e-3, atol=1e-3)


def test_samples_follow_the_distribution():
    gpt = random_gpt(vocab=16, n_embd=16)
    tokens = torch.tensor([[3, 1, 4, 1, 5]]).repeat(20000, 1)
    torch.manual_seed(0)
    response, _ = gpt.generate(tokens, torch.full((20000,), 3), 1, end=-1)
    frequency = torch.bincount(response[:, 0], minlength=16) / 20000
    expected = gpt(tokens[:1, :3])[0, -1].softmax(-1)
    torch.testing.assert_close(frequency, expected, atol=0.015, rtol=0)                   # 4 sigma at p = 1/2


def test_generation_stops_at_the_end_token():
    gpt = random_gpt()
    tokens, length = prompts()
    free, _ = gpt.generate(tokens, length, 12, end=-1, temperature=0)
    end = int(free[0, 3])
    response, mask = gpt.generate(tokens, length, 12, end=end, temperature=0)
    for row in range(5):
        said = free[row].tolist()
        n = said.index(end) + 1 if end in said else 12
        n = min(n, response.shape[1])
        assert response[row, :n].tolist() == said[:n]
        assert mask[row].tolist() == [True] * n + [False] * (response.shape[1] - n)
        assert (response[row, n:] == end).all()


def test_generation_never_runs_past_the_context():
    gpt = random_gpt(context=16)
    tokens, length = prompts()
    gpt.generate(tokens, length, 7, END)
    with pytest.raises(ValueError, match="17 tokens does not fit the context of 16"):
        gpt.generate(tokens, length, 8, END)
    with pytest.raises(ValueError, match="context of 16"):
        gpt(torch.zeros(1, 17, dtype=torch.long))


def test_rotary_positions_are_relative():
    """A query and a key turned by the same number of positions keep their product."""
    gpt = random_gpt(context=64)
    q, k = torch.randn(2, 1, 1, 1, 16).unbind(0)

    def turned(x, i):
        return model_module.rotate(x, gpt.cos[i], gpt.sin[i])

    product = [(turned(q, i) * turned(k, i + 5)).sum() for i in (0, 7, 50)]
    torch.testing.assert_close(product[0], product[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(product[0], product[2], rtol=1e-4, atol=1e-5)



LIKE_LLAMA = {"gated": True, "n_head": 4, "n_kv_head": 2, "theta": 1e4, "eps": 1e-5}


def test_a_model_in_bf16_samples():
    """A copy of a quarter of the bytes, to sample from: one type from end to end, and nearly the same logits."""
    model = random_gpt(**LIKE_LLAMA, qk_norm=True)
    small = model_module.frozen_copy(model).bfloat16()
    tokens, length = prompts()
    assert small(tokens).dtype == torch.bfloat16
    response, _ = small.generate(tokens, length, 8, END)
    assert response.shape[0] == 5
    assert F.cosine_similarity(small(tokens).float(), model(tokens), dim=-1).min() > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_answers_as_the_cpu_does():
    model = random_gpt(**LIKE_LLAMA, qk_norm=True, qkv_bias=True)
    tokens, length = prompts()
    expected, (answers, _) = model(tokens), model.generate(tokens, length, 12, end=-1, temperature=0)
    model.cuda()
    torch.testing.assert_close(model(tokens.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(model.generate(tokens.cuda(), length.cuda(), 12, end=-1, temperature=0)[0].cpu(), answers)


def test_old_calls_of_the_config_keep_their_meaning():
    config = GPTConfig(960, 2, 4, 64, 128, 0.1)
    assert dataclasses.asdict(config) == {
        "vocab_size": 960, "n_layer": 2, "n_head": 4, "n_embd": 64, "context": 128, "dropout": 0.1, "n_kv_head": 4,
        "head_dim": 16, "n_mlp": 256, "gated": False, "qkv_bias": False, "qk_norm": False, "tied": False,
        "eps": torch.finfo(torch.float32).eps, "theta": 1000.0, "rope": None}
    assert {name: tuple(p.shape) for name, p in GPT(config).blocks[1].named_parameters()} == {
        "attn_norm.weight": (64,), "mlp_norm.weight": (64,), "qkv.weight": (192, 64), "attn_out.weight": (64, 64),
        "mlp_in.weight": (256, 64), "mlp_out.weight": (64, 256)}
