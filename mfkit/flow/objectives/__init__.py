"""The shelf of objectives: one file each, and one line in the table below."""

from mfkit.flow.objectives.base import Objective, Stage
from mfkit.flow.objectives.cmt import CMT
from mfkit.flow.objectives.drifting import Drifting
from mfkit.flow.objectives.flow_matching import FlowMatching
from mfkit.flow.objectives.frechet import Frechet
from mfkit.flow.objectives.interval_split import IntervalSplit
from mfkit.flow.objectives.mean_flow import MeanFlow

OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind
    for kind in (
        FlowMatching,
        CMT,
        MeanFlow,
        IntervalSplit,
        Drifting,
        Frechet,
    )
}


def objectives_of(stage: Stage) -> dict[str, type[Objective]]:
    """The objectives that a command offers, by name; the first is its default."""
    return {name: kind for name, kind in OBJECTIVES.items() if stage in kind.stages}
