"""The model card says what was trained, measured and with which settings, and refuses figures of others."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from diffusers_groundavideo.spriteworld import MINI_SETTINGS


sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "train_spriteworld"))

from model_card import FINISHED, write_card


@pytest.fixture
def report() -> dict[str, Any]:
    """In the form of `figures.json`."""
    return {"settings": MINI_SETTINGS, "machine": "a machine", "table": "| figure |\n| --- |\n| 12.3 dB |"}


def test_the_card_holds_recipe_figures_and_settings(tmp_path: Path, report: dict[str, Any]) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    records = [{"step": 0, "loss": 2.5, "seconds": 1.0}, {"step": 799, "loss": 0.5, "seconds": 1500.0}]
    records.append({"step": 800, "fresh_psnr": 31.25, "seconds": 1510.0})
    (logs / "vae_log.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    write_card(tmp_path, logs, report)
    card = ModelCard.load(tmp_path / "README.md", ignore_metadata_errors=False)
    assert card.data.license == "apache-2.0" and card.data.library_name == "diffusers"
    assert "| vae | `train_vae.py` | 800 | 25 min | fresh psnr 31.25 |" in card.text
    assert str(MINI_SETTINGS) in card.text and "12.3 dB" in card.text and "SIL Open Font License" in card.text
    assert "train_unet.py" not in card.text


def test_the_logs_of_the_finished_parts_can_be_read(tmp_path: Path, report: dict[str, Any]) -> None:
    write_card(tmp_path, FINISHED, report)
    text = (tmp_path / "README.md").read_text()
    for path in FINISHED.glob("*_log.jsonl"):
        assert f"| {path.name.removesuffix('_log.jsonl')} |" in text


def test_figures_of_other_settings_are_refused(tmp_path: Path, report: dict[str, Any]) -> None:
    report["settings"] = MINI_SETTINGS | {"guidance_scale": 3.5}
    with pytest.raises(ValueError, match=r"guidance_scale.*3\.5"):
        write_card(tmp_path, FINISHED, report)
    assert not (tmp_path / "README.md").exists()
