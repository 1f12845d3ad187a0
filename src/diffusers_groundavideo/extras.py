"""Packages that not every use needs: imported where they are used, from an extra of this package."""

import importlib
from types import ModuleType
from typing import Literal


def import_from_extra(module: str, extra: Literal["annotators", "evaluation"]) -> ModuleType:
    """The module, imported.

    Raises:
        `ImportError`: If it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"This needs the module {error.name!r}, which is not installed: "
            f'pip install "diffusers-groundavideo[{extra}]"'
        ) from error
