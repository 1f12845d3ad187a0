"""The packages that only annotators need: imported where they are used, from the extra `annotators`."""

import importlib
from types import ModuleType


def import_from_extra(module: str) -> ModuleType:
    """The module, imported.

    Raises:
        `ImportError`: If it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Annotating a clip needs the module {error.name!r}, which is not installed: "
            'pip install "diffusers-groundavideo[annotators]"'
        ) from error
