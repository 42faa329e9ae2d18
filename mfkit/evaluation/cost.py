"""flops: what one picture costs, and what a whole recipe costs before it is begun."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, Literal

from mfkit.artifacts.artifact import Artifact, open_artifact
from mfkit.artifacts.json_files import read_json
from mfkit.autoencoders.rae import RAEConfig
from mfkit.config.presets import DECODER_SIZES, GENERATOR_SIZES, LATENTS, MODELS, PAPER, RECIPES, resolve
from mfkit.config.settings import (
    AutoencoderSettings,
    DTypeName,
    EncodeSettings,
    GeneratorSettings,
    MeanFlowSettings,
    PresetName,
    TrajectorySettings,
)
from mfkit.data.codecs import STORED
from mfkit.data.latents import AUTOENCODERS, check_decodes, follow, latent_shape
from mfkit.errors import MALFORMED, InputError, reason, using
from mfkit.evaluation.flops import (
    RULES,
    Work,
    decoder_work,
    encoder_work,
    generator_work,
    total,
    vae_decoder_work,
    vanilla_work,
)
from mfkit.flow.solvers import evaluations
from mfkit.models.dit import DiTConfig

TrainedStage = Literal["train-teacher", "midtrain", "distill", "bootstrap"]
_COMPARABLE = 256
"""Side in pixels from which on vanilla mean flow is set beside: its VAE is made for such images."""
_TRAINED = 3
"""Forward passes that one evaluation with gradients is worth: the backward pass is two."""
_DAY = 86_400


def work(model: Path, rae: Path | None) -> dict[str, Any]:
    """10^9 operations per image and evaluation, of a generator file and its RAE or VAE."""
    artifact = open_artifact(model, kinds=("teacher", "student"))
    with using(model):
        config = DiTConfig(**artifact.config["network"])
    other = open_artifact(Path(follow(rae, artifact, "rae", "--rae")), kinds=AUTOENCODERS)
    check_decodes(other, latent_shape(artifact), model)
    decoder, image_size = _decoder(other, config.side)
    return _table(generator_work(config, artifact.kind), decoder, image_size)


def preset_work(preset: PresetName) -> dict[str, Any]:
    """The same for the networks that a preset trains."""
    decoder = preset_rae(preset)
    return _table(generator_work(_preset_generator(preset), "student"), decoder_work(decoder), decoder.image_size)


def recipe_work(
    preset: PresetName, *, images: int | None, mirror: bool | None, trajectories: int | None,
    solver_steps: int | None, dtype: DTypeName | None, rates: Mapping[str, float], rate: float,
) -> dict[str, Any]:  # fmt: skip
    """What the stages of a preset's recipe cost: operations, bytes on disk, and GPU-days.

    Nothing but matrix products is counted, and an evaluation with gradients as three. A row of distillation is the
    teacher, the student with gradients, and, where r < t, two evaluations for du/dt.

    :param images: number of training images; None for the recipe's. Likewise ``mirror`` and ``trajectories``.
    :param solver_steps: of the trajectories; None for the preset's. Likewise ``dtype``, of latents and trajectories.
    :param rates: what a device achieved in each stage, in 10^12 operations per second; ``rate`` where none is given.
    """
    recipe = RECIPES[preset]
    images = images or recipe["images"]
    views = images * (1 + (recipe["mirror"] if mirror is None else mirror))
    count = trajectories or recipe["trajectories"]
    generator = _preset_generator(preset)
    one = 1e9 * generator_work(generator, "student")["flops"]
    storage = resolve(EncodeSettings, "encode", preset, {"dtype": dtype})
    solved = resolve(TrajectorySettings, "trajectories", preset, {"dtype": dtype, "solver_steps": solver_steps})
    latent = prod((generator.channels, generator.side, generator.side))
    per_trajectory = evaluations(solved.solver_steps, solved.solver)
    stages = {
        "encode": _counted(views, 1e9 * encoder_work(preset_rae(preset))["flops"])
        | {"bytes": views * latent * STORED[storage.dtype].itemsize},
        "train-teacher": _training("train-teacher", preset, one),
        "trajectories": _counted(count, per_trajectory * one)
        | {"bytes": count * (solved.solver_steps + 1) * latent * STORED[solved.dtype].itemsize},
        "midtrain": _training("midtrain", preset, one),
        "distill": _training("distill", preset, one),
        "bootstrap": _training("bootstrap", preset, one),
    }
    for name, stage in stages.items():
        stage["teraflops_per_second"] = rates.get(name, rate)
        stage["gpu_days"] = stage["flops"] / (stage["teraflops_per_second"] * 1e12) / _DAY
    result: dict[str, Any] = {
        "preset": preset,
        "images": images,
        "views": views,
        "trajectories": count,
        "teraflops_per_second": rate,
        "stages": stages,
        "total": {
            "flops": sum(stage["flops"] for stage in stages.values()),
            "gpu_days": sum(stage["gpu_days"] for stage in stages.values()),
            "bytes": sum(stage.get("bytes", 0) for stage in stages.values()),
        },
    }
    if preset in PAPER:
        result["paper"] = {stage: _reported(told, one) for stage, told in PAPER[preset].items()}
    return result


def measured_rates(path: Path) -> dict[str, float]:
    """10^12 operations per second by stage, from what ``mfkit bench --json`` printed for one stage or all.

    :raises InputError: it is no such file, or it measured none of a recipe's stages.
    """
    document = read_json(path)
    try:
        found = [document] if "stage" in document else list(document.values())
        rates = {
            str(entry["stage"]): float(entry["flops_per_second"]) / 1e12
            for entry in found
            if "flops_per_second" in entry
        }
    except MALFORMED as error:
        raise InputError(f"{path} is not what mfkit bench --json prints: {reason(error)}") from error
    if not rates or not all(rate > 0 for rate in rates.values()):
        raise InputError(f"{path} holds the rate of no stage, or one that is not above 0")
    return rates


def _reported(told: dict[str, Any], one: float) -> dict[str, Any]:
    """What a paper spent on a stage, by our count of its work, and what its GPUs then achieved."""
    flops = told["rows"] * told["passes"] * one
    return {
        "gpu_days": told["gpu_days"],
        "flops": flops,
        "teraflops_per_second": flops / (told["gpu_days"] * _DAY) / 1e12,
        "why": told["why"],
    }


def forward_passes(stage: TrainedStage, instantaneous: float) -> float:
    """Forward passes that a row of a training stage is worth.

    :param instantaneous: share of rows with r = t; on the others du/dt takes two evaluations, or a Jacobian-vector
        product, which is worth as much.
    """
    derivative = 2 * (1 - instantaneous)
    return _TRAINED + {"train-teacher": 0, "midtrain": 0, "distill": 1 + derivative, "bootstrap": derivative}[stage]


def _training(stage: TrainedStage, preset: PresetName, one: float) -> dict[str, Any]:
    settings = resolve(GeneratorSettings, stage, preset, {})
    flow = resolve(MeanFlowSettings, "distill" if stage == "distill" else "bootstrap", preset, {})
    passes = forward_passes(stage, flow.instantaneous)
    per_step = settings.batch_size * passes * one
    return {
        "steps": settings.steps,
        "rows_per_step": settings.batch_size,
        "forward_passes_per_row": passes,
        "flops_per_step": per_step,
        "flops": settings.steps * per_step,
    }


def _counted(samples: int, per_sample: float) -> dict[str, Any]:
    return {"samples": samples, "flops_per_sample": per_sample, "flops": samples * per_sample}


def _decoder(autoencoder: Artifact, side: int) -> tuple[Work, int]:
    """The decoder's work, and the side of its images in pixels."""
    with using(autoencoder.path):
        if autoencoder.kind == "rae":
            config = RAEConfig(**autoencoder.config["network"])
            return decoder_work(config), config.image_size
        factor = 2 ** (len(autoencoder.config["block_out_channels"]) - 1)
        return vae_decoder_work(autoencoder.config, side), factor * side


