"""From a scene to pictures, and to everything about them that is usually estimated: exact by construction."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .backgrounds import WORLD_EXTENT, background_texture
from .scenes import Scene, clipped_boxes, ground_depth
from .sprites import draw_sprite, sprite_aspect


@dataclass(frozen=True, eq=False)
class RenderedScene:
    """F frames of side H = W with N objects.

    Attributes:
        frames: (F, H, W, 3) uint8 RGB.
        boxes: (F, N, 4) float32, xyxy in [0, 1], the objects' slots clipped to the frame; NaN where (nearly) out.
        visible_masks: (F, N, H, W) bool, where the object is what one sees.
        full_masks: (F, N, H, W) bool, where it would be seen if nothing stood in front of it.
        depth: (F, H, W) float32 in [0, 1], near is bright; constant over an object, rising downwards on the ground.
        forward_flow: (F-1, 2, H, W) float32, pixels (dx, dy) from frame i to frame i+1.
        backward_flow: (F-1, 2, H, W) float32, pixels (dx, dy) from frame i+1 to frame i.
        forward_occlusion: (F-1, H, W) bool, pixels of frame i that are hidden or out of the frame in frame i+1.
        backward_occlusion: (F-1, H, W) bool, pixels of frame i+1 that are hidden or out of the frame in frame i.
    """

    frames: np.ndarray
    boxes: np.ndarray
    visible_masks: np.ndarray
    full_masks: np.ndarray
    depth: np.ndarray
    forward_flow: np.ndarray
    backward_flow: np.ndarray
    forward_occlusion: np.ndarray
    backward_occlusion: np.ndarray

    @property
    def conditions(self) -> dict[str, np.ndarray]:
        """Exact depth and flow as arguments of the pipeline: `conditioning_frames` (F, H, W, 3) in [0, 1], `flow` and
        `backward_flow` (F - 1, 2, H, W) in pixels."""
        return {
            "conditioning_frames": np.repeat(self.depth[..., None], 3, axis=-1),
            "flow": self.forward_flow,
            "backward_flow": self.backward_flow,
        }


def fit_sprite(name: str, slot: np.ndarray) -> tuple[float, float, float, float]:
    """The largest rectangle of the sprite's aspect in a slot, centred and standing on its lower edge: both xyxy."""
    x0, y0, x1, y1 = (float(value) for value in slot)
    aspect = sprite_aspect(name)
    width = min(x1 - x0, (y1 - y0) * aspect)
    height = width / aspect
    centre = (x0 + x1) / 2
    return centre - width / 2, y1 - height, centre + width / 2, y1


def _background_frames(scene: Scene) -> np.ndarray:
    """What each frame shows of the background: (F, H, W, 3) float32 in [0, 255]."""
    texture = background_texture(scene.background, scene.texture_seed, scene.size)
    pixels = texture.width / (WORLD_EXTENT[2] - WORLD_EXTENT[0])
    frames = np.empty((scene.num_frames, scene.size, scene.size, 3), dtype=np.float32)
    for index, window in enumerate(scene.camera):
        if index and np.array_equal(window, scene.camera[index - 1]):
            frames[index] = frames[index - 1]
            continue
        x0, y0, x1, y1 = ((window - WORLD_EXTENT[0]) * pixels).tolist()
        seen = texture.resize((scene.size, scene.size), Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))
        frames[index] = np.asarray(seen)
    return frames


