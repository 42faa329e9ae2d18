"""What the description of a file of each kind must hold: a file of a stranger may say anything, of any type."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mfkit.errors import InputError

Check = Callable[[Any], bool]

_LARGEST = 1 << 31


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < _LARGEST


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _colours(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(item == 0 or _positive(item) for item in value)


def _object(**checks: Check) -> Check:
    """An object with these fields, all of which must be there but those that end in an underscore."""

    def check(value: Any) -> bool:
        return isinstance(value, dict) and all(
            valid(value[name.rstrip("_")]) if name.rstrip("_") in value else name.endswith("_")
            for name, valid in checks.items()
        )

    return check


def _only(**checks: Check) -> Check:
    """An object with these fields, as :func:`_object` has them, and no others."""
    known, valid = {name.rstrip("_") for name in checks}, _object(**checks)
    return lambda value: valid(value) and value.keys() <= known


def _latent_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_size(item) for item in value) and value[1] == value[2]


def _one_of(*values: object) -> Check:
    return lambda value: any(value is known or value == known for known in values)


_PRESET = _one_of("digits", "imagenet256", "imagenet512", None)
_ENCODER_ARGUMENTS: dict[str, Check] = {
    "patch_size": _size,
    "embed_dim": _size,
    "depth": _size,
    "num_heads": _size,
    "mlp_ratio": _positive,
    "act_layer": _one_of("gelu_tanh"),
    "global_pool": _one_of(""),
    "no_embed_class": _one_of(True, False),
}
"""Arguments of ``timm.create_model`` that mfkit writes; others, such as places to fetch weights from, are refused."""


def _encoder_arguments(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name in _ENCODER_ARGUMENTS and _ENCODER_ARGUMENTS[name](item) for name, item in value.items()
    )


_GENERATOR = {
    "network": _only(
        channels=_size, side=_size, classes=_size, width=_size, depth=_size, heads=_size, head_width=_size,
        head_depth=_size, head_heads=_size, gated_=_one_of(True, False),
    ),
    "time_shift": _positive,
    "classes": _texts,
    "preset_": _PRESET,
}  # fmt: skip
_SHARDS: dict[str, Check] = {"shape_": _latent_shape, "classes_": _texts, "preset_": _PRESET}
_KINDS: dict[str, Mapping[str, Check]] = {
    "teacher": _GENERATOR,
    "student": _GENERATOR,
    "rae": {
        "network": _only(
            encoder_name=lambda value: isinstance(value, str) and ":" not in value,
            encoder=_encoder_arguments, encoder_size=_size, encoder_mean_=_colours, encoder_std_=_colours,
            image_size=_size, channels=_size, side=_size, decoder_width=_size, decoder_depth=_size, decoder_heads=_size,
            decoder_hidden=_size, decoder_positions_=_one_of(True, False),
        ),
        "classes_": _texts,
        "preset_": _PRESET,
    },
    "latents": _SHARDS,
    "trajectories": _SHARDS,
    "images": {"classes_": _texts},
    "checkpoint": {"step": lambda value: value == 0 or _size(value), "settings": lambda value: isinstance(value, dict)},
}  # fmt: skip


def check_vae(config: Mapping[str, Any], tensors: int, numbers: int, source: object) -> None:
    """Refuses the config of a VAE that is larger than its file, or says in another form what diffusers reads of it.

    :param tensors: how many the file holds; ``numbers``: of all of them.
    """

    def within(most: int) -> Check:
        return lambda value: _size(value) and value <= most

    def some(check: Check) -> Check:
        return lambda value: isinstance(value, list) and len(value) <= tensors and all(map(check, value))

    width, blocks = within(numbers), some(lambda value: isinstance(value, str))
    valid = {
        "in_channels": width, "out_channels": width, "latent_channels": width, "norm_num_groups": width,
        "layers_per_block": within(tensors), "down_block_types": blocks, "up_block_types": blocks,
        "block_out_channels": some(width),
        "scaling_factor": _positive, "shift_factor": lambda value: value is None or _finite(value),
    }  # fmt: skip
    for name, check in valid.items():
        if name in config and not check(config[name]):
            raise InputError(f"{source} is damaged: the {name} of its config is none of a VAE")


def check_config(kind: str, config: Mapping[str, Any], source: object) -> None:
    """Refuses a description that lacks what files of its kind hold, or holds it in another form.

    :raises InputError: with the name of the field.
    """
    for name, valid in _KINDS.get(kind, {}).items():
        field, optional = name.rstrip("_"), name.endswith("_")
        if field not in config and optional:
            continue
        if field not in config or not valid(config[field]):
            raise InputError(f"{source} is damaged: the {field} of its description is none for a {kind} file")
    if "shape" in config and "classes" not in config and kind in ("latents", "trajectories"):
        raise InputError(f"{source} is damaged: it does not name its classes")
    if kind in ("teacher", "student") and len(config["classes"]) != config["network"]["classes"]:
        raise InputError(f"{source} is damaged: it names {len(config['classes'])} classes, not those of its network")


def check_provenance(record: Mapping[str, Any], source: object) -> None:
    """Refuses a record whose inputs are not given by path, kind and digest.

    :raises InputError: so it is.
    """
    history = record.get("history", {})
    records: list[Any] = [record, *history.values()] if isinstance(history, dict) else [None]
    told = _object(
        version_=lambda value: isinstance(value, str),
        command_=lambda value: isinstance(value, str),
        libraries_=lambda value: isinstance(value, dict),
        inputs_=lambda value: isinstance(value, dict) and all(entry(item) for item in value.values()),
    )
    entry = _object(
        path=lambda value: value is None or isinstance(value, str),
        kind=lambda value: isinstance(value, str),
        digest=lambda value: isinstance(value, str),
    )
    if not all(told(one) for one in records):
        raise InputError(f"{source} is damaged: its provenance cannot be read")
