"""One step of training: losses of the micro-batches, gradients over all processes, the optimisers, the EMA."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mfkit.config.settings import TrainingSettings
from mfkit.data.loader import Batch
from mfkit.errors import UsageError
from mfkit.flow.objectives.base import Loss
from mfkit.runtime.blocks import checkpoint_activations, compile_blocks
from mfkit.runtime.distributed import full_tensor, processes
from mfkit.runtime.precision import autocast
from mfkit.training.optimizers import Optimizers
from mfkit.training.task import LossFunction


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """The rate of a step, counted from 0: linear warm-up, then constant, linear or cosine to the final rate."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    done = {"constant": 0.0, "linear": progress, "cosine": (1 - math.cos(math.pi * progress)) / 2}[settings.schedule]
    return settings.learning_rate + (settings.final_learning_rate - settings.learning_rate) * done


def ema_decay(settings: TrainingSettings, step: int, highest: float | None = None) -> float:
    """The decay of the weights' EMA after a step, counted from 0: rises to its setting, from 0.5 or 0.

    With a warm-up of k0 steps it is 0.5 (2 D)^(k / k0), as in Drift-RAE (arXiv 2606.15553).

    :param highest: another decay than the settings'.
    """
    highest = settings.ema[0] if highest is None else highest
    if settings.ema_warmup:
        return min(highest, 0.5 * (2 * highest) ** (step / settings.ema_warmup))
    return min(highest, (1 + step) / (10 + step)) if step else 0.0


class TrainState:
    """A network in training: its parameters that require a gradient, their optimisers, their EMA."""

    def __init__(
        self, network: nn.Module, blocks: Iterable[nn.Module], settings: TrainingSettings, *, accumulation: int = 1,
        trackers: Iterable[str] = (), folder: Path | None = None,
    ) -> None:  # fmt: skip
        """
        :param blocks: repeated parts of the network: units of compilation, of recomputation and of FSDP.
        :param accumulation: backward passes of a step.
        """
        self.settings = settings
        self.accelerator = Accelerator(
            cpu=processes().device.type == "cpu",
            mixed_precision="no",  # autocast is set around the loss, so that du/dt can stay in float32
            gradient_accumulation_steps=accumulation,
            log_with=list(trackers) or None,
            project_dir=folder,
        )
        blocks = list(blocks)
        if settings.activation_checkpointing:
            checkpoint_activations(blocks)
        if settings.compile:
            compile_blocks(blocks)
        network.train()
        self.sharded = self.accelerator.distributed_type is DistributedType.FSDP
        self.network: nn.Module
        if self.sharded:  # FSDP puts other parameters in the network, and in the optimisers that are handed in with it
            _shard_by_block(self.accelerator, blocks)
            self.optimizers = Optimizers(_trained(network).values(), blocks, settings)
            self.network, *_ = self.accelerator.prepare(network, *self.optimizers.parts)
        else:
            self.network = self.accelerator.prepare(network)
            self.optimizers = Optimizers(_trained(network).values(), blocks, settings)
        self.parameters = _trained(network)
        self.averages = {
            decay: [value.detach().clone() for value in self.parameters.values()] for decay in settings.ema
        }  # fmt: skip
        """EMAs by their decay; that of the output is the first."""

    def step(
        self, number: int, batches: Iterable[Batch], loss_function: LossFunction, on_loss: Callable[[Loss], None],
        pieces: int = 1,
    ) -> tuple[Tensor, float]:  # fmt: skip
        """Step ``number``, counted from 0, on these micro-batches: gradient norm before clipping, and learning rate.

        Processes exchange gradients in the last piece of the last of them. ``on_loss`` is called with each loss.

        :param pieces: into which the loss function cuts each of them.
        """
        for micro_batch in batches:
            columns = send_to_device(micro_batch.columns, self.accelerator.device, non_blocking=True)
            losses = loss_function(self.network, Batch(micro_batch.positions, columns), pieces)
            for _ in range(pieces):
                with self.accelerator.accumulate(self.network):
                    with autocast(self.settings.precision, self.accelerator.device):
                        loss = next(losses)
                    self.accelerator.backward(loss.value)
                on_loss(loss)
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.settings.max_grad_norm or math.inf)
        rate = learning_rate(self.settings, number)
        self.optimizers.step(rate)
        for decay, average in self.averages.items():
            update = get_ema_multi_avg_fn(ema_decay(self.settings, number, decay))
            update(average, list(self.parameters.values()), None)
        return full_tensor(norm), rate

    @contextmanager
    def with_ema(self, decay: float) -> Iterator[None]:
        """The network holds an EMA meanwhile."""
        trained = [value.detach().clone() for value in self.parameters.values()]
        _copy(self.averages[decay], self.parameters.values())
        try:
            yield
        finally:
            _copy(trained, self.parameters.values())

    def take_ema(self) -> None:
        """From now on the network holds the EMA of the output."""
        _copy(self.averages[self.settings.ema[0]], self.parameters.values())


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


def _shard_by_block(accelerator: Accelerator, blocks: list[nn.Module]) -> None:
    """Has accelerate split the network block by block, where its config does not say at which classes."""
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy  # takes a second to import

    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise UsageError("FSDP: this is version 1; set fsdp_version: 2 in accelerate's config")
    if plugin.auto_wrap_policy is transformer_auto_wrap_policy and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = sorted({type(block).__name__ for block in blocks})


def _copy(values: Iterable[Tensor], parameters: Iterable[nn.Parameter]) -> None:
    with torch.no_grad():
        for value, parameter in zip(values, parameters, strict=True):
            parameter.copy_(value)
