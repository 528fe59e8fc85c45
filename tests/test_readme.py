"""Every command of the READMEs in its smallest form, in a copy of the project; and what the READMEs say of figures."""
import json
import os
import re
import shlex
import shutil
import sys

import pytest

from conftest import BASE, LESSON, ROOT, WORLD, shell

SMALL = {"lab/pretrain.py": BASE, "lab/world.py": WORLD, "train.py": LESSON}
SMOLLM2 = os.path.join(ROOT, "out", "smollm2")
READMES = ("README.md", os.path.join("examples", "README.md"), os.path.join("lab", "README.md"),
           os.path.join("lab", "TABLES.md"))


def text_of(readme):
    with open(os.path.join(ROOT, readme)) as f:
        return f.read()


def commands(readme="README.md"):
    blocks = re.findall(r"```\n(.*?)```", text_of(readme), flags=re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"make |\.venv/bin/python ", line)]


def smallest(command) -> str:
    """A command of a README as a test can afford it."""
    program = command.split()[1]
    if program not in SMALL or "--help" in command or "--resume" in command:
        return command
    options = SMALL[program]
    if "--tasks 0" in command:
        options = options.replace("--tasks 2", "")
    if "smollm2" in command:
        return command + " --dry-run" * ("train.py" in command)        # a real step takes seconds
    return f"{command} {options}"


def test_demo_prints_its_commands_gates_progress_and_table_and_writes_summary_and_picture(project):
    folder, out = project
    for command in ("lab/pretrain.py --seed 0", "lab/world.py --seed 0 --tasks 10", "train.py --init out/base --demos",
                    "eval.py out/demo"):
        assert command in out, command
    assert out.count("gate contradicting demonstration") == 1 and "s left" in out and "ms/step" in out
    for method in ("sft", "sdft", "sdft+self-replay"):
        assert re.search(rf"^\| {re.escape(method)} \|", out, flags=re.M)
    summary = json.loads((folder / "out/demo/summary.json").read_text())
    assert set(summary) >= {"gates", "methods", "R"} and len(summary["R"]["sdft"]) == 4
    assert (folder / "out/demo/forgetting.png").exists()


OTHERS = commands() + commands(os.path.join("examples", "README.md"))


@pytest.mark.parametrize("command", [c for c in OTHERS if not re.match(r"make (demo|smollm2|test|gpu|evidence)", c)])
def test_command_of_the_readme_runs(project, command):
    folder, _ = project
    if "smollm2" in command:
        if not os.path.exists(SMOLLM2):
            pytest.skip("SmolLM2 has not been fetched (tests/test_smollm2.py does so)")
        if not (folder / "out/smollm2").exists():
            os.symlink(SMOLLM2, folder / "out/smollm2")
    done = shell(folder, smallest(command).replace(".venv/bin/python", shlex.quote(sys.executable)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


def test_the_loop_of_updates_runs(project):
    folder, _ = project
    (loop,) = re.findall(r"```\n(last=.*?)```", text_of(os.path.join("examples", "README.md")), flags=re.S)
    loop = loop.replace(".venv/bin/python", shlex.quote(sys.executable)).replace("--init", LESSON + " --init")
    done = shell(folder, loop)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(os.listdir(folder / "out/loop")) == ["01-french", "02-german"]
    assert done.stdout.count("kept: composed") == 2 and done.stdout.count("kept: French") == 1


@pytest.mark.parametrize("readme", READMES)
def test_readme_names_only_files_and_sections_that_exist(readme):
    links = set(re.findall(r"\]\(((?!http)[^)]+)\)", text_of(readme)))
    assert links
    for link in links:
        path, _, section = link.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(readme), path)) if path else readme
        assert os.path.exists(os.path.join(ROOT, path)), link
        assert not section or section in sections(path), link


def sections(readme) -> set:
    """The anchors of a file's headings: lower case, signs dropped, spaces as hyphens."""
    headings = re.findall(r"^#+ (.*)$", text_of(readme), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readmes_are_short_and_their_lines_fit():
    assert len(text_of("README.md").splitlines()) <= 250
    assert len(text_of(os.path.join("lab", "README.md")).splitlines()) <= 400
    for readme in READMES:
        inside = False
        for line in text_of(readme).splitlines():
            inside = inside ^ line.startswith("```")
            # tables and commands to be copied cannot be folded
            assert len(line) <= 120 or inside or line.startswith("|"), f"{readme}: {line}"


def test_the_findings_are_figures_of_the_lab():
    """A figure in the README stands in a table of the lab, which code has made from results/."""
    findings = text_of("README.md").split("## What was found")[1].split("\n## ")[0]
    lab = text_of(os.path.join("lab", "TABLES.md"))
    blocks = "".join(re.findall(r"<!-- [\w-]+ -->\n(.*?)<!-- end -->", lab, flags=re.S))
    figures = re.findall(r"\d+\.\d ± \d+\.\d", findings)
    assert len(figures) >= 10
    assert [f for f in figures if f not in blocks] == []


def test_a_world_without_neighbours_is_taught_without(tmp_path):
    """Such as --stream market; make looks when the world is there. Runs of another seed have a folder of their own."""
    shutil.copy(os.path.join(ROOT, "Makefile"), tmp_path)
    (tmp_path / "out" / "world").mkdir(parents=True)
    assert " --neighbours " not in shell(tmp_path, "make -n out/demo/sft").stdout
    (tmp_path / "out" / "world" / "neighbours.jsonl").touch()
    assert " --neighbours out/world/neighbours.jsonl --method sft" in shell(tmp_path, "make -n out/demo/sft").stdout
    assert "--out out/demo-1/sft" in shell(tmp_path, "make -n out/demo-1/sft SEED=1").stdout