def _preset_generator(preset: PresetName) -> DiTConfig:
    return DiTConfig(**LATENTS[preset], **GENERATOR_SIZES[MODELS[preset]])


def preset_rae(preset: PresetName, decoder: str | None = None) -> RAEConfig:
    """The RAE of a preset, with a decoder of another size if one is named."""
    sizes = resolve(AutoencoderSettings, "train-rae", preset, {})
    latents = LATENTS[preset]
    recipe = RECIPES[preset]
    return RAEConfig(
        encoder_name=recipe["encoder"], encoder=recipe["encoder_arguments"], encoder_size=sizes.encoder_size,
        image_size=sizes.image_size, channels=latents["channels"], side=latents["side"],
        **DECODER_SIZES[decoder or sizes.decoder],
    )  # fmt: skip


def _table(generator: Work, decoder: Work, image_size: int) -> dict[str, Any]:
    ours = _by_rule(generator, decoder)
    table: dict[str, Any] = {
        "unit": "10^9 per image, one network evaluation",
        "image_size": image_size,
        "rules": {rule: {"meaning": meaning, **ours[rule]} for rule, meaning in RULES.items()},
    }
    if image_size >= _COMPARABLE:
        vanilla = _by_rule(*vanilla_work(image_size))
        table["vanilla_mean_flow"] = {
            "meaning": "DiT-XL/2 and the decoder of Stable Diffusion's VAE, at the same image size",
            "rules": vanilla,
            "saved": {rule: 1 - ours[rule]["total"] / vanilla[rule]["total"] for rule in RULES},
        }
    return table


def _by_rule(generator: Work, decoder: Work) -> dict[str, dict[str, float]]:
    both = total(generator, decoder)
    return {rule: {"generator": generator[rule], "decoder": decoder[rule], "total": both[rule]} for rule in RULES}
