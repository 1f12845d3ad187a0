"""Depth: real classes at small size; near is bright, one scale for the clip, nothing flickers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from controlnet_aux.midas import MidasDetector
from controlnet_aux.midas.api import DPTDepthModel
from controlnet_aux.zoe import ZoeDepth, ZoeDetector, get_config
from transformers import AutoImageProcessor, AutoModelForDepthEstimation

from annotators.small_models import DEPTH_MODELS
from diffusers_groundavideo.annotators import DepthEstimator
from diffusers_groundavideo.annotators.depth import depth_to_frames


SavedModel = Callable[[str], Path]
METRIC = ("depth-anything-metric", "zoedepth")


@pytest.fixture(scope="module", params=DEPTH_MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def estimator(saved_model: SavedModel, kind: str) -> DepthEstimator:
    return DepthEstimator.from_pretrained(saved_model(kind))


def raw_depth(folder: Path, frames: np.ndarray) -> np.ndarray:
    """What the model itself says, one frame at a time, at the size of the frames: (F, H, W)."""
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    results = []
    for frame in frames:
        with torch.no_grad():
            outputs = model(**processor(frame, return_tensors="pt"))
        size = {"source_sizes" if "Zoe" in type(processor).__name__ else "target_sizes": [frame.shape[:2]]}
        results.append(processor.post_process_depth_estimation(outputs, **size)[0]["predicted_depth"].numpy())
    return np.stack(results)


def test_depth_has_the_size_of_the_clip_and_its_whole_range(
    estimator: DepthEstimator, real_frames: np.ndarray
) -> None:
    depth = estimator(real_frames)
    assert depth.shape == real_frames.shape[:3]
    assert depth.dtype == torch.float32
    assert (float(depth.min()), float(depth.max())) == (0, 1)
    assert depth_to_frames(depth).shape == real_frames.shape
    assert depth_to_frames(depth).dtype == np.uint8


def test_near_is_bright(
    saved_model: SavedModel, estimator: DepthEstimator, real_frames: np.ndarray, kind: str
) -> None:
    """Metric models say how far a place is, the others how near it is."""
    depth, raw = estimator(real_frames).numpy(), raw_depth(saved_model(kind), real_frames)
    inner = (depth > 0.02) & (depth < 0.98)
    correlation = np.corrcoef(depth[inner], raw[inner])[0, 1]
    assert (-correlation if kind in METRIC else correlation) > 0.99


def test_batches_give_what_single_frames_do(estimator: DepthEstimator, real_frames: np.ndarray) -> None:
    difference = estimator(real_frames, batch_size=3) - estimator(real_frames, batch_size=1)
    assert float(difference.abs().max()) <= 1e-5


def test_a_still_clip_does_not_flicker(estimator: DepthEstimator, real_frames: np.ndarray) -> None:
    still = real_frames[[0, 0, 0, 1, 0]]
    depth = estimator(still, batch_size=2)
    for index in (1, 2, 4):
        assert torch.equal(depth[index], depth[0])
    assert not torch.equal(depth[3], depth[0])


def test_the_scale_is_that_of_the_clip_and_not_of_a_frame(
    saved_model: SavedModel, estimator: DepthEstimator, real_frames: np.ndarray, kind: str
) -> None:
    """A place of one depth in two frames has one brightness, whatever else is in these frames."""
    frames = np.stack([real_frames[0], real_frames[0] // 4])
    depth, raw = estimator(frames).numpy(), raw_depth(saved_model(kind), frames)
    inner = (depth > 0.02) & (depth < 0.98)
    # One line leads from the model's values in both frames to their greys.
    slope, offset = np.polyfit(raw[inner].astype(np.float64), depth[inner], 1)
    assert np.abs(slope * raw[inner] + offset - depth[inner]).mean() < 0.01
    alone = np.stack([estimator(frame[None]).numpy()[0] for frame in frames])
    assert np.abs(alone - depth).max() > 0.05


def test_clips_of_other_sizes(estimator: DepthEstimator) -> None:
    rng = np.random.default_rng(0)
    for size in ((8, 8), (20, 90), (70, 33)):
        frames = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
        assert estimator(frames).shape == (2, *size)


@pytest.mark.parametrize("kind", ["dpt"], scope="module")
def test_frames_and_models_of_another_kind_are_refused(
    saved_model: SavedModel, estimator: DepthEstimator, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="`frames`"):
        estimator(np.zeros((2, 32, 32), dtype=np.uint8))
    with pytest.raises(ValueError, match="'grounding-dino'.*depth_anything, dpt, zoedepth"):
        DepthEstimator.from_pretrained(saved_model("grounding-dino"))
    with pytest.raises(ValueError, match="nowhere"):
        DepthEstimator.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="midas:nowhere"):
        DepthEstimator.from_pretrained("midas:nowhere")


def test_a_flat_clip_is_dark(saved_model: SavedModel) -> None:
    """A model that says the same everywhere: what there is no difference in is not spread."""
    folder = saved_model("dpt")
    model = AutoModelForDepthEstimation.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    flat = folder.parent / "flat"
    model.save_pretrained(flat)
    AutoImageProcessor.from_pretrained(folder).save_pretrained(flat)
    depth = DepthEstimator.from_pretrained(flat)(np.zeros((2, 16, 16, 3), dtype=np.uint8))
    assert (depth == 0).all()


@pytest.fixture(scope="module")
def midas_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """controlnet-aux's MiDaS in its full size of 123 million random weights: it comes in no other."""
    folder = tmp_path_factory.mktemp("midas")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True)
    torch.save(model.state_dict(), folder / "dpt_hybrid-midas-501f0c75.pt")
    return folder


