"""Modules import downwards only, from the commands to the mathematics."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mfkit
from mfkit.commands.main import COMMANDS

pytestmark = pytest.mark.fast

ROOT = Path(mfkit.__file__).parent
LAYERS = {
    "errors": 0, "setting": 0, "flow": 1, "config": 2, "runtime": 3, "artifacts": 4, "models": 5, "formats": 6,
    "autoencoders": 7, "loading": 8, "data": 9, "inference": 10, "training": 11, "evaluation": 10, "interop": 11,
    "benchmark": 12, "reporting": 12, "commands": 13, "__init__": 14, "__main__": 14,
}  # fmt: skip
MODULES = sorted(ROOT.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The rooms of mfkit that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mfkit."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mfkit.")}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_imports_upwards(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    upwards = {name for name in imported(path) if LAYERS[name] > LAYERS[room]}
    assert not upwards, f"{path.name} imports {upwards}"


def test_mathematics_reads_and_writes_no_files() -> None:
    """But for models/files.py, which is there to do so."""
    for path in [*(ROOT / "flow").rglob("*.py"), *(ROOT / "models").glob("*.py")]:
        if path.name != "files.py":
            assert not imported(path) & {"artifacts", "data"}, path
            assert "open(" not in path.read_text() and "pathlib" not in path.read_text(), path


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_no_torch(command: str) -> None:
    code = (
        f"import sys; sys.argv = 'mfkit {command} --help'.split()\n"
        "try:\n    from mfkit.commands.main import main; main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'accelerate', 'timm', 'pydantic') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
