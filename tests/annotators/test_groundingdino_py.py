"""The original GroundingDINO: a small text encoder and transformer, the smallest backbone that the package knows."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

from annotators.small_models import bert_vocabulary
from diffusers_groundavideo.annotators import ObjectDetector


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = pytest.importorskip("groundingdino", reason="installed by hand: see annotators/groundingdino_py.py")
    from groundingdino.models import build_model
    from groundingdino.models.GroundingDINO import groundingdino
    from groundingdino.util.slconfig import SLConfig

    from diffusers_groundavideo.annotators.groundingdino_py import _Bert

    folder = tmp_path_factory.mktemp("original")
    bert = BertConfig(
        vocab_size=len(bert_vocabulary()),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=0,
    )
    settings = Path(package.__file__).with_name("config").joinpath("GroundingDINO_SwinT_OGC.py").read_text()
    for large, small in {
        "enc_layers = 6": "enc_layers = 1",
        "dec_layers = 6": "dec_layers = 2",
        "dim_feedforward = 2048": "dim_feedforward = 64",
        "num_queries = 900": "num_queries = 20",
    }.items():
        settings = settings.replace(large, small)
    (folder / "settings.py").write_text(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(bert).save_pretrained(folder / "bert-base-uncased")
        BertTokenizer(vocab=bert_vocabulary()).save_pretrained(folder / "bert-base-uncased")
        groundingdino.BertModelWarper = _Bert
        arguments = SLConfig.fromfile(str(folder / "settings.py"))
        arguments.device, arguments.text_encoder_type = "cpu", str(folder / "bert-base-uncased")
        model = build_model(arguments)
        with torch.no_grad():
            for parameter in model.bbox_embed.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    return folder


def test_it_finds_in_batches_what_it_finds_in_single_frames(folder: Path, real_frames: np.ndarray) -> None:
    detector = ObjectDetector.from_pretrained(folder)
    phrases = ["rabbit", "red apple"]
    together = detector(real_frames[:2], phrases, threshold=0.0)
    for frame in together:
        for phrase in phrases:
            assert frame[phrase]
            assert all(0 <= one.score <= 1 for one in frame[phrase])
    (alone,) = detector(real_frames[1:2], phrases, threshold=0.0)
    for phrase in phrases:
        first, second = (np.array([(*one.box, one.score) for one in frame[phrase]]) for frame in (together[1], alone))
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="tokens"):
        detector(real_frames, ["a long phrase " * 40])


def test_incomplete_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    state = torch.load(folder / "weights.pth")["model"]
    del state["feat_map.weight"]
    torch.save({"model": state}, tmp_path / "weights.pth")
    for name in ("settings.py", "bert-base-uncased"):
        (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(ValueError, match="lacks 1 entries of the model, feat_map.weight"):
        ObjectDetector.from_pretrained(tmp_path)


def test_without_settings_the_folder_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="one .pth and one .py"):
        ObjectDetector.from_pretrained(tmp_path)


def test_without_the_package_the_message_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({}, tmp_path / "weights.pth")
    (tmp_path / "settings.py").touch()
    for module in [name for name in sys.modules if name.partition(".")[0] == "groundingdino"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "groundingdino", None)
    with pytest.raises(ImportError, match="groundingdino.*pip install --no-deps groundingdino-py"):
        ObjectDetector.from_pretrained(tmp_path)