def test_midas_of_controlnet_aux_without_its_normalisation_of_each_frame(
    midas_folder: Path, real_frames: np.ndarray
) -> None:
    # At the size the model works at, so that nothing is resampled.
    frame = real_frames[0, 100:292, 100:292].repeat(2, axis=0).repeat(2, axis=1)
    depth = DepthEstimator.from_pretrained(f"midas:{midas_folder}")(frame[None])
    assert depth.shape == (1, 384, 384)
    assert (float(depth.min()), float(depth.max())) == (0, 1)
    # Of a single frame the annotator itself makes the same, in 256 greys.
    own = MidasDetector.from_pretrained(str(midas_folder))(frame, detect_resolution=384, image_resolution=384)
    assert abs(depth_to_frames(depth)[0].astype(int) - own).max() <= 2


@pytest.mark.slow
def test_midas_in_batches(midas_folder: Path, real_frames: np.ndarray) -> None:
    estimator = DepthEstimator.from_pretrained(f"midas:{midas_folder}")
    frames = np.ascontiguousarray(real_frames[:, :64, :96])
    depth = estimator(frames)
    assert depth.shape == (3, 64, 96)
    assert float((depth - estimator(frames, batch_size=1)).abs().max()) <= 1e-5


@pytest.mark.slow
def test_zoe_of_controlnet_aux(tmp_path: Path, real_frames: np.ndarray) -> None:
    """345 million random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ZoeDepth.build_from_config(get_config("zoedepth", "infer"))
    torch.save({"model": model.state_dict()}, tmp_path / "ZoeD_M12_N.pt")
    estimator = DepthEstimator.from_pretrained(f"zoe:{tmp_path}")
    frame = real_frames[0, 100:292, 100:292].repeat(2, axis=0).repeat(2, axis=1)
    depth = estimator(frame[None])
    assert depth.shape == (1, 384, 384)
    own = ZoeDetector.from_pretrained(str(tmp_path))(frame, detect_resolution=384, image_resolution=384)
    assert abs(depth_to_frames(depth)[0].astype(int) - own).max() <= 2
