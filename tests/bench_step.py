"""Where the time of one step of SDFT goes, and how it compares with TRL's trainer on the same work.

    python tests/bench_step.py                                         our step and its parts
    python tests/bench_step.py --trl-python OTHER_VENV/bin/python      alternately with TRL (there: pip install
                                                                       torch==2.13.0 trl transformers)

The work: 64 prompts of 8 tokens, demonstration prompts of 29, 12 new tokens each, 512 words, 3 layers of width 128,
fp32, and no end token, so that every answer has its full length. Each runs as it comes: ours with the matrix products
that train.py chooses, TRL with torch's choice. Writes results/step_<machine>.json.
"""
import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
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
        logging_steps=10**6, save_strategy="no", use_cpu=not torch.cuda.is_available(), bf16=False,
        distillation_mode="full_logits", distillation_alpha=0.0, teacher_model_kind="ema", teacher_update_rate=0.01,
        gradient_checkpointing=False, disable_tqdm=True)
    SDFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]).train()
times = sorted(b - a for a, b in zip(ends[2:], ends[3:]))
print(json.dumps({"step": 1000 * times[len(times) // 2], "version": trl.__version__}))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3, help="alternations with TRL")
    parser.add_argument("--trl-python", help="a Python that can import trl; without it our step alone is timed")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(ours(args.steps)))
        return

    def worker(command):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])

    rounds = []
    for _ in range(args.rounds):
        rounds.append({"ours": worker([sys.executable, __file__, "--worker", "--steps", str(args.steps)])})
        if args.trl_python:
            rounds[-1]["trl"] = worker([args.trl_python, "-c", TRL, *map(str, (B, P, Q, R, V, D, L, H, args.steps))])
    sys.path.insert(0, ROOT)
    from runs import provenance, write_json

    parts = {k: round(statistics.median(r["ours"][k] for r in rounds), 1) for k in rounds[0]["ours"]}
    figures = {**provenance(), "command": "python tests/bench_step.py --trl-python ...", "milliseconds": parts}
    if args.trl_python:
        step = statistics.median(r["trl"]["step"] for r in rounds)
        figures["trl"] = {"version": rounds[0]["trl"]["version"], "step": round(step, 1)}
        figures["times_faster_than_trl"] = [round(r["trl"]["step"] / r["ours"]["step"], 2) for r in rounds]
    print(json.dumps(figures, indent=1))
    import torch
    write_json(os.path.join(ROOT, "results", f"step_{'gpu' if torch.cuda.is_available() else 'cpu'}.json"), figures)


if __name__ == "__main__":
    main()
