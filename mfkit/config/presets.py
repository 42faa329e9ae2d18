"""Published hyperparameters by preset and stage, and the sizes of the networks. No other module holds such numbers."""

from collections.abc import Mapping
from typing import Any, TypeVar

from mfkit.config.settings import ModelName, PresetName, Settings

SettingsT = TypeVar("SettingsT", bound=Settings)

GENERATOR_SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(width=96, depth=4, heads=3, head_width=128, head_depth=2, head_heads=4),
    "S": dict(width=384, depth=12, heads=6, head_width=2048, head_depth=2, head_heads=16),
    "B": dict(width=768, depth=12, heads=12, head_width=2048, head_depth=2, head_heads=16),
    "L": dict(width=1024, depth=24, heads=16, head_width=2048, head_depth=2, head_heads=16),
    "XL": dict(width=1152, depth=28, heads=16, head_width=2048, head_depth=2, head_heads=16),
}
"""DiT-DH, arXiv 2510.11690; ``tiny`` is ours, for latents of a few thousand numbers."""

DECODER_SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(decoder_width=128, decoder_depth=3, decoder_heads=4, decoder_hidden=512),
    "S": dict(decoder_width=384, decoder_depth=12, decoder_heads=6, decoder_hidden=1536),
    "B": dict(decoder_width=768, decoder_depth=12, decoder_heads=12, decoder_hidden=3072),
    "L": dict(decoder_width=1024, decoder_depth=24, decoder_heads=16, decoder_hidden=4096),
    "XL": dict(decoder_width=1152, decoder_depth=28, decoder_heads=16, decoder_hidden=4096),
}

TINY_ENCODER: dict[str, Any] = dict(patch_size=8, embed_dim=32, depth=4, num_heads=4)
"""The encoder ``tiny``: arguments for timm's ``vit_tiny_patch16_224``."""

_RUN = dict(
    micro_batch=0, weight_decay=0.0, clip=1.0, seed=0, schedule="constant", warmup=0, precision="float32",
    compile=False, activation_checkpointing=False, keep=1,
)  # fmt: skip
_SMALL = dict(
    _RUN, label_drop=0.0, workers=2, log_every=50, save_every=500, save_minutes=0, sample_every=0, batch_size=64
)
_LARGE = dict(_RUN, label_drop=0.1, workers=4, log_every=100, save_every=5000, save_minutes=30, sample_every=0)
_FLOW = dict(instantaneous=0.75, derivative="auto", difference_step=5e-3, weight_power=1.0, weight_offset=1e-3)
_STORE = dict(dtype="float16", precision="float32", batch_size=100)

_STAGES: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {
        "train-rae": dict(
            _SMALL, steps=1200, learning_rate=1e-3, final_learning_rate=0.0, schedule="cosine", warmup=50, ema=0.99,
            image_size=32, encoder_size=32, decoder="tiny", noise=0.4, feature_weight=0.0,
            encoder_steps=800, mask=0.6, label_weight=0.1,
        ),
        "encode": dict(_STORE, shard_size=500),
        "train-teacher": dict(
            _SMALL, steps=2800, learning_rate=5e-3, final_learning_rate=5e-5, schedule="cosine", warmup=100, ema=0.999,
            time_shift=4.0,
        ),
        "trajectories": dict(_STORE, solver_steps=12, solver="heun", shard_size=500, seed=0),
        "midtrain": dict(
            _SMALL, steps=2800, learning_rate=4e-3, final_learning_rate=2e-5, schedule="cosine", warmup=50, ema=0.995,
            pairs=1, to_data=0.5,
        ),
        # Seed 2, distance over 8,000 pictures in sets of 2,000. Mid-trained: 0.0093. Distilled with row weights
        # (offset 30): 0.0091, without: 0.0075, these settings: 0.0065; with only a quarter of r = t: 0.0072, and then
        # bootstrapping moves the mean. By these settings it takes seeds 0 to 2 from 0.0069, 0.0054, 0.0065 to 0.0058,
        # 0.0052, 0.0064.
        "distill": dict(
            _SMALL, **_FLOW | dict(weight_power=0.0, difference_step=0.1), steps=500, learning_rate=3e-4,
            final_learning_rate=2e-6, schedule="cosine", warmup=50, ema=0.995,
        ),
        "bootstrap": dict(
            _SMALL, **_FLOW | dict(weight_power=0.0), steps=150, learning_rate=2e-5, final_learning_rate=1e-6,
            schedule="cosine", warmup=50, ema=0.99,
        ),
    },
    "imagenet256": {
        "train-rae": dict(
            _LARGE, steps=80_000, batch_size=512, learning_rate=2e-4, final_learning_rate=2e-5, schedule="cosine",
            warmup=1000, ema=0.9978, image_size=256, encoder_size=224, decoder="XL", noise=0.8, feature_weight=1.0,
            encoder_steps=300_000, mask=0.6, label_weight=0.1,
        ),
        "encode": dict(_STORE | dict(batch_size=256), shard_size=2000),
        "train-teacher": dict(
            _LARGE, steps=100_000, batch_size=1024, learning_rate=2e-4, final_learning_rate=2e-5, schedule="linear",
            ema=0.9995, time_shift=0,
        ),
        "trajectories": dict(
            _STORE | dict(batch_size=256), solver_steps=16, solver="euler", shard_size=200, seed=0
        ),
        "midtrain": dict(
            _LARGE, steps=27_000, batch_size=256, learning_rate=1e-4, final_learning_rate=1e-4, ema=0.999,
            pairs=1, to_data=0.0,
        ),
        "distill": dict(
            _LARGE, **_FLOW, steps=180_000, batch_size=256, learning_rate=1e-4, final_learning_rate=1e-4, ema=0.9999
        ),
        "bootstrap": dict(
            _LARGE, **_FLOW, steps=10_000, batch_size=256, learning_rate=1e-4, final_learning_rate=1e-4, ema=0.9999
        ),
    },
}  # fmt: skip

