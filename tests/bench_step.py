"""Where the time of one step of SDFT goes, and how it compares with TRL's trainer on the same work.

    python tests/bench_step.py                                         our step and its parts
    python tests/bench_step.py --trl-python OTHER_VENV/bin/python      alternately with TRL (there: pip install
                                                                       torch==2.13.0 trl transformers)
    python tests/bench_step.py --real out/smollm2 ...                  and the step of a real model

The work: 64 prompts of 8 tokens, demonstration prompts of 29, 12 new tokens each, 512 words, 3 layers of width 128,
fp32, and no end token, so that every answer has its full length. Each runs as it comes: ours with the matrix products
that train.py chooses, TRL with torch's choice. A real model: the facts of examples/facts.py, 16 rows, the official
words, the student's samples of at most 24 tokens, full logits, forward KL, AdamW, bf16 products of fp32 weights (for
both fp32 ones, where a trial finds them faster); a step is the time from one's end to the next one's, in train.py and
in TRL's trainer. Of each part of a step what it must do is counted, and what that would take at the speeds of the
machine. All on the CPU, whatever else is there (steps on a GPU: gpu.py). Writes results/step_cpu.json.
"""
import argparse
import contextlib
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
B, P, Q, R, V, D, L, H = 64, 8, 29, 12, 512, 128, 3, 4


def small():
    """Student, optimiser, batch and sampling of the small world's work."""
    import torch

    from data import Batch
    from model import GPT, GPTConfig

    torch.manual_seed(0)
    student = GPT(GPTConfig(V, L, H, D))
    torch.nn.init.normal_(student.head.weight, std=0.02)
    words = torch.randint(0, V, (B, Q))
    short, long = torch.full((B,), P), torch.full((B,), Q)
    batch = Batch(words[:, :P], short, words, long, words[:, :R], torch.ones(B, R, dtype=torch.bool))
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    return student, optimizer, batch, lambda model, prompt, n: model.generate(prompt, n, R, end=-1)


def real(folder, facts, bf16):
    """Those of a real model's."""
    from chat import ChatTokenizer
    from data import collate, read_examples
    from model import GPT, Sampler
    from train import adamw

    student, tokenizer = GPT.from_pretrained(folder), ChatTokenizer(folder)
    batch = collate([e for e in read_examples([facts], tokenizer, 2048) if e.split == "train"][:16], tokenizer)
    sampler = Sampler(tokenizer.end, bf16)
    return student, adamw(student, 5e-5), batch, lambda model, prompt, n: sampler(model, prompt, n, 24)


def counted(f) -> tuple[float, float]:
    """What f() has to do: 1e9 operations of its matrix products, and 1e9 bytes that its operations on tensors read and
    write, as if none were fused with the next, and nothing lay in a cache."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    class Bytes(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            # a view moves nothing
            if not any(r.alias_info and not r.alias_info.is_write for r in op._schema.returns):
                said = [x.nbytes for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
                read = [x.nbytes for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
                # of a table as much is read as is written
                some = any(part in op.name() for part in ("embedding", "index", "gather", "scatter"))
                Bytes.total += sum(said) + (sum(min(n, sum(said)) for n in read) if some else sum(read))
            return out

    def of_the_loss(student, head, teachers, *_, **__):
        # products with the head: logits of the student and of each teacher, and two gradients
        return 2 * (3 + teachers[0]) * student[0] * student[1] * head[0]

    def of_a_packed_layer(x, weight, *_, **__):
        return 2 * math.prod(x) * weight[0]

    own = {torch.ops.sdft.linear_divergence: of_the_loss}
    if torch.backends.mkldnn.is_available():
        own[torch.ops.mkldnn._linear_pointwise] = of_a_packed_layer
    with FlopCounterMode(display=False, custom_mapping=own) as flops, Bytes():
        f()
    return flops.get_total_flops() / 1e9, Bytes.total / 1e9


def machine(bf16) -> dict:
    """What this machine does: matrix products of a size at which it is fast, and a copy that no cache holds."""
    import torch

    from bench_kernel import copy_bandwidth, milliseconds

    a = torch.ones(2048, 2048, dtype=torch.bfloat16 if bf16 else torch.float32)
    return {"gflop_per_s": round(2 * 2048**3 / 1e6 / milliseconds(lambda: a @ a, "cpu", 2), 1),
            "gb_per_s": round(copy_bandwidth("cpu"), 1)}


def profile(work, bf16) -> dict:
    """{"bf16", "gflop_per_s", "gb_per_s", "parts": {part of a step: {"ms", "gflop", "gb", "floor_ms"}}}. Each part is
    timed and counted apart; its floor is the longer of what its products and its bytes take at the machine's speeds."""
    import torch

    import sdft
    from bench_kernel import milliseconds
    from model import frozen_copy
    from train import LINEAR_FROM

    student, optimizer, batch, sample = work
    teacher = frozen_copy(student)
    linear, speeds = student.config.vocab_size >= LINEAR_FROM, machine(bf16)
    prompt, shown = (batch.prompt, batch.length), (batch.demo_prompt, batch.demo_length)
    response, mask = sample(student, *prompt)

    def score(model, asked):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return sdft.score(model, *asked, response, mask, return_hidden=linear)

    with torch.no_grad():
        target = score(teacher, shown)
        out = score(student, prompt)
    back = torch.randn_like(out)

    def loss():
        leaf = out.detach().requires_grad_()
        if linear:
            sdft.linear_distill_loss(leaf, student.head.weight, target, teacher.head.weight, mask).backward()
        else:
            sdft.distill_loss(leaf, target, mask).backward()

    def update():
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            sdft.sdft_step(student, teacher, optimizer, batch, sample, linear=linear)

    parts = {
        "sampling": lambda: sample(student, *prompt),
        "teacher": torch.no_grad()(lambda: score(teacher, shown)),
        "student, forward and backward": lambda: score(student, prompt).backward(back),
        "loss" + ", and the head's gradient" * linear: loss,
        "optimiser": update,
        "EMA": lambda: sdft.ema_update(teacher, student, 0.98),
        "step": step,
    }
    found = {}
    for name, part in parts.items():
        ms, (gflop, gb) = milliseconds(part, "cpu", seconds=5), counted(part)
        floor = 1000 * max(gflop / speeds["gflop_per_s"], gb / speeds["gb_per_s"])
        found[name] = {"ms": round(ms, 1), "gflop": round(gflop, 2), "gb": round(gb, 3), "floor_ms": round(floor, 1)}
    return {"bf16": bf16, **speeds, "parts": found}