def _flow(start: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    """Flow of something that fills the rectangle `start` in one frame and `end` in the other.

    Args:
        start, end: (4,) xyxy in units of the frame.
        size: side of the frame, pixels.

    Returns:
        (2, H, W) float32 pixels, defined over the whole frame.
    """
    position = (np.arange(size) + 0.5) / size
    axes = []
    for axis in range(2):
        scale = (end[axis + 2] - end[axis]) / (start[axis + 2] - start[axis])
        axes.append((end[axis] + (position - start[axis]) * scale - position) * size)
    return np.stack(np.broadcast_arrays(axes[0][None, :], axes[1][:, None])).astype(np.float32)


def _camera_rectangle(window: np.ndarray) -> np.ndarray:
    """Where a camera window puts the world's unit square in its frame: (4,) xyxy in units of the frame."""
    extent = window[2:] - window[:2]
    return np.concatenate([-window[:2] / extent, (1 - window[:2]) / extent])


def _flow_and_occlusion(scene: Scene, layers: np.ndarray, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Flow from frame `start` to frame `end`, (2, H, W), and its occlusion, (H, W); layers is (F, H, W) int."""
    size = scene.size
    layer = layers[start]
    flow = _flow(_camera_rectangle(scene.camera[start]), _camera_rectangle(scene.camera[end]), size)
    for index, item in enumerate(scene.objects):
        if item.name is not None:
            flow = np.where(layer == index, _flow(item.slots[start], item.slots[end], size), flow)
    rows, columns = np.mgrid[:size, :size]
    target_x = np.rint(columns + flow[0]).astype(int)
    target_y = np.rint(rows + flow[1]).astype(int)
    outside = (target_x < 0) | (target_x >= size) | (target_y < 0) | (target_y >= size)
    found = layers[end][np.clip(target_y, 0, size - 1), np.clip(target_x, 0, size - 1)]
    return flow, outside | (found != layer)


def render(scene: Scene) -> RenderedScene:
    """Render a scene; pure and deterministic."""
    num_frames, size, num_objects = scene.num_frames, scene.size, len(scene.objects)
    canvas = _background_frames(scene)
    full_masks = np.zeros((num_frames, num_objects, size, size), dtype=bool)
    # Which object one sees, -1 for the background.
    layers = np.full((num_frames, size, size), -1, dtype=np.int64)
    depth = np.broadcast_to(ground_depth((np.arange(size) + 0.5) / size)[None, :, None], layers.shape)
    depth = depth.astype(np.float32)
    for index in sorted(range(num_objects), key=lambda position: scene.objects[position].depth):
        item = scene.objects[index]
        if item.name is None:
            continue
        for frame in range(num_frames):
            x0, y0, x1, y1 = fit_sprite(item.name, item.slots[frame])
            drawn = draw_sprite(item.name, (x0 * size, y0 * size, x1 * size, y1 * size), size)
            if drawn is None:
                continue
            patch, (rows, columns) = drawn
            alpha = patch[..., 3]
            region = canvas[frame, rows, columns]
            canvas[frame, rows, columns] = region * (1 - alpha[..., None]) + 255 * patch[..., :3]
            covered = alpha >= 0.5
            full_masks[frame, index, rows, columns] = covered
            layers[frame, rows, columns][covered] = index
            depth[frame, rows, columns][covered] = item.depth

    slots = np.stack([item.slots for item in scene.objects], axis=1) if num_objects else np.zeros((num_frames, 0, 4))
    forward = [_flow_and_occlusion(scene, layers, index, index + 1) for index in range(num_frames - 1)]
    backward = [_flow_and_occlusion(scene, layers, index + 1, index) for index in range(num_frames - 1)]
    no_flow, no_occlusion = np.zeros((0, 2, size, size), np.float32), np.zeros((0, size, size), bool)
    return RenderedScene(
        frames=np.clip(canvas + 0.5, 0, 255).astype(np.uint8),
        boxes=clipped_boxes(slots).astype(np.float32),
        visible_masks=layers[:, None] == np.arange(num_objects)[None, :, None, None],
        full_masks=full_masks,
        depth=depth,
        forward_flow=np.stack([flow for flow, _ in forward]) if forward else no_flow,
        backward_flow=np.stack([flow for flow, _ in backward]) if backward else no_flow,
        forward_occlusion=np.stack([hidden for _, hidden in forward]) if forward else no_occlusion,
        backward_occlusion=np.stack([hidden for _, hidden in backward]) if backward else no_occlusion,
    )
