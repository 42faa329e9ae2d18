"""A student and its decoder as one ONNX graph: noise and labels in, pictures out, in any batch size."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mfkit.artifacts.atomic import atomic_write, check_replaceable, exclusive_output, sync_files
from mfkit.errors import InputError, UsageError
from mfkit.flow.random import Draws
from mfkit.flow.solvers import few_step_sample, time_grid
from mfkit.interop.exported import Exported

if TYPE_CHECKING:
    from onnx import ModelProto

_TOLERANCE = 1e-4
"""Of a number of a picture, which is in [0, 1]: what another order of float32 sums may change, with room."""
_COMPARED = 16
"""Pictures that the graph and PyTorch both draw."""
_MOST_BYTES = 1_900_000_000
"""Of the weights in one file."""
_ANY_SIZE = 1 << 62
_SMALL = 1024
"""Numbers; smaller tensors stay in float32."""


class _FromNoise(nn.Module):
    """Pictures of a student in some steps of its flow map."""

    def __init__(self, exported: Exported, steps: int) -> None:
        super().__init__()
        self.student, self.autoencoder, self._steps = exported.network, exported.autoencoder, steps

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        times = time_grid(self._steps, 1.0, noise.device)
        latents = few_step_sample(lambda z, r, t: self.student(z, r, t, labels), noise, times)
        return self.autoencoder.decode(latents)


def export_onnx(
    exported: Exported, path: Path, *, steps: int, weights: str, license: str | None, overwrite: bool
) -> str:
    """Writes the graph once onnxruntime has drawn with it what PyTorch draws.

    Weights of more than 1.9 GB go into a file beside it, with ``.data`` behind its name.

    :param steps: evaluations of the student. :param weights: a key of :data:`WEIGHTS`.
    :param license: for the graph's metadata, as the hub names it.
    :returns: the line for standard output: the file, its size and how far its pictures are from those in float32.
    :raises InputError: the graph draws other pictures.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError("--format onnx needs onnx, onnxscript and onnxruntime: pip install 'mfkit[onnx]'") from error
    inputs, data = (exported.student.path, exported.autoencoder_file.path), path.with_name(path.name + ".data")
    with exclusive_output(path, overwrite=overwrite, suffix=".onnx", inputs=inputs):
        check_replaceable(data, inputs, overwrite=overwrite)
        network = _FromNoise(exported, steps).eval()
        noise = Draws(0, "sample", range(_COMPARED)).normal("noise", exported.student.latent_shape)
        labels = torch.arange(_COMPARED) % exported.student.num_classes
        model = _traced(network, noise[:2], labels[:2])
        with atomic_write(path) as partial, TemporaryDirectory(prefix=".onnx-", dir=path.parent) as folder:
            graph, outside = Path(folder, path.name), Path(folder, data.name)
            model = WEIGHTS[weights](model, graph)
            onnx.helper.set_model_props(model, _metadata(exported, steps, license))
            _save(model, graph, outside)
            session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
            differences = [_difference(session, network, noise[:many], labels[:many]) for many in (_COMPARED, 1)]
            largest, mean = (float(measure(differences[0])) for measure in (np.max, np.mean))
            most = _TOLERANCE if weights == "float32" else np.inf
            if not all(found.max() < most for found in differences):  # NaN is not
                raise InputError(
                    f"the graph of {exported.student.path} draws other pictures than PyTorch: {largest:.2g}"
                )
            if outside.exists():
                sync_files([outside.replace(data)])
            else:
                data.unlink(missing_ok=True)  # of an export before
            graph.replace(partial)
    size = sum(file.stat().st_size for file in (path, data) if file.exists())
    found = {
        "output": str(path), "weights": weights, "steps": steps, "bytes": size,
        "largest_difference": largest, "mean_difference": mean, "pictures": _COMPARED,
    }  # fmt: skip
    return json.dumps(found, indent=2)


def _traced(network: nn.Module, noise: Tensor, labels: Tensor) -> "ModelProto":
    # With gradients on, layers take their plain form; those of evaluations choose another by the size of a batch.
    with torch.enable_grad(), catch_warnings():
        simplefilter("ignore")
        program = torch.onnx.export(
            network, (noise, labels), dynamo=True, verbose=False, input_names=["noise", "labels"],
            output_names=["images"], dynamic_shapes={"noise": {0: "batch"}, "labels": {0: "batch"}},
        )  # fmt: skip
    assert program is not None
    return _tidied(program).model_proto


@torch.no_grad()
def _difference(session: Any, network: nn.Module, noise: Tensor, labels: Tensor) -> NDArray[np.float32]:
    """Of the graph's pictures from PyTorch's, number by number."""
    drawn = session.run(["images"], {"noise": noise.numpy(), "labels": labels.numpy()})[0]
    return abs(drawn - network(noise, labels).numpy())


def _metadata(exported: Exported, steps: int, license: str | None) -> dict[str, str]:
    """What the graph says of itself."""
    student = exported.student
    found = {
        "inputs": "noise: standard normal, (batch, channels, side, side); labels: indices of the classes, (batch,)",
        "seeds": "the graph draws nothing: picture i of mfkit sample --seed S has as its noise the normal numbers of "
        'Draws(S, "sample", [i]).normal("noise", SHAPE) in mfkit.flow.random',
        "license": license or "none is given",
        "output": "images: (batch, 3, size, size) in [0, 1]",
        "classes": json.dumps(student.description.class_names),
        "image_size": exported.autoencoder.config.image_size,
        "steps": steps,
        "provenance": json.dumps(asdict(student.artifact.provenance)),
        "digest": student.artifact.digest,
    }
    return {name: str(value) for name, value in found.items()}


def _tidied(program: "torch.onnx.ONNXProgram") -> "torch.onnx.ONNXProgram":
    """Weights lie as they are multiplied, so that int8 finds them; without notes of the code, paths and all."""
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    fold_constants(program.model, input_size_limit=_ANY_SIZE, output_size_limit=_ANY_SIZE)
    for tidy in (
        common.RemoveUnusedNodesPass(), common.DeduplicateInitializersPass(), common.ClearMetadataAndDocStringPass()
    ):  # fmt: skip
        tidy(program.model)
    return program


def _save(model: "ModelProto", graph: Path, data: Path) -> None:
    """In one file; beyond what protobuf holds, with the weights in another beside it, ``data``."""
    import onnx

    outside = sum(len(weight.raw_data) for weight in model.graph.initializer) > _MOST_BYTES
    onnx.save(model, graph, save_as_external_data=outside, location=data.name if outside else None)
    if outside:
        data.chmod(graph.stat().st_mode)  # onnx lets the owner alone read it


def _float32(model: "ModelProto", graph: Path) -> "ModelProto":
    return model


def _float16(model: "ModelProto", graph: Path) -> "ModelProto":
    """Weights are stored in half the bytes and computed with in float32, which every processor can."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if weight.data_type == TensorProto.FLOAT and values.size >= _SMALL:
            name = weight.name
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}.float16"))
            casts.append(helper.make_node("Cast", [weight.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _int8(model: "ModelProto", graph: Path) -> "ModelProto":
    """Weights of matrix products in a byte, their inputs too, as they come (onnxruntime's dynamic quantisation)."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        model, graph, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"]
    )
    return onnx.load(graph)


WEIGHTS: dict[str, Callable[["ModelProto", Path], "ModelProto"]] = {
    "float32": _float32, "float16": _float16, "int8": _int8,
}  # fmt: skip
"""How the graph holds its weights; a file may be used on the way."""
