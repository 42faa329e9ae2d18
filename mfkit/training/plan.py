"""What a training command resolved before it trains: shown by ``--dry-run``, executed otherwise."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mfkit.artifacts.artifact import Artifact, provenance
from mfkit.artifacts.atomic import claimed
from mfkit.autoencoders import weights
from mfkit.config.settings import GeneratorSettings
from mfkit.data.loader import Batch, Source
from mfkit.errors import InputError
from mfkit.flow.losses import Loss
from mfkit.models.dit import DiT, parameter_count
from mfkit.runtime.distributed import processes
from mfkit.training.checkpoint import forget
from mfkit.training.loop import Run, Stage, train

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a training command runs, whatever it trains."""

    output: Path
    overwrite: bool = False
    restart: bool = False
    dry_run: bool = False
    trackers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A generator's training: the network, its rows, its loss, and where it comes from."""

    kind: str
    network: DiT
    config: dict[str, Any]
    """What the output's description holds beside the network's sizes."""
    source: Source
    loss: Callable[[nn.Module, Batch], Loss]
    inputs: dict[str, Artifact]
    settings: GeneratorSettings
    other_settings: dict[str, Any] = field(default_factory=dict)
    rows_per_item: int = 1

    def execute(self, execution: Execution) -> str:
        """Trains and writes the output; with ``dry_run``, says what would be done and does nothing.

        :returns: the line for standard output.
        """
        if execution.dry_run:
            return self._description(execution.output)
        if self.settings.sample_every and not ("rae" in self.inputs and self.inputs["rae"].path.exists()):
            raise InputError("--sample-every needs the RAE, which is not where the latents say it is")
        used = [artifact.path for artifact in self.inputs.values()]
        with claimed(execution.output, overwrite=execution.overwrite, suffix=".safetensors", inputs=used):
            self._train(execution)
        return str(execution.output)

    def _train(self, execution: Execution) -> None:
        processes().wait_for_everyone()
        digests = {role: artifact.digest for role, artifact in self.inputs.items()}
        identity = asdict(self.network.config) | self.other_settings | digests

        def picture(step: int) -> None:
            from mfkit.training.sample_grid import grid_from_fixed_noise

            grid_from_fixed_noise(self.network, self.config, self.inputs, execution.output, step)

        stage = Stage(
            network=self.network, source=self.source, loss=self.loss, rows_per_item=self.rows_per_item,
            picture=picture, blocks=self.network.blocks,
        )  # fmt: skip
        run = Run(output=execution.output, identity=identity, restart=execution.restart, trackers=execution.trackers)
        train(stage, self.settings, run)
        record = provenance(execution.output.parent, self.inputs, seed=self.settings.seed)
        weights.save(execution.output, self.network, self.kind, self.config, record)
        if processes().is_main_process:
            forget(execution.output)
        processes().wait_for_everyone()

    def _description(self, output: Path) -> str:
        sizes = asdict(self.network.config)
        return json.dumps(
            {
                "output": str(output),
                "kind": self.kind,
                "parameters": parameter_count(self.network),
                "network": sizes,
                "latent": [sizes["channels"], sizes["side"], sizes["side"]],
                "settings": asdict(self.settings) | self.other_settings,
                "inputs": {role: str(artifact.path) for role, artifact in self.inputs.items()},
            },
            indent=2,
        )
