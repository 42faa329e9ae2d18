"""flops: what one picture costs."""

from pathlib import Path
from typing import Any

from mfkit.errors import UsageError
from mfkit.files.artifact import open_artifact
from mfkit.metrics.flops import RULES, decoder_work, generator_work
from mfkit.networks.dit import DiTConfig
from mfkit.networks.rae import RAEConfig
from mfkit.presets import DECODER_SIZES, GENERATOR_SIZES, LATENTS, MODELS, resolve
from mfkit.settings import AutoencoderSettings, PresetName
from mfkit.stages.inputs import follow


def work(model: Path, rae: Path | None) -> dict[str, Any]:
    """10^9 operations per image and evaluation, of a generator file and its RAE."""
    artifact = open_artifact(model, kinds=("teacher", "student"))
    decoder = open_artifact(Path(follow(rae, artifact, "rae", "--rae")), kinds=("rae",))
    return _table(artifact.kind, DiTConfig(**artifact.config["network"]), RAEConfig(**decoder.config["network"]))


def preset_work(preset: PresetName | None) -> dict[str, Any]:
    """The same for the networks that a preset trains."""
    if preset is None:
        raise UsageError("give a MODEL or --preset")
    sizes = resolve(AutoencoderSettings, "train-rae", preset, {})
    latents = LATENTS[preset]
    generator = DiTConfig(**latents, **GENERATOR_SIZES[MODELS[preset]])
    decoder = RAEConfig(
        encoder_name="vit_tiny_patch16_224", encoder_size=224, image_size=sizes.image_size,
        channels=latents["channels"], side=latents["side"], **DECODER_SIZES[sizes.decoder],
    )  # fmt: skip
    return _table("student", generator, decoder)


def _table(kind: str, generator: DiTConfig, decoder: RAEConfig) -> dict[str, Any]:
    one, two = generator_work(generator, kind), decoder_work(decoder)
    return {
        "unit": "10^9 per image, one network evaluation",
        "rules": {
            rule: {"meaning": meaning, "generator": one[rule], "decoder": two[rule], "total": one[rule] + two[rule]}
            for rule, meaning in RULES.items()
        },
    }
