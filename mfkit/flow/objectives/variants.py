"""Variants: an objective under the name that its authors gave it, which is another one with other defaults."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from typing import Any, TypeVar, get_type_hints

from mfkit.flow.objectives.base import Objective, Stage
from mfkit.setting import settings_of

ObjectiveT = TypeVar("ObjectiveT", bound=Objective)


def variant(
    of: type[ObjectiveT], name: str, summary: str, *, experimental: bool = False,
    stages: tuple[Stage, ...] | None = None, **defaults: Any,
) -> type[ObjectiveT]:  # fmt: skip
    """A class of objectives that differs from ``of`` in the defaults of its settings.

    :param defaults: settings by name. :raises TypeError: ``of`` has no such setting.
    """
    own, hints = {item.name: item for item in settings_of(of)}, get_type_hints(of)
    if unknown := defaults.keys() - own.keys():
        raise TypeError(f"{of.name} has no setting {', '.join(sorted(unknown))}")
    fields = [
        (setting, hints[setting], field(default=value, metadata=own[setting].metadata, kw_only=True))
        for setting, value in defaults.items()
    ]
    about = {
        "__module__": of.__module__, "name": name, "summary": summary, "stages": stages or of.stages,
        "variant_of": of.name, "experimental": experimental or of.experimental,
    }  # fmt: skip
    return make_dataclass(of.__name__, fields, bases=(of,), namespace=about, frozen=True, kw_only=True)
