"""flops and plan: what one image costs, and what a whole recipe costs before it is begun."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from mfkit.artifacts.json_files import parse, read_json
from mfkit.autoencoders.files import autoencoder_of
from mfkit.autoencoders.rae import RAEConfig, rae_outline
from mfkit.config.presets import DECODER_SIZES, PRESETS, PresetName, Published, resolve, resolve_training
from mfkit.config.settings import AutoencoderSettings, DTypeName, EncodeSettings, TrajectorySettings
from mfkit.data.codecs import DTYPES
from mfkit.errors import InputError, UsageError
from mfkit.evaluation.flops import RULES, Flops, decoder_flops, encoder_flops, generator_flops, vanilla_flops
from mfkit.flow.objectives import OBJECTIVES, Stage, objectives_of
from mfkit.flow.solvers import SOLVERS
from mfkit.models.architectures import architecture_of
from mfkit.models.files import open_generator

_COMPARABLE = 256
"""Side in pixels from which on vanilla mean flow is set beside: its VAE is made for such images."""
_DAY = 86_400
_SHORT = "drifting"
"""The objective of the short chain's last stage."""
_TRAININGS: tuple[Stage, ...] = ("train-teacher", "midtrain", "distill", "bootstrap")


def model_flops(model: Path, rae: Path | None) -> dict[str, Any]:
    """10^9 operations per image and evaluation, of a generator file and its RAE or VAE."""
    generator = open_generator(model)
    file = autoencoder_of(generator.artifact, rae)
    file.check_decodes(generator.latent_shape, model)
    outline = file.outline(generator.latent_shape)
    counted = generator_flops(generator.architecture, generator.kind, generator.network_config)
    return _table(counted, decoder_flops(outline), outline.config.image_size)


def preset_flops(preset: PresetName) -> dict[str, Any]:
    """The same for the networks that a preset trains."""
    outline = rae_outline(preset_rae(preset))
    return _table(_preset_generator_flops(preset), decoder_flops(outline), outline.config.image_size)


