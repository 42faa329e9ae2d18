"""The model card of an exported pipeline: what it is, how it was made, and how good it was measured to be."""

import re
from itertools import pairwise
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from mfkit.artifacts.artifact import Record
from mfkit.artifacts.inspect import command_chain
from mfkit.models.files import GeneratorFile

_NAMES = {
    "frechet_distance": "Fréchet distance", "kernel_distance": "kernel distance", "precision": "precision",
    "recall": "recall",
}  # fmt: skip
_CONDITIONS = ("images", "size", "model", "nfe", "solver", "time_shift", "labels", "seed", "precision", "guidance")
_HUB = re.compile(r"hf://(?!datasets/)(\w[\w.-]*/\w[\w.-]*)")
_HUB_DATASET = re.compile(r"hf:/{1,2}datasets/(\w[\w.-]*/\w[\w.-]*)")
_TAGS = ["image-generation", "class-conditional", "mean-flow", "one-step"]


def model_card(
    student: GeneratorFile, parameters: int, autoencoder: Any, evaluation: dict[str, Any] | None, license: str | None
) -> str:
    """Markdown, with the hub's header; it shows ``grid.png``, which lies beside it.

    :param autoencoder: its config.
    :param evaluation: what ``mfkit fid`` printed for images of this student; None where nothing was measured.
    :param license: as the hub names it; None where none is given.
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
        "One evaluation of the network makes an image, without guidance.",
        "It loads where [diffusers](https://github.com/huggingface/diffusers) is installed, by code that is here:\n\n"
        "```python\nfrom diffusers import DiffusionPipeline\n\n"
        'pipeline = DiffusionPipeline.from_pretrained("THIS_FOLDER", trust_remote_code=True)\n'
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


def _results(measured: dict[str, Any]) -> list[EvalResult]:
    """The figures, for the hub's index of models, with the protocol of each."""
    protocol = {"features": measured.get("features"), "resize": measured.get("resize")}
    protocol |= {name: measured["samples"].get(name) for name in _CONDITIONS}
    return [
        EvalResult(
            task_type="unconditional-image-generation", dataset_type="images",
            dataset_name=str(measured["reference"].get("location")), metric_type=name, metric_name=label,
            metric_value=measured[name], metric_args={key: one for key, one in protocol.items() if one is not None},
        )
        for name, label in _NAMES.items()
        if measured.get(name) is not None
    ]  # fmt: skip


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


def _trained_by(spaces: list[dict[str, Any]]) -> str:
    """Where a distance is no evidence; empty where the student was trained by none."""
    if not spaces:
        return ""
    lines = [f"- {one.get('space')}: {one.get('features')}" for one in spaces]
    return "\n\nIt was trained by its Fréchet distance in these spaces, where a figure is no evidence:\n\n" + "\n".join(
        lines
    )


def _measured(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "Nothing. `mfkit fid` measures it."
    lines = [f"- {label}: {measured[name]:.4g}" for name, label in _NAMES.items() if name in measured]
    if "inception_score" in measured:
        score = measured["inception_score"]
        lines.append(f"- Inception Score: {score['mean']:.4g} ± {score['std']:.2g}")
    if untrained := measured.get("untrained"):
        lines.append(
            f"- Fréchet distance of {untrained['features']}, not trained on: {untrained['frechet_distance']:.4g}"
        )
    lines += [f"- {name}: {measured[name]}" for name in ("features", "features_digest", "resize") if name in measured]
    lines += [f"- {side}: {_side(measured[side])}" for side in ("samples", "reference")]
    if "of" in measured["reference"]:
        lines.append(f"- the reference's statistics are of: {_side(measured['reference']['of'])}")
    return "\n".join(lines)


def _side(conditions: dict[str, Any]) -> str:
    shown = [f"{name} {conditions[name]}" for name in _CONDITIONS if conditions.get(name) is not None]
    return ", ".join([f"`{conditions.get('location')}`", *shown, f"{str(conditions.get('digest'))[:23]}…"])
