"""How far a generator in training is from real images: the Fréchet distance of its average's samples."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from mfkit.artifacts.artifact import Artifact
from mfkit.autoencoders.rae import RAEFile
from mfkit.config.settings import GeneratorSettings, SampleSettings
from mfkit.data.codecs import to_uint8
from mfkit.data.latents import open_latents
from mfkit.data.loader import shared_batches
from mfkit.errors import InputError, UsageError
from mfkit.evaluation.features import rae_features
from mfkit.evaluation.metrics.frechet import frechet_distance
from mfkit.evaluation.moments import Moments
from mfkit.evaluation.reducers import MomentsOf
from mfkit.flow.random import Draws
from mfkit.inference.sampler import sampler_of
from mfkit.models.generator import Generator
from mfkit.runtime.distributed import processes
from mfkit.training import log as training_log

logger = logging.getLogger(__name__)

_BATCH = 100


class Measure:
    """Samples as many images as ``--fid-images`` says, in equal classes, from noise that nothing is trained on.

    Compared are the RAE encoder's features, mean tokens, of these images and of the real ones, which are their latents.
    """

    def __init__(
        self, network: Generator, time_shift: float, inputs: Mapping[str, Artifact], settings: GeneratorSettings,
        output: Path, save: Callable[[Path], None],
    ) -> None:  # fmt: skip
        """:param save: writes the network as it is; all processes call it.

        :raises UsageError, InputError: the RAE or the latents of real images are not known, or not there.
        """
        for role, what in {"rae": "the RAE", "latents": "the latents of real images"}.items():
            if role not in inputs or not inputs[role].path.exists():
                raise InputError(f"--fid-every needs {what}, not found where the inputs say")
        if not RAEFile.matches(inputs["rae"].path):
            raise UsageError("--fid-every measures in the features of an RAE's encoder, and these latents are of a VAE")
        self._network, self._shift, self._settings, self._save = network, time_shift, settings, save
        self._rae, self._latents = RAEFile.open(inputs["rae"].path), inputs["latents"].path
        self.best_path = output.with_suffix(".best.safetensors")
        self._log = output.with_suffix(".log.jsonl")
        self._real: Moments | None = None
        self._best: float | None = None

    def __call__(self) -> float:
        """The distance of the network as it is, which is kept where it is the least so far. All processes call it."""
        if self._real is None:
            self._real = self._of_latents()
            lines = training_log.read(self._log) if self._log.exists() else []
            told = [value for line in lines for name, value in line.items() if name.partition(".")[0] == "fid"]
            self._best = min(told, default=None)
        distance = frechet_distance(self._of_samples(), self._real)
        if self._best is None or distance < self._best:
            self._best = distance
            self._save(self.best_path)
        return distance

    def _of_latents(self) -> Moments:
        data = open_latents("latents", str(self._latents), classes=self._network.config.num_classes)
        sums = MomentsOf()
        for batch in shared_batches(data.dataset, _BATCH, self._settings.workers):
            sums.add(batch.positions, batch.columns["latent"].float().mean((2, 3)))
        sums.share()
        return sums.moments()

    def _of_samples(self) -> Moments:
        world, network = processes(), self._network
        rae, features, sampler = (
            self._rae.network,
            rae_features(self._rae),
            sampler_of(network, SampleSettings(), self._shift),
        )
        sums = MomentsOf()
        network.eval()
        for number, indices in enumerate(torch.arange(self._settings.fid_images).split(_BATCH)):
            if number % world.num_processes != world.process_index:
                continue
            draws = Draws(0, "fid", indices.tolist(), world.device)
            labels = (indices % network.config.num_classes).to(world.device)
            with torch.no_grad():
                latents = sampler(draws.normal("noise", network.config.latent_shape), labels)
                images = to_uint8(rae.decode(latents).float()).cpu()
            sums.add(indices.tolist(), features.of_images(images)["features"])
        network.train()
        rae.to("cpu")  # between two measurements the device is the training's
        sums.share()
        return sums.moments()
