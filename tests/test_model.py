"""The GPT: fast attention against plain, cached against uncached, errors; and Hugging Face folders: logits and answers
against transformers' own, what is read and written bit for bit, what is refused and how."""
import copy
import dataclasses
import functools
import json
import os

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
def test_attention_is_its_formula(heads, keys, T, S):
    """Shared keys, copied for each head that looks at them: outputs and gradients, causal and with a mask per row. In
    bf16 the plain kernel takes part; there only the first digits can agree."""
    torch.manual_seed(0)
    shapes = (heads, T), (keys, S), (keys, S)
    seen = torch.rand(2, 1, T, S) > 0.3
    seen[..., 0] = True
    for mask in (seen, seen[:1], None) if T == S else (seen,):
        for dtype, rtol, atol in (torch.float32, 1e-4, 1e-5), (torch.bfloat16, 0.05, 0.05):
            close = {"rtol": rtol, "atol": atol}
            q, k, v = (torch.randn(2, n, length, 8, dtype=dtype, requires_grad=True) for n, length in shapes)
            k_of, v_of = (x.float().repeat_interleave(heads // keys, dim=1) for x in (k, v))
            scores = q.float() @ k_of.transpose(-2, -1) / 8**0.5
            may_look = torch.ones(T, S, dtype=torch.bool).tril() if mask is None else mask
            slow = scores.masked_fill(~may_look, float("-inf")).softmax(dim=-1) @ v_of
            fast = model_module.attention(q, k, v, mask)
            torch.testing.assert_close(fast.float(), slow, **close)
            torch.testing.assert_close(model_module.attention(*(x.detach() for x in (q, k, v)), mask), fast, **close)
            weight = torch.randn_like(slow)
            gradients = [torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (fast, slow)]
            for ours, theirs in zip(*gradients):
                torch.testing.assert_close(ours, theirs, **close)


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


@pytest.mark.parametrize("traits", [{}, {"n_kv_head": 2, "gated": True}, {"qk_norm": True, "qkv_bias": True}])
def test_each_token_is_read_once(monkeypatch, traits):
    """What all rows begin with, up to where they part or the shortest ends, is read once, and what stands behind the
    last position asked for is not read. Logits, gradients and greedy answers are those of reading all."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(100, 2, 4, 32, context=64, **traits)).double()
    for p in gpt.parameters():
        torch.nn.init.normal_(p, std=0.2)
    tokens = torch.randint(0, 100, (5, 40))
    tokens[:, :12] = tokens[0, :12]
    tokens[:, 12] = torch.tensor([1, 1, 1, 2, 1])
    length = torch.tensor([14, 20, 30, 40, 16])
    at = torch.tensor([[11, 12, 39], [11, 12, 20], [30, 30, 30], [5, 11, 9], [12, 38, 11]])
    weight = torch.randn(5, 3, 100).double()

    def found():
        logits = gpt(tokens, at=at)
        gradients = torch.autograd.grad((logits * weight).sum(), list(gpt.parameters()))
        return [logits, *gradients, *gpt.generate(tokens, length, 20, 99, temperature=0)]

    assert model_module.shared_prefix(tokens) == model_module.shared_prefix(tokens, length) == 12
    counted, count = [], torch.nn.Embedding.forward
    monkeypatch.setattr(torch.nn.Embedding, "forward", lambda self, t: counted.append(t.numel()) or count(self, t))
    once = found()
    assert counted[:3] == [12 + 28 + 9 + 19 + 0 + 27, 12, 5 * 28]
    monkeypatch.setattr(model_module, "packing", lambda *_: None)
    monkeypatch.setattr(model_module, "shared_prefix", lambda *_: 0)
    for a, b in zip(once, found(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_what_is_alike_is_counted():
    same = torch.arange(20).repeat(3, 1)
    assert model_module.shared_prefix(same) == 19                   # something is left of each row
    assert model_module.shared_prefix(same, torch.tensor([20, 11, 15])) == 10
    assert model_module.shared_prefix(same, torch.tensor([20, 8, 15])) == 0
    assert model_module.shared_prefix(same[:1]) == model_module.shared_prefix(same[:, :8]) == 0


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


def test_a_device_that_is_asked_less_often_says_the_same(monkeypatch):
    """Where one look covers five tokens, those behind the end of all rows are cut off again."""
    gpt = random_gpt()
    tokens, length = (t[:1] for t in prompts())
    free, _ = gpt.generate(tokens, length, 12, end=-1, temperature=0)
    end = int(free[0, 2])
    once, mask = gpt.generate(tokens, length, 12, end=end, temperature=0)
    asked, logits = [], gpt.logits
    monkeypatch.setattr(gpt, "logits", lambda x: asked.append(x) or logits(x))
    monkeypatch.setitem(model_module.LOOK, "cpu", 5)
    again = gpt.generate(tokens, length, 12, end=end, temperature=0)
    assert len(asked) == 5 > once.shape[1] and torch.equal(again[0], once) and torch.equal(again[1], mask)


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


def test_what_has_ended_is_not_computed(monkeypatch):
    """When half of the rows have ended the others go on without them; the samples are the same."""
    torch.manual_seed(0)
    # of eight words one is the end
    gpt, length = GPT(GPTConfig(8, 2, 2, 16, context=32)), torch.arange(1, 9).repeat(3)
    for p in gpt.parameters():
        torch.nn.init.normal_(p, std=0.3)
    tokens, asked, logits = torch.randint(0, 8, (24, 8)), [], gpt.logits
    monkeypatch.setattr(gpt, "logits", lambda x: asked.append(len(x)) or logits(x))

    def sampled(look):
        monkeypatch.setitem(model_module.LOOK, "cpu", look)
        asked.clear()
        torch.manual_seed(0)
        return gpt.generate(tokens, length, 16, end=7)

    for a, b in zip(sampled(1000), sampled(1), strict=True):
        assert torch.equal(a, b)
    alive = b.sum(0).tolist()
    assert asked[0] == 24 and asked[-1] < 12
    assert all(n <= rows and (rows < 2 * n or n == 0) for n, rows in zip(alive, asked))


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


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face folders. Those that are compared with transformers are made by it; for the rest our own are enough.

SMALL = {"vocab_size": 160, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
         "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
         "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
MILLION = {"rope_type": "default", "rope_theta": 1e6}
MODELS = {
    "Llama 2": ("Llama", {"num_key_value_heads": 6}),
    "SmolLM2": ("Llama", {"tie_word_embeddings": True, "rope_parameters": MILLION | {"rope_theta": 1e5}}),
    "Llama 3.2": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3, "head_dim": 16}),
    "Mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "Qwen2.5": ("Qwen2", {"tie_word_embeddings": True, "rope_parameters": MILLION, "rms_norm_eps": 1e-6}),
    "Qwen3": ("Qwen3", {"tie_word_embeddings": True, "rope_parameters": MILLION, "head_dim": 16}),
    "Arcee": ("Arcee", {}),
}


@functools.cache
def made_by_transformers(name):
    """A model whose every weight matters: norms away from 1, biases away from 0."""
    transformers = pytest.importorskip("transformers")
    family, settings = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**SMALL | settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for key, p in model.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in key), std=0.15 if p.ndim == 2 else 0.4)
    return model


def opened_by_transformers(folder):
    return pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


def tensors(folder):
    """By the safetensors package, so that our reading and writing are not their own witnesses."""
    return pytest.importorskip("safetensors.torch").load_file(os.path.join(folder, "model.safetensors"))


def same_tensors(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def edit(folder, **changes):
    """config.json with other settings; None takes one out."""
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def written(folder, **config):
    """A small GPT of ours as a folder."""
    model = random_gpt(**{"vocab": 64, "context": 64, "n_mlp": 48} | config)
    model.save_pretrained(folder)
    return model


LIKE_LLAMA = {"gated": True, "n_head": 4, "n_kv_head": 2, "theta": 1e4, "eps": 1e-5}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_the_model_that_transformers_makes_of_it(tmp_path, name):
    """Logits; greedy answers to prompts of unequal length, where transformers answers one at a time; and the folder
    that we write: the same tensors bit for bit, which transformers opens."""
    theirs = made_by_transformers(name)
    theirs.save_pretrained(tmp_path / "source")
    ours = GPT.from_pretrained(tmp_path / "source")
    assert ours.config.context == 64 and all(p.requires_grad and p.dtype == torch.float32 for p in ours.parameters())
    tokens = torch.randint(0, 160, (3, 64), generator=torch.Generator().manual_seed(1))
    if name not in ("Arcee", "Llama 3.2"):
        # rounded as theirs; ours as our small GPT's always were
        cos, _ = theirs.model.rotary_emb(torch.ones(1), torch.arange(64)[None])
        assert torch.equal(ours.cos, cos[0].chunk(2, dim=-1)[0])
    with torch.no_grad():
        expected = theirs(tokens).logits
        print(f"{name}: {(ours(tokens) - expected).abs().max():.1e} of {expected.abs().mean():.1f}")
        torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-5)

    prompt, length = tokens[:, :12], torch.tensor([7, 1, 12])
    answers, _ = ours.generate(prompt, length, 20, end=-1, temperature=0)
    for row, n, answer in zip(prompt, length, answers):
        # without a mask it would take token 0 for padding
        options = {"attention_mask": torch.ones(1, n, dtype=torch.long), "pad_token_id": 0, "do_sample": False}
        whole = theirs.generate(row[None, :n], max_new_tokens=20, **options)
        assert whole[0, n:].tolist() == answer.tolist()

    ours.save_pretrained(tmp_path / "copy", tmp_path / "source")
    same_tensors(tensors(tmp_path / "copy"), tensors(tmp_path / "source"))
    with torch.no_grad():
        assert torch.equal(opened_by_transformers(tmp_path / "copy")(tokens).logits, expected)


def test_our_own_gpt_is_an_arcee_for_transformers(tmp_path):
    ours = random_gpt(n_layer=3, n_head=4, n_embd=128)
    for p in ours.parameters():
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.15)
    ours.save_pretrained(tmp_path / "ours")
    back = GPT.from_pretrained(tmp_path / "ours")
    assert back.config == ours.config
    same_tensors(back.state_dict(), ours.state_dict())
    theirs = opened_by_transformers(tmp_path / "ours")
    assert type(theirs).__name__ == "ArceeForCausalLM"
    tokens = torch.randint(0, VOCAB_SIZE, (3, 200))
    with torch.no_grad():
        # the rest is their rounding of angles, which ours is not
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=0, atol=1e-4)
    ours.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    same_tensors(opened_by_transformers(tmp_path / "half").state_dict(), copy.deepcopy(theirs).bfloat16().state_dict())
    # and what transformers makes of it is again ours
    theirs.save_pretrained(tmp_path / "theirs")
    same_tensors(GPT.from_pretrained(tmp_path / "theirs").state_dict(), ours.state_dict())


@pytest.mark.parametrize("config", [
    LIKE_LLAMA, LIKE_LLAMA | {"qkv_bias": True, "tied": True}, LIKE_LLAMA | {"qk_norm": True, "head_dim": 32},
    LIKE_LLAMA | {"rope": {k: LLAMA3[k] for k in model_module.STRETCH}}])
def test_a_model_without_a_source_is_written_as_its_family(tmp_path, config):
    ours = written(tmp_path / "ours", **config)
    back = GPT.from_pretrained(tmp_path / "ours")
    assert back.config == ours.config
    same_tensors(back.state_dict(), ours.state_dict())
    tokens = torch.randint(0, 64, (2, 40))
    with torch.no_grad():
        theirs = opened_by_transformers(tmp_path / "ours")(tokens).logits
        torch.testing.assert_close(theirs, ours(tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_is_the_source_s_or_one_chosen(tmp_path, dtype):
    """In memory it is fp32 whatever the file's."""
    copy.deepcopy(made_by_transformers("Qwen2.5")).to(dtype).save_pretrained(tmp_path / "source")
    source = tensors(tmp_path / "source")
    assert {w.dtype for w in source.values()} == {dtype}
    ours = GPT.from_pretrained(tmp_path / "source")
    assert {w.dtype for w in ours.state_dict().values()} == {torch.float32}
    ours.save_pretrained(tmp_path / "same", tmp_path / "source")
    same_tensors(tensors(tmp_path / "same"), source)
    ours.save_pretrained(tmp_path / "chosen", tmp_path / "source", torch.float32)
    same_tensors(tensors(tmp_path / "chosen"), {name: w.float() for name, w in source.items()})
    with torch.no_grad():
        for p in ours.parameters():
            p.mul_(1.25)
    ours.save_pretrained(tmp_path / "taught", tmp_path / "source")
    same_tensors(tensors(tmp_path / "taught"), {name: (w.float() * 1.25).to(dtype) for name, w in source.items()})


def test_a_folder_of_several_types_keeps_each(tmp_path):
    model = written(tmp_path / "source")
    types = {name: torch.float32 if "norm" in name else torch.bfloat16 for name in model_module.their_weights(model)}
    weights = model_module.their_weights(model)
    model_module.write_safetensors(tmp_path / "source" / "model.safetensors", weights, types)
    GPT.from_pretrained(tmp_path / "source").save_pretrained(tmp_path / "copy", tmp_path / "source")
    same_tensors(tensors(tmp_path / "copy"), tensors(tmp_path / "source"))


def test_a_folder_in_shards(tmp_path):
    """The copy is one file without the index, which would hide it."""
    theirs = made_by_transformers("Qwen3")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("model-0*.safetensors"))) > 2
    ours = GPT.from_pretrained(tmp_path / "shards")
    theirs.save_pretrained(tmp_path / "whole")
    same_tensors(ours.state_dict(), GPT.from_pretrained(tmp_path / "whole").state_dict())
    ours.save_pretrained(tmp_path / "copy", tmp_path / "shards")
    assert sorted(p.name for p in (tmp_path / "copy").glob("model*")) == ["model.safetensors"]
    same_tensors(tensors(tmp_path / "copy"), tensors(tmp_path / "whole"))
    # a folder that holds both, say after an unfinished download of another version
    (tmp_path / "copy" / "model.safetensors").rename(tmp_path / "shards" / "model.safetensors")
    with pytest.raises(ValueError, match="a second time; keep the files of one version"):
        GPT.from_pretrained(tmp_path / "shards")


