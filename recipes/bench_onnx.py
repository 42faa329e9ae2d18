"""What an exported graph costs and loses beside PyTorch, by the drifting student of digits.sh. Prints Markdown.

python recipes/bench_onnx.py RUN
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

import onnxruntime
import torch
from judge import DIGITS, Judge
from objectives import IMAGES
from torch import Tensor

import mfkit
from mfkit.autoencoders.rae import RAE
from mfkit.data.codecs import to_uint8
from mfkit.flow.random import Draws
from mfkit.models.generator import Student

WEIGHTS = ("float32", "float16", "int8")
Draw = Callable[[Tensor, Tensor], Tensor]


def by_pytorch(student: Student, rae: RAE) -> Draw:
    @torch.no_grad()
    def draw(noise: Tensor, labels: Tensor) -> Tensor:
        ones = torch.ones(len(noise))
        return rae.decode(noise - student(noise, 0 * ones, ones, labels))

    return draw


def by_graph(path: Path, threads: int) -> Draw:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda noise, labels: torch.from_numpy(
        session.run(None, {"noise": noise.numpy(), "labels": labels.numpy()})[0]
    )


def seconds(draw: Draw, noise: Tensor, labels: Tensor, rounds: int) -> float:
    taken = []
    for _ in range(rounds + 3):
        began = perf_counter()
        draw(noise, labels)
        taken.append(perf_counter() - began)
    return median(taken[3:])


def main(run: Path) -> None:
    student, rae = mfkit.load(run / "drift.safetensors"), mfkit.load(run / "rae.safetensors")
    assert isinstance(student, Student) and isinstance(rae, RAE)
    noise = Draws(1000, "sample", range(IMAGES)).normal("noise", student.config.latent_shape)
    labels = torch.arange(IMAGES) % 10
    judge = Judge(run / "rae.safetensors", DIGITS)
    print("| | threads | one picture | pictures a second, 64 at a time | bytes | RAE | pixels |\n" + "|---" * 7 + "|")
    with TemporaryDirectory() as folder:
        files = {weights: Path(folder) / f"{weights}.onnx" for weights in WEIGHTS}
        for weights, file in files.items():
            command = ["mfkit", "export", str(run / "drift.safetensors"), "--format", "onnx", "--weights", weights]
            subprocess.run([*command, "-o", str(file)], check=True, stdout=subprocess.DEVNULL)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            plain = by_pytorch(student, rae)
            drawn = {"PyTorch": plain} | {f"ONNX, {name}": by_graph(file, threads) for name, file in files.items()}
            for name, draw in drawn.items():
                one = seconds(draw, noise[:1], labels[:1], 50)
                rate = 64 / seconds(draw, noise[:64], labels[:64], 10)
                held = f"{files[name.removeprefix('ONNX, ')].stat().st_size / 1e6:.1f} MB" if draw is not plain else ""
                figures = judge.figures((torch.cat([to_uint8(draw(*part)) for part in _parts(noise, labels)]), labels))
                distances = [figures[f"{space}_distance_to_train"] for space in ("rae", "pixels")]
                cells = [name, threads, f"{1000 * one:.2f} ms", f"{rate:.0f}", held, *(f"{d:.4f}" for d in distances)]
                print(f"| {' | '.join(map(str, cells))} |")


def _parts(noise: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(noise.split(250), labels.split(250), strict=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
