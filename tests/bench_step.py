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
in TRL's trainer. All on the CPU, whatever else is there (steps on a GPU: gpu.py). Writes results/step_cpu.json.
"""
import argparse
import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
B, P, Q, R, V, D, L, H = 64, 8, 29, 12, 512, 128, 3, 4


def ours(steps):
    """Median milliseconds of a whole step, and of its parts timed apart."""
    sys.path.insert(0, ROOT)
    import torch

    import sdft
    from data import Batch
    from model import GPT, GPTConfig
    from runs import set_up_machine

    set_up_machine("cpu")                                  # as train.py does
    torch.manual_seed(0)
    student = GPT(GPTConfig(V, L, H, D))
    torch.nn.init.normal_(student.head.weight, std=0.02)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    words = torch.randint(0, V, (B, Q))
    short, long = torch.full((B,), P), torch.full((B,), Q)
    batch = Batch(words[:, :P], short, words, long, words[:, :R], torch.ones(B, R, dtype=torch.bool))

    def sample(model, prompt, n):
        return model.generate(prompt, n, R, end=-1)

    def median(f):
        f(), f()
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            f()
            times.append(1000 * (time.perf_counter() - began))
        return statistics.median(times)

    response, mask = sample(student, batch.prompt, batch.length)
    target = sdft.score(teacher, batch.demo_prompt, batch.demo_length, response)

    def student_pass():
        sdft.distill_loss(sdft.score(student, batch.prompt, batch.length, response), target, mask).backward()

    def update():
        optimizer.step()
        sdft.ema_update(teacher, student, 0.99)

    return {
        "step": median(lambda: sdft.sdft_step(student, teacher, optimizer, batch, sample)),
        "sampling": median(lambda: sample(student, batch.prompt, batch.length)),
        "teacher": median(lambda: sdft.score(teacher, batch.demo_prompt, batch.demo_length, response)),
        "student, loss, backward": median(student_pass),
        "optimiser, EMA": median(update),
    }


def ours_of(folder, facts, steps):
    """Median milliseconds of train.py's step on a real model, and the most memory of the process."""
    sys.path.insert(0, ROOT)
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
                    "--bf16", "--device", "cpu", "--guard", "0", "--watch-every", "1000", "--save-every", "1000",
                    "--converged", "0", "--steps", str(steps + 3), "--out", os.path.join(out, "run")])
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
                said[name].append(json.loads(done.stdout.splitlines()[-1]))
    return said


def compared(said) -> dict:
    """Medians over the rounds, and how often TRL's step contains ours in each."""
    ours, trl = said["ours"], said["trl"]
    figures = {"milliseconds": {k: round(statistics.median(r[k] for r in ours), 1) for k in ours[0] if k != "peak_mb"}}
    for name, rounds in (("peak_mb", ours), ("trl_peak_mb", trl)):
        if rounds and "peak_mb" in rounds[0]:
            figures[name] = max(r["peak_mb"] for r in rounds)
    if trl:
        figures["trl"] = {"version": trl[0]["version"], "step": round(statistics.median(r["step"] for r in trl), 1)}
        figures["times_faster_than_trl"] = [round(t["step"] / o["step"], 2) for o, t in zip(ours, trl)]
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="alternations with TRL")
    parser.add_argument("--trl-python", help="a Python that can import trl; without it our step alone is timed")
    parser.add_argument("--real", default="", help="folder of a real model: its step is timed too")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--facts", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(ours_of(args.real, args.facts, args.steps) if args.real else ours(args.steps)))
        return

    sys.path[:0] = [ROOT, os.path.join(ROOT, "examples")]
    import facts
    from chat import OFFICIAL
    from runs import bf16_pays, provenance, set_up_machine, write_json

    us, them = [sys.executable, __file__, "--worker", "--steps"], args.trl_python and [args.trl_python, "-c"]
    shape = [B, P, Q, R, V, D, L, H, args.steps]
    said = alternately(args.rounds, [*us, args.steps], them and [*them, TRL, *shape])
    command = f"python tests/bench_step.py --steps {args.steps} --rounds {args.rounds}" + (
        " --trl-python ..." * bool(them) + f" --real {args.real}" * bool(args.real))
    figures = {**provenance(), "command": command, **compared(said)}
    if args.real:
        set_up_machine("cpu")
        steps, bf16 = max(1, args.steps // 3), bf16_pays()
        with tempfile.TemporaryDirectory() as folder:
            facts.write(facts.Config(out=folder))
            rows, template = os.path.join(folder, "teach.jsonl"), OFFICIAL.replace("{demo}", "{privileged_context}")
            said = alternately(args.rounds, [*us, steps, "--real", args.real, "--facts", rows],
                               them and [*them, TRL_OF, args.real, rows, steps, template, bf16])
        figures["real"] = {"model": os.path.basename(os.path.abspath(args.real)), "bf16": bf16, **compared(said)}
    print(json.dumps(figures, indent=1))
    write_json(os.path.join(ROOT, "results", "step_cpu.json"), figures)


if __name__ == "__main__":
    main()
