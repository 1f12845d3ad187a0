"""The examples in the docstrings of the metrics."""

import doctest
import importlib
from pathlib import Path

import pytest

from diffusers_groundavideo import evaluation
from diffusers_groundavideo.evaluation import ClipScorer, PickScorer


# By name: as an attribute of the package, some modules are hidden by a function.
MODULES = sorted({getattr(evaluation, name).__module__ for name in evaluation.__all__})


@pytest.fixture(scope="module")
def models(random_clip: Path) -> dict[str, object]:
    """In place of those of the examples, which are downloads."""
    return {
        "scorer": ClipScorer.from_pretrained(random_clip),
        "pick_scorer": PickScorer.from_pretrained(random_clip),
    }


@pytest.mark.usefixtures("lpips_backbone")
@pytest.mark.parametrize("module", MODULES)
def test_every_example_gives_what_it_says(module: str, models: dict[str, object]) -> None:
    results = doctest.testmod(importlib.import_module(module), extraglobs=models)
    assert results.attempted > 0
    assert results.failed == 0
