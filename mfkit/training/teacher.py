"""train-teacher: the velocity network, by flow matching on encoded images."""

from torch import nn

from mfkit.config.settings import FlowSettings, GeneratorSettings, ModelName, PresetName
from mfkit.data.latents import LatentSet, fresh_config
from mfkit.data.loader import Batch
from mfkit.flow.losses import Loss, flow_matching
from mfkit.flow.random import Draws
from mfkit.flow.times import shifted, time_shift
from mfkit.models.dit import VelocityDiT, null_labels
from mfkit.runtime.seeding import seeded
from mfkit.training.plan import Plan


def plan(
    latents: LatentSet, model: ModelName, preset: PresetName, settings: GeneratorSettings, flow: FlowSettings
) -> Plan:
    """The training of a teacher of size ``model`` on latents."""
    shift, classes = flow.time_shift or time_shift(*latents.shape), len(latents.classes)
    with seeded(settings.seed):
        network = VelocityDiT(fresh_config(latents, model))

    def loss(net: nn.Module, batch: Batch) -> Loss:
        x, y = batch.columns["latent"].float(), batch.columns["label"]
        draws = Draws(settings.seed, "train-teacher", batch.positions, x.device)
        y = null_labels(y, classes, draws.uniform("class-dropout") < settings.label_drop)
        noise = draws.normal("noise", x.shape[1:])
        return flow_matching(net, x, noise, shifted(draws.uniform("time"), shift), y)

    return Plan(
        kind="teacher",
        network=network,
        config={"time_shift": shift, "classes": latents.classes, "preset": preset},
        source=latents.source,
        loss=loss,
        inputs={"latents": latents.artifact, **latents.artifact.mention("rae")},
        settings=settings,
        other_settings={"time_shift": shift},
    )
