"""A decoder-only transformer: rotary positions, RMSNorm. One forward pass for training and scoring, one KV-cached
`generate` for sampling. The same block is our own small GPT and, read from an ordinary Hugging Face folder, Llama 2 to
3.2, SmolLM2, Mistral, Qwen2, Qwen2.5 and Qwen3:

    model = GPT.from_pretrained("SmolLM2-135M-Instruct")
    model.save_pretrained("taught", source="SmolLM2-135M-Instruct")

Left out, and refused where a folder asks for it: mixtures of experts, sliding windows, quantised weights, YaRN.

Shapes: B batch, T time, D width, H heads of queries, G heads of keys and values, K size of a head, V vocabulary,
S cache slots.
"""
import contextlib
import copy
import dataclasses
import json
import math
import os
import re
import shutil
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
    x1, x2 = x.to(cos.dtype).chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x1 * sin + x2 * cos], dim=-1)


def plain_attention(q, k, v, attn_mask):
    """What F.scaled_dot_product_attention computes, written out. q (B, H, T, K), k and v (B, H, S, K); mask True =
    may look."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)                                     # (B, H, T, S)
    scores += torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill(~attn_mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


def attention(q, k, v, mask=None):
    """q (B, H, T, K), k and v (B, G, S, K): H / G heads share each of these. mask (B or 1, 1, T, S) bool, None: causal.

    Heads that share their keys become rows of one product, so that no key is copied. Fused kernels can do so
    themselves, but not beside a mask: torch then takes its slow one.
    """
    (B, H, T, K), G, S = q.shape, k.shape[1], k.shape[2]
    # on a CPU torch's kernel takes up to ten times as long as the plain one, which writes all scores: of few keys alone
    plain = q.device.type == "cpu" and S <= PLAIN
    if mask is None and not plain:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H > G)
    if mask is None:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
    kernel = plain_attention if plain else F.scaled_dot_product_attention
    mask = mask if T == 1 else mask.repeat(1, 1, H // G, 1)
    y = kernel(q.reshape(B, G, H // G * T, K), k, v, attn_mask=mask)
    return y.reshape(B, H, T, K)


def packed_attention(q, k, v, place, source):
    """Attention of the rows of a `packing`: q (1, H, N, K), k and v (1, G, N, K)."""
    B, T = place.shape
    q, k, v = (x[0].index_select(1, place.flatten()).unflatten(1, (B, T)).transpose(0, 1) for x in (q, k, v))
    return attention(q, k, v).transpose(0, 1).flatten(1, 2)[None].index_select(2, source)


def packing(tokens, at):
    """The N of the tokens (B, T) that must be read: what all rows begin with once, and of each row nothing after the
    last position in `at` (B, R). On a CPU; a GPU would have to be waited for.

    Returns place (B, T), where a row's tokens stand among the N, and source (N,), where these stand among the B T; of
    what is not read `place` may be anything. None where less than a tenth would be saved.
    """
    if tokens.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    B, T = tokens.shape
    P = shared_prefix(tokens)
    read = torch.arange(T) <= at.amax(1, keepdim=True)
    read[0, :P], read[1:, :P] = True, False
    place = read.flatten().cumsum(0).view(B, T) - 1
    place[1:, :P] = place[0, :P]
    source = read.flatten().nonzero()[:, 0]
    return (place, source) if len(source) < 0.9 * B * T else None


def shared_prefix(tokens, length=None):
    """With how many tokens all rows of `tokens` (B, T) begin, such as the system prompt of a chat template: on a CPU
    they are read once, and not B times. Fewer than the shortest row has; `length` (B,), None: T. 0 where it does not
    pay: of fewer than 8, and on a GPU, which would have to be waited for."""
    if tokens.device.type != "cpu" or len(tokens) < 2 or torch.compiler.is_compiling():
        return 0
    most = tokens.shape[1] if length is None else int(length.min())
    n = min(most - 1, int((tokens == tokens[0]).all(0).cumprod(0).sum()))
    return n if n >= 8 else 0


# Up to how many keys a CPU writes all scores of attention out.
PLAIN = 512
# After how many tokens `generate` asks whether all rows have ended; a GPU has to be waited for.
LOOK = {"cpu": 1}


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

    def forward(self, x, cos, sin, mask=None, cache=None, slots=None, packed=None):
        c = self.config
        B, T, D = x.shape
        heads = self.qkv(self.attn_norm(x)).view(B, T, -1, c.head_dim).transpose(1, 2)            # (B, H + 2 G, T, K)
        q, k, v = heads.split([c.n_head, c.n_kv_head, c.n_kv_head], dim=1)
        # the tables are fp32: under autocast queries and keys would be too, at twice the memory
        q = rotate(self.q_norm(q), cos, sin).type_as(v)
        k = rotate(self.k_norm(k), cos, sin).type_as(v)
        if cache is not None:
            # write the new keys and values; a first part looks at itself, what follows at all that have been written
            rows = torch.arange(B, device=x.device)[:, None]
            cache[0][rows, :, slots] = k.transpose(1, 2).to(cache[0].dtype)
            cache[1][rows, :, slots] = v.transpose(1, 2).to(cache[1].dtype)
            k, v = (k, v) if mask is None else cache                                              # (B, G, T or S, K)
        y = packed_attention(q, k, v, *packed) if packed else attention(q, k, v, mask)
        y = y.transpose(1, 2).flatten(2)
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
        self.derive()

    def derive(self):
        """What follows from the rest and is stored nowhere: a tied head's weight, and the rotary tables."""
        if self.config.tied:
            self.head.weight = self.embed.weight
        angle = angles(self.config)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    @classmethod
    def from_pretrained(cls, folder, context=None):
        """The model of a Hugging Face folder, config.json and model*.safetensors, on the CPU in fp32; nothing is drawn.

        context: longest sequence in tokens. None: what the folder promises, at most LONGEST. ValueError for what this
        class is not: one line that names the folder, what is wrong there, and the way out.
        """
        with about(folder), torch.no_grad():
            config, theirs = read_config(folder, context), read_weights(folder)
            # shapes alone, compared before they take memory
            with torch.device("meta"):
                model = cls(config)
            check_same(theirs, their_weights(model), config.tied)
            model.to_empty(device="cpu").derive()
            ours = their_weights(model)
            for name, weight in theirs.items():
                ours[name].copy_(weight)
        return model

    def save_pretrained(self, folder, source=None, dtype=None, files=()):
        """Writes a folder that transformers, vLLM and llama.cpp's converter open; beside and renamed, so that it is
        complete or absent. A model's folder that stands there is replaced.

        source: the folder that this model was read from. Each tensor gets the type that it has there, or `dtype`, and
        all other files are copied, config.json and the tokenizer's among them. None: config.json is made, and nothing
        copied. files: {name: text} of more that is to lie there. ValueError for what contradicts, OSError for a full
        disk.
        """
        weights, target = their_weights(self), os.path.realpath(folder)
        theirs = {name: w for name, w in weights.items() if not (name == HEAD and self.config.tied)}
        copied = []
        if source is not None:
            with about(source):
                there, theirs = read_config(source, self.config.context), read_weights(source)
                check_same(theirs, weights, self.config.tied)
                if there != dataclasses.replace(self.config, dropout=0.0):
                    raise ValueError("config.json is another model's; name the folder that this one was read from")
            others = [os.path.join(source, name) for name in os.listdir(source) if not OLD_WEIGHTS.match(name)]
            copied = [file for file in others if os.path.isfile(file)]
        part, old = (f"{target}.{os.getpid()}.{end}" for end in ("part", "old"))
        try:
            with about(folder):
                if os.path.exists(target) and os.listdir(target) and "config.json" not in os.listdir(target):
                    raise ValueError("holds other things than a model; name another folder")
                os.makedirs(part)
                for file in copied:
                    shutil.copy(file, part)
                types = {name: dtype or weight.dtype for name, weight in theirs.items()}
                texts = dict(files)
                if source is None:
                    texts["config.json"] = json.dumps(their_config(self.config, types[EMBED]), indent=2)
                for name, text in texts.items():
                    with open(os.path.join(part, name), "w", encoding="utf-8") as f:
                        f.write(text)
                write_safetensors(os.path.join(part, "model.safetensors"), weights, types)
                if os.path.exists(target):
                    os.rename(target, old)
                os.rename(part, target)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def forward(self, tokens, at=None, mask=None, return_hidden=False):
        """tokens (B, T) int64, left-aligned; rows may be padded on the right with anything (attention is causal).

        `at` (B, R) int64: score these positions alone, so that the head sees no prompt and no padding. `mask` (B, 1,
        T, T) bool replaces the causal mask (packed documents). Returns logits (B, T or R, V), or what the head would
        read with `return_hidden`, (B, T or R, D). Longer than the context: ValueError.
        """
        B, T = tokens.shape
        self.check_length(T)
        position, packed = torch.arange(T, device=tokens.device), None
        if at is not None and mask is None and not (self.training and self.config.dropout):
            packed = packing(tokens, at)
        if packed:
            # (1, N)
            place, source = packed
            tokens, position = tokens.flatten()[source][None], source % T
        x, cos, sin = self.embed(tokens), self.cos[position], self.sin[position]
        for block in self.blocks:
            x = block(x, cos, sin, mask, packed=packed)
        if packed:
            # not x[0][...]: its gradient hangs on the order of threads
            x = x[0].index_select(0, place.gather(1, at).flatten()).unflatten(0, at.shape)
        elif at is not None:
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

        def step(tokens, slots, caches, mask=None):
            # tokens and their slots (B, T)
            cos, sin = self.cos[slots][:, None], self.sin[slots][:, None]                             # (B, 1, T, K / 2)
            x = self.embed(tokens)
            for block, cache in zip(self.blocks, caches):
                x = block(x, cos, sin, mask, cache, slots)
            return x

        shared, seen = shared_prefix(prompt, length), None
        if shared:
            step(prompt[:1, :shared], slot[None, :shared], [cache[:, :1] for cache in caches])
            for cache in caches:
                cache[:, 1:, :, :shared] = cache[:, :1, :, :shared]
            seen = (slot <= slot[shared:P, None])[None, None]                                     # (1, 1, T, S)
        x = step(prompt[:, shared:], slot[shared:P].expand(B, -1), caches, seen)
        x = x[torch.arange(B, device=x.device), length - 1 - shared]  # (B, D): each row's last token
        look = LOOK.get(prompt.device.type, 16)
        response = torch.full((B, n_new), end, device=prompt.device)
        # the rows that go on, and which of them have not ended
        rows, alive = torch.arange(B, device=x.device), torch.ones(B, dtype=torch.bool, device=x.device)
        mask = torch.zeros(B, n_new, dtype=torch.bool, device=prompt.device)
        for i in range(n_new):
            logits = self.logits(self.norm(x)).float()
            if temperature == 0:
                token = logits.argmax(-1)
            else:
                # one uniform number a row against the sums of the probabilities; multinomial draws one for each word
                total = (logits / temperature).softmax(-1).cumsum(-1)                             # (B, V)
                u = 1 - torch.rand(B, 1, device=x.device)[rows]                                   # in (0, 1]
                # of NaN it is beyond the last; the loss will tell
                token = torch.searchsorted(total, u * total[:, -1:])[:, 0].clamp(max=total.shape[1] - 1)
            token = torch.where(alive, token, end)
            response[rows, i], mask[rows, i] = token, alive
            alive = alive & (token != end)
            left = int(alive.sum()) if (i + 1) % look == 0 else len(rows)
            if i + 1 == n_new or left == 0:
                break
            if 2 * left <= len(rows):
                # half of them have ended: the others go on alone
                rows, length, token = rows[alive], length[alive], token[alive]
                for j, cache in enumerate(caches):
                    caches[j] = cache[:, alive]
                alive = alive[alive]
            # row and slot say what a token may look at: (B, 1, 1, S)
            at = (length + i)[:, None]
            x = step(token[:, None], at, caches, (slot <= at)[:, None, None])[:, 0]
        R = int(mask.any(0).sum())
        return response[:, :R], mask[:, :R]


