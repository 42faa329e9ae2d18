"""The model card of an exported pipeline: what it is, how it was made, and how good it was measured to be."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from mfkit.artifacts.artifact import Record
from mfkit.artifacts.inspect import command_chain
from mfkit.models.files import GeneratorFile

_NAMES = {
    "spatial_frechet_distance": "spatial Fréchet distance (sFID)", "kernel_distance": "kernel distance",
    "precision": "precision", "recall": "recall", "fdr": "FDr",
}  # fmt: skip
_CONDITIONS = ("images", "size", "model", "nfe", "solver", "time_shift", "labels", "seed", "precision", "guidance")
_HUB = re.compile(r"hf://(?!datasets/)(\w[\w.-]*/\w[\w.-]*)")
_HUB_DATASET = re.compile(r"hf:/{1,2}datasets/(\w[\w.-]*/\w[\w.-]*)")
_TAGS = ["image-generation", "class-conditional", "mean-flow", "one-step"]


@dataclass(frozen=True)
class Space:
    """A Fréchet distance, and the features that it is of."""

    frechet_distance: float
    features: str = ""
    features_digest: str = ""
    resize: str = ""
    trained_on: bool = False
    """Whether the student was trained by it, so that it is no evidence."""


@dataclass(frozen=True)
class Score:
    """Of images in groups."""

    mean: float
    std: float


@dataclass(frozen=True)
class Measured(Space):
    """What a card uses of what ``mfkit fid`` printed."""

    samples: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    spatial_frechet_distance: float | None = None
    kernel_distance: float | None = None
    precision: float | None = None
    recall: float | None = None
    inception_score: Score | None = None
    prdc: dict[str, float] = field(default_factory=dict)
    fdr: float | None = None
    spaces: dict[str, Space] = field(default_factory=dict)
    """By name, where there are several; the first is also the one without a name."""
    untrained: Space | None = None
    """One that the student was not trained on, beside such as it was."""

    def figures(self) -> Iterator[tuple[str, str, float, Space]]:
        """Key, name and value of each, and the features that it is of."""
        for space in self.spaces.values() or [self]:
            yield "frechet_distance", "Fréchet distance", space.frechet_distance, space
        if self.untrained:
            yield "frechet_distance", "Fréchet distance", self.untrained.frechet_distance, self.untrained
        for key, name in _NAMES.items():
            if (value := getattr(self, key)) is not None:
                yield key, name, value, self
        if self.inception_score:
            yield "inception_score", "Inception Score", self.inception_score.mean, self
        for key in ("density", "coverage"):
            if key in self.prdc:
                yield key, key, self.prdc[key], self


def model_card(
    student: GeneratorFile, parameters: int, autoencoder: Any, evaluation: Measured | None, license: str | None,
    place: str,
) -> str:  # fmt: skip
    """Markdown, with the hub's header; it shows ``grid.png``, which lies beside it.

    :param autoencoder: its config.
    :param evaluation: what ``mfkit fid`` printed for images of this student; None where nothing was measured.
    :param license: as the hub names it; None where none is given. :param place: what diffusers loads it by.
    """
    records, image_size = command_chain(student.artifact), autoencoder.image_size
    header = ModelCardData(
        library_name="diffusers", license=license, pipeline_tag="unconditional-image-generation", tags=_TAGS,
        model_name=student.path.stem, eval_results=_results(evaluation) if evaluation else None,
        base_model=_base_models(records, autoencoder) or None, datasets=_datasets(records) or None,
    )  # fmt: skip
    provenance, class_names = student.artifact.provenance, student.description.class_names
    channels, height, width = student.latent_shape
    versions = ", ".join(f"{name} {version}" for name, version in provenance.libraries.items())
    parts = [
        f"---\n{header.to_yaml()}\n---",
        f"# One-step images of {len(class_names)} classes, {image_size} x {image_size}",
        "A mean-flow student (MF-RAE, [arXiv 2511.13019](https://arxiv.org/abs/2511.13019)) of "
        f"{parameters / 1e6:.1f} million parameters on latents of {channels} x {height} x {width}, and their decoder. "
        "One evaluation of the network makes an image, without guidance." + _guided(records),
        "It loads where [diffusers](https://github.com/huggingface/diffusers) is installed, by code that is here:\n\n"
        "```python\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipeline = DiffusionPipeline.from_pretrained("{place}", trust_remote_code=True)\n'
        "image = pipeline(class_labels=[0], num_inference_steps=1).images[0]\n```",
        "![Images of each class, in one evaluation](grid.png)",
        "## Licence\n\n" + (license or "None is given. Ask whoever made this before you use it or pass it on."),
        "## Trained on\n\n" + _images(records),
        "## Made by\n\n```sh\n"
        + "\n".join(record.command for record in records)
        + "\n```"
        + (f"\n\nVersions: mfkit {provenance.version}, {versions}." if versions else ""),
        "## Measured\n\n" + _measured(evaluation) + _trained_by(student.description.trained_spaces),
        "## Classes\n\n" + ", ".join(f"{number}: {name}" for number, name in enumerate(class_names)),
    ]
    return "\n\n".join(parts) + "\n"


def _results(measured: Measured) -> list[EvalResult]:
    """The figures, for the hub's index of models, with the protocol of each."""
    reference = {f"reference_{name}": measured.reference.get(name) for name in ("images", "digest")}
    conditions = {name: measured.samples.get(name) for name in _CONDITIONS} | reference
    found = []
    for key, name, value, space in measured.figures():
        protocol: dict[str, Any] = {"features": space.features or None, "resize": space.resize or None, **conditions}
        protocol |= {"trained_on": True} if space.trained_on else {}
        found.append(
            EvalResult(
                task_type="unconditional-image-generation", dataset_type="images",
                dataset_name=str(measured.reference.get("location")), metric_type=key, metric_name=name,
                metric_value=value, metric_args={key: one for key, one in protocol.items() if one is not None},
            )
        )  # fmt: skip
    return found


