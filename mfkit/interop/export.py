"""export: a student and its decoder as a diffusers pipeline folder with a model card.

The folder holds the code that it needs, one file a component, so that it loads where mfkit is not installed.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMapEulerDiscreteScheduler

from mfkit.artifacts.artifact import Artifact, InputRecord, Provenance
from mfkit.artifacts.atomic import check_replaceable, output_is_complete, write_errors, writer_lock
from mfkit.artifacts.json_files import parse, parse_known, read_json
from mfkit.artifacts.network_weights import save_network
from mfkit.artifacts.pipeline_folder import INDEX, WEIGHTS
from mfkit.autoencoders.decoder_folder import KIND as DECODER
from mfkit.autoencoders.files import ROLE
from mfkit.autoencoders.rae_decoder import DecoderConfig, RAELatentDecoder
from mfkit.config.settings import SampleSettings
from mfkit.data.grid import write_grid
from mfkit.errors import InputError, OutputError, UsageError
from mfkit.flow.random import Draws
from mfkit.formats.diffusers_folder import folder_digest
from mfkit.inference.sampler import sampler_of
from mfkit.interop.exported import Exported
from mfkit.interop.model_card import Measured, Space, model_card
from mfkit.interop.pipeline import MeanFlowPipeline
from mfkit.interop.standalone import standalone_source
from mfkit.interop.transformer import MeanFlowTransformer
from mfkit.models.dit import DIT_DH
from mfkit.models.generator import parameter_count

_WRITTEN = {INDEX, "README.md", "grid.png", "pipeline.py", "transformer", "decoder", "scheduler"}

_ROWS, _COLUMNS = 10, 8
_VARIANTS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def export_pipeline(
    exported: Exported, folder: Path, *, fid: Path | None, variants: Sequence[str], license: str | None,
    overwrite: bool, repo: str | None = None,
) -> str:  # fmt: skip
    """Writes ``folder``, for diffusers' ``DiffusionPipeline.from_pretrained`` with ``trust_remote_code=True``.

    :param fid: what ``mfkit fid`` printed for this student's images, for the model card.
    :param variants: half precisions of the weights beside float32.
    :param license: for the model card, as the hub names it. :param repo: where the folder will lie on the hub.
    :returns: the line for standard output.
    """
    student = exported.student
    if student.architecture is not DIT_DH:
        raise UsageError(f"{student.path} is a {student.architecture.name}; the pipeline is of {DIT_DH.name}")
    if unknown := set(variants) - _VARIANTS.keys():
        raise UsageError(f"--variants {min(unknown)}: known are {', '.join(_VARIANTS)}")
    evaluation = _evaluation(fid, student.artifact) if fid else None
    transformer = MeanFlowTransformer(**asdict(student.network_config))
    transformer.network.load_state_dict(exported.network.state_dict())
    decoder = exported.autoencoder_file.pipeline_decoder(exported.autoencoder)
    names = {str(index): name for index, name in enumerate(student.description.class_names)}
    scheduler = FlowMapEulerDiscreteScheduler(shift=1.0)
    pipeline = MeanFlowPipeline(transformer.eval(), decoder.eval(), scheduler, names)
    size, place = parameter_count(exported.network), repo or folder.name
    card = model_card(student, size, exported.autoencoder.config, evaluation, license, place)
    with _atomic_folder(folder, overwrite) as partial:
        _save(pipeline, partial, variants)
        _describe(exported, pipeline, partial)
        write_grid(partial / "grid.png", _drawn(exported), _COLUMNS)
        (partial / "README.md").write_text(card)
    return str(folder)


@torch.no_grad()
def _drawn(exported: Exported) -> torch.Tensor:
    """Images of up to ten classes, a row each, in one evaluation."""
    student = exported.student
    labels = torch.arange(min(_ROWS, student.num_classes)).repeat_interleave(_COLUMNS)
    noise = Draws(0, "sample", range(len(labels))).normal("noise", student.latent_shape)
    sampler = sampler_of(exported.network, SampleSettings(nfe=1), student.description.time_shift)
    return exported.autoencoder.decode(sampler(noise, labels))


def _save(pipeline: MeanFlowPipeline, folder: Path, variants: Sequence[str]) -> None:
    """Weights, sizes, and a file of code for each class that diffusers does not have."""
    own = __name__.partition(".")[0]
    components = {
        name: component
        for name, component in pipeline.components.items()
        if type(component).__module__.partition(".")[0] == own
    }
    for name, component in components.items():
        component.register_to_config(auto_map={"AutoModel": f"{name}.{type(component).__name__}"})
    pipeline.save_pretrained(folder)
    for variant in variants:
        for name in ("transformer", "decoder"):
            half = torch.nn.Module.to(deepcopy(pipeline.components[name]), _VARIANTS[variant])  # ModelMixin's warns
            half.save_pretrained(folder / name, variant=variant)
    index = read_json(folder / INDEX)
    index["_class_name"] = _write_class(folder / "pipeline.py", type(pipeline))
    for name, component in components.items():
        index[name] = _write_class(folder / name / f"{name}.py", type(component))
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _describe(exported: Exported, pipeline: MeanFlowPipeline, folder: Path) -> None:
    """Writes the weights again with what their files say of themselves, so that mfkit takes the folder for them."""
    student, file = exported.student.artifact, exported.autoencoder_file
    decoder, digest = folder / "decoder", file.artifact.digest
    if isinstance(pipeline.decoder, RAELatentDecoder):
        sizes = {name: pipeline.decoder.config[name] for name in DecoderConfig.__dataclass_fields__}
        described = {"rae": digest, "latents_of": file.latents_of}
        save_network(decoder / WEIGHTS, pipeline.decoder, DECODER, sizes, described, Provenance())
    else:
        digest = folder_digest(decoder)
    inputs = student.inputs | {ROLE: InputRecord("../decoder", file.kind, digest)}
    own = {name: value for name, value in student.config.items() if name != "network"}
    save_network(
        folder / "transformer" / WEIGHTS, pipeline.transformer, student.kind, student.config["network"], own,
        replace(student.provenance, inputs=inputs),
    )  # fmt: skip


def _write_class(path: Path, written: type) -> list[str]:
    """:returns: module and class, as diffusers names them."""
    path.write_text(standalone_source(written))
    return [path.stem, written.__name__]


def _evaluation(path: Path, student: Artifact) -> Measured:
    """What ``mfkit fid`` printed, which must be of this student."""
    document = parse(dict[str, Any], read_json(path), path)
    spaces = {
        name: parse_known(Space, parse(dict[str, Any], one, path), path)
        for name, one in parse(dict[str, Any], document.get("spaces", {}), path).items()
    }
    found = replace(parse_known(Measured, document | {"spaces": {}}, path), spaces=spaces)
    if found.samples.get("model_digest") != student.digest:
        raise InputError(f"{path} is of samples of another model than {student.path}, or of samples that do not say it")
    return found


@contextmanager
def _atomic_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``folder``; it takes the final name when the block ends well, else is removed."""
    target = folder.resolve()  # `.` has no name
    partial = target.with_name(f".{target.name}.partial")
    with writer_lock(folder):
        _claim(folder, overwrite)
        shutil.rmtree(partial, ignore_errors=True)  # of a command that was killed
        try:
            with write_errors(folder):
                partial.mkdir()
                yield partial
                if target.exists():
                    shutil.rmtree(target)
                partial.replace(target)
                output_is_complete()
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _claim(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that holds anything, unless ``overwrite`` and an earlier export wrote it."""
    held = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if held or (folder.exists() and not folder.is_dir()):
        check_replaceable(folder, overwrite=overwrite)
        if INDEX not in held or held - _WRITTEN:
            raise OutputError(f"{folder} is not what mfkit export writes, so --overwrite does not remove it")