def frozen_copy(model):
    """A model of its own with the same weights, which takes no gradient."""
    return copy.deepcopy(model).requires_grad_(False)


def bf16_copy(model):
    """A frozen copy whose weights are bf16, on a CPU packed; the rotary tables stay fp32."""
    # deepcopy takes these for the weights' copies: no fp32 copy is made on the way
    low = {id(w): nn.Parameter(w.detach().bfloat16(), requires_grad=False) for w in model.parameters()}
    model = copy.deepcopy(model, low)
    mkldnn = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if mkldnn and model.cos.device.type == "cpu":
        # each plain weight goes once it is packed
        del low
        for module in (model, *model.blocks):
            for name, linear in module.named_children():
                if isinstance(linear, nn.Linear):
                    setattr(module, name, Packed(linear))
    return model


class Packed(nn.Module):
    """A linear layer of a copy, its weights in the order in which a CPU's library multiplies by them. Else every
    product puts them there first, which for a few rows takes longer than the product. They are no parameter, and stay
    where they are: a copy is made anew, and neither moved nor saved."""

    def __init__(self, linear):
        super().__init__()
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(linear.weight), linear.bias

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class Sampler:
    """sample(model, prompt, length, n_new), counted: everything that a loss needs is generated here; what looks at the
    teacher and tests generate is not counted.

    bf16: a copy in bf16 answers, made at each call and gone after it. A step that writes one token reads every weight,
    so it takes half the time; the losses of what is sampled are those of the model itself.
    """

    def __init__(self, end, bf16=False):
        self.end, self.bf16, self.tokens = end, bf16, 0

    @torch.no_grad()
    def __call__(self, model, prompt, length, n_new, end=None, temperature=1.0):
        model = bf16_copy(model) if self.bf16 else model
        # a copy in bf16 needs no casts
        with torch.autocast(prompt.device.type, enabled=False) if self.bf16 else contextlib.nullcontext():
            response, mask = model.generate(prompt, length, n_new, self.end if end is None else end, temperature)
        self.tokens += int(mask.sum())
        return response, mask


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face folders: config.json, model*.safetensors, and the tokenizer's files, which are handed on as they are.