def test_both_spellings_of_config_json(tmp_path):
    """transformers 4: rope_theta, rope_scaling, torch_dtype; and 5: rope_parameters, dtype."""
    model = written(tmp_path / "m", **LIKE_LLAMA)
    edit(tmp_path / "m", rope_theta=5e5, rope_scaling={k: v for k, v in LLAMA3.items() if k != "rope_theta"},
         torch_dtype="float32")
    old = GPT.from_pretrained(tmp_path / "m")
    edit(tmp_path / "m", rope_theta=None, rope_scaling=None, torch_dtype=None, rope_parameters=LLAMA3, dtype="float32")
    new = GPT.from_pretrained(tmp_path / "m")
    assert old.config == new.config and new.config.theta == 5e5 and new.config.rope["factor"] == 32
    assert torch.equal(old.cos, new.cos) and not torch.equal(new.cos, model.cos)
    # what is left out: heads of keys as many as heads, their size the width's share, no tie, Llama 2's base
    written(tmp_path / "n", gated=True)
    edit(tmp_path / "n", rope_theta=None, num_key_value_heads=None, head_dim=None, tie_word_embeddings=None)
    assert GPT.from_pretrained(tmp_path / "n").config == GPTConfig(
        64, 2, 2, 32, 64, n_mlp=48, gated=True, n_kv_head=2, head_dim=16, theta=10_000.0)


