"""diffusers' ``AutoencoderKL`` as an autoencoder, for latents of a VAE such as Stable Diffusion's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from mfkit.artifacts.artifact import Artifact
from mfkit.artifacts.json_files import parse
from mfkit.artifacts.network_weights import build_for, load_weights, shapes_of
from mfkit.artifacts.safetensors_files import read_tensors
from mfkit.autoencoders.autoencoder import Autoencoder, AutoencoderFile
from mfkit.errors import InputError, decoding_errors
from mfkit.formats import diffusers_folder
from mfkit.formats.hub import HUB, resolve

_CLASS = "AutoencoderKL"
_OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of an attention's layers in VAEs that early versions of diffusers saved."""


@dataclass(frozen=True, kw_only=True)
class DiffusersConfig:
    """The arguments of ``AutoencoderKL`` that a file may set, with diffusers' defaults."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: list[str]
    up_block_types: list[str]
    block_out_channels: list[int]
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        sizes = [*self.block_out_channels, self.latent_channels, self.norm_num_groups, self.in_channels]
        if not 1 <= self.layers_per_block <= 100 or not 1 <= len(self.block_out_channels) <= 20 or min(sizes) < 1:
            raise ValueError(f"a VAE of {self.layers_per_block} layers per block, of widths {self.block_out_channels}")
        if self.scaling_factor <= 0:
            raise ValueError("a VAE without a scaling factor")


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The images and latents of a VAE, which itself takes images of many sizes."""

    image_size: int
    channels: int
    side: int

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return (self.channels, self.side, self.side)


class VAE(Autoencoder):
    """Frozen. Latents are the posterior's mean, shifted and scaled as the VAE's own config says."""

    def __init__(self, network: Any, *, image_size: int) -> None:
        """:param network: an ``AutoencoderKL``."""
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        factor = _factor(network.config.block_out_channels)
        if image_size % factor:
            raise InputError(f"the VAE shrinks images {factor} times, which does not divide {image_size} pixels")
        self.config = VAEConfig(
            image_size=image_size, channels=network.config.latent_channels, side=image_size // factor
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) in [0, 1] to latents (B, C, H, W)."""
        mean = self.network.encode(2 * images - 1).latent_dist.mode()
        config = self.network.config
        return (mean - (config.shift_factor or 0.0)) * config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        return decode_by_vae(self.network, latents)


def decode_by_vae(network: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents (B, C, H, W) to images (B, 3, S, S) in [0, 1]."""
    config = network.config
    pixels = network.decode(latents / config.scaling_factor + (config.shift_factor or 0.0)).sample
    return (pixels / 2 + 0.5).clamp(0, 1)


class VAEFile(AutoencoderFile):
    """An opened folder of a VAE that diffusers saved."""

    kind: ClassVar[str] = "vae"

    def __init__(self, artifact: Artifact, config: DiffusersConfig, weights: Path) -> None:
        self.artifact, self._config, self._weights = artifact, config, weights

    @classmethod
    def matches(cls, path: Path) -> bool:
        return path.is_dir() and diffusers_folder.class_name(path) == _CLASS

    @classmethod
    def open(cls, path: Path) -> Self:
        document, weights = diffusers_folder.open_folder(path, _CLASS)
        known = {name: value for name, value in document.items() if name in DiffusersConfig.__dataclass_fields__}
        config = parse(DiffusersConfig, known, path)
        digest = diffusers_folder.folder_digest(path)
        return cls(Artifact(path, cls.kind, document, content_digest=digest), config, weights)

    @classmethod
    def open_source(cls, source: str) -> Self:
        """The folder it was saved to, or a repository of the hub by its name (``owner/repo``)."""
        if not Path(source).exists() and not source.startswith(HUB):
            if Path(source).is_absolute() or source.count("/") != 1:
                raise InputError(f"--vae {source}: neither a folder nor the name of a repository (owner/repo)")
            source = HUB + source
        path = resolve(source, folder=True)
        if not path.is_dir():
            raise InputError(f"{path} is a file; --vae takes the folder that diffusers saved an {_CLASS} to")
        return cls.open(path)

    def decodes(self, latent_shape: tuple[int, ...]) -> str:
        channels = self._config.latent_channels
        return "" if channels == latent_shape[0] else f"{channels} channels"

    def load(self, *, latent_shape: tuple[int, ...] | None = None, image_size: int | None = None) -> VAE:
        tensors = {_current_name(name): value for name, value in read_tensors(self._weights).items()}
        network = build_for(lambda: AutoencoderKL(**vars(self._config)), shapes_of(tensors), self._weights)
        load_weights(network, tensors, self._weights)
        return VAE(network, image_size=image_size or self._image_size(latent_shape))

    def outline(self, latent_shape: tuple[int, ...]) -> VAE:
        with decoding_errors(self.path), torch.device("meta"):
            return VAE(AutoencoderKL(**vars(self._config)), image_size=self._image_size(latent_shape))

    def pipeline_decoder(self, network: Autoencoder) -> Any:
        assert isinstance(network, VAE)
        return network.network

    def _image_size(self, latent_shape: tuple[int, ...] | None) -> int:
        assert latent_shape is not None, "a VAE takes many sizes: give that of its latents or of its images"
        return _factor(self._config.block_out_channels) * latent_shape[-1]


def _factor(block_out_channels: Sequence[int]) -> int:
    """How many times smaller a latent is than its image, on a side."""
    return 2 ** (len(block_out_channels) - 1)


def _current_name(name: str) -> str:
    """The name that diffusers has now for a tensor of a VAE."""
    for old, new in _OLD_NAMES.items():
        name = name.replace(old, new) if ".attentions." in name else name
    return name
