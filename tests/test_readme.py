"""What the READMEs say: the front door is run from its text, at a small size; everywhere, commands and links exist."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import run, shell
from PIL import Image

from mfkit.commands.main import COMMANDS, subcommand

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README, *sorted((ROOT / "mfkit").rglob("*.md")), ROOT / "recipes/README.md", ROOT / "tests/README.md",
    ROOT / "CHANGELOG.md",
]  # fmt: skip
SMALL = {
    "train-rae": "--steps 2 --pretrain-steps 2 --batch-size 8",
    "trajectories": "--solver-steps 2",
    "sample": "--nfe 2",
    **dict.fromkeys(
        ("train-teacher", "midtrain", "distill", "bootstrap", "train-mean-flow"), "--steps 2 --batch-size 8"
    ),
}
"""What makes a command quick, behind what the README says: the last of two equal options counts."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def commands(block: str) -> list[str]:
    """The commands of a block, without comments, a line each."""
    joined = re.sub(r"(\\|\|)\n\s*", lambda found: "| " if found[1] == "|" else " ", block)
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def quick(line: str) -> str:
    line = re.sub(r"(-n|--count) (\d{3,})", r"\1 64", line)
    for name, options in SMALL.items():
        if "--objective drifting" in line:  # whose batch is of whole groups
            options = options.replace("--batch-size 8", "--batch-size 48")
        line = re.sub(rf"(mfkit {name}\b[^|]*)", rf"\1 {options} ", line)
    return line


@pytest.mark.fast
def test_the_front_door_is_short() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1300


def test_the_front_door_runs_from_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    for index in range(16):
        path = tmp_path / f"own/my-photos/{'cat' if index % 2 else 'dog'}/{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)).save(path)
    (tmp_path / "digits").mkdir()
    ran = 0
    for block in blocks(README, "sh"):
        folder = tmp_path / ("own" if "my-photos" in block else "digits")
        monkeypatch.chdir(folder)
        for line in commands(block):
            if line.startswith("pip install"):  # by which these tests are installed
                assert line == "pip install -e ."
                continue
            assert line.startswith("mfkit "), line
            if "|" in line:
                piped = shell(quick(line), folder)
                assert piped.returncode == 0, piped.stderr
            else:
                done = run(quick(line).removeprefix("mfkit "), monkeypatch)
                assert done.code == 0, f"{line}\n{done.err}"
            ran += 1
    assert ran > 12 and len(list((tmp_path / "digits/samples").rglob("*.png"))) == 64
    monkeypatch.chdir(tmp_path / "digits")
    (python,) = blocks(README, "python")
    found: dict = {}
    exec(python, found)
    assert found["images"].shape == (8, 3, 32, 32)


@pytest.mark.fast
@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "recipes").glob("*.sh"))], ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    """In every block and recipe: the subcommand is one, and it has the options."""
    text = page.read_text() if page.suffix == ".sh" else "\n".join(blocks(page, "sh"))
    for line in commands(text):
        for part in re.split(r"[|;&]", line):
            found = re.search(r"\bmfkit ([a-z][a-z-]+)\b(.*)", part)
            if not found or found[1] not in COMMANDS:
                assert not found or page.suffix == ".sh", f"{page.name}: {part}"
                continue
            built = subcommand(found[1]).build(found[1])
            known = {name for parameter in built.params for name in [*parameter.opts, *parameter.secondary_opts]}
            for word in re.findall(r"(?<!\S)--[a-z][a-z-]*", found[2]):
                assert word in known | {"--help"}, f"{page.name}: mfkit {found[1]} {word}"


@pytest.mark.fast
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        file, _, heading = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, f"{page.name}: {target}"


@pytest.mark.fast
def test_every_command_is_in_the_readme() -> None:
    table = README.read_text().partition("## Commands")[2].partition("\n## ")[0]
    assert set(re.findall(r"`([a-z][a-z-]+)`", table)) >= set(COMMANDS)


@pytest.mark.fast
def test_every_promise_names_a_test_that_exists() -> None:
    held = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    page = (ROOT / "tests/README.md").read_text()
    current = ""
    for name, test in re.findall(r"`(test_\w+\.py)?(?:::)?(test_\w+)?`", page):
        current = name or current
        if current:
            assert current in held, current
        if test:
            assert f"def {test}(" in held[current], f"{current}::{test}"


def test_examples_of_the_help_parse() -> None:
    for name in COMMANDS:
        one = subcommand(name)
        for line in commands(one.examples.replace("\n    ", "\n").strip() + "\n"):
            words = shlex.split(line.partition(" | ")[0].partition(" > ")[0])
            if words[:2] != ["mfkit", name]:
                continue
            known = {option for parameter in one.build(name).params for option in parameter.opts}
            assert {word for word in words if word.startswith("--")} <= known, line