def test_what_is_tied_is_one_parameter(tmp_path):
    def one(model):
        return model.head.weight is model.embed.weight and model.head.weight.data_ptr() == model.embed.weight.data_ptr()

    model = written(tmp_path / "m", **LIKE_LLAMA, tied=True)
    read = GPT.from_pretrained(tmp_path / "m")
    for one_more in (model, read, copy.deepcopy(read), model_module.frozen_copy(read), copy.deepcopy(read).bfloat16(),
                     copy.deepcopy(read).to("cpu", torch.float64)):
        assert one(one_more) and "head.weight" not in dict(one_more.named_parameters())
    # stored though tied, as Qwen3 does: read, and written again
    weights = model_module.their_weights(read)
    types = dict.fromkeys(weights, torch.float32)
    model_module.write_safetensors(tmp_path / "m" / "model.safetensors", weights, types)
    read = GPT.from_pretrained(tmp_path / "m")
    assert one(read)
    with torch.no_grad():
        read.embed.weight.mul_(2)
    read.save_pretrained(tmp_path / "copy", tmp_path / "m")
    assert torch.equal(tensors(tmp_path / "copy")["lm_head.weight"], read.embed.weight)
    assert one(GPT.from_pretrained(tmp_path / "copy"))
    # stored, and another one
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    model_module.write_safetensors(tmp_path / "m" / "model.safetensors", weights, types)
    with pytest.raises(ValueError, match="m: lm_head.weight is not the embedding, to which config.json ties it; set "):
        GPT.from_pretrained(tmp_path / "m")