def recipe_cost(
    preset: PresetName, *, images: int | None, mirror: bool | None, trajectories: int | None,
    solver_steps: int | None, dtype: DTypeName | None, rates: Mapping[str, float], rate: float,
    objectives: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """What the stages of a preset's recipe cost: operations, bytes on disk, and GPU-days.

    Nothing but matrix products is counted, and an evaluation with gradients as three forward passes; the objective says
    how many a sample takes. Beside the paper's chain stands the short one, from mid-training to drifting.

    :param images: number of training images; None for the recipe's. Likewise ``mirror`` and ``trajectories``.
    :param solver_steps: of the trajectories; None for the preset's. Likewise ``dtype``, of latents and trajectories.
    :param objectives: of the stages that offer them; the defaults elsewhere.
    :param rates: what a device achieved in each stage, in 10^12 operations per second; ``rate`` where none is given.
    """
    recipe, chosen = PRESETS[preset], _chosen(objectives)
    images = images or recipe.images
    views = images * (1 + (recipe.mirror if mirror is None else mirror))
    count = trajectories or recipe.trajectories
    one = 1e9 * _preset_generator_flops(preset)["flops"]
    stored = resolve(EncodeSettings, "encode", preset, {"dtype": dtype})
    solved = resolve(TrajectorySettings, "trajectories", preset, {"dtype": dtype, "solver_steps": solver_steps})
    latent = prod(_latent_shape(preset))
    encoder = 1e9 * encoder_flops(rae_outline(preset_rae(preset)))["flops"]
    sizes = {
        "latents": latent * DTYPES[stored.dtype].itemsize,
        "trajectories": (solved.solver_steps + 1) * latent * DTYPES[solved.dtype].itemsize,
    }
    stages: dict[str, dict[str, Any]] = {
        "encode": _inference(views, encoder) | {"bytes": views * sizes["latents"]},
        "train-teacher": _training("train-teacher", preset, one, sizes, chosen["train-teacher"]),
        "trajectories": _inference(count, SOLVERS[solved.solver].evaluations(solved.solver_steps) * one)
        | {"bytes": count * sizes["trajectories"]},
        **{stage: _training(stage, preset, one, sizes, chosen[stage]) for stage in _TRAININGS[1:]},
    }
    drifting = _training("bootstrap", preset, one, sizes, _SHORT)
    for name, stage in (stages | {f"bootstrap {_SHORT}": drifting}).items():
        other = chosen.get(name)
        stage["teraflops_per_second"] = rates.get(f"{name} {other}" if other else name, rate)
        stage["gpu_days"] = stage["flops"] / (stage["teraflops_per_second"] * 1e12) / _DAY
    result: dict[str, Any] = {
        "preset": preset,
        "images": images,
        "views": views,
        "trajectories": count,
        "teraflops_per_second": rate,
        "stages": stages,
        "total": _total(stages),
        _SHORT: {"stage": drifting, "total": _total({**_before(stages), _SHORT: drifting})},
    }
    if recipe.published:
        own = {stage: spent for stage, spent in recipe.published.items() if not chosen.get(stage)}
        result["paper"] = {stage: _published(spent, one) for stage, spent in own.items()}
    return result


def _chosen(objectives: Sequence[str]) -> dict[str, str | None]:
    """The objective of each training, None for its default.

    :raises UsageError: no training, or only another one, offers an objective.
    """
    chosen: dict[str, str | None] = {
        stage: next((name for name in objectives if name in objectives_of(stage)), None) for stage in _TRAININGS
    }
    if unused := set(objectives) - set(chosen.values()):
        raise UsageError(f"--objective {', '.join(sorted(unused))}: no stage of the recipe is left for it")
    return chosen


def measured_rates(path: Path) -> dict[str, float]:
    """10^12 operations per second by stage, from what ``mfkit bench --json`` printed for one stage or all.

    :raises InputError: it is no such file, or it measured none of a recipe's stages.
    """
    document = parse(dict, read_json(path), path)
    entries = [document] if "stage" in document else list(document.values())
    rates: dict[str, float] = {}
    for entry in entries:
        entry = parse(dict, entry, f"{path}, which is not what mfkit bench --json prints,")
        if "flops_per_second" in entry:
            stage, objective = parse(str, entry.get("stage"), path), entry.get("objective")
            default = next((name for name, kind in OBJECTIVES.items() if stage in kind.stages), None)
            name = stage if objective in (None, default) else f"{stage} {objective}"
            rates[name] = parse(float, entry["flops_per_second"], path) / 1e12
    if not rates or not all(rate > 0 for rate in rates.values()):
        raise InputError(f"{path} holds the rate of no stage, or one that is not above 0")
    return rates


def _published(spent: Published, one: float) -> dict[str, Any]:
    """What a paper spent on a stage, by our count of its operations, and what its GPUs then achieved."""
    flops = spent.samples * spent.passes * one
    return {
        "gpu_days": spent.gpu_days,
        "flops": flops,
        "teraflops_per_second": flops / (spent.gpu_days * _DAY) / 1e12,
        "why": spent.why,
    }


def _training(
    stage: Stage, preset: PresetName, one: float, sizes: Mapping[str, int], objective: str | None = None
) -> dict[str, Any]:
    """:param sizes: bytes of a sample of each kind of data. :param objective: None for the stage's default."""
    settings, loss = resolve_training(stage, preset, {"objective": objective})
    passes = loss.forward_passes(stage)
    per_step = settings.batch_size * passes * one
    samples = settings.batch_size // loss.rows_per_sample * max(1, loss.class_group)
    return {
        "objective": loss.name,
        "steps": settings.steps,
        "samples_per_step": settings.batch_size,
        "forward_passes_per_sample": passes,
        "flops_per_step": per_step,
        "bytes_read_per_step": samples * sizes[loss.reads] if loss.reads and loss.needs_latents else 0,
        "flops": settings.steps * per_step,
    }


def _before(stages: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The stages that come before drifting, which takes the place of distillation and bootstrapping."""
    return {name: stage for name, stage in stages.items() if name not in ("distill", "bootstrap")}


def _total(stages: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    return {name: sum(stage.get(name, 0) for stage in stages.values()) for name in ("flops", "gpu_days", "bytes")}


def _inference(samples: int, per_sample: float) -> dict[str, Any]:
    return {"samples": samples, "flops_per_sample": per_sample, "flops": samples * per_sample}


def _latent_shape(preset: PresetName) -> tuple[int, int, int]:
    latents = PRESETS[preset].latents
    return (latents["channels"], latents["side"], latents["side"])


def _preset_generator_flops(preset: PresetName) -> Flops:
    recipe = PRESETS[preset]
    architecture, size = architecture_of(recipe.model)
    config = architecture.new_config(_latent_shape(preset), recipe.latents["num_classes"], size)
    return generator_flops(architecture, "student", config)


def preset_rae(preset: PresetName) -> RAEConfig:
    """The RAE of a preset."""
    sizes, recipe = resolve(AutoencoderSettings, "train-rae", preset), PRESETS[preset]
    side, patch = recipe.latents["side"], recipe.encoder_patch
    decoder: dict[str, Any] = {"channels": recipe.latents["channels"], "side": side, **DECODER_SIZES[sizes.decoder]}
    return RAEConfig(
        encoder_name=recipe.encoder, encoder=recipe.encoder_arguments, encoder_size=side * patch,
        image_size=side * sizes.patch, **decoder,
    )  # fmt: skip


def _table(generator: Flops, decoder: Flops, image_size: int) -> dict[str, Any]:
    ours = _by_rule(generator, decoder)
    table: dict[str, Any] = {
        "unit": "10^9 per image, one network evaluation",
        "image_size": image_size,
        "rules": {rule: {"meaning": meaning, **ours[rule]} for rule, meaning in RULES.items()},
    }
    if image_size >= _COMPARABLE:
        vanilla = _by_rule(*vanilla_flops(image_size))
        table["vanilla_mean_flow"] = {
            "meaning": "DiT-XL/2 and the decoder of Stable Diffusion's VAE, at the same image size",
            "rules": vanilla,
            "saved": {rule: 1 - ours[rule]["total"] / vanilla[rule]["total"] for rule in RULES},
        }
    return table


def _by_rule(generator: Flops, decoder: Flops) -> dict[str, dict[str, float]]:
    return {
        rule: {"generator": generator[rule], "decoder": decoder[rule], "total": generator[rule] + decoder[rule]}
        for rule in RULES
    }