def timed(steps) -> dict:
    """Median milliseconds of the small world's step."""
    import sdft
    from bench_kernel import milliseconds
    from model import frozen_copy

    student, optimizer, batch, sample = small()
    step = functools.partial(sdft.sdft_step, student, frozen_copy(student), optimizer, batch, sample)
    return {"step": milliseconds(step, "cpu", seconds=60, most=steps)}


def timed_of(folder, facts, steps) -> dict:
    """Median milliseconds of train.py's step on a real model, and the most memory of the process."""
    import sdft
    import train
    from runs import peak_mb

    ends, step = [], sdft.sdft_step

    def clocked(*args, **options):
        figures = step(*args, **options)
        ends.append(time.perf_counter())
        return figures

    sdft.sdft_step = clocked
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(sys.stderr):
        train.main(["--init", folder, "--demos", facts, "--batch-size", "16", "--max-new-tokens", "24", "--lr", "5e-5",
                    "--bf16", "--device", "cpu", "--contrast", "0", "--guard", "0", "--watch-every", "1000",
                    "--save-every", "1000", "--converged", "0", "--steps", str(steps + 3),
                    "--out", os.path.join(out, "run")])
    times = [1000 * (b - a) for a, b in zip(ends[2:], ends[3:])]
    return {"step": statistics.median(times), "peak_mb": peak_mb()}


TRL_OF = """
import json, logging, os, random, resource, sys, tempfile, time, warnings
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING)
import torch, trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer
folder, facts, steps, template, bf16 = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5] == "True"
rows = [json.loads(line) for line in open(facts)]
rows = random.Random(0).choices([row for row in rows if row["split"] == "train"], k=16 * (steps + 3))
data = Dataset.from_list([{"prompt": [{"role": "user", "content": row["prompt"]}],
                           "privileged_context": row["response"]} for row in rows])
ends = []
class Clock(TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        ends.append(time.perf_counter())
with tempfile.TemporaryDirectory() as out:
    config = SDFTConfig(
        output_dir=out, per_device_train_batch_size=16, gradient_accumulation_steps=1, max_steps=steps + 3,
        num_generations=1, teacher_prompt_template=template,
        max_completion_length=24, max_prompt_length=256, learning_rate=5e-5, report_to=[],
        logging_steps=10**6, save_strategy="no", use_cpu=True, bf16=bf16, distillation_mode="full_logits",
        distillation_alpha=0.0, teacher_model_kind="ema", teacher_update_rate=0.02, gradient_checkpointing=False,
        disable_tqdm=True, weight_decay=0.0)
    SDFTTrainer(model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), args=config,
                train_dataset=data, processing_class=AutoTokenizer.from_pretrained(folder), callbacks=[Clock()]).train()
times = sorted(b - a for a, b in zip(ends[2:], ends[3:]))
print(json.dumps({"step": 1000 * times[len(times) // 2], "version": trl.__version__,
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
"""


