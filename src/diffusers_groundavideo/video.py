"""Clips as files: a video, a gif or a folder of frames in, the same out; and several clips side by side."""

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageSequence


VIDEO_SUFFIXES: tuple[str, ...] = (".mp4", ".mov", ".m4v", ".webm", ".mkv", ".avi")
FRAME_SUFFIXES: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".webp")

# What a folder of frames plays at: it holds no rate of its own.
FOLDER_FPS = 8.0
# What browsers play a gif at that states no duration.
GIF_FPS_UNSTATED = 10.0

# Visually lossless for H.264: an edit is to be judged by its pixels, not by the encoder's.
H264_CRF = "15"

SEPARATOR_WIDTH = 2
LABEL_HEIGHT = 18
BOX_COLOURS: tuple[tuple[int, int, int], ...] = (
    (230, 25, 75),
    (60, 180, 75),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
)


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames and the rate they play at.

    Attributes:
        frames: (F, H, W, 3) uint8 RGB, F ≥ 1.
        fps: frames per second, above 0.

    Raises:
        ValueError: frames of another shape or type, no frame at all, or a rate that is not above 0.
    """

    frames: np.ndarray
    fps: float

    def __post_init__(self) -> None:
        check_frames(self.frames)
        if not 0 < self.fps < float("inf"):
            raise ValueError(f"`fps` must be above 0 and finite, got {self.fps}.")


def check_frames(frames: np.ndarray, name: str = "frames") -> None:
    """Raises a `ValueError` if a clip is not uint8 of shape (F, H, W, 3) with at least one frame."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(
            f"`{name}` must be uint8 of shape (F, H, W, 3) with at least one frame, got {frames.dtype} {frames.shape}."
        )


def to_uint8(frames: np.ndarray) -> np.ndarray:
    """Frames in [0, 1] of any shape, as the pipeline returns them with `output_type="np"`, as uint8."""
    return (frames * 255).round().astype(np.uint8)


def read_clip(path: str | Path, start: int = 0, stride: int = 1, max_frames: int | None = None) -> Clip:
    """Reads a clip from a video file, a gif or a folder of frames, at the size it is stored in.

    Frames of a folder are taken in numeric order (1, 2, 10) and must be of one size; other files in it are ignored.
    Grey frames become RGB; transparency is dropped. Each stored frame of a video is read once, whatever its duration.

    Args:
        path: a file that ends in one of `VIDEO_SUFFIXES` or in ".gif", or a folder with files in `FRAME_SUFFIXES`.
        start: index of the first frame taken, from 0.
        stride: every `stride`-th frame is taken.
        max_frames: at most so many frames are taken; None: all there are.

    Returns:
        The clip, with the rate of the file divided by `stride`; `FOLDER_FPS` stands in for the rate of a folder.

    Raises:
        ValueError: nothing at the path, an unknown kind of file, a folder without frames, frames of mixed sizes or of
            more than 8 bits, a file that cannot be decoded, is damaged or was cut off, or no frame left after `start`.
    """
    path = Path(path)
    if start < 0 or stride < 1 or (max_frames is not None and max_frames < 1):
        raise ValueError(
            "`start` must be at least 0, `stride` and `max_frames` at least 1, "
            f"got start={start}, stride={stride}, max_frames={max_frames}."
        )
    if not path.exists():
        raise ValueError(f"`path` must be a video file or a folder of frames; there is nothing at {path}.")
    if path.is_dir():
        frames, fps = _read_folder(path, start, stride, max_frames), FOLDER_FPS
    elif path.suffix.lower() == ".gif":
        frames, fps = _read_gif(path, start, stride, max_frames)
    elif path.suffix.lower() in VIDEO_SUFFIXES:
        frames, fps = _read_video(path, start, stride, max_frames)
    else:
        raise ValueError(
            f"`path` must be a folder of frames or end in {', '.join((*VIDEO_SUFFIXES, '.gif'))}, got {path}."
        )
    if len(frames) == 0:
        raise ValueError(f"`path` has no frame from `start`={start} on: {path}.")
    return Clip(frames, fps / stride)


