"""Published hyperparameters by preset and command, where they differ from the defaults, and the networks' sizes.

No other module holds such numbers. A preset is one entry of :data:`PRESETS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from mfkit.config.settings import GeneratorSettings, SizeName
from mfkit.errors import UsageError
from mfkit.flow.objectives import Objective, Stage, objectives_of
from mfkit.setting import Settings, idle, own_defaults, settings_of

PresetName = Literal["digits", "small", "imagenet256", "imagenet512"]
SettingsT = TypeVar("SettingsT", bound=Settings)

DECODER_SIZES: dict[SizeName, dict[str, int]] = {
    "tiny": dict(decoder_width=128, decoder_depth=3, decoder_heads=4, decoder_hidden=512),
    "S": dict(decoder_width=384, decoder_depth=12, decoder_heads=6, decoder_hidden=1536),
    "B": dict(decoder_width=768, decoder_depth=12, decoder_heads=12, decoder_hidden=3072),
    "L": dict(decoder_width=1024, decoder_depth=24, decoder_heads=16, decoder_hidden=4096),
    "XL": dict(decoder_width=1152, decoder_depth=28, decoder_heads=16, decoder_hidden=4096),
}
"""ViT decoders of the RAE paper (arXiv 2510.11690); ``tiny`` is ours."""

TINY_ENCODER: dict[str, Any] = dict(patch_size=8, embed_dim=32, depth=4, num_heads=4)
"""The encoder ``tiny``: arguments for timm's ``vit_tiny_patch16_224``."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a paper spent on a stage, for the cost plan."""

    gpu_days: float
    samples: int
    passes: int
    """Forward passes per sample of its released code; an evaluation with gradients is three."""
    why: str
    """How its work differs from that of the preset."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One row of figures: settings by command, and the data that they are made for."""

    about: str
    commands: dict[str, dict[str, Any]]
    """Settings that differ from the defaults, by command; ``"distill mean-flow"`` is of one objective alone."""
    model: str
    """Size of the generator, when ``--model`` does not say."""
    latents: dict[str, int]
    """Channels, side and number of classes, to count work where there are no latents yet."""
    images: int
    mirror: bool = False
    trajectories: int
    encoder: str
    """A timm model."""
    encoder_patch: int
    encoder_arguments: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Published] = field(default_factory=dict)


_SMALL = dict(batch_size=64, schedule="cosine", warmup=50, workers=2, log_every=50, save_every=500, save_minutes=0.0)
_SMALL_GENERATOR = _SMALL | dict(class_dropout=0.0)

_DIGITS = Preset(
    about="scikit-learn's digits, on a CPU",
    model="tiny",
    latents=dict(channels=32, side=4, num_classes=10),
    images=1500,
    trajectories=2000,
    encoder="vit_tiny_patch16_224",
    encoder_patch=8,
    encoder_arguments=TINY_ENCODER,
    commands={
        "train-rae": _SMALL | dict(
            steps=300, optimizer="muon", learning_rate=3e-3, final_learning_rate=0.0, ema=(0.99,), image_size=32,
            patch=8, decoder="tiny", noise_tau=0.4, pretrain_steps=200,
        ),
        "encode": dict(batch_size=100, shard_size=500),
        "train-teacher": _SMALL_GENERATOR | dict(
            steps=1650, optimizer="muon", learning_rate=5e-3, final_learning_rate=5e-5, warmup=100, ema=(0.999,),
            time_shift=4.0,
        ),
        "trajectories": dict(batch_size=100, solver_steps=10, solver="heun", shard_size=500),
        "midtrain": _SMALL_GENERATOR | dict(
            steps=400, optimizer="muon", learning_rate=3e-3, final_learning_rate=2e-5, ema=(0.995,), ratio_to_data=0.75
        ),
        "distill": _SMALL_GENERATOR | dict(
            steps=60, learning_rate=1e-4, final_learning_rate=2e-6, ema=(0.995,), norm_p=0.0, finite_difference_step=0.1
        ),
        "bootstrap": _SMALL_GENERATOR | dict(
            steps=20, learning_rate=2e-5, final_learning_rate=1e-6, ema=(0.99,), norm_p=0.0
        ),
        "bootstrap drifting": _SMALL_GENERATOR | dict(
            steps=560, batch_size=96, optimizer="muon", learning_rate=5e-4, final_learning_rate=5e-6, warmup=20,
            ema=(0.98,), view=("latent",), temperature=(0.05, 0.15, 0.5), generated=48, extra=48, real=128,
        ),
        "bootstrap frechet": _SMALL_GENERATOR | dict(
            steps=200, batch_size=250, learning_rate=1e-5, final_learning_rate=5e-7, warmup=20, ema=(0.98,),
            moments_decay=0.9, moment_samples=2000,
        ),
        "train-mean-flow": _SMALL_GENERATOR | dict(
            steps=2800, learning_rate=1e-3, final_learning_rate=1e-5, warmup=100, ema=(0.999,), time_shift=4.0
        ),
    },
)  # fmt: skip

