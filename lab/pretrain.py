"""Pretrain the small GPT on the documents of its world: what all of `make demo` starts from.

    python lab/pretrain.py --seed 0 --out out/base

The folder is its own cache: what was made with the same settings and the same code is found
again in its model/, and what was stopped goes on from its checkpoint.pt. At the end the gates
tell whether the model can do what it needs before it can teach itself anything. Left out: any
text but the world's.
"""
import dataclasses
import hashlib
import inspect
import json
import os
import random
import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F

sys.path.insert(1, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import model as model_module
from data import Example, grade
from eval import accuracy, answers, load_model, mean
from model import GPT, GPTConfig
from runs import (MANY, BadInput, Log, check_options, check_out, ends_in_one_line, find_device, given_options,
                  load_checkpoint, locked, option, provenance, random_states, remove, remove_run, save_checkpoint,
                  set_random_states, set_up_machine)
from world import World, well_formed

# What a base model must be able to do: at least this share (without a demonstration: at most).
GATES = {"base": 0.97, "new_without_demonstration": 0.20, "new_with_demonstration": 0.95,
         "contradicting_demonstration": 0.90, "text_with_demonstration": 0.95, "real_words_with_demonstration": 0.95,
         "well_formed": 0.98}
AT_MOST = ("new_without_demonstration",)
REAL_WORDS = """river market winter Haus Fenster été livre река зима город книга ποτάμι βιβλίο μήλο ماء كتاب بيت
    नदी घर किताब 川 冬 市場 강 겨울 시장""".split()
PROMPT_WEIGHT = 0.1               # of a token that is not part of the answer, in the loss
GPU = {"n_layer": 6, "n_head": 8, "n_embd": 256, "vocab_size": 50_304, "bf16": True, "compile": True}


@dataclass
class Config:
    seed: int = option(0, "draws the world, its documents and the first weights", "the model", within=(0, MANY))
    n_layer: int = option(3, "blocks", within=(1, 1000))
    n_head: int = option(4, "attention heads", within=(1, 1000))
    n_embd: int = option(128, "width", within=(2, 100_000))
    vocab_size: int = option(960, "rows of embedding and head; what the tokenizer does not need is padding",
                             within=(960, MANY))
    steps: int = option(1800, "steps of pretraining", "the training", within=(1, MANY))
    docs: int = option(128, "documents a step", within=(1, MANY))
    dropout: float = option(0.1, "dropout; none afterwards", within=(0, 0.9))
    preset: str = option("", "gpu: a model of 30 million parameters, 50,304 words, bf16, compiled; other options "
                         "override it", choices=["gpu"])
    out: str = option("out/base", "folder of the model", "the machine", machine=True)
    bf16: bool = option(False, "matrix products in bfloat16 (autocast)")
    compile: bool = option(False, "torch.compile the forward pass; no gain on a CPU")
    device: str = option("auto", "auto, cpu, cuda, ...", machine=True)
    threads: int = option(0, "CPU threads; 0 leaves torch's choice", within=(0, 1024), machine=True)
    save_every: int = option(250, "steps between checkpoints", within=(1, MANY), machine=True)


def parse(argv=None) -> Config:
    given = given_options(Config, __doc__, argv)
    config = Config(**(GPU if given.get("preset") else {}) | given)
    check_options(config)
    if config.n_embd % (2 * config.n_head):
        raise BadInput(f"pretrain.py: --n-embd {config.n_embd}: must be a multiple of 2 * --n-head "
                       f"({2 * config.n_head})")
    check_out(config.out)
    config.device = find_device(config.device)
    return config


# ---------------------------------------------------------------------------------------------------------------------
# Documents side by side.


def pack(documents: list[tuple[list[int], int]], filler: int, width: int = 128):
    """Documents (ids, start of the answer) side by side in rows of `width`, so that pretraining pays for no padding.

    Returns tokens, targets (N, T) int64, loss weights (N, T) float and the attention mask (N, 1, T, T) bool: a token
    looks at the tokens before it in its own document.
    """
    # first fit, longest first
    rows = []
    for ids, answer in sorted(documents, key=lambda d: -len(d[0])):
        row = next((r for r in rows if sum(len(i) - 1 for i, _ in r) + len(ids) - 1 <= width), None)
        if row is None:
            rows.append(row := [])
        row.append((ids, answer))
    tokens = torch.full((len(rows), width), filler)
    targets, weights, doc = tokens.clone(), torch.zeros(len(rows), width), torch.full((len(rows), width), -1)
    for r, row in enumerate(rows):
        t = 0
        for d, (ids, answer) in enumerate(row):
            n = len(ids) - 1
            tokens[r, t : t + n], targets[r, t : t + n] = torch.tensor(ids[:-1]), torch.tensor(ids[1:])
            weights[r, t : t + n], weights[r, t + answer - 1 : t + n], doc[r, t : t + n] = PROMPT_WEIGHT, 1.0, d
            t += n
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return tokens, targets, weights, (causal & (doc[:, :, None] == doc[:, None, :]))[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# Muon for the matrices of the blocks, AdamW for embedding, head and norms.


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): momentum, made orthogonal by five Newton-Schulz iterations.

    The arithmetic of torch.optim.Muon in fp32: torch's is fixed to bf16, which a CPU without bf16 instructions runs
    15 times slower.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                # Nesterov
                x = p.grad.lerp(state["momentum"], group["momentum"])
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    # drives the singular values to 1
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                p.add_(x.T if tall else x, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def pretrain(model, world, config, log, saved=None, keep=None):
    """Next-token prediction on the world's documents; the tokens of the answer count 1, the others PROMPT_WEIGHT.

    `keep` is called with all that is needed to go on, `saved` is what it was called with last. Returns each token's
    share (V,) of what was read.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [Muon(matrices, lr=0.006), torch.optim.AdamW(others, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)]
    peak = [o.param_groups[0]["lr"] for o in optimizers]
    rng = random.Random(f"pretraining {config.seed}")
    torch.manual_seed(config.seed)
    n, begin, count = config.steps, 0, torch.zeros(config.vocab_size)
    if saved:
        begin, count = saved["step"], saved["count"]
        for optimizer, state in zip(optimizers, saved["optimizers"]):
            optimizer.load_state_dict(state)
        set_random_states(rng, saved)
    log.start(0.0, begin)
    forward = torch.compile(model, dynamic=True) if config.compile else model
    model.train()
    for step in range(begin, n):
        documents = [world.document(rng) for _ in range(config.docs)]
        count += torch.bincount(torch.tensor([i for ids, _ in documents for i in ids]), minlength=config.vocab_size)
        tokens, targets, weights, mask = (t.to(config.device) for t in pack(documents, world.tokenizer.end))
        # warm up, hold, and go down over the last 60 %
        scale = min(1, (step + 1) / 50) * min(1, (1 - step / n) / 0.6 + 0.02)
        for optimizer, lr in zip(optimizers, peak):
            optimizer.param_groups[0]["lr"] = lr * scale
        with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16):
            logits = forward(tokens, mask=mask)
        nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = (nll * weights.flatten()).sum() / weights.sum()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 9 or step == n - 1:
            each = log.seconds() / (step + 1 - begin)
            log.progress(f"step {step + 1}/{n} loss {loss.item():.3f} | {tokens.numel() / each:,.0f} tokens/s | "
                         f"{each * (n - step - 1):.0f} s left", due=(step + 1) % 100 == 0 or step in (9, n - 1))
        if keep and (log.stop or (step + 1) % config.save_every == 0):
            states = [optimizer.state_dict() for optimizer in optimizers]
            keep({"step": step + 1, "count": count, "optimizers": states, **random_states(rng)})
            log.leave()
    model.eval()
    return count / count.sum()


# ---------------------------------------------------------------------------------------------------------------------
# The base model of a seed and a set of settings.


def gates(model, world) -> dict:
    """What the base model can do: {name of GATES: share of answers}."""
    rng = random.Random(f"gates {world.seed}")
    base = [world.base_example(rng) for _ in range(512)]
    new = [e for task in world.stream(20) for e in task.test[:16]]
    contradicting = [world.fresh_example(rng, known=True) for _ in range(256)]
    real_words = [Example(rng.choice(REAL_WORDS), word) for word in REAL_WORDS * 4]
    said = answers(model, world.tokenizer, base)
    text = [world.text_example(rng, 12) for _ in range(512)]

    def shown(examples):
        return accuracy(model, world.tokenizer, examples, shown=True)

    return {
        "base": mean([grade(e, a) for e, a in zip(base, said)]),
        "new_without_demonstration": accuracy(model, world.tokenizer, new),
        "new_with_demonstration": shown(new),
        "contradicting_demonstration": shown(contradicting),
        "text_with_demonstration": shown(text),
        "real_words_with_demonstration": shown(real_words),
        "well_formed": mean([well_formed(e, a) for e, a in zip(base, said)]),
    }


def print_gates(log, found):
    for name, bound in GATES.items():
        most, value = name in AT_MOST, found[name]
        ok = value <= bound if most else value >= bound
        log.say(f"gate {name.replace('_', ' '):30s} {value:6.1%}  ({'<=' if most else '>='} {bound:.0%})  "
                f"{'ok' if ok else 'MISSED'}")


def made_by(config, world) -> str:
    """A hash of all that makes a base model, documents and code included: any other one is made anew."""
    settings = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if not f.metadata["machine"]}
    rng = random.Random("what the documents look like")
    documents = [world.document(rng) for _ in range(256)]
    code = [inspect.getsource(part) for part in (model_module, Muon, pretrain, pack, gates)]
    return hashlib.sha256(repr([settings, documents, PROMPT_WEIGHT, code]).encode()).hexdigest()[:12]


def found_in(folder, made) -> dict:
    """What a folder holds of this base model: pretraining.json of all of it, the checkpoint where its pretraining
    stopped, or {}. Raises BadInput for what is damaged, and for a run of train.py."""
    path, model = os.path.join(folder, "checkpoint.pt"), os.path.join(folder, "model")
    saved = load_checkpoint(path) if os.path.exists(path) else {}
    if "history" in saved or os.path.exists(os.path.join(folder, "result.json")):
        raise BadInput(f"{folder}: a run of train.py; choose another folder with --out")
    if os.path.exists(os.path.join(model, "config.json")):
        try:
            saved = load_model(model)[2]
        except BadInput as e:
            raise BadInput(f"{e}; to make it again, remove {model}")
    return saved if saved.get("made_by") == made else {}


def base_model(config):
    """Leaves a base model in its folder: found there, gone on with, or made."""
    path, folder = (os.path.join(config.out, name) for name in ("checkpoint.pt", "model"))
    world = World(config.seed)
    made = made_by(config, world)
    saved = found_in(config.out, made)
    if not saved:
        # nobody must start from an older one while this one is made
        remove_run(config.out)
    settings = dataclasses.asdict(config)
    about = {"settings": settings} | provenance()
    log = Log(config.out, "base", about, MANY if saved else 0)
    if "gates" in saved:
        log.say(f"{folder}: made before")
        # a kill may have left it beside the model
        remove(config.out, "checkpoint.pt")
        return print_gates(log, saved["gates"])
    torch.manual_seed(config.seed)
    model = GPT(GPTConfig(config.vocab_size, config.n_layer, config.n_head, config.n_embd, dropout=config.dropout))
    model = model.to(config.device).eval()
    log.say(f"pretraining {sum(p.numel() for p in model.parameters()):,} parameters")

    def keep(state):
        save_checkpoint(path, {"settings": settings, "made_by": made, "student": model.state_dict(),
                               "pretraining": state})

    if saved:
        model.load_state_dict(saved["student"])
        log.say(f"going on at step {saved['pretraining']['step']}")
    frequency = pretrain(model, world, config, log, saved.get("pretraining"), keep)
    result = {"made_by": made, **about, "gates": gates(model, world), "frequency": frequency.tolist()}
    text = json.dumps(result, indent=1) + "\n"
    model.save_pretrained(folder, files=world.tokenizer.files() | {"pretraining.json": text})
    remove(config.out, "checkpoint.pt")
    print_gates(log, result["gates"])
    log.say(f"wrote {folder}")


def main(argv=None):
    with ends_in_one_line():
        config = parse(argv)
        set_up_machine(config.device, config.threads, config.bf16)
    with ends_in_one_line(config.out, go_on="the same command"), locked(config.out):
        base_model(config)


if __name__ == "__main__":
    main()
