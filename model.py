"""A decoder-only transformer: rotary positions, RMSNorm. One forward pass for training and scoring, one KV-cached
`generate` for sampling. The same block is our own small GPT and Llama 2 to 3.2, SmolLM2, Mistral, Qwen2, Qwen2.5 and
Qwen3. Left out: mixtures of experts, sliding windows, quantisation.

Shapes: B batch, T time, D width, H heads of queries, G heads of keys and values, K size of a head, V vocabulary,
S cache slots.
"""
import copy
import math
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
    n_kv_head: int | None = None  # heads of keys and values, each for n_head / n_kv_head heads of queries; None: n_head
    head_dim: int | None = None   # None: n_embd / n_head
    n_mlp: int | None = None      # width inside the MLP; None: 4 n_embd
    gated: bool = False           # silu(gate) * up in place of relu(up)²
    qkv_bias: bool = False
    qk_norm: bool = False         # RMSNorm of each head's queries and keys
    tied: bool = False            # the head's weight is the embedding's
    eps: float = 2.0**-23         # of RMSNorm: torch's default in fp32
    theta: float = 1000.0         # base of the rotary periods
    rope: dict | None = None      # Llama 3.1's stretching of the long periods: the numbers of STRETCH

    def __post_init__(self):
        chosen = [n for n in (self.n_kv_head, self.head_dim, self.n_mlp) if n is not None]
        sizes = [self.vocab_size, self.n_layer, self.n_head, self.n_embd, self.context, *chosen]
        numbers = [self.eps, self.theta, *(self.rope or {}).values()]
        for kinds, values in ((int,), sizes), ((int, float), numbers):
            for n in values:
                if type(n) not in kinds or n <= 0:
                    raise ValueError(f"{n!r} is among the model's numbers; each must be above 0, and a size whole")
        self.n_kv_head = self.n_kv_head or self.n_head
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        self.n_mlp = self.n_mlp or 4 * self.n_embd
        if self.n_head % self.n_kv_head or self.head_dim % 2:
            raise ValueError(f"{self.n_head} heads on {self.n_kv_head} of keys, of size {self.head_dim}; the first "
                             "must be a multiple of the second, and the size even")


STRETCH = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def angles(config):
    """By how much each rotary pair turns at each position, (context, K / 2) fp32.

    Llama 3.1 stretches the long periods by `factor`, leaves the short ones, and blends in between, by how often a pair
    turned within the context of pretraining (apply_scaling in Meta's llama-models).
    """
    position = torch.arange(config.context)[:, None]
    # tokens to a radian
    period = config.theta ** (torch.arange(0, config.head_dim, 2) / config.head_dim)
    if config.rope:
        factor, low, high, context = (config.rope[name] for name in STRETCH)
        turns = context / (2 * math.pi * period)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        period = period / (kept + (1 - kept) / factor)
    # each rounded as where it was pretrained: at position 200 the fifth digit of a logit tells one from the other
    return position * (1 / period) if config.gated else position / period


def rotate(x, cos, sin):
    """Rotary position embedding (Su et al. 2021): each pair (x1, x2) turns by an angle that grows with the position."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x1 * sin + x2 * cos], dim=-1)


def plain_attention(q, k, v, attn_mask):
    """What F.scaled_dot_product_attention computes, written out. q (B, H, T, K), k and v (B, H, S, K); mask True =
    may look."""
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5                                        # (B, H, T, S)
    return scores.masked_fill(~attn_mask, float("-inf")).softmax(dim=-1) @ v


def attention(q, k, v, mask=None):
    """q (B, H, T, K), k and v (B, G, S, K): H / G heads share each of these. mask (B or 1, 1, T, S) bool, None: causal.

    Heads that share their keys become rows of one product, so that no key is copied. Fused kernels can do so
    themselves, but not beside a mask: torch then takes its slow one.
    """
    (B, H, T, K), G, S = q.shape, k.shape[1], k.shape[2]
    # on a CPU, at these lengths, the plain one is no slower
    on_cpu = q.device.type == "cpu"
    if mask is None and not on_cpu:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H > G)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool).tril()
    kernel = plain_attention if on_cpu else F.scaled_dot_product_attention
    y = kernel(q.reshape(B, G, H // G * T, K), k, v, attn_mask=mask.repeat(1, 1, H // G, 1))
    return y.reshape(B, H, T, K)


class Block(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        D, K = config.n_embd, config.head_dim
        self.config = config
        self.attn_norm, self.mlp_norm = nn.RMSNorm(D, config.eps), nn.RMSNorm(D, config.eps)
        self.qkv = nn.Linear(D, (config.n_head + 2 * config.n_kv_head) * K, bias=config.qkv_bias)
        self.q_norm, self.k_norm = (nn.RMSNorm(K, config.eps) if config.qk_norm else nn.Identity() for _ in "qk")
        self.attn_out = nn.Linear(config.n_head * K, D, bias=False)
        self.mlp_in = nn.Linear(D, config.n_mlp * (2 if config.gated else 1), bias=False)
        self.mlp_out = nn.Linear(config.n_mlp, D, bias=False)
        # every block starts as the identity
        nn.init.zeros_(self.attn_out.weight)
        nn.init.zeros_(self.mlp_out.weight)

    def forward(self, x, cos, sin, mask=None, cache=None, slots=None):
        c = self.config
        B, T, D = x.shape
        heads = self.qkv(self.attn_norm(x)).view(B, T, -1, c.head_dim).transpose(1, 2)            # (B, H + 2 G, T, K)
        q, k, v = heads.split([c.n_head, c.n_kv_head, c.n_kv_head], dim=1)
        # angles are fp32: a model in bf16 would mix types
        q = rotate(self.q_norm(q), cos, sin).type_as(v)
        k = rotate(self.k_norm(k), cos, sin).type_as(v)
        if cache is not None:
            # write the new keys and values, then look at all that have been written
            rows = torch.arange(B, device=x.device)[:, None]
            cache[0][rows, :, slots] = k.transpose(1, 2).to(cache[0].dtype)
            cache[1][rows, :, slots] = v.transpose(1, 2).to(cache[1].dtype)
            k, v = cache[0], cache[1]             # (B, G, S, K)
        y = attention(q, k, v, mask).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.attn_out(y), c.dropout, self.training)
        h = self.mlp_in(self.mlp_norm(x))
        if c.gated:
            gate, up = h.chunk(2, dim=-1)
            h = F.silu(gate) * up
        else:
            h = F.relu(h).square()
        return x + F.dropout(self.mlp_out(h), c.dropout, self.training)


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, config.eps)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        # small against Adam's steps: a rare word soon carries what was learned about it
        nn.init.normal_(self.embed.weight, std=0.3)
        # the first prediction is uniform
        nn.init.zeros_(self.head.weight)
        if self.config.tied:
            self.head.weight = self.embed.weight
        angle = angles(self.config)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

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
        shape = (B, self.config.n_kv_head, S, self.config.head_dim)
        # in the type of what is written there
        kind, dtype = prompt.device.type, self.head.weight.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        caches = [self.cos.new_zeros(2, *shape, dtype=dtype) for _ in self.blocks]
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
            logits = self.logits(self.norm(x)).float()
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
