"""encode, trajectories and sample: the stage as it is, beside its networks alone on the same batches."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

from mfkit.autoencoders import weights
from mfkit.autoencoders.rae import RAEConfig
from mfkit.benchmark.rates import product_rate, seconds
from mfkit.benchmark.request import BenchRequest
from mfkit.benchmark.synthetic import Synthetic
from mfkit.config import presets
from mfkit.config.settings import EncodeSettings, TrajectorySettings
from mfkit.evaluation.cost import preset_rae
from mfkit.evaluation.flops import decoder_work, encoder_work, generator_work
from mfkit.flow.solvers import evaluations, trajectory
from mfkit.flow.times import time_grid
from mfkit.inference.encode import encode
from mfkit.inference.generate import pictures
from mfkit.inference.micro_batches import Passes
from mfkit.inference.sample import Sampler, SampleRequest, sample
from mfkit.inference.trajectories import solve
from mfkit.runtime.distributed import processes
from mfkit.runtime.precision import evaluating

_SHORT, _LONG = 2, 10
"""Batches of two runs, whose difference is what counts: loading weights and the first and last batch are in both."""
_WORKERS = 4


def bench_encode(request: BenchRequest, inputs: Synthetic) -> dict[str, Any]:
    """The encoder of the preset's RAE on PNG images in a shard."""
    device, rows = processes().device, _rows(request, inputs)
    config = _autoencoder(inputs, decoder="tiny")
    artifact = inputs.autoencoder(config)
    images = {batches: inputs.images(batches * rows, config.image_size) for batches in (_SHORT, _LONG)}
    settings = replace(
        presets.resolve(EncodeSettings, "encode", request.preset, {}),
        batch_size=rows, precision=request.precision, shard_size=_LONG * rows,
    )  # fmt: skip
    rae = weights.load_rae(artifact.path).to(device)
    batch = torch.rand(rows, 3, config.image_size, config.image_size, device=device)

    def alone() -> None:
        with evaluating(request.precision, device):
            rae.encode(batch)

    def stage(batches: int) -> None:
        encode(
            images[batches], artifact, config.image_size, str(inputs.folder / "encoded"), request.preset, settings,
            mirror=False, workers=_WORKERS, overwrite=True,
        )  # fmt: skip

    work = rows * 1e9 * encoder_work(config)["flops"]
    return {"stage": "encode", "batch_size": rows} | _in_turn(request, {"": stage}, alone, rows, work)


def bench_trajectories(request: BenchRequest, inputs: Synthetic) -> dict[str, Any]:
    """The preset's solver of the teacher's ODE."""
    device, rows = processes().device, _rows(request, inputs)
    artifact = inputs.generator("teacher")
    settings = replace(
        presets.resolve(TrajectorySettings, "trajectories", request.preset, {}),
        batch_size=rows, precision=request.precision,
    )  # fmt: skip
    network = weights.load_generator(artifact.path, "teacher").to(device)
    noise = torch.randn(rows, *inputs.shape, device=device)
    labels = torch.zeros(rows, dtype=torch.long, device=device)
    times = time_grid(settings.solver_steps, artifact.config["time_shift"], device)

    def alone() -> None:
        with evaluating(request.precision, device):
            trajectory(lambda z, t: network(z, t, labels), noise, times, settings.solver)

    def stage(batches: int) -> None:
        solve(artifact.path, batches * rows, str(inputs.folder / "solved"), settings, overwrite=True)

    nfe = evaluations(settings.solver_steps, settings.solver)
    work = rows * nfe * 1e9 * generator_work(network.config, "teacher")["flops"]
    measured = _in_turn(request, {"": stage}, alone, rows, work)
    return {"stage": "trajectories", "batch_size": rows, "nfe": nfe} | measured


def bench_sample(request: BenchRequest, inputs: Synthetic) -> dict[str, Any]:
    """One-step pictures by a student and the preset's decoder, as PNG files, as an .npz and as tar shards."""
    device, rows = processes().device, _rows(request, inputs)
    config = _autoencoder(inputs)
    wanted = SampleRequest(count=_LONG * rows, nfe=1, batch_size=rows, precision=request.precision)
    sampler = Sampler(inputs.generator("student").path, inputs.autoencoder(config).path, wanted)
    noise = torch.randn(rows, *inputs.shape, device=device)
    labels = torch.zeros(rows, dtype=torch.long, device=device)

    def alone() -> None:
        with evaluating(request.precision, device):
            pictures(sampler.network, sampler.rae, noise, labels, steps=1, shift=1.0)

    def to(name: str, *, tar: bool) -> Callable[[int], None]:
        def stage(batches: int) -> None:
            sampler.request = replace(wanted, count=batches * rows)
            sample(sampler, str(inputs.folder / name), tar=tar, grid=None, overwrite=True)

        return stage

    ways = {"png_": to("png", tar=False), "npz_": to("samples.npz", tar=False), "tar_": to("tar", tar=True)}
    one = generator_work(sampler.network.config, "student")["flops"] + decoder_work(config)["flops"]
    measured = _in_turn(request, ways, alone, rows, rows * 1e9 * one)
    return {"stage": "sample", "batch_size": rows, "nfe": 1} | measured


def _rows(request: BenchRequest, inputs: Synthetic) -> int:
    """Rows of a batch, as the stages take them."""
    device = processes().device
    return Passes(inputs.side**2, request.precision, device).whole(request.rows(device))


def _autoencoder(inputs: Synthetic, decoder: str | None = None) -> RAEConfig:
    """The preset's RAE, for latents of the asked size."""
    config = preset_rae(inputs.preset, decoder)
    scale = inputs.side / config.side
    return replace(
        config, side=inputs.side, image_size=round(scale * config.image_size),
        encoder_size=round(scale * config.encoder_size),
    )  # fmt: skip


def _in_turn(
    request: BenchRequest, ways: dict[str, Callable[[int], None]], alone: Callable[[], None], rows: int, flops: float
) -> dict[str, Any]:
    """Each way of the stage, and the networks alone, in turn, after a short run of each that does not count.

    :param alone: the networks on one batch. :param flops: of a batch.
    """
    device = processes().device

    def alone_for_as_long() -> None:
        for _ in range(_LONG - _SHORT):
            alone()

    alone()
    for way in ways.values():
        way(_SHORT)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    bare: list[float] = []
    for _ in range(request.rounds):
        bare.append(seconds(alone_for_as_long, device) / (_LONG - _SHORT))
        for name, way in ways.items():
            short, long = (seconds(partial(way, batches), device) for batches in (_SHORT, _LONG))
            taken[name].append((long - short) / (_LONG - _SHORT))
    result: dict[str, Any] = {"network_seconds": median(bare)}
    for name, times in taken.items():
        result[f"{name}images_per_second"] = rows / median(times)
        result[f"{name}share_of_network"] = median(b / t for b, t in zip(bare, times, strict=True))
    step = median(next(iter(taken.values())))
    peak = product_rate(request.precision, device)
    return result | {
        "step_seconds": step,
        "flops_per_step": flops,
        "flops_per_second": flops / step,
        "peak_flops_per_second": peak,
        "mfu": flops / step / peak,
    }