# What tells the families apart, by the model_type of config.json; all else is one block.
FAMILIES = {
    "arcee": {},                                  # a block like our own small GPT's
    "llama": {"gated": True},                     # SmolLM2 too
    "mistral": {"gated": True},
    "qwen2": {"gated": True, "qkv_bias": True},   # Qwen2.5 too
    "qwen3": {"gated": True, "qk_norm": True},
}
# Our sizes in config.json.
KEYS = {
    "vocab_size": "vocab_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    "n_embd": "hidden_size", "n_kv_head": "num_key_value_heads", "head_dim": "head_dim", "n_mlp": "intermediate_size",
    "tied": "tie_word_embeddings", "eps": "rms_norm_eps",
}
# Our modules in model.safetensors. Matrices that read the same input are one here: one product, one launch.
MODULES = {
    "embed": ["model.embed_tokens"],
    "attn_norm": ["input_layernorm"],
    "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "q_norm": ["self_attn.q_norm"],
    "k_norm": ["self_attn.k_norm"],
    "attn_out": ["self_attn.o_proj"],
    "mlp_norm": ["post_attention_layernorm"],
    "mlp_in": ["mlp.gate_proj", "mlp.up_proj"],   # the latter alone where there is no gate
    "mlp_out": ["mlp.down_proj"],
    "norm": ["model.norm"],
    "head": ["lm_head"],
}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Not copied from the source: the weights as they were, in whatever form.
OLD_WEIGHTS = re.compile(r".*\.safetensors(\.index\.json)?$|pytorch_model|consolidated|.*\.gguf$")
# The context where none is named and the folder promises more, which may be 131,072 positions.
LONGEST = 4096