def _numeric_order(path: Path) -> list[str | int]:
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _to_rgb(image: Image.Image, path: Path) -> np.ndarray:
    """One frame as (H, W, 3) uint8."""
    if image.mode.startswith(("I", "F")):
        # Pillow clips these to 255 on conversion instead of scaling them.
        raise ValueError(f"Frames must have 8 bits per channel, got mode {image.mode!r} in {path}.")
    return np.asarray(image.convert("RGB"))


def _read_folder(path: Path, start: int, stride: int, max_frames: int | None) -> np.ndarray:
    files = sorted((file for file in path.iterdir() if file.suffix.lower() in FRAME_SUFFIXES), key=_numeric_order)
    if not files:
        raise ValueError(f"`path` must hold frames that end in {', '.join(FRAME_SUFFIXES)}; there are none in {path}.")
    files = files[start::stride][:max_frames]
    frames: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(file) as image:
                frame = _to_rgb(image, file)
        except OSError as error:
            raise ValueError(f"`path` holds a frame that cannot be read: {file} ({error}).") from error
        if frames and frame.shape != frames[0].shape:
            raise ValueError(
                f"All frames in `path` must have one size: {files[0]} is {frames[0].shape[1]}x{frames[0].shape[0]}, "
                f"{file} is {frame.shape[1]}x{frame.shape[0]}."
            )
        frames.append(frame)
    return np.stack(frames) if frames else np.empty((0, 0, 0, 3), dtype=np.uint8)


def _read_gif(path: Path, start: int, stride: int, max_frames: int | None) -> tuple[np.ndarray, float]:
    # A gif that was cut off between two frames decodes without complaint; only its closing byte is missing.
    if not path.read_bytes().rstrip(b"\0").endswith(b"\x3b"):
        raise ValueError(f"`path` is damaged or was cut off: {path} does not end as a gif does.")
    try:
        with Image.open(path) as gif:
            frames, seconds = [], 0.0
            for image in ImageSequence.Iterator(gif):
                frames.append(_to_rgb(image, path))
                seconds += image.info.get("duration", 0) / 1000
    except (OSError, SyntaxError) as error:
        raise ValueError(f"`path` cannot be decoded: {path} ({error}).") from error
    fps = len(frames) / seconds if seconds else GIF_FPS_UNSTATED
    return np.stack(frames)[start::stride][:max_frames], fps


def _read_video(path: Path, start: int, stride: int, max_frames: int | None) -> tuple[np.ndarray, float]:
    header = imageio_ffmpeg.read_frames(str(path))
    try:
        metadata = next(header)
    except OSError as error:
        raise ValueError(f"`path` holds no video that can be decoded: {path}.") from error
    finally:
        header.close()
    width, height = metadata["size"]
    fps = metadata["fps"]

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-map", "0:v:0"]
    command += ["-vf", rf"select=gte(n\,{start})*not(mod(n-{start}\,{stride}))", "-fps_mode", "passthrough"]
    if max_frames is not None:
        command += ["-frames:v", str(max_frames)]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    decoded = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if decoded.returncode or decoded.stderr:
        reason = decoded.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise ValueError(f"`path` is damaged or was cut off: {path} ({reason}).")
    frames = np.frombuffer(bytearray(decoded.stdout), dtype=np.uint8).reshape(-1, height, width, 3)

    # Some containers lose their tail without any error. The duration is the whole file's, so it tells the number of
    # frames only where no sound can outlast them, and to the two digits it is printed with.
    if "audio_codec" not in metadata:
        promised = ceil((metadata["duration"] * fps - start) / stride)
        if max_frames is not None:
            promised = min(promised, max_frames)
        if len(frames) < 0.99 * promised - 1:
            raise ValueError(f"`path` was cut off: {path} promises {promised} frames, {len(frames)} are there.")
    return frames, fps


