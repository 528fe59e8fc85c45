"""The GPT: fast attention against plain, cached against uncached, errors."""
import pytest
import torch
import torch.nn.functional as F

import model as model_module
from conftest import VOCAB_SIZE, random_gpt

END = VOCAB_SIZE - 1


def prompts(rows=5, longest=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    length = torch.tensor([longest, 1, 4, 7, 2][:rows])
    return torch.randint(0, 900, (rows, longest), generator=g), length


def test_plain_attention_agrees_with_sdpa(monkeypatch):
    gpt = random_gpt()
    tokens, _ = prompts()
    mask = torch.rand(5, 1, 9, 9, generator=torch.Generator().manual_seed(0)) > 0.3
    mask = (mask | torch.eye(9, dtype=torch.bool)) & torch.ones(9, 9, dtype=torch.bool).tril()
    fast = gpt(tokens), gpt(tokens, mask=mask)
    monkeypatch.setattr(model_module.F, "scaled_dot_product_attention", model_module.plain_attention)
    for a, b in zip(fast, (gpt(tokens), gpt(tokens, mask=mask))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


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