@contextlib.contextmanager
def about(folder):
    """An error within becomes one line that names the folder."""
    try:
        yield
    except KeyError as e:
        raise ValueError(f"{folder}: config.json has no {e}; fetch or make it again")
    except (AttributeError, RecursionError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as e:
        # settings may be anything
        raise ValueError(f"{folder}: config.json is of no form that is known here ({e}); fetch or make it again")
    except ValueError as e:
        raise ValueError(f"{folder}: {e}")


def their_weights(model) -> dict:
    """{name there: view of our parameter}: of "blocks.3.qkv.weight" the first rows are
    "model.layers.3.self_attn.q_proj.weight". What is tied has both its names."""
    c, theirs = model.config, {}
    rows = {"qkv": [heads * c.head_dim for heads in (c.n_head, c.n_kv_head, c.n_kv_head)], "mlp_in": c.n_mlp}
    for name, p in model.named_parameters(remove_duplicate=False):
        *block, module, kind = name.split(".")
        parts = p.detach().split(rows.get(module, len(p)))
        prefix = f"model.layers.{block[1]}." if block else ""
        theirs |= {f"{prefix}{part}.{kind}": w for part, w in zip(MODULES[module][-len(parts) :], parts)}
    return theirs


def check_same(theirs, ours, tied):
    """Raises ValueError for a tensor too many, too few, or of another shape."""
    if more := theirs.keys() - ours.keys():
        raise ValueError(f"{len(more)} tensors have no place in this class, such as {min(more)!r}; choose a model of "
                         f"{', '.join(FAMILIES)} without them")
    if less := ours.keys() - theirs.keys() - {HEAD if tied else None}:
        raise ValueError(f"{len(less)} tensors are missing, such as {min(less)!r}; fetch or make the "
                         "folder again")
    for name, w in theirs.items():
        if w.shape != ours[name].shape:
            raise ValueError(f"{name} has the shape {list(w.shape)}, and {list(ours[name].shape)} by config.json; "
                             "fetch or make both again")
    if tied and HEAD in theirs and not torch.equal(theirs[HEAD], theirs[EMBED]):
        raise ValueError(f"{HEAD} is not the embedding, to which config.json ties it; set tie_word_embeddings to false")


def read_config(folder, context=None) -> GPTConfig:
    """config.json, as transformers 4 or 5 spells it. Raises ValueError for what would be another model."""
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        raise ValueError("no config.json there; name a folder that holds one, and model*.safetensors")
    with open(path, encoding="utf-8") as f:
        c = {"num_key_value_heads": None, "head_dim": None, "tie_word_embeddings": False} | json.load(f)
    kind, quantised = c["model_type"], c.get("quantization_config")
    family = FAMILIES.get(str(kind), {})
    act = "silu" if family.get("gated") else "relu2"
    rope = {"rope_theta": c.get("rope_theta", 10_000.0)} | (c.get("rope_scaling") or c.get("rope_parameters") or {})
    scaling = rope.get("rope_type", rope.get("type", "default"))
    for what, value, known, remedy in (
        ("model_type", kind, tuple(FAMILIES), "choose a model of these families"),
        ("quant_method", quantised and quantised.get("quant_method", "some"), (None,), "fetch what was quantised"),
        ("rope_type", scaling, ("default", "llama3"), "choose a model without it"),
        ("hidden_act", c["hidden_act"], (act,), "choose a model with that"),
    ):
        if value not in known:
            raise ValueError(f"{what} is {value!r}, and can be {' or '.join(map(str, known))} here; {remedy}")
    longest = c["max_position_embeddings"]
    context = context or min(longest, LONGEST)
    # Qwen names a window that it does not use; Mistral's, where it names none, is 4096, as transformers reads it
    window = c.get("sliding_window", 4096) if c.get("use_sliding_window", kind == "mistral") else None
    for what, most in ("max_position_embeddings", longest), ("sliding_window", window or context):
        if context > most:
            raise ValueError(f"{what} is {most}, less than the context of {context}; ask for {most}")
    stretch = {key: rope[key] for key in STRETCH} if scaling == "llama3" else None
    sizes = {ours: c[key] for ours, key in KEYS.items()}
    return GPTConfig(**sizes, **family, context=context, theta=rope["rope_theta"], rope=stretch)


def their_config(config, dtype) -> dict:
    """A config.json for a model that was read from none, as our own. Raises ValueError where no family is like it."""
    traits = {trait: True for trait in ("gated", "qkv_bias", "qk_norm") if getattr(config, trait)}
    kind = next((kind for kind, family in FAMILIES.items() if family == traits), None)
    if kind is None:
        raise ValueError(f"no family has {' and '.join(traits)} alone; choose the traits of one: {', '.join(FAMILIES)}")
    return {key: getattr(config, ours) for ours, key in KEYS.items()} | {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "hidden_act": "silu" if config.gated else "relu2",
        "max_position_embeddings": config.context,
        "rope_theta": config.theta,
        "rope_scaling": config.rope and {"rope_type": "llama3", **config.rope},
        "torch_dtype": str(dtype).removeprefix("torch."),
        # else transformers takes its family's
        "bos_token_id": None,
        "eos_token_id": None,
    }


def read_weights(folder) -> dict:
    """{name: tensor} of all model*.safetensors of a folder, mapped and not read. Raises ValueError."""
    weights = {}
    for file in sorted(os.listdir(folder)):
        if file.startswith("model") and file.endswith(".safetensors"):
            part = read_safetensors(os.path.join(folder, file))
            if twice := weights.keys() & part.keys():
                raise ValueError(f"{file} holds {min(twice)!r} a second time; keep the files of one version")
            weights |= part
    # old folders of Llama store the rotary periods
    return {name: weight for name, weight in weights.items() if not name.endswith("rotary_emb.inv_freq")}


def read_safetensors(path) -> dict:
    """{name: tensor} of one file, mapped and not read. Raises ValueError.

    The format (https://huggingface.co/docs/safetensors): 8 bytes that hold n, little-endian; n bytes of JSON,
    {name: {"dtype", "shape", "data_offsets": [begin, end]}}; the tensors' bytes.
    """
    size, file, weights = os.path.getsize(path), os.path.basename(path), {}
    with open(path, "rb") as f:
        start = 8 + int.from_bytes(f.read(8), "little")
        header = f.read(start - 8) if start <= size else b""
    try:
        header = json.loads(header)
        header.pop("__metadata__", None)
        others = [f"{name!r} is of type {t['dtype']!r}" for name, t in header.items() if t["dtype"] not in DTYPES]
        if start + max(t["data_offsets"][1] for t in header.values()) != size:
            raise EOFError
        data = torch.from_file(str(path), size=size, dtype=torch.uint8)[start:]
        for name, t in header.items() if not others else ():
            begin, end = t["data_offsets"]
            dtype, weight = DTYPES[t["dtype"]], data[begin:end]
            # not all programs align what they write
            weight = weight.clone() if (start + begin) % dtype.itemsize else weight
            weights[name] = weight.view(dtype).view(t["shape"])
    except Exception:
        # a damaged header may be anything
        raise ValueError(f"{file}: {size} bytes, which its header does not fit; fetch or make it again")
    if others:
        raise ValueError(f"{file}: {others[0]}, and can be {' or '.join(DTYPES)} here; fetch what was quantised")
    return weights


def write_safetensors(path, weights, types):
    """The tensors that `types` names, each in its type there, converted one at a time."""
    kinds, header, end = {dtype: kind for kind, dtype in DTYPES.items()}, {"__metadata__": {"format": "pt"}}, 0
    if unknown := set(types.values()) - kinds.keys():
        raise ValueError(f"cannot be written as {unknown.pop()}; choose float32, float16 or bfloat16")
    # wide types first: each tensor then begins at a multiple of its type's bytes
    types = dict(sorted(types.items(), key=lambda item: -item[1].itemsize))
    for name, dtype in types.items():
        begin, end = end, end + weights[name].numel() * dtype.itemsize
        header[name] = {"dtype": kinds[dtype], "shape": list(weights[name].shape), "data_offsets": [begin, end]}
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        for name, dtype in types.items():
            f.write(weights[name].to("cpu", dtype).contiguous().view(-1).view(torch.uint8).numpy())
        f.flush()
        os.fsync(f.fileno())
