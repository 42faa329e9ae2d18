"""The optimisers of a network in training, a line each in a table, and what they keep of its parameters."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from mfkit.config.settings import OptimizerName, TrainingSettings


def _adamw(parameters: Iterable[nn.Parameter], settings: TrainingSettings) -> Optimizer:
    return AdamW(
        parameters, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
    )


def _muon(parameters: Iterable[nn.Parameter], settings: TrainingSettings) -> Optimizer:
    return Muon(
        parameters,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",  # steps of AdamW's size, so that one learning rate does for both
    )


_OF_MATRICES: dict[OptimizerName, Callable[[Iterable[nn.Parameter], TrainingSettings], Optimizer]] = {
    "adamw": _adamw,
    "muon": _muon,
}
"""What trains the matrices of the repeated blocks, but those of adaLN, by name; AdamW trains all else."""


def _adamw_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    return averages | {"step": torch.zeros((), device=parameter.device)}


def _muon_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    return {"momentum_buffer": torch.zeros_like(parameter)}


_STATE: dict[type[Optimizer], Callable[[nn.Parameter], dict[str, Tensor]]] = {AdamW: _adamw_state, Muon: _muon_state}
"""What an optimiser keeps of a parameter, before its first step."""


class Optimizers:
    """One optimiser, or two that share the parameters."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], blocks: Iterable[nn.Module], settings: TrainingSettings
    ) -> None:
        """:param blocks: repeated parts of the network, which may be a part of ``parameters`` only, or more."""
        # adaLN sees one vector a sample: beyond the batch's rank its gradient is rounding, which Muon would stretch.
        inside = {id(value) for block in blocks for name, value in block.named_parameters() if "adaLN" not in name}
        shares: dict[Callable[..., Optimizer], list[nn.Parameter]] = {}
        for value in parameters:
            build = _OF_MATRICES[settings.optimizer] if value.ndim == 2 and id(value) in inside else _adamw
            shares.setdefault(build, []).append(value)
        self.parts = [build(share, settings) for build, share in shares.items()]

    def step(self, rate: float) -> None:
        """One step of all parameters at this learning rate, and no gradient is left."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad()

    def state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """What is kept of a parameter, by name and in place; zeros before the first step."""
        (part,) = (one for one in self.parts if any(parameter is own for own in one.param_groups[0]["params"]))
        if parameter not in part.state:
            part.state[parameter] = _STATE[type(part)](parameter)
        return part.state[parameter]
