"""flops: what one picture costs, and what a whole recipe costs before it is begun."""

from math import prod
from pathlib import Path
from typing import Any

from mfkit.errors import using
from mfkit.files.artifact import Artifact, open_artifact
from mfkit.metrics.flops import (
    RULES,
    Work,
    decoder_work,
    encoder_work,
    generator_work,
    total,
    vae_decoder_work,
    vanilla_work,
)
from mfkit.networks.dit import DiTConfig
from mfkit.networks.rae import RAEConfig
from mfkit.presets import DECODER_SIZES, GENERATOR_SIZES, LATENTS, MODELS, PAPER, RECIPES, resolve
from mfkit.settings import (
    AutoencoderSettings,
    EncodeSettings,
    GeneratorSettings,
    MeanFlowSettings,
    PresetName,
    TrajectorySettings,
)
from mfkit.solvers.ode import evaluations
from mfkit.stages.inputs import AUTOENCODERS, check_decodes, follow, latent_shape

_COMPARABLE = 256
"""Side in pixels from which on vanilla mean flow is set beside: its VAE is made for such images."""
_TRAINED = 3
"""Forward passes that one evaluation with gradients is worth: the backward pass is two."""
_BYTES = {"float16": 2, "float32": 4}
_DAY = 86_400


def work(model: Path, rae: Path | None) -> dict[str, Any]:
    """10^9 operations per image and evaluation, of a generator file and its RAE or VAE."""
    artifact = open_artifact(model, kinds=("teacher", "student"))
    config = DiTConfig(**artifact.config["network"])
    other = open_artifact(Path(follow(rae, artifact, "rae", "--rae")), kinds=AUTOENCODERS)
    check_decodes(other, latent_shape(artifact), model)
    decoder, image_size = _decoder(other, config.side)
    return _table(generator_work(config, artifact.kind), decoder, image_size)


def preset_work(preset: PresetName) -> dict[str, Any]:
    """The same for the networks that a preset trains."""
    decoder = _preset_rae(preset)
    return _table(generator_work(_preset_generator(preset), "student"), decoder_work(decoder), decoder.image_size)


def recipe_work(
    preset: PresetName, *, images: int | None, mirror: bool | None, trajectories: int | None, rate: float
) -> dict[str, Any]:
    """What the stages of a preset's recipe cost: operations, bytes on disk, and GPU-days.

    Nothing but matrix products is counted, and an evaluation with gradients as three. A row of distillation is the
    teacher, the student with gradients, and, where r < t, two evaluations for du/dt.

    :param images: number of training images; None for the recipe's. Likewise ``mirror`` and ``trajectories``.
    :param rate: what a GPU achieves, in 10^12 operations per second.
    """
    recipe = RECIPES[preset]
    images = images or recipe["images"]
    views = images * (1 + (recipe["mirror"] if mirror is None else mirror))
    count = trajectories or recipe["trajectories"]
    generator = _preset_generator(preset)
    one = 1e9 * generator_work(generator, "student")["flops"]
    storage = resolve(EncodeSettings, "encode", preset, {})
    solved = resolve(TrajectorySettings, "trajectories", preset, {})
    latent = prod((generator.channels, generator.side, generator.side))
    per_trajectory = evaluations(solved.solver_steps, solved.solver)
    stages = {
        "encode": _counted(views, 1e9 * encoder_work(_preset_rae(preset))["flops"], rate)
        | {"bytes": views * latent * _BYTES[storage.dtype]},
        "train-teacher": _training("train-teacher", preset, _TRAINED, one, rate),
        "trajectories": _counted(count, per_trajectory * one, rate)
        | {"bytes": count * (solved.solver_steps + 1) * latent * _BYTES[solved.dtype]},
        "midtrain": _training("midtrain", preset, _TRAINED, one, rate),
        "distill": _training("distill", preset, 1 + _TRAINED + _derivative("distill", preset), one, rate),
        "bootstrap": _training("bootstrap", preset, _TRAINED + _derivative("bootstrap", preset), one, rate),
    }
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


def _reported(told: dict[str, Any], one: float) -> dict[str, Any]:
    """What a paper spent on a stage, by our count of its work, and what its GPUs then achieved."""
    flops = told["rows"] * told["passes"] * one
    return {
        "gpu_days": told["gpu_days"],
        "flops": flops,
        "teraflops_per_second": flops / (told["gpu_days"] * _DAY) / 1e12,
        "why": told["why"],
    }


def _training(stage: str, preset: PresetName, evaluations_per_row: float, one: float, rate: float) -> dict[str, Any]:
    settings = resolve(GeneratorSettings, stage, preset, {})
    per_step = settings.batch_size * evaluations_per_row * one
    shape = {
        "steps": settings.steps,
        "rows_per_step": settings.batch_size,
        "forward_passes_per_row": evaluations_per_row,
        "flops_per_step": per_step,
    }
    return shape | _cost(settings.steps * per_step, rate)


def _counted(samples: int, per_sample: float, rate: float) -> dict[str, float]:
    return {"samples": samples, "flops_per_sample": per_sample} | _cost(samples * per_sample, rate)


def _derivative(stage: str, preset: PresetName) -> float:
    """Evaluations for du/dt, per row: two (a Jacobian-vector product is worth as much) on the rows with r < t."""
    return 2 * (1 - resolve(MeanFlowSettings, stage, preset, {}).instantaneous)


def _cost(flops: float, rate: float) -> dict[str, float]:
    return {"flops": flops, "gpu_days": flops / (rate * 1e12) / _DAY}


def _decoder(autoencoder: Artifact, side: int) -> tuple[Work, int]:
    """The decoder's work, and the side of its images in pixels."""
    if autoencoder.kind == "rae":
        config = RAEConfig(**autoencoder.config["network"])
        return decoder_work(config), config.image_size
    with using(autoencoder.path):
        factor = 2 ** (len(autoencoder.config["block_out_channels"]) - 1)
        return vae_decoder_work(autoencoder.config, side), factor * side


def _preset_generator(preset: PresetName) -> DiTConfig:
    return DiTConfig(**LATENTS[preset], **GENERATOR_SIZES[MODELS[preset]])


def _preset_rae(preset: PresetName) -> RAEConfig:
    sizes = resolve(AutoencoderSettings, "train-rae", preset, {})
    latents = LATENTS[preset]
    recipe = RECIPES[preset]
    return RAEConfig(
        encoder_name=recipe["encoder"], encoder=recipe["encoder_arguments"], encoder_size=sizes.encoder_size,
        image_size=sizes.image_size, channels=latents["channels"], side=latents["side"],
        **DECODER_SIZES[sizes.decoder],
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
