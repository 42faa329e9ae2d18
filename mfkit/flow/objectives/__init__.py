"""The shelf of objectives: one file each, and one line in the table below."""

from mfkit.flow.objectives.arrival import LMD, LSD, TVM, Arrival, FreeFlow
from mfkit.flow.objectives.base import Objective, Stage
from mfkit.flow.objectives.cmt import CMT
from mfkit.flow.objectives.ctm import CTM
from mfkit.flow.objectives.drifting import Drifting
from mfkit.flow.objectives.flow_matching import FlowMatching
from mfkit.flow.objectives.frechet import Frechet
from mfkit.flow.objectives.imm import IMM
from mfkit.flow.objectives.interval_split import ECT, EMF, AlphaFlow, Consistency, IntervalSplit, SoFlow
from mfkit.flow.objectives.mean_flow import AYF, FACM, IMF, SCM, TEMF, Hybrid, MeanFlow, Modular, TiM
from mfkit.flow.objectives.reflow import Reflow
from mfkit.flow.objectives.self_split import PSD, SelfSplit, Shortcut

OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind
    for kind in (
        FlowMatching,
        Reflow,
        CMT,
        CTM,
        MeanFlow,
        IMF,
        Hybrid,
        SCM,
        FACM,
        AYF,
        TiM,
        TEMF,
        Modular,
        IntervalSplit,
        SoFlow,
        AlphaFlow,
        EMF,
        Consistency,
        ECT,
        SelfSplit,
        PSD,
        Shortcut,
        Arrival,
        FreeFlow,
        LMD,
        LSD,
        TVM,
        IMM,
        Drifting,
        Frechet,
    )
}


def objectives_of(stage: Stage) -> dict[str, type[Objective]]:
    """The objectives that a command offers, by name; the first is its default."""
    return {name: kind for name, kind in OBJECTIVES.items() if stage in kind.stages}
