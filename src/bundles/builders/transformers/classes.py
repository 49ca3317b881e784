"""Which class of transformers a name means: one of the library's own tables, and nothing else."""

from __future__ import annotations

from typing import Any

from bundles.builders.require import require
from bundles.errors import BuildError
from bundles.spec.suggest import closest
from bundles.spec.values import shown

_TABLES = "transformers.models.auto.modeling_auto"
_CONFIGURATIONS = "transformers.models.auto.configuration_auto"
# Names that configurations of before transformers 3 give, and what the class is called now.
_RENAMED = {"T5WithLMHeadModel": "T5ForConditionalGeneration"}


def model_class(model_type: str, name: str) -> Any:
    """Return the class of that name, if the library lists it for that type of model.

    Raises:
        BuildError: it does not; there is no way from data to a class that is not in its tables.
        MissingDependencyError: transformers is absent or broken.
    """
    known = class_names(model_type)
    name = _RENAMED.get(name, name)
    if name not in known:
        raise BuildError(
            f"The class {shown(name)} is none that transformers has for the model_type {model_type!r}: "
            f"there is {', '.join(known)}."
        )
    return getattr(require("transformers"), name)


def base_class(model_type: str) -> str | None:
    """Return the name of the class that ``AutoModel`` would make; ``None`` where it makes none."""
    found = require(_TABLES).MODEL_MAPPING_NAMES.get(model_type)
    return found if isinstance(found, str | None) else found[0]


def class_names(model_type: str) -> list[str]:
    """Return the names of all classes that the library's tables give for a type of model."""
    configuration_class(model_type)
    names: set[str] = set()
    for table, entries in vars(require(_TABLES)).items():
        if table.startswith("MODEL_") and table.endswith("_MAPPING_NAMES") and model_type in entries:
            found = entries[model_type]
            names.update([found] if isinstance(found, str) else found)
    return sorted(names)


def configuration_class(model_type: str) -> Any:
    """Return the library's class of configurations for a type of model.

    Raises:
        BuildError: the library has no such type.
        MissingDependencyError: transformers is absent or broken.
    """
    library, module = require("transformers"), require(_CONFIGURATIONS)
    if model_type not in module.CONFIG_MAPPING_NAMES:
        near = closest(model_type, module.CONFIG_MAPPING_NAMES)
        raise BuildError(
            f"transformers {library.__version__} has no model_type {shown(model_type)}; the "
            f"closest are {', '.join(near)}. Code from elsewhere is never executed."
        )
    return module.CONFIG_MAPPING[model_type]