def _base_models(records: list[Record], autoencoder: Any) -> list[str]:
    """Repositories of the hub: of weights that were imported, and of timm's encoder."""
    encoder, commands = getattr(autoencoder, "encoder_name", ""), [record.command.split() for record in records]
    imported = {
        found[1]
        for words in commands
        for before, word in pairwise(words)
        if (words[1:2] == ["import"] or before == "--encoder-weights") and (found := _HUB.match(word))
    }
    # A tag says which of timm's weights; the tiny encoder has none.
    of_timm = "." in encoder and not any("--encoder-weights" in words for words in commands)
    return sorted(imported) + ([f"timm/{encoder}"] if of_timm else [])


def _datasets(records: list[Record]) -> list[str]:
    """Of the hub."""
    places = [str(entry.path) for record in records for entry in record.inputs.values() if entry.kind == "images"]
    return sorted({found[1] for place in places if (found := _HUB_DATASET.match(place))})


def _images(records: list[Record]) -> str:
    """The images that any of the commands read."""
    entries = [entry for record in records for entry in record.inputs.values() if entry.kind == "images"]
    lines = {f"- `{entry.path or 'a stream'}` ({entry.digest[:23]}…)" for entry in entries}
    return "\n".join(sorted(lines)) if lines else "Not recorded: the weights were imported."


def _guided(records: list[Record]) -> str:
    """How the teacher was guided that it was made by, as trajectories and distillation record it; empty if not."""
    found = []
    for settings in (record.settings for record in records):
        own = settings.get("guidance")
        said = own if isinstance(own, dict) else {"weight": own, "interval": settings.get("guidance_interval")}
        weight, interval = said.get("weight"), said.get("interval")
        if not isinstance(interval, list) or not all(isinstance(one, float) for one in (weight, *interval)):
            continue  # none, or what no command of mfkit writes
        if weight != 1:
            found.append(f"W = {weight:g} in {interval}")
    return f" Its teacher was guided, {', '.join(dict.fromkeys(found))}." if found else ""


def _trained_by(spaces: list[dict[str, Any]]) -> str:
    """Where a distance is no evidence; empty where the student was trained by none."""
    if not spaces:
        return ""
    lines = [f"- {one.get('space')}: {one.get('features')}" for one in spaces]
    return "\n\nIt was trained by its Fréchet distance in these spaces, where a figure is no evidence:\n\n" + "\n".join(
        lines
    )


def _measured(measured: Measured | None) -> str:
    if measured is None:
        return "Nothing. `mfkit fid` measures it."
    lines = []
    for key, name, value, space in measured.figures():
        of = f" of {space.features}" if key == "frechet_distance" and space.features else ""
        if space.trained_on:
            of += ", trained on: no evidence"
        elif space is measured.untrained:
            of += ", not trained on"
        score = measured.inception_score if key == "inception_score" else None
        lines.append(f"- {name}{of}: {value:.4g}" + (f" ± {score.std:.2g}" if score else ""))
    of_first = {"features_digest": measured.features_digest, "resize": measured.resize}
    lines += [f"- {name}: {one}" for name, one in of_first.items() if one]
    lines += [f"- samples: {_side(measured.samples)}", f"- reference: {_side(measured.reference)}"]
    if isinstance(images := measured.reference.get("of"), dict):
        lines.append(f"- the reference's statistics are of: {_side(images)}")
    return "\n".join(lines)


def _side(conditions: dict[str, Any]) -> str:
    shown = [f"{name} {conditions[name]}" for name in _CONDITIONS if conditions.get(name) is not None]
    return ", ".join([f"`{conditions.get('location')}`", *shown, f"{str(conditions.get('digest'))[:23]}…"])
