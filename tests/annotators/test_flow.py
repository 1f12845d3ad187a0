"""Optical flow: against exact flow on sprite scenes and on a real scene with parallax; any size; occlusion."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.optical_flow import raft_large, raft_small

from annotators.parallax import parallax_clip
from diffusers_groundavideo.annotators import ClipFlow, FlowEstimator
from diffusers_groundavideo.spriteworld import random_scene, render


def end_point_error(flow: torch.Tensor, exact: np.ndarray) -> np.ndarray:
    """(pairs, H, W), in pixels."""
    return np.linalg.norm(flow.numpy() - exact, axis=1)


@pytest.mark.parametrize(("baseline", "bound"), [(0.05, 0.2), (0.15, 0.4), (0.3, 0.6)])
def test_dis_is_close_to_exact_flow_on_a_real_scene(baseline: float, bound: float) -> None:
    clip = parallax_clip(num_frames=3, baseline=baseline)
    flow = FlowEstimator.from_pretrained("dis")(clip.frames)
    error = end_point_error(flow.forward, clip.flow)
    motion = np.linalg.norm(clip.flow, axis=1).mean()
    print(f"DIS, motion of {motion:.1f} px: error {error.mean():.2f} px, seen {error[clip.visible].mean():.2f} px")
    assert error.mean() <= bound
    back = end_point_error(-flow.backward, clip.flow)
    # Backward flow starts at the next frame: the same size, on a grid that has moved.
    assert np.median(back) <= bound
    np.testing.assert_allclose(flow.backward[:, 0].mean(), motion, rtol=0.1)


def test_dis_is_close_to_exact_flow_on_sprite_scenes() -> None:
    estimator = FlowEstimator.from_pretrained("dis")
    errors = []
    for seed in range(20):
        scene = render(random_scene(seed))
        error = end_point_error(estimator(scene.frames).forward, scene.forward_flow)
        errors.append(error[~scene.forward_occlusion].mean())
    print(f"DIS on 20 sprite scenes of 64 px: error {np.mean(errors):.2f} px, median {np.median(errors):.2f} px")
    assert np.mean(errors) <= 0.4


def test_the_direction_of_flow() -> None:
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8), np.ones((4, 4, 1), dtype=np.uint8))
    # Three to the right and two down a frame.
    frames = np.stack([np.roll(texture, (2 * index, 3 * index), axis=(0, 1))[8:72, 8:72] for index in range(3)])
    flow = FlowEstimator.from_pretrained("dis")(frames)
    for pair in range(2):
        np.testing.assert_allclose(flow.forward[pair].median(dim=2).values.median(dim=1).values, [3, 2], atol=0.1)
        np.testing.assert_allclose(flow.backward[pair].median(dim=2).values.median(dim=1).values, [-3, -2], atol=0.1)


def test_occlusion_of_exact_flow_is_the_exact_occlusion() -> None:
    agreed, found, hidden = 0, 0, 0
    for seed in range(20):
        scene = render(random_scene(seed, size=128, num_frames=4))
        flow = ClipFlow(torch.from_numpy(scene.forward_flow), torch.from_numpy(scene.backward_flow))
        pairs = [
            (flow.forward_occlusion, scene.forward_occlusion),
            (flow.backward_occlusion, scene.backward_occlusion),
        ]
        for estimated, exact in pairs:
            agreed += int((estimated[:, 0].numpy() & exact).sum())
            found += int(estimated.sum())
            hidden += int(exact.sum())
    print(f"occlusion of exact flow: precision {agreed / found:.3f}, recall {agreed / hidden:.3f}")
    assert agreed / found > 0.9
    assert agreed / hidden > 0.95


def test_occlusion_of_dis_finds_most_of_what_is_hidden() -> None:
    estimator = FlowEstimator.from_pretrained("dis")
    agreed, found, hidden, pixels = 0, 0, 0, 0
    for seed in range(8):
        scene = render(random_scene(seed, size=256, num_frames=4))
        estimated = estimator(scene.frames).forward_occlusion[:, 0].numpy()
        agreed += int((estimated & scene.forward_occlusion).sum())
        found += int(estimated.sum())
        hidden += int(scene.forward_occlusion.sum())
        pixels += estimated.size
    accuracy = 1 - (found + hidden - 2 * agreed) / pixels
    print(f"occlusion of DIS: precision {agreed / found:.2f}, recall {agreed / hidden:.2f}, accuracy {accuracy:.3f}")
    # A quarter of the hidden places are stripes of a pixel or two, which the tolerance of the check lets pass.
    assert agreed / hidden > 0.75
    assert accuracy > 0.87


@pytest.mark.parametrize("size", [(8, 8), (8, 50), (61, 9), (33, 47), (64, 64)])
def test_dis_takes_frames_of_any_size(size: tuple[int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    flow = FlowEstimator.from_pretrained("dis")(frames)
    assert flow.forward.shape == flow.backward.shape == (2, 2, *size)
    assert flow.forward.dtype == torch.float32
    assert flow.forward_occlusion.shape == flow.backward_occlusion.shape == (2, 1, *size)
    still = FlowEstimator.from_pretrained("dis")(frames[[0, 0]])
    np.testing.assert_allclose(still.forward, 0, atol=1e-3)


def test_a_clip_of_one_frame_has_no_flow() -> None:
    flow = FlowEstimator.from_pretrained("dis")(np.zeros((1, 20, 30, 3), dtype=np.uint8))
    assert flow.forward.shape == flow.backward.shape == (0, 2, 20, 30)
    assert flow.forward_occlusion.shape == (0, 1, 20, 30)


@pytest.fixture(scope="module")
def raft_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("raft")
    files = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, make in (("large", raft_large), ("small", raft_small)):
            files[name] = folder / f"{name}.pth"
            torch.save(make(weights=None).state_dict(), files[name])
    return files


@pytest.mark.parametrize("name", ["large", "small"])
def test_raft_runs_at_any_size_and_in_batches(
    raft_weights: dict[str, Path], real_frames: np.ndarray, name: str
) -> None:
    frames = real_frames[:, 100:133, 100:247]
    estimator = FlowEstimator.from_pretrained(raft_weights[name])
    flow = estimator(frames)
    assert flow.forward.shape == flow.backward.shape == (2, 2, 33, 147)
    assert flow.forward.isfinite().all()
    one_by_one = estimator(frames, batch_size=1)
    scale = max(1.0, float(flow.forward.abs().max()))
    assert float((flow.forward - one_by_one.forward).abs().max()) <= 1e-5 * scale
    assert float((flow.backward - one_by_one.backward).abs().max()) <= 1e-5 * scale


def test_raft_gives_what_torchvision_gives(raft_weights: dict[str, Path], real_frames: np.ndarray) -> None:
    model = raft_small(weights=None).eval()
    model.load_state_dict(torch.load(raft_weights["small"]))
    first, second = (torch.from_numpy(real_frames[:2, :128, :136]).movedim(-1, 1) / 127.5 - 1).split(1)
    with torch.no_grad():
        expected = model(first, second)[-1]
    flow = FlowEstimator.from_pretrained(raft_weights["small"])(real_frames[:2, :128, :136])
    torch.testing.assert_close(flow.forward, expected, rtol=0, atol=1e-4)


def test_what_is_no_estimator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'dis', 'raft-large', 'raft-small'"):
        FlowEstimator.from_pretrained("spynet")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth.*RAFT"):
        FlowEstimator.from_pretrained(tmp_path / "other.pth")


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"cv2.*diffusers-groundavideo\[annotators\]"):
        FlowEstimator.from_pretrained("dis")


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (np.zeros((2, 20, 20), dtype=np.uint8), "grey"),
        (np.zeros((2, 20, 20, 1), dtype=np.uint8), "grey"),
        (np.zeros((2, 20, 20, 4), dtype=np.uint8), "transparency"),
        (np.zeros((2, 20, 20, 3), dtype=np.float32), "uint8"),
        (np.zeros((0, 20, 20, 3), dtype=np.uint8), "at least one frame"),
        (np.zeros((2, 1, 1, 3), dtype=np.uint8), "at least 8 pixels"),
        ([], "at least one"),
    ],
)
def test_frames_of_another_form_are_refused(frames: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FlowEstimator.from_pretrained("dis")(frames)


def test_lists_of_images_are_frames_too() -> None:
    estimator = FlowEstimator.from_pretrained("dis")
    frames = render(random_scene(0)).frames[:2]
    images = [Image.fromarray(frame) for frame in frames]
    torch.testing.assert_close(estimator(images).forward, estimator(frames).forward, rtol=0, atol=0)
    for mode in ("L", "RGBA"):
        with pytest.raises(ValueError, match=f"'{mode}'"):
            estimator([image.convert(mode) for image in images])
    with pytest.raises(ValueError, match="one size"):
        estimator([images[0], images[1].resize((20, 20))])