def check_output_path(path: str | Path) -> None:
    """Says whether `write_clip` can write there, without writing: to be called before hours of work.

    Args:
        path: ends in ".mp4" or ".gif", or has no suffix and is a folder to be made.

    Raises:
        ValueError: another suffix, a folder in place of the file, or something in place of the folder.
    """
    path = Path(path)
    if path.suffix.lower() not in (".mp4", ".gif", ""):
        raise ValueError(f"`path` must end in .mp4 or .gif, or have no suffix (a folder of frames), got {path}.")
    if path.suffix and path.is_dir():
        raise ValueError(f"`path` must be a file, got the folder {path}.")
    if not path.suffix and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
        # Frames of an earlier, longer clip would stay behind the new ones.
        raise ValueError(f"`path` must be a new or empty folder, got {path}.")


def write_clip(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Writes a clip in its own size, whole or not at all: whatever fails, no part of it is left behind.

    An .mp4 is H.264 (4:2:0, or 4:4:4 where a side is odd, which some players refuse), a .gif has 256 colours a frame
    and durations in 1/100 s, a folder has lossless frames 0000.png, 0001.png, … and no rate. A file that exists is
    replaced; missing parent folders are made.

    Args:
        path: ends in ".mp4" or ".gif", or has no suffix: a new or empty folder of frames.
        frames: (F, H, W, 3) uint8 RGB, F ≥ 1.
        fps: frames per second, above 0.

    Raises:
        ValueError: a path as in `check_output_path`, or frames or a rate as in `Clip`.
        OSError: the encoder failed, or the disk did.
    """
    path = Path(path)
    check_output_path(path)
    clip = Clip(frames, fps)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=".groundavideo-", dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        if path.suffix.lower() == ".mp4":
            _encode(clip, unfinished, _h264_options(clip.frames))
        elif path.suffix.lower() == ".gif":
            _encode(clip, unfinished, _gif_options(clip))
        else:
            unfinished.mkdir()
            for index, frame in enumerate(clip.frames):
                Image.fromarray(frame).save(unfinished / f"{index:04d}.png")
        unfinished.replace(path)


def _h264_options(frames: np.ndarray) -> list[str]:
    # 4:2:0 stores one colour for 2x2 pixels and so has no odd size.
    pixel_format = "yuv444p" if frames.shape[1] % 2 or frames.shape[2] % 2 else "yuv420p"
    return ["-c:v", "libx264", "-crf", H264_CRF, "-pix_fmt", pixel_format, "-movflags", "+faststart", "-f", "mp4"]


def _gif_options(clip: Clip) -> list[str]:
    # Without a duration of its own the last frame takes that of the one before it, and the sum is off by the rounding.
    num_frames = len(clip.frames)
    start, end = (int(100 * count / clip.fps + 0.5) for count in (num_frames - 1, num_frames))
    palette = "split[a][b];[a]palettegen=stats_mode=single[p];[b][p]paletteuse=new=1"
    return ["-filter_complex", palette, "-final_delay", str(end - start), "-f", "gif"]


def _encode(clip: Clip, path: Path, options: list[str]) -> None:
    height, width = clip.frames.shape[1:3]
    rate = str(Fraction(clip.fps).limit_denominator(100_000))
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", rate, "-i", "-", *options, str(path)]
    encoded = subprocess.run(command, input=clip.frames.tobytes(), capture_output=True)
    if encoded.returncode:
        raise OSError(f"Writing the clip failed: {encoded.stderr.decode(errors='replace').strip()}")


def side_by_side(clips: Sequence[np.ndarray], labels: Sequence[str] | None = None, scale: int = 1) -> np.ndarray:
    """Several clips in one picture, from left to right, with a white line between them.

    Args:
        clips: K arrays (F, H, W, 3) uint8 RGB, all of one shape.
        labels: K texts written above the clips, None: none and no room for them.
        scale: each pixel becomes scale x scale pixels.

    Returns:
        (F, H', W', 3) uint8 RGB with W' = K·scale·W + (K-1)·`SEPARATOR_WIDTH` and H' = scale·H, plus `LABEL_HEIGHT`
        with labels.

    Raises:
        ValueError: no clip, clips of different shapes or none of (F, H, W, 3) uint8, or not one label a clip.
    """
    if not clips:
        raise ValueError("`clips` must hold at least one clip, got none.")
    for clip in clips:
        check_frames(clip, "clips")
    if any(clip.shape != clips[0].shape for clip in clips):
        raise ValueError(f"`clips` must have one shape, got {[clip.shape for clip in clips]}.")
    if labels is not None and len(labels) != len(clips):
        raise ValueError(f"`labels` must be one a clip, got {len(labels)} for {len(clips)} clips.")

    num_frames, height, width = clips[0].shape[:3]
    line = np.full((num_frames, scale * height, SEPARATOR_WIDTH, 3), 255, dtype=np.uint8)
    columns: list[np.ndarray] = []
    for clip in clips:
        columns += [line, clip.repeat(scale, axis=1).repeat(scale, axis=2)]
    picture = np.concatenate(columns[1:], axis=2)
    if labels is None:
        return picture

    header = Image.new("RGB", (picture.shape[2], LABEL_HEIGHT))
    for index, label in enumerate(labels):
        # Each text in an image of its own: a long one is cut at the clip's edge and does not run into the next.
        text = Image.new("RGB", (scale * width, LABEL_HEIGHT))
        ImageDraw.Draw(text).text((2, 1), label, fill="white", font=ImageFont.load_default(13))
        header.paste(text, (index * (scale * width + SEPARATOR_WIDTH), 0))
    headers = np.broadcast_to(np.asarray(header), (num_frames, *np.asarray(header).shape))
    return np.concatenate([headers, picture], axis=1)


def draw_boxes(frames: np.ndarray, boxes: np.ndarray, labels: Sequence[str] | None = None) -> np.ndarray:
    """A copy of the frames with the outline of every box, one colour an object.

    Args:
        frames: (F, H, W, 3) uint8 RGB.
        boxes: (F, N, 4) xyxy in [0, 1] of the frame, x to the right and y down; NaN where an object is absent.
        labels: N texts written at the upper left corner inside the boxes, None: none.

    Returns:
        (F, H, W, 3) uint8 RGB.

    Raises:
        ValueError: frames as in `Clip`, boxes of another shape, or not one label an object.
    """
    check_frames(frames)
    if boxes.ndim != 3 or boxes.shape[0] != len(frames) or boxes.shape[2] != 4:
        raise ValueError(f"`boxes` must have shape ({len(frames)}, N, 4), got {boxes.shape}.")
    if labels is not None and len(labels) != boxes.shape[1]:
        raise ValueError(f"`labels` must be one an object, got {len(labels)} for {boxes.shape[1]} objects.")
    height, width = frames.shape[1:3]
    line_width = max(1, min(height, width) // 128)
    drawn = np.empty_like(frames)
    for index, frame in enumerate(frames):
        image = Image.fromarray(frame)
        draw = ImageDraw.Draw(image)
        for number, box in enumerate(boxes[index]):
            if np.isnan(box).any():
                continue
            colour = BOX_COLOURS[number % len(BOX_COLOURS)]
            x0, y0 = int(box[0] * width), int(box[1] * height)
            # The last pixel inside the box: the corner itself lies between two pixels.
            x1, y1 = max(x0, ceil(box[2] * width) - 1), max(y0, ceil(box[3] * height) - 1)
            draw.rectangle((x0, y0, x1, y1), outline=colour, width=line_width)
            if labels is not None:
                draw.text((x0 + line_width + 1, y0 + line_width), labels[number], fill=colour)
        drawn[index] = np.asarray(image)
    return drawn