_SMALL_IMAGES_CHANGES: dict[str, dict[str, Any]] = {
    # A decoder that has seen more noise leaves fewer seams between the tokens of a generated latent.
    # The encoder's layers and a discriminator on it make colour pictures sharper: recipes/README.md, Decoders.
    "train-rae": dict(
        steps=1200, pretrain_steps=400, image_size=0, noise_tau=0.8, perceptual="encoder", discriminator="encoder"
    ),
    # At the digits' 5e-3, activations of a single emoji near t = 0 overflowed after 1,872 steps.
    "train-teacher": dict(steps=4000, learning_rate=2e-3, final_learning_rate=2e-5),
    "trajectories": dict(solver_steps=12),
    "midtrain": dict(steps=1500, learning_rate=2e-3),
    # Without the weight of its rows, distillation diverged on photographs: du/dt is large where u is not smooth.
    "distill": dict(steps=300, norm_p=1.0),
    "bootstrap": dict(steps=100, norm_p=1.0),
    "bootstrap drifting": dict(steps=300, optimizer="adamw", learning_rate=5e-4, temperature=(0.03, 0.1, 0.3)),
}
"""From the digits' settings."""

_SMALL_IMAGES = Preset(
    about="any images of 32 to 128 pixels, on a CPU or one GPU",
    model="tiny",
    latents=dict(channels=32, side=8, num_classes=10),
    images=10_000,
    mirror=True,
    trajectories=3000,
    encoder="vit_tiny_patch16_224",
    encoder_patch=8,
    encoder_arguments=TINY_ENCODER,
    commands={
        command: settings
        | (dict(class_dropout=0.1) if "class_dropout" in settings else {})  # so that the teacher can be guided
        | _SMALL_IMAGES_CHANGES.get(command, {})
        for command, settings in _DIGITS.commands.items()
    },
)

_DRIFT_RAE = dict(
    steps=10_000, batch_size=32 * 64, learning_rate=3e-5, final_learning_rate=3e-7, schedule="linear", ema=(0.9995,),
    ema_warmup=1000, field="token", view=("token",), generated=64, extra=192, real=256,
)  # fmt: skip
"""Drift-RAE's figures (arXiv 2606.15553), of ImageNet at 256 pixels; none are published for 512."""

_FD_LOSS = dict(
    steps=62_500, batch_size=1024, learning_rate=1e-6, final_learning_rate=0.0, schedule="cosine", warmup=6250,
    ema=(0.0,), max_grad_norm=0.0,
    space=("inception", "vit_large_patch16_224.mae", "vit_so400m_patch16_siglip_256.v2_webli"),
)  # fmt: skip
"""FD-loss on three networks (arXiv 2604.28190), 50 epochs, whose online weights are taken."""

_IMAGENET256 = Preset(
    about="ImageNet at 256 pixels, by the MF-RAE paper (arXiv 2511.13019)",
    model="XL",
    latents=dict(channels=768, side=16, num_classes=1000),
    images=1_281_167,
    mirror=True,
    trajectories=50_000,
    encoder="vit_base_patch14_reg4_dinov2",
    encoder_patch=14,
    commands={
        "train-rae": dict(
            # 16 epochs, the first of them warm-up.
            steps=40_036, batch_size=512, learning_rate=2e-4, final_learning_rate=2e-5, schedule="cosine", warmup=2502,
            ema=(0.9978,), max_grad_norm=0.0, perceptual="lpips", discriminator="vit_small_patch8_224.dino",
            crop_scale=1.5,
        ),
        "train-teacher": dict(
            steps=100_000, batch_size=1024, learning_rate=2e-4, final_learning_rate=2e-5, schedule="linear",
            ema=(0.9995,),
        ),
        "midtrain": dict(steps=27_000, ema=(0.999,)),
        "distill": dict(steps=180_000),
        "bootstrap": dict(steps=10_000),
        "bootstrap drifting": _DRIFT_RAE,
        "bootstrap frechet": _FD_LOSS,
        "train-mean-flow": dict(steps=1_200_000),
    },
    published={
        "train-teacher": Published(
            gpu_days=78, samples=800 * 1_281_167, passes=3, why="trains for 800 epochs, the preset for 80"
        ),
        "midtrain": Published(
            gpu_days=2.1, samples=27_000 * 256, passes=19, why="solves the 16 steps of every sample anew, ours are read"
        ),
        "distill": Published(
            gpu_days=21, samples=180_000 * 256, passes=10,
            why="takes u at three points, each with gradients, ours one",
        ),
    },
)  # fmt: skip
"""The paper's H100-days; its code also encodes the images anew in every step."""