_LARGER: dict[str, dict[str, Any]] = {
    "train-rae": dict(image_size=512, encoder_size=448),
    "encode": dict(batch_size=64, shard_size=500),
    "trajectories": dict(batch_size=64, shard_size=50),
    "midtrain": dict(batch_size=128),
    "distill": dict(steps=20_000, batch_size=128, ema=0.9995),
    "bootstrap": dict(steps=10_000, batch_size=128, ema=0.9995),
}
_STAGES["imagenet512"] = {stage: values | _LARGER.get(stage, {}) for stage, values in _STAGES["imagenet256"].items()}

MODELS: dict[PresetName, ModelName] = {"digits": "tiny", "imagenet256": "XL", "imagenet512": "XL"}
"""The generator that a preset trains, when ``--model`` does not say."""


LATENTS: dict[str, dict[str, Any]] = {
    "digits": dict(channels=TINY_ENCODER["embed_dim"], side=4, classes=10),
    "imagenet256": dict(channels=768, side=16, classes=1000),
    "imagenet512": dict(channels=768, side=32, classes=1000),
}
"""The latents of a preset, for counting work where there are none yet."""

_DINOV2: dict[str, Any] = dict(encoder="vit_base_patch14_reg4_dinov2", encoder_arguments={})
RECIPES: dict[PresetName, dict[str, Any]] = {
    "digits": dict(
        images=1500, mirror=False, trajectories=8000, encoder="vit_tiny_patch16_224", encoder_arguments=TINY_ENCODER
    ),
    "imagenet256": dict(images=1_281_167, mirror=True, trajectories=50_000, **_DINOV2),
    "imagenet512": dict(images=1_281_167, mirror=True, trajectories=12_500, **_DINOV2),
}
"""What the recipes of this name run on, beside their settings."""

PAPER: dict[PresetName, dict[str, dict[str, Any]]] = {
    "imagenet256": {
        "train-teacher": dict(
            gpu_days=78, rows=800 * 1_281_167, passes=3, why="trains for 800 epochs, the preset for 80"
        ),
        "midtrain": dict(
            gpu_days=2.1, rows=27_000 * 256, passes=19, why="solves the 16 steps of every row anew, ours are read"
        ),
        "distill": dict(
            gpu_days=21, rows=180_000 * 256, passes=10, why="takes u at three points, each with gradients, ours one"
        ),
    },
}
"""H100-days that the MF-RAE paper reports (arXiv 2511.13019), and the work of its released code in them, in forward
passes (an evaluation with gradients is three); it also encodes the images anew in every step."""


def resolve(kind: type[SettingsT], stage: str, preset: PresetName, flags: Mapping[str, Any]) -> SettingsT:
    """The settings of a stage: a preset's values, overridden by the flags that the user gave (those not None)."""
    given = {name: value for name, value in flags.items() if value is not None}
    values = _STAGES[preset][stage] | given
    return kind(**{name: values[name] for name, item in kind.__dataclass_fields__.items() if item.metadata})
