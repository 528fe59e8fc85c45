"""A small GPT: rotary positions, RMSNorm, squared ReLU, no biases. One forward pass for training and scoring, one
KV-cached `generate` for sampling. Left out: everything that a model of a million parameters does not need (GQA, MoE,
quantisation).

Shapes: B batch, T time, D width, H heads, K = D / H, V vocabulary, S cache slots.
"""
import copy
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class GPTConfig:
    vocab_size: int
    n_layer: int = 3
    n_head: int = 4
    n_embd: int = 128
    context: int = 256            # longest sequence in tokens: prompt, demonstration and answer together
    dropout: float = 0.0


def rotate(x, cos, sin):
    """Rotary position embedding (Su et al. 2021): each pair (x1, x2) turns by an angle that grows with the position."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x1 * sin + x2 * cos], dim=-1)


def plain_attention(q, k, v, attn_mask=None, is_causal=False):
    """What F.scaled_dot_product_attention computes, written out. q (B, H, T, K), k and v (B, H, S, K); mask True =
    may look."""
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5                                        # (B, H, T, S)
    if is_causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        D = config.n_embd
        self.n_head, self.dropout = config.n_head, config.dropout
        self.attn_norm, self.mlp_norm = nn.RMSNorm(D), nn.RMSNorm(D)
        self.qkv = nn.Linear(D, 3 * D, bias=False)
        self.attn_out = nn.Linear(D, D, bias=False)
        self.mlp_in = nn.Linear(D, 4 * D, bias=False)
        self.mlp_out = nn.Linear(4 * D, D, bias=False)
        # every block starts as the identity
        nn.init.zeros_(self.attn_out.weight)
        nn.init.zeros_(self.mlp_out.weight)

    def forward(self, x, cos, sin, mask=None, cache=None, slots=None):
        B, T, D = x.shape
        q, k, v = self.qkv(self.attn_norm(x)).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            # write the new keys and values, then look at all that have been written
            rows = torch.arange(B, device=x.device)[:, None]
            cache[0][rows, :, slots] = k.transpose(1, 2).to(cache[0].dtype)
            cache[1][rows, :, slots] = v.transpose(1, 2).to(cache[1].dtype)
            k, v = cache[0], cache[1]             # (B, H, S, K)
        # on a CPU, at these lengths, the plain one is no slower
        attention = plain_attention if x.device.type == "cpu" else F.scaled_dot_product_attention
        y = attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x = x + F.dropout(self.attn_out(y.transpose(1, 2).reshape(B, T, D)), self.dropout, self.training)
        return x + F.dropout(self.mlp_out(F.relu(self.mlp_in(self.mlp_norm(x))).square()), self.dropout, self.training)


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # small against Adam's steps: a rare word soon carries what was learned about it
        nn.init.normal_(self.embed.weight, std=0.3)
        # the first prediction is uniform
        nn.init.zeros_(self.head.weight)
        K = config.n_embd // config.n_head
        angles = torch.arange(config.context)[:, None] / 1000 ** (torch.arange(0, K, 2) / K)          # (context, K / 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens, at=None, mask=None, return_hidden=False):
        """tokens (B, T) int64, left-aligned; rows may be padded on the right with anything (attention is causal).

        `at` (B, R) int64: score these positions alone, so that the head sees no prompt and no padding. `mask` (B, 1,
        T, T) bool replaces the causal mask (packed documents). Returns logits (B, T or R, V), or what the head would
        read with `return_hidden`, (B, T or R, D). Longer than the context: ValueError.
        """
        T = tokens.shape[1]
        self.check_length(T)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:T], self.sin[:T], mask)
        if at is not None:
            x = x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))
        x = self.norm(x)
        return x if return_hidden else self.logits(x)

    def logits(self, x):
        """In the precision of the weights whatever the autocast: the logits of a student and a teacher that are close
        differ by less than bf16 can tell apart."""
        with torch.autocast(x.device.type, enabled=False):
            return self.head(x.to(self.head.weight.dtype))

    def check_length(self, T):
        if T > self.config.context:
            raise ValueError(f"a sequence of {T} tokens does not fit the context of {self.config.context}: shorten it "
                             "or train with a longer context")

    @torch.no_grad()
    def generate(self, prompt, length, n_new, end, temperature=1.0):
        """Sample answers to prompts of unequal length: prompt (B, P) int64 padded on the right, length (B,) int64.

        temperature 0 is greedy. A row stops at the token `end`; what follows is filled with `end`. Returns (response,
        mask): (B, R) int64 and bool with R <= n_new; the mask covers each answer up to and including its first end
        token. A prompt that leaves no room for n_new tokens: ValueError.

        The cache has a slot for every position. A row of 3 tokens in a batch padded to 5 writes its padding to slots
        3 and 4, but sees them only once its own answer has overwritten them.
        """
        B, P = prompt.shape
        S = P + n_new
        self.check_length(S)
        shape = (B, self.config.n_head, S, self.config.n_embd // self.config.n_head)
        caches = [(self.cos.new_zeros(shape), self.cos.new_zeros(shape)) for _ in self.blocks]
        slot = torch.arange(S, device=prompt.device)

        def step(tokens, slots):
            # tokens and their slots (B, T); row and slot say what each token may look at
            cos, sin = self.cos[slots][:, None], self.sin[slots][:, None]                             # (B, 1, T, K / 2)
            mask = (slot <= slots[..., None])[:, None]                                                # (B, 1, T, S)
            x = self.embed(tokens)
            for block, cache in zip(self.blocks, caches):
                x = block(x, cos, sin, mask, cache, slots)
            return x

        x = step(prompt, slot[:P].expand(B, P))
        x = x[torch.arange(B, device=x.device), length - 1]  # (B, D): each row's last token
        response = torch.full((B, n_new), end, device=prompt.device)
        alive = torch.ones(B, dtype=torch.bool, device=prompt.device)
        mask = torch.zeros(B, n_new, dtype=torch.bool, device=prompt.device)
        for i in range(n_new):
            logits = self.logits(self.norm(x))
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                token = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]
            response[:, i] = torch.where(alive, token, end)
            mask[:, i] = alive
            alive = alive & (token != end)
            if i + 1 == n_new or not alive.any():
                # a CPU-GPU sync point
                break
            x = step(response[:, i : i + 1], (length + i)[:, None])[:, 0]
        return response[:, : i + 1], mask[:, : i + 1]


def frozen_copy(model):
    """A model of its own with the same weights, which takes no gradient."""
    return copy.deepcopy(model).requires_grad_(False)


class Sampler:
    """sample(model, prompt, length, n_new) at temperature 1, counted: everything that a loss needs is generated here;
    what looks at the teacher and tests generate is not counted."""

    def __init__(self, end):
        self.end, self.tokens = end, 0

    def __call__(self, model, prompt, length, n_new, end=None):
        response, mask = model.generate(prompt, length, n_new, self.end if end is None else end)
        self.tokens += int(mask.sum())
        return response, mask
