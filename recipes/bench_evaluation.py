"""Time and memory of ``mfkit fid`` as the images grow: random ones, by a small network. Prints JSON.

python recipes/bench_evaluation.py COUNT PIXELS
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mfkit.artifacts.artifact import Provenance
from mfkit.data.npz import NpzWriter

BATCH = 1000
OPTIONS = ["--encoder", "tiny", "--pretrain-steps", "1", "--steps", "1", "--batch-size", "32", "-o", "rae.safetensors"]


def write(path: Path, count: int, side: int) -> None:
    random = torch.Generator().manual_seed(0)
    with NpzWriter(path, count, side) as writer:
        for begin in range(0, count, BATCH):
            images = torch.randint(0, 256, (BATCH, 3, side, side), generator=random, dtype=torch.uint8)
            writer.put(range(begin, begin + BATCH), images, torch.arange(BATCH) % 10)
        writer.finish({"class_names": [str(label) for label in range(10)]}, Provenance())


def main(count: int, side: int) -> None:
    program = shutil.which("mfkit")
    assert program
    with TemporaryDirectory() as folder:
        write(Path(folder) / "images.npz", count, side)
        write(Path(folder) / "real.npz", BATCH, side)
        subprocess.run(
            [program, "train-rae", "real.npz", "--image-size", str(side), "--patch", str(side // 4), *OPTIONS],
            cwd=folder, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        began = time.perf_counter()
        command = [program, "fid", "images.npz", "--reference", "real.npz", "--features", "rae.safetensors", "-q"]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert not status
    seconds = time.perf_counter() - began
    print(json.dumps({"images": count, "pixels": side, "seconds": seconds, "peak_bytes": usage.ru_maxrss * 1024}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
