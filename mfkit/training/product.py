"""The file that a training command writes: claimed before it, described by ``--dry-run``, written at its end."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mfkit.artifacts.artifact import Artifact, Provenance, record_provenance
from mfkit.artifacts.atomic import exclusive_output, output_is_complete
from mfkit.models.generator import parameter_count
from mfkit.runtime.distributed import processes
from mfkit.training.checkpoint import remove_checkpoints
from mfkit.training.loop import train
from mfkit.training.task import RunOptions, Task, run_path


def produce(
    *, kind: str, network: Any, inputs: Mapping[str, Artifact], settings: Mapping[str, Any], seed: int,
    tasks: Callable[[], Iterator[Task]], save: Callable[[Path, Provenance], None], options: RunOptions,
) -> str:  # fmt: skip
    """Runs the tasks one after the other and writes the network; with ``dry_run`` only describes it.

    :param settings: all that were resolved, for ``--dry-run`` and the record. :param save: writes the network; all
        processes call it.
    :returns: the line for standard output.
    """
    output = options.output
    if options.dry_run:
        description = {
            "output": str(output),
            "kind": kind,
            "parameters": parameter_count(network),
            "network": asdict(network.config),
            "latent": list(network.config.latent_shape),
            "settings": settings,
            "inputs": {role: str(artifact.path) for role, artifact in inputs.items()},
        }
        return json.dumps(description, indent=2)
    used = [artifact.path for artifact in inputs.values()]
    with exclusive_output(output, overwrite=options.overwrite, suffix=".safetensors", inputs=used):
        processes().wait_for_everyone()
        paths = []
        for task in tasks():
            train(task, options)
            paths.append(run_path(options, task))
        save(output, record_provenance(output.parent, inputs, seed=seed, settings=settings))
        output_is_complete()
        if processes().is_main_process:
            for path in paths:
                remove_checkpoints(path)
        processes().wait_for_everyone()
    return str(output)
