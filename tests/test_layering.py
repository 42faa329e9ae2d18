"""Modules import downwards only, from the commands to the mathematics."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mfkit

ROOT = Path(mfkit.__file__).parent
LAYERS = {
    "errors": 0, "flow": 1, "config": 1, "runtime": 2, "artifacts": 3, "formats": 3, "models": 3, "autoencoders": 4,
    "data": 5, "inference": 6, "training": 6, "evaluation": 6, "interop": 7, "benchmark": 7, "commands": 8,
    "__init__": 9, "__main__": 9,
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
    for room in ("flow", "models"):
        for path in (ROOT / room).glob("*.py"):
            assert not imported(path) & {"files", "data"}, path
            assert "open(" not in path.read_text() and "pathlib" not in path.read_text(), path


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['mfkit', '--help']\n"
        "try:\n    from mfkit.commands.main import main; main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'numpy', 'accelerate', 'timm', 'rich') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
