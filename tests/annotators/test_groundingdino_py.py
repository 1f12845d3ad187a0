"""The original GroundingDINO: a small text encoder and transformer, the smallest backbone that the package knows."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
)

from annotators.groundingdino_weights import with_original_names
from annotators.small_models import bert_vocabulary
from diffusers_groundavideo.annotators import Detection, ObjectDetector


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same random weights twice: in `transformers`, and in `original` as the package has them."""
    pytest.importorskip("groundingdino", reason="installed by hand: see annotators/groundingdino_py.py")
    folder = tmp_path_factory.mktemp("ports")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _save_transformers(folder / "transformers")
        _save_original(folder / "original", load_file(folder / "transformers" / "model.safetensors"))
    return folder


@pytest.fixture
def folder(ports: Path) -> Path:
    return ports / "original"


TEXT_CONFIG = BertConfig(
    vocab_size=len(bert_vocabulary()),
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=64,
    pad_token_id=0,
)


def _save_transformers(folder: Path) -> None:
    config = GroundingDinoConfig(
        text_config=TEXT_CONFIG,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=20,
    )
    model = GroundingDinoForObjectDetection(config)
    with torch.no_grad():
        # As they are made, neither the words nor most of the layers would show in what comes out.
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        # Proposals at the border come first else, all of them alike: there the ports part.
        model.model.enc_output.bias.zero_()
        model.model.enc_output_norm.bias.zero_()
        # Else every score is 0 or 1.
        model.model.decoder.layer_norm.weight.mul_(0.1)
    model.save_pretrained(folder)
    processor = GroundingDinoProcessor(GroundingDinoImageProcessor(), BertTokenizer(vocab=bert_vocabulary()))
    processor.save_pretrained(folder)


def _save_original(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    import groundingdino
    from groundingdino.models import build_model
    from groundingdino.models.GroundingDINO import groundingdino as architecture
    from groundingdino.util.slconfig import SLConfig

    from diffusers_groundavideo.annotators.groundingdino_py import _Bert

    BertModel(TEXT_CONFIG).save_pretrained(folder / "bert-base-uncased")
    BertTokenizer(vocab=bert_vocabulary()).save_pretrained(folder / "bert-base-uncased")
    settings = Path(groundingdino.__file__).with_name("config").joinpath("GroundingDINO_SwinT_OGC.py").read_text()
    for large, small in {
        "enc_layers = 6": "enc_layers = 1",
        "dec_layers = 6": "dec_layers = 2",
        "dim_feedforward = 2048": "dim_feedforward = 64",
        "num_queries = 900": "num_queries = 20",
    }.items():
        settings = settings.replace(large, small)
    (folder / "settings.py").write_text(settings)
    architecture.BertModelWarper = _Bert
    arguments = SLConfig.fromfile(str(folder / "settings.py"))
    arguments.device, arguments.text_encoder_type = "cpu", str(folder / "bert-base-uncased")
    model = build_model(arguments)
    missing, unexpected = model.load_state_dict(with_original_names(weights), strict=False)
    # What is computed, what is not used, and the same head once more for each layer.
    own = ("relative_position_index", "bert.pooler.", "bbox_embed.")
    assert not unexpected
    assert [name for name in missing if not any(part in name for part in own)] == []
    torch.save({"model": model.state_dict()}, folder / "weights.pth")


def as_array(found: list[Detection]) -> np.ndarray:
    """(D, 5) of D detections: box and score."""
    return np.array([(*one.box, one.score) for one in found])


def test_transformers_finds_the_same_with_the_same_weights(ports: Path, real_frames: np.ndarray) -> None:
    frame, phrases = real_frames[:1, :100], ["rabbit", "red apple", "green apple", "sky"]
    (transformers,), (original,) = (
        ObjectDetector.from_pretrained(ports / port)(frame, phrases, threshold=0.0)
        for port in ("transformers", "original")
    )
    for phrase in phrases:
        first, second = as_array(transformers[phrase]), as_array(original[phrase])
        # Else it would show little that they are equal.
        assert np.ptp(first[:, 4]) > 0.1
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)
    assert len({transformers[phrase][0].score for phrase in phrases}) == len(phrases)


def test_it_finds_in_batches_what_it_finds_in_single_frames(folder: Path, real_frames: np.ndarray) -> None:
    detector = ObjectDetector.from_pretrained(folder)
    frames, phrases = real_frames[:2, :100], ["rabbit", "red apple"]
    together = detector(frames, phrases, threshold=0.0)
    for frame in together:
        for phrase in phrases:
            assert frame[phrase]
            assert all(0 <= one.score <= 1 for one in frame[phrase])
    (alone,) = detector(frames[1:], phrases, threshold=0.0)
    for phrase in phrases:
        np.testing.assert_allclose(as_array(together[1][phrase]), as_array(alone[phrase]), rtol=0, atol=1e-5)
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


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("settings.py", "bert-base-uncased"):
        (tmp_path / name).symlink_to(folder / name)
    weights = tmp_path / "weights.pth"
    state = torch.load(folder / "weights.pth")["model"]
    torch.save({"model": {**state, "feat_map.weight": torch.zeros(256, 768)}}, weights)
    with pytest.raises(
        ValueError, match="(?s)does not hold the weights of the model in .*settings.py.*feat_map.weight"
    ):
        ObjectDetector.from_pretrained(tmp_path)
    torch.save(state, weights)
    with pytest.raises(ValueError, match="does not hold the weights"):
        ObjectDetector.from_pretrained(tmp_path)
    weights.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="does not hold the weights"):
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
