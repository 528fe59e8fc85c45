"""Small models, files, batches, commands and a browser that the tests share."""
import html
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [ROOT, os.path.join(ROOT, "lab")]

import world as world_module
from data import collate
from model import GPT, GPTConfig

torch.set_num_threads(1)          # on tensors this small two threads wait for one another: minutes on a busy machine
VOCAB_SIZE = 960                  # rows of the small GPT: its tokenizer's words, rounded up to a multiple of 64


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def random_gpt(seed=0, vocab=VOCAB_SIZE, **config):
    """A GPT whose every weight matters: the zero initialisation of heads and outputs would hide mistakes."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(vocab, **{"n_layer": 2, "n_head": 2, "n_embd": 32} | config)).eval()
    for p in model.parameters():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.fixture(scope="session")
def world():
    return world_module.World(0)


@pytest.fixture(scope="session")
def tokenizer(world):
    return world.tokenizer


@pytest.fixture
def batch(world):
    """Eight examples of three families, so that prompts and answers have several lengths."""
    return collate([task.train[i] for task in world.stream(4, 8, 8) for i in range(2)], world.tokenizer)


def write_world(folder, seed=0, **options):
    """The files of a small world, and the options with which train.py teaches them: few probes, which take most of a
    tiny run."""
    small = {"seed": seed, "tasks": 2, "demonstrations": 12, "tests": 4, "kept": 8, "out": str(folder)}
    config = world_module.Config(**small | options)
    world_module.write(config)
    tasks = sorted(os.listdir(folder / "tasks"))
    return ["--demos", *(str(folder / "tasks" / name) for name in tasks), "--keep", str(folder / "keep.jsonl"),
            "--reading", str(folder / "reading.jsonl")]


# The programs at their smallest.
THREADS = "--threads 1 --device cpu"
BASE = f"--steps 2 --docs 8 --n-layer 1 --n-head 2 --n-embd 16 {THREADS}"
WORLD = "--tasks 2 --demonstrations 8 --tests 4 --kept 16"
LESSON = f"--steps 2 --batch-size 4 --watch-every 1 {THREADS}"


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    """A copy of the project in which `make demo` has been run, smallest form."""
    folder = tmp_path_factory.mktemp("project")
    for name in os.listdir(ROOT):
        if name.endswith((".py", ".md")) or name in ("Makefile", "results", "tests", "examples", "lab"):
            source = os.path.join(ROOT, name)
            (shutil.copytree if os.path.isdir(source) else shutil.copy)(source, folder / name)
    # every base model of a test is made without its gates, which take most of the time
    pretrain = folder / "lab" / "pretrain.py"
    pretrain.write_text(pretrain.read_text().replace("gates(model, world),", "dict.fromkeys(GATES, 0.0),"))
    small = f"BASE='{BASE}' WORLD='{WORLD} --tasks 3' ARGS='{LESSON}'"
    done = shell(folder, f"make -o .venv/ready demo PY={sys.executable} {small}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def shell(folder, command):
    env = {k: v for k, v in os.environ.items() if k != "MAKEFLAGS"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture
def browse(tmp_path):
    """browse(page, *options) -> what headless Chromium prints of it; at "#t1" the second token is chosen."""
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")

    def run(page, *options, at=""):
        (tmp_path / "page.html").write_text(page, encoding="utf-8")
        quiet = ("--headless --no-sandbox --disable-gpu --disable-background-networking --disable-sync --no-first-run "
                 f"--user-data-dir={tmp_path}/profile").split()
        done = subprocess.run([chromium, *quiet, *options, f"file://{tmp_path}/page.html{at}"], capture_output=True,
                              text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def content_width(browse, page, width) -> int:
    """How wide the content of a page is that stands in a frame of this width, and writes its own into its title."""
    framed = f'<iframe style="border:0; width: {width}px; height: 900px" srcdoc="{html.escape(page)}"></iframe>'
    framed += "<script>onload = () => document.title = frames[0].document.title</script>"
    return int(re.search(r"<title>(\d+)</title>", browse(framed, "--dump-dom"))[1])
