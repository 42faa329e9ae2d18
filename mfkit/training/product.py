"""The file that a training command writes: claimed before it, described by ``--dry-run``, written at its end."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mfkit.artifacts.artifact import Artifact, Provenance, record_provenance
from mfkit.artifacts.atomic import exclusive_output, output_is_complete
from mfkit.models.generator import parameter_count
from mfkit.runtime.distributed import processes
from mfkit.training.checkpoint import remove_checkpoints
from mfkit.training.loop import train
from mfkit.training.task import RunOptions, Task, run_path


@dataclass(frozen=True, kw_only=True)
class Product:
    """A network and the file that it is written to."""

    kind: str
    network: Any
    inputs: dict[str, Artifact]
    settings: dict[str, Any]
    """All resolved settings, for ``--dry-run``."""
    seed: int
    save: Callable[[Path, Provenance], None]
    """Writes it. All processes call it."""

    def describe(self, output: Path) -> str:
        """What ``--dry-run`` prints, as JSON."""
        description = {
            "output": str(output),
            "kind": self.kind,
            "parameters": parameter_count(self.network),
            "network": asdict(self.network.config),
            "latent": list(self.network.config.latent_shape),
            "settings": self.settings,
            "inputs": {role: str(artifact.path) for role, artifact in self.inputs.items()},
        }
        return json.dumps(description, indent=2)


def produce(product: Product, tasks: Callable[[], Iterator[Task]], options: RunOptions) -> str:
    """Runs the tasks one after the other and writes the product; with ``dry_run`` only describes it.

    :returns: the line for standard output.
    """
    output = options.output
    if options.dry_run:
        return product.describe(output)
    used = [artifact.path for artifact in product.inputs.values()]
    with exclusive_output(output, overwrite=options.overwrite, suffix=".safetensors", inputs=used):
        processes().wait_for_everyone()
        paths = []
        for task in tasks():
            train(task, options)
            paths.append(run_path(options, task))
        product.save(output, record_provenance(output.parent, product.inputs, seed=product.seed))
        output_is_complete()
        if processes().is_main_process:
            for path in paths:
                remove_checkpoints(path)
        processes().wait_for_everyone()
    return str(output)