TRL = """
import json, logging, os, sys, tempfile, time, warnings
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1")
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING)
import torch, trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer
B, P, Q, R, V, D, L, H, steps = map(int, sys.argv[1:])
ids = {f"w{i}": i for i in range(V - 2)} | {"<eos>": V - 2, "<pad>": V - 1}
words = Tokenizer(models.WordLevel(ids, unk_token="w0"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="w0")
def text(n):
    return " ".join(f"w{i}" for i in torch.randint(0, V - 2, (n,)).tolist())
data = Dataset.from_list([{"prompt": text(P), "privileged_context": text(Q - P - 1)} for _ in range(B * (steps + 3))])
with tempfile.TemporaryDirectory() as folder:
    shape = GPT2Config(vocab_size=V, n_positions=256, n_embd=D, n_layer=L, n_head=H, bos_token_id=V - 2,
                       eos_token_id=V - 2, pad_token_id=V - 1)
    GPT2LMHeadModel(shape).save_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder)           # the trainer builds its teacher from this path
    model.generation_config.eos_token_id = None               # no end: every answer has its full length
    ends = []
    class Clock(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            ends.append(time.perf_counter())
    config = SDFTConfig(
        output_dir=folder, per_device_train_batch_size=B, gradient_accumulation_steps=1, max_steps=steps + 3,
        num_generations=1, max_completion_length=R, max_prompt_length=64, learning_rate=1e-4, report_to=[],
        logging_steps=10**6, save_strategy="no", use_cpu=True, bf16=False,
        distillation_mode="full_logits", distillation_alpha=0.0, teacher_model_kind="ema", teacher_update_rate=0.01,
        gradient_checkpointing=False, disable_tqdm=True)
    SDFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]).train()
times = sorted(b - a for a, b in zip(ends[2:], ends[3:]))
print(json.dumps({"step": 1000 * times[len(times) // 2], "version": trl.__version__}))
"""


def alternately(rounds, ours, trl):
    """What the last line of each command says, JSON, in turns: {"ours": [...], "trl": [...]}; trl None: ours alone."""
    said = {"ours": [], "trl": []}
    for _ in range(rounds):
        for name, command in (("ours", ours), ("trl", trl)):
            if command:
                done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(done.stderr)
                said[name].append(found := json.loads(done.stdout.splitlines()[-1]))
                print(f"{name}: {found.get('step') or found['parts']['step']['ms']:,.0f} ms a step", flush=True)
    return said


def compared(said) -> dict:
    """Medians over the rounds, the most memory, and how often TRL's step contains ours in each round."""
    ours, trl = said["ours"], said["trl"]
    figures = {"step_ms": round(statistics.median(r["step"] for r in ours), 1)}
    for name, rounds in (("peak_mb", ours), ("trl_peak_mb", trl)):
        if rounds and "peak_mb" in rounds[0]:
            figures[name] = max(r["peak_mb"] for r in rounds)
    if trl:
        figures["trl"] = {"version": trl[0]["version"], "step_ms": round(statistics.median(r["step"] for r in trl), 1)}
        figures["times_faster_than_trl"] = [round(t["step"] / o["step"], 2) for o, t in zip(ours, trl)]
    return figures


def worker(what, folder, facts, steps) -> dict:
    """What a process of its own finds out: "profile" or "time", of the model in a folder or, without, the small one."""
    from runs import bf16_pays, set_up_machine

    # as train.py does
    set_up_machine("cpu")
    if what == "time":
        return timed_of(folder, facts, steps) if folder else timed(steps)
    if low := bool(folder) and bf16_pays():
        set_up_machine("cpu", bf16=True)
    return profile(real(folder, facts, low) if folder else small(), low)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="alternations with TRL")
    parser.add_argument("--trl-python", help="a Python that can import trl; without it our step alone is timed")
    parser.add_argument("--real", default="", help="folder of a real model: its step is timed too")
    parser.add_argument("--worker", choices=["profile", "time"], help=argparse.SUPPRESS)
    parser.add_argument("--facts", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path[:0] = [ROOT, os.path.join(ROOT, "examples")]
    if args.worker:
        print(json.dumps(worker(args.worker, args.real, args.facts, args.steps)))
        return

    import facts
    from chat import OFFICIAL
    from runs import provenance, write_json

    def of(steps, trl, *model):
        us = [sys.executable, __file__, "--steps", steps, *model, "--worker"]
        (profiled,) = alternately(1, [*us, "profile"], None)["ours"]
        them = args.trl_python and [args.trl_python, "-c", *trl(profiled["bf16"])]
        return profiled | compared(alternately(args.rounds, [*us, "time"], them))

    command = f"python tests/bench_step.py --steps {args.steps} --rounds {args.rounds}" + (
        " --trl-python ..." * bool(args.trl_python) + f" --real {args.real}" * bool(args.real))
    figures = {**provenance(), "command": command,
               "small": of(args.steps, lambda _: [TRL, B, P, Q, R, V, D, L, H, args.steps])}
    if args.real:
        steps, template = max(1, args.steps // 3), OFFICIAL.replace("{demo}", "{privileged_context}")
        with tempfile.TemporaryDirectory() as folder:
            facts.write(facts.Config(out=folder))
            rows = os.path.join(folder, "teach.jsonl")
            figures["real"] = {"model": os.path.basename(os.path.abspath(args.real))} | of(
                steps, lambda bf16: [TRL_OF, args.real, rows, steps, template, bf16],
                "--real", args.real, "--facts", rows)
    print(json.dumps(figures, indent=1))
    write_json(os.path.join(ROOT, "results", "step_cpu.json"), figures)


if __name__ == "__main__":
    main()