_IMAGENET512 = Preset(
    about="at 512 pixels",
    model="XL",
    latents=dict(channels=768, side=32, num_classes=1000),
    images=1_281_167,
    mirror=True,
    trajectories=12_500,
    encoder="vit_base_patch14_reg4_dinov2",
    encoder_patch=14,
    commands={
        "train-rae": _IMAGENET256.commands["train-rae"] | dict(image_size=512),
        "encode": dict(batch_size=64, shard_size=500),
        "train-teacher": _IMAGENET256.commands["train-teacher"],
        "trajectories": dict(batch_size=64, shard_size=50),
        "midtrain": dict(steps=27_000, batch_size=128, ema=(0.999,)),
        "distill": dict(steps=20_000, batch_size=128, ema=(0.9995,)),
        "bootstrap": dict(steps=10_000, batch_size=128, ema=(0.9995,)),
        "bootstrap drifting": _DRIFT_RAE,
        "bootstrap frechet": _FD_LOSS,
        "train-mean-flow": dict(steps=1_200_000),
    },
)

PRESETS: dict[PresetName, Preset] = {
    "digits": _DIGITS,
    "small": _SMALL_IMAGES,
    "imagenet256": _IMAGENET256,
    "imagenet512": _IMAGENET512,
}


def resolve(
    kind: type[SettingsT], command: str, preset: PresetName | None, flags: Mapping[str, Any] | None = None,
    *, objective: str | None = None,
) -> SettingsT:  # fmt: skip
    """A class of settings: its defaults, then the preset's values for a command, then what the user gave.

    What a variant of an objective is made by goes before the preset's values for the command, which are of the
    command's first objective; those for the objective itself go before it.

    :param flags: values by name; those of other classes are left alone, None is not given.
    :raises UsageError: a value is out of its range, or means nothing beside another.
    """
    values: dict[str, Any] = {}
    if preset:
        commands, own = PRESETS[preset].commands, own_defaults(kind)
        values = {name: value for name, value in commands.get(command, {}).items() if name not in own}
        values |= commands.get(f"{command} {objective}", {})
    for name, value in (flags or {}).items():
        if value is not None:
            values[name] = tuple(value) if isinstance(value, list) else value
    try:
        made = kind(**{item.name: values[item.name] for item in settings_of(kind) if item.name in values})
    except ValueError as error:
        raise UsageError(str(error)) from error
    for item in settings_of(kind):
        if (flags or {}).get(item.name) is not None and (why := idle(item, vars(made))):
            raise UsageError(why)
    return made


def objective_of(stage: Stage, flags: Mapping[str, Any]) -> type[Objective]:
    """The objective that the user chose, or the first that the stage offers."""
    offered = objectives_of(stage)
    return offered[flags.get("objective") or next(iter(offered))]


def resolve_training(
    stage: Stage, preset: PresetName | None, flags: Mapping[str, Any]
) -> tuple[GeneratorSettings, Objective]:
    """Settings and objective of a training, by default the first that the stage offers, decided for the precision.

    :param flags: ``objective``, settings of it and of the training.
    :raises UsageError: a setting of another objective is given, or the two do not go together.
    """
    offered, kind = objectives_of(stage), objective_of(stage, flags)
    own = {item.name for item in settings_of(kind)}
    for other in offered.values():
        foreign = {item.name for item in settings_of(other)} - own
        if given := sorted(flag for flag, value in flags.items() if flag in foreign and value is not None):
            flag = given[0].replace("_", "-")
            raise UsageError(f"--{flag} is of --objective {other.name}, not of {kind.name}")
    settings = resolve(GeneratorSettings, stage, preset, flags, objective=kind.name)
    if not kind.drops_labels:
        if flags.get("class_dropout"):
            raise UsageError(f"--class-dropout: --objective {kind.name} trains every row with its label")
        settings = replace(settings, class_dropout=0.0)
    objective = resolve(kind, stage, preset, flags, objective=kind.name)
    try:
        objective.check_stage(stage)
        objective.check_batch(settings.batch_size)
        return settings, objective.resolved(settings.precision)
    except ValueError as error:
        raise UsageError(str(error)) from error
