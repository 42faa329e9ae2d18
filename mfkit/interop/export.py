"""export: a student and its decoder as a diffusers pipeline folder with a model card."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diffusers import FlowMapEulerDiscreteScheduler

from mfkit.artifacts.artifact import Artifact, open_artifact
from mfkit.artifacts.atomic import writing
from mfkit.artifacts.json_files import read_json
from mfkit.autoencoders import weights
from mfkit.autoencoders.rae import RAE
from mfkit.data.latents import AUTOENCODERS, check_decodes, check_same_rae, follow, latent_shape
from mfkit.errors import InputError, OutputError, using
from mfkit.interop.model_card import model_card
from mfkit.interop.pipeline import MeanFlowPipeline, MeanFlowTransformer, RAELatentDecoder
from mfkit.models.dit import parameter_count

_INDEX = "model_index.json"
_WRITTEN = {_INDEX, "README.md", "transformer", "decoder", "scheduler"}


def export(model: Path, rae: Path | None, folder: Path, fid: Path | None, *, overwrite: bool) -> str:
    """Writes ``folder``, for :class:`mfkit.interop.pipeline.MeanFlowPipeline`.

    :param rae: the RAE or VAE, where it is not the recorded one.
    :param fid: what ``mfkit fid`` printed for this student's pictures, for the model card.
    :returns: the line for standard output.
    """
    artifact = open_artifact(model, kinds=("student",))
    autoencoder = open_artifact(Path(follow(rae, artifact, "rae", "--rae")), kinds=AUTOENCODERS)
    check_same_rae(artifact, autoencoder)
    check_decodes(autoencoder, latent_shape(artifact), model)
    measured = _measured(fid, artifact) if fid else None
    student = weights.load_generator(model, "student")
    transformer = MeanFlowTransformer(**asdict(student.config))
    transformer.network.load_state_dict(student.state_dict())
    loaded = weights.load_autoencoder(autoencoder, side=student.config.side)
    decoder = _decoder(loaded) if isinstance(loaded, RAE) else loaded.network
    pipeline = MeanFlowPipeline(transformer.eval(), decoder.eval(), FlowMapEulerDiscreteScheduler(shift=1.0))
    with using(fid or model):
        card = model_card(artifact, parameter_count(student), loaded.config.image_size, measured)
    with _whole_folder(folder, overwrite) as partial:
        pipeline.save_pretrained(partial)
        (partial / "README.md").write_text(card)
    return str(folder)


def _decoder(rae: RAE) -> RAELatentDecoder:
    config = asdict(rae.config)
    decoder = RAELatentDecoder(**{name: value for name, value in config.items() if not name.startswith("encoder")})
    decoder.decoder.load_state_dict(rae.decoder.state_dict())
    decoder.latent_mean.copy_(rae.latent_mean)
    decoder.latent_scale.copy_(rae.latent_scale)
    decoder.pixel_mean.copy_(rae.encoder_mean)
    decoder.pixel_std.copy_(rae.encoder_std)
    return decoder


def _measured(path: Path, student: Artifact) -> dict[str, Any]:
    """What ``mfkit fid`` printed, which must be of this student."""
    document = read_json(path)
    with using(path):
        drawn_by = document["samples"].get("model_digest")
        float(document["frechet_distance"]), document["reference"].keys()
    if drawn_by != student.digest:
        raise InputError(f"{path} is of samples of another model than {student.path}, or of samples that do not say it")
    return document


@contextmanager
def _whole_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``folder``; it takes the final name when the block ends well, else is removed."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        if not overwrite:
            raise OutputError(f"{folder} exists; give --overwrite to replace it, or another name with -o")
        held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if _INDEX not in held or held - _WRITTEN:
            raise OutputError(f"{folder} is not what mfkit export writes, so --overwrite does not remove it")
    folder = folder.resolve()  # `.` has no name
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        with writing(folder):
            partial.mkdir(parents=True)
            yield partial
            if folder.exists():
                shutil.rmtree(folder)
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