def test_reading_draws_nothing(tmp_path):
    """Whoever reads a folder has the random state that they had."""
    written(tmp_path / "m")
    before = torch.get_rng_state()
    GPT.from_pretrained(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("traits", [{"tied": True}, {"qkv_bias": True}, {"qk_norm": True}])
def test_a_copy_in_bf16_samples(monkeypatch, traits):
    """Of half the bytes, to sample from: one type from end to end, nearly the same logits, the model as it
    was; and its weights may be packed or not."""
    model = random_gpt(**LIKE_LLAMA | traits)
    if model.config.qkv_bias:
        torch.nn.init.normal_(model.blocks[0].qkv.bias)
    before = copy.deepcopy(model.state_dict())
    small = model_module.bf16_copy(model)
    monkeypatch.setattr(model_module, "Packed", lambda linear: linear)
    plain = model_module.bf16_copy(model)
    tokens, length = prompts()
    assert small(tokens).dtype == torch.bfloat16 and small.cos.dtype == torch.float32
    assert F.cosine_similarity(small(tokens).float(), model(tokens), dim=-1).min() > 0.99
    torch.testing.assert_close(small(tokens), plain(tokens), rtol=0.02, atol=0.02)
    response, _ = small.generate(tokens, length, 8, END)
    assert response.shape[0] == 5
    assert not any(p.requires_grad for p in small.parameters())
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.float32 and torch.equal(weight, before[name])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_answers_as_the_cpu_does():
    model = random_gpt(**LIKE_LLAMA, qk_norm=True, qkv_bias=True)
    tokens, length = prompts()
    expected, (answers, _) = model(tokens), model.generate(tokens, length, 12, end=-1, temperature=0)
    model.cuda()
    torch.testing.assert_close(model(tokens.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(model.generate(tokens.cuda(), length.cuda(), 12, end=-1, temperature=0)[0].cpu(), answers)


def test_the_context_is_asked_for_or_bounded(tmp_path):
    written(tmp_path / "m", **LIKE_LLAMA)
    folder = tmp_path / "m"
    assert GPT.from_pretrained(folder).config.context == 64
    assert GPT.from_pretrained(folder, context=24).config.context == 24
    with pytest.raises(ValueError, match="m: max_position_embeddings is 64, less than the context of 65; ask for 64"):
        GPT.from_pretrained(folder, context=65)
    edit(folder, max_position_embeddings=131_072)
    assert GPT.from_pretrained(folder).config.context == model_module.LONGEST
    assert GPT.from_pretrained(folder, context=5000).config.context == 5000
    with pytest.raises(ValueError, match="m: -1 is among the model's numbers"):
        GPT.from_pretrained(folder, context=-1)


def test_a_window_must_hold_the_context(tmp_path):
    """Within it nothing is hidden. Mistral uses it where it is named, Qwen only where a second setting says so."""
    written(tmp_path / "m", **LIKE_LLAMA)
    folder = tmp_path / "m"
    edit(folder, model_type="mistral", sliding_window=48)
    with pytest.raises(ValueError, match="m: sliding_window is 48, less than the context of 64; ask for 48"):
        GPT.from_pretrained(folder)
    assert GPT.from_pretrained(folder, context=48).config.context == 48
    edit(folder, max_position_embeddings=131_072, sliding_window=None)
    with pytest.raises(ValueError, match="m: sliding_window is 4096, less than the context of 4097; ask for 4096"):
        GPT.from_pretrained(folder, context=4097)
    written(tmp_path / "q", **LIKE_LLAMA, qkv_bias=True)
    folder = tmp_path / "q"
    for used, context in ((None, 64), (False, 64), (True, 48)):
        edit(folder, sliding_window=48, use_sliding_window=used)
        assert GPT.from_pretrained(folder, context=context).config.context == context
    with pytest.raises(ValueError, match="q: sliding_window is 48"):
        GPT.from_pretrained(folder)


def test_all_other_files_are_carried_over(tmp_path):
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    model = written(source)
    edit(source, note="as it was")
    others = {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ x }}", "LICENSE": b"\xff\x00", "README.md": b"",
              ".gitattributes": b"x"}
    old = ("other.safetensors", "model.safetensors.index.json", "consolidated.00.pth", "pytorch_model.bin", "m.gguf")
    for name, content in others.items():
        (source / name).write_bytes(content)
    for name in old[1:]:
        (source / name).write_bytes(b"")
    model.save_pretrained(target, source)
    assert {p.name for p in target.iterdir()} == {"config.json", "model.safetensors", *others}
    for name in (*others, "config.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    with open(target / "model.safetensors", "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    assert header["__metadata__"] == {"format": "pt"}
    # onto itself: what is replaced is read first
    model.save_pretrained(target, target)
    assert {p.name for p in target.iterdir()} == {"config.json", "model.safetensors", *others}
    same_tensors(tensors(target), tensors(source))


def test_a_folder_is_complete_or_absent(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    model = written(tmp_path / "m")
    before = tensors(tmp_path / "m")
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        for folder in ("m", "new", "empty"):
            with pytest.raises(OSError, match="No space left"):
                random_gpt(1, vocab=64).save_pretrained(tmp_path / folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "m"] and not list((tmp_path / "empty").iterdir())
    same_tensors(tensors(tmp_path / "m"), before)
    # an empty one and a model's are replaced, another is not
    model.save_pretrained(tmp_path / "empty")
    model.save_pretrained(str(tmp_path / "m") + "/")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "m"]
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="papers: holds other things than a model; name another folder"):
        model.save_pretrained(tmp_path / "papers")
    assert (tmp_path / "papers" / "thesis.tex").exists()


def test_a_source_is_the_folder_of_this_model(tmp_path):
    model = written(tmp_path / "m", **LIKE_LLAMA)
    written(tmp_path / "other", **LIKE_LLAMA | {"theta": 1e5})
    written(tmp_path / "wide", **LIKE_LLAMA, n_embd=64)
    for name, said in (("other", "config.json is another model's"), ("wide", "has the shape"), ("none", "no config")):
        with pytest.raises(ValueError, match=f"{name}: .*{said}.*; "):
            model.save_pretrained(tmp_path / "new", tmp_path / name)
    with pytest.raises(ValueError, match="float64"):
        model.save_pretrained(tmp_path / "new", dtype=torch.float64)
    with pytest.raises(ValueError, match="no family has qkv_bias alone; choose the traits of one: arcee, llama"):
        random_gpt(qkv_bias=True).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


# What a folder must not be: settings that are changed, and what the message says.
SETTINGS = {
    "another family": ({"model_type": "gemma2"}, "model_type is 'gemma2', and can be arcee or llama or .*; choose"),
    "experts": ({"model_type": "mixtral"}, "model_type is 'mixtral'.*; choose"),
    "a family that is none": ({"model_type": ["llama"]}, "model_type is .*; choose"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn', and can be default or .*; "),
    "yarn, in the new spelling": ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'.*; choose"),
    "linear, in the old spelling": ({"rope_scaling": {"type": "linear"}}, "rope_type is 'linear'.*; choose"),
    "llama3 without its numbers": ({"rope_scaling": {"rope_type": "llama3"}}, "config.json has no 'factor'; fetch"),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "quant_method is 'fp8'.*; fetch what"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and can be silu here; choose"),
    "our own activation": ({"hidden_act": "relu2"}, "hidden_act is 'relu2', and can be silu here; choose"),
    "no width": ({"hidden_size": None}, "config.json has no 'hidden_size'; fetch"),
    "no family": ({"model_type": None}, "config.json has no 'model_type'; fetch"),
    "a width in words": ({"hidden_size": "32"}, "'32' is among the model's numbers; each must"),
    "heads that are not shared evenly": ({"num_key_value_heads": 3}, "4 heads on 3 of keys"),
    "a base in words": ({"rope_theta": "1e4"}, "'1e4' is among the model's numbers; each must"),
    "a context in words": ({"max_position_embeddings": "64"}, None),
    "a scaling in words": ({"rope_scaling": "yarn"}, None),
    "another width": ({"intermediate_size": 64}, "has the shape .48, 32., and .64, 32. by config.json; fetch"),
    "more layers": ({"num_hidden_layers": 3}, "9 tensors are missing, such as 'model.layers.2.input_.*; fetch"),
    "fewer layers": ({"num_hidden_layers": 1}, "9 tensors have no place in .*, such as 'model.layers.1.*; choose"),
    "no gate": ({"model_type": "arcee", "hidden_act": "relu2"}, "no place in .*, such as .*gate_proj.*; choose"),
    "biases": ({"model_type": "qwen2"}, "6 tensors are missing, such as 'model.layers.0.self_attn.k_proj.bias'; fetch"),
}


def refused(folder, said):
    with pytest.raises(ValueError, match=said) as e:
        GPT.from_pretrained(folder)
    message = str(e.value)
    assert message.startswith(f"{folder}: ") and "\n" not in message, message
    return message


@pytest.mark.parametrize("changes, said", SETTINGS.values(), ids=SETTINGS)
def test_a_folder_that_is_no_such_model(tmp_path, changes, said):
    written(tmp_path / "m", **LIKE_LLAMA)
    edit(tmp_path / "m", **changes)
    refused(tmp_path / "m", said)


def rewrite(folder, change):
    """The folder's weights with another header, whose bytes `change` may also replace."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    n = 8 + int.from_bytes(raw[:8], "little")
    header, data = change(json.loads(raw[8:n]), raw[n:])
    header = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)


def with_entry(**more):
    """Of the final norm."""
    def change(header, data):
        return header | {"model.norm.weight": header["model.norm.weight"] | more}, data
    return change


DAMAGED = "bytes, which its header does not fit; fetch or make it again"
FILES = {
    "cut by a byte": (lambda header, data: (header, data[:-1]), DAMAGED),
    "cut to the header": (lambda header, data: (header, b""), DAMAGED),
    "a byte too many": (lambda header, data: (header, data + b"x"), DAMAGED),
    "a header that is cut": (lambda header, data: (json.dumps(header).encode()[:-9], data), DAMAGED),
    "a header of another kind": (lambda header, data: ([1], data), DAMAGED),
    "an empty header": (lambda header, data: ({}, data), DAMAGED),
    "deep nesting": (lambda header, data: (b"[" * 100_000, data), DAMAGED),
    "a shape that does not fit": (with_entry(shape=[33]), DAMAGED),
    "a shape below 0": (with_entry(shape=[-8, -4]), DAMAGED),
    "a place below 0": (with_entry(data_offsets=[-128, 0]), DAMAGED),
    "a place outside": (with_entry(data_offsets=[10**9, 10**9 + 128]), DAMAGED),
    "a place in words": (with_entry(data_offsets=["0", "128"]), DAMAGED),
    "fp8": (with_entry(dtype="F8_E4M3"), "norm.weight' is of type 'F8_E4M3', and can be F32 or F16 or BF16 here;"),
    "a type of no kind": (with_entry(dtype=[1]), DAMAGED),
    "a tensor too many": (lambda header, data: (header | {"model.layers.0.self_attn.o_proj.bias": {
        "dtype": "F32", "shape": [32], "data_offsets": [0, 128]}}, data),
        "1 tensors have no place in this class, such as 'model.layers.0.self_attn.o_proj.bias'; choose"),
    "a tensor too few": (lambda header, data: ({k: v for k, v in header.items() if k != "model.norm.weight"}, data),
                         "1 tensors are missing, such as 'model.norm.weight'; fetch"),
}


@pytest.mark.parametrize("change, said", FILES.values(), ids=FILES)
def test_a_file_of_weights_that_is_damaged_or_another_s(tmp_path, change, said):
    written(tmp_path / "m", **LIKE_LLAMA)
    rewrite(tmp_path / "m", change)
    refused(tmp_path / "m", said)


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "file", "empty"):
        refused(tmp_path / name, "no config.json there; name a folder that holds one")
    written(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"abc")
    refused(tmp_path / "m", DAMAGED)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\xff" * 8)
    refused(tmp_path / "m", DAMAGED)
    (tmp_path / "m" / "model.safetensors").unlink()
    refused(tmp_path / "m", "tensors are missing")
    for content in ("", "{", "[]", "3", "null", '"llama"', "[" * 100_000):
        (tmp_path / "m" / "config.json").write_text(content)
        refused(tmp_path / "m", None)


def test_safetensors_by_hand_against_the_package(tmp_path):
    """Both ways; scalars, empty ones, and those that others do not align."""
    package = pytest.importorskip("safetensors.torch")
    g = torch.Generator().manual_seed(0)
    shapes = {"scalar": (), "empty": (0, 3), "odd": (3,), "matrix": (5, 7), "cube": (2, 1, 4)}
    path = tmp_path / "model.safetensors"
    for dtype in model_module.DTYPES.values():
        weights = {name: torch.randn(shape, generator=g).to(dtype) for name, shape in shapes.items()}
        model_module.write_safetensors(path, weights, dict.fromkeys(weights, dtype))
        same_tensors(package.load_file(path), weights)
        package.save_file(weights, path)
        same_tensors(model_module.read_safetensors(path), weights)
    mixed = {"half": torch.randn(3).half(), "whole": torch.randn(4)}
    model_module.write_safetensors(path, mixed, {name: w.dtype for name, w in mixed.items()})
    same_tensors(model_module.read_safetensors(path), mixed)


@pytest.mark.parametrize("spaces", range(4))
def test_a_file_whose_tensors_are_not_aligned(tmp_path, spaces):
    model = written(tmp_path / "m")
    rewrite(tmp_path / "m", lambda header, data: (json.dumps(header).encode() + b" " * spaces, data))
    same_tensors(GPT.from_pretrained(tmp_path / "m").state_dict(), model.state_dict())


def test_the_rotary_periods_of_old_folders_are_no_tensor_too_many(tmp_path):
    model = written(tmp_path / "m", **LIKE_LLAMA)
    rewrite(tmp_path / "m", lambda header, data: (header | {"model.layers.0.self_attn.rotary_emb.inv_freq": {
        "dtype": "F32", "shape": [4], "data_offsets": [len(data), len(data) + 16]}}, data + bytes(16)))
    same_tensors(GPT.from_pretrained(tmp_path / "m").state_dict(), model.state_dict())


def test_what_is_read_does_not_hang_on_the_file(tmp_path):
    """The file is mapped while it is read; the model lives on when it is overwritten."""
    written(tmp_path / "m")
    read = GPT.from_pretrained(tmp_path / "m")
    before = copy.deepcopy(read.state_dict())
    path = tmp_path / "m" / "model.safetensors"
    with open(path, "r+b") as f:
        f.write(bytes(path.stat().st_size))
    same_tensors(read.state_dict(), before)


def test_old_calls_of_the_config_keep_their_meaning():
    config = GPTConfig(960, 2, 4, 64, 128, 0.1)
    assert dataclasses.asdict(config) == {
        "vocab_size": 960, "n_layer": 2, "n_head": 4, "n_embd": 64, "context": 128, "dropout": 0.1, "n_kv_head": 4,
        "head_dim": 16, "n_mlp": 256, "gated": False, "qkv_bias": False, "qk_norm": False, "tied": False,
        "eps": torch.finfo(torch.float32).eps, "theta": 1000.0, "rope": None}
    assert {name: tuple(p.shape) for name, p in GPT(config).blocks[1].named_parameters()} == {
        "attn_norm.weight": (64,), "mlp_norm.weight": (64,), "qkv.weight": (192, 64), "attn_out.weight": (64, 64),
        "mlp_in.weight": (256, 64), "mlp_out.weight": (64, 256)}
