"""Modules import downwards only: commands, stages, training and metrics, files and data, the mathematics."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mfkit

ROOT = Path(mfkit.__file__).parent
LAYERS = {
    "errors": 0, "settings": 0, "presets": 1, "processes": 1, "precision": 1,
    "flow": 1, "networks": 2, "solvers": 2, "objectives": 2,
    "files": 3, "data": 3,
    "training": 4, "metrics": 4,
    "pipeline": 4,
    "stages": 5,
    "benchmark": 6,
    "commands": 7, "__init__": 8, "__main__": 8,
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
    for room in ("flow", "networks", "solvers", "objectives"):
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
