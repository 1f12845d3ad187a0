import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from diffusers_groundavideo.video import (
    FOLDER_FPS,
    LABEL_HEIGHT,
    SEPARATOR_WIDTH,
    Clip,
    check_output_path,
    draw_boxes,
    read_clip,
    side_by_side,
    write_clip,
)


def make_frames(num_frames: int = 8, height: int = 48, width: int = 64) -> np.ndarray:
    """A bright square that moves over a smooth ramp: (F, H, W, 3) uint8. No two frames are alike."""
    frames = np.empty((num_frames, height, width, 3), dtype=np.uint8)
    frames[..., 0] = np.linspace(40, 200, width, dtype=np.uint8)
    frames[..., 1] = np.linspace(30, 180, height, dtype=np.uint8)[:, None]
    frames[..., 2] = 90
    for index in range(num_frames):
        left = 2 + index * (width - 16) // num_frames
        frames[index, 8:20, left : left + 12] = (250, 240, 60)
    return frames


def mean_error(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


def run_ffmpeg(*arguments: str) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *arguments], check=True)


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (48, 63), (1, 1), (50, 70)])
@pytest.mark.parametrize("fps", [8, 12.5, 29.97])
def test_mp4_keeps_size_count_and_rate(tmp_path: Path, size: tuple[int, int], fps: float) -> None:
    frames = make_frames(5, 48, 64)[:, : size[0], : size[1]] if size != (50, 70) else make_frames(5, 50, 70)
    write_clip(tmp_path / "clip.mp4", frames, fps)
    clip = read_clip(tmp_path / "clip.mp4")
    assert clip.frames.shape == frames.shape
    assert clip.fps == pytest.approx(fps, abs=0.01)
    # Colour at half resolution blurs the edges of the square; a frame in another's place is off by more.
    assert max(mean_error(read, written) for read, written in zip(clip.frames, frames)) < 6
    assert clip.frames.flags.writeable


@pytest.mark.parametrize("fps", [8, 10, 12.5, 3])
@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_gif_keeps_size_count_and_rate(tmp_path: Path, size: tuple[int, int], fps: float) -> None:
    frames = make_frames(8, *size)
    write_clip(tmp_path / "clip.gif", frames, fps)
    clip = read_clip(tmp_path / "clip.gif")
    assert clip.frames.shape == frames.shape
    # The whole clip's duration is a multiple of 1/100 s.
    assert 8 / clip.fps == pytest.approx(8 / fps, abs=0.0051)
    assert max(mean_error(read, written) for read, written in zip(clip.frames, frames)) < 8


@pytest.mark.parametrize("name", ["still.gif", "still.mp4", "still"])
def test_a_clip_that_stands_still_keeps_its_frames(tmp_path: Path, name: str) -> None:
    write_clip(tmp_path / name, make_frames(1).repeat(6, axis=0), 8)
    clip = read_clip(tmp_path / name)
    assert len(clip.frames) == 6
    assert clip.fps == 8


@pytest.mark.parametrize("name", ["one.gif", "one.mp4", "one"])
def test_one_frame_is_a_clip(tmp_path: Path, name: str) -> None:
    write_clip(tmp_path / name, make_frames(1), 8)
    clip = read_clip(tmp_path / name)
    assert clip.frames.shape == (1, 48, 64, 3)
    assert 1 / clip.fps == pytest.approx(1 / 8, abs=0.0051)


def test_gif_without_durations_plays_as_in_a_browser(tmp_path: Path) -> None:
    first, second = (Image.fromarray(frame) for frame in make_frames(2))
    first.save(tmp_path / "clip.gif", save_all=True, append_images=[second], duration=0)
    assert read_clip(tmp_path / "clip.gif").fps == 10


def test_folder_is_lossless_and_in_numeric_order(tmp_path: Path) -> None:
    frames = make_frames(12, 9, 40)
    write_clip(tmp_path / "frames", frames, 24)
    clip = read_clip(tmp_path / "frames")
    assert clip.fps == FOLDER_FPS
    np.testing.assert_array_equal(clip.frames, frames)
    assert sorted(file.name for file in (tmp_path / "frames").iterdir())[:2] == ["0000.png", "0001.png"]


@pytest.mark.parametrize("name", ["{}.png", "frame_{}.png", "shot2_{}_left.png", "{}.webp"])
def test_numbers_in_names_are_numbers(tmp_path: Path, name: str) -> None:
    frames = make_frames(12, 9, 40)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / name.format(index), lossless=True)
    (tmp_path / "edit.json").write_text("{}")
    np.testing.assert_array_equal(read_clip(tmp_path).frames, frames)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip"])
def test_a_part_of_a_clip(tmp_path: Path, name: str) -> None:
    write_clip(tmp_path / name, make_frames(10), 10)
    whole = read_clip(tmp_path / name)
    part = read_clip(tmp_path / name, start=1, stride=3, max_frames=2)
    np.testing.assert_array_equal(part.frames, whole.frames[[1, 4]])
    assert part.fps == pytest.approx(10 / 3 if name != "clip" else FOLDER_FPS / 3)
    np.testing.assert_array_equal(read_clip(tmp_path / name, max_frames=50).frames, whole.frames)
    with pytest.raises(ValueError, match="no frame from `start`=10"):
        read_clip(tmp_path / name, start=10)


@pytest.mark.parametrize("arguments", [{"start": -1}, {"stride": 0}, {"max_frames": 0}])
def test_a_part_that_is_none(tmp_path: Path, arguments: dict[str, int]) -> None:
    write_clip(tmp_path / "clip", make_frames(2), 8)
    with pytest.raises(ValueError, match="`start` must be at least 0"):
        read_clip(tmp_path / "clip", **arguments)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_frames_of_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(make_frames(1)[0]).convert(mode)
    image.save(tmp_path / "0.png")
    (read,) = read_clip(tmp_path).frames
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))
    if mode in ("L", "LA", "1"):
        assert (read[..., 0] == read[..., 1]).all() and (read[..., 0] == read[..., 2]).all()
    if mode == "RGBA":
        np.testing.assert_array_equal(read, make_frames(1)[0])


def test_16_bit_frames_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "0.png")
    with pytest.raises(ValueError, match="8 bits per channel"):
        read_clip(tmp_path)


def test_mixed_sizes_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "0.png")
    Image.new("RGB", (64, 47)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"one size.*64x48.*64x47"):
        read_clip(tmp_path)


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing at"):
        read_clip(tmp_path / "absent.mp4")
    with pytest.raises(ValueError, match="there are none"):
        read_clip(tmp_path)
    (tmp_path / "notes.txt").write_text("not a clip")
    with pytest.raises(ValueError, match="end in .mp4"):
        read_clip(tmp_path / "notes.txt")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="cannot be read.*0.png"):
        read_clip(tmp_path / "frames")


@pytest.mark.parametrize("content", [b"", b"not a video", bytes(range(256)) * 64])
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
def test_files_that_are_no_video_are_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="`path`.*clip"):
        read_clip(path)


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    run_ffmpeg("-f", "lavfi", "-i", "sine=duration=1", str(path))
    with pytest.raises(ValueError, match="no video"):
        read_clip(path)


def test_sound_that_outlasts_the_picture_is_no_damage(tmp_path: Path) -> None:
    write_clip(tmp_path / "silent.mp4", make_frames(), 8)
    path = tmp_path / "clip.mp4"
    run_ffmpeg("-i", str(tmp_path / "silent.mp4"), "-f", "lavfi", "-i", "sine=duration=5", str(path))
    assert len(read_clip(path).frames) == 8


@pytest.mark.parametrize("index_first", [True, False])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, suffix: str, index_first: bool) -> None:
    write_clip(tmp_path / "source.mp4", make_frames(24), 8)
    path = tmp_path / f"clip{suffix}"
    run_ffmpeg("-i", str(tmp_path / "source.mp4"), *(["-movflags", "+faststart"] if index_first else []), str(path))
    whole = path.read_bytes()
    assert len(read_clip(path).frames) == 24
    for share in (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="damaged|cut off|cannot be decoded|can be decoded"):
            read_clip(path)


def test_a_gif_cut_between_two_frames_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.gif"
    write_clip(path, make_frames(4), 8)
    whole = path.read_bytes()
    # A frame's extension block opens with these bytes.
    path.write_bytes(whole[: whole.rindex(b"\x21\xf9\x04")])
    with pytest.raises(ValueError, match="cut off"):
        read_clip(path)


def test_a_damaged_stream_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    write_clip(path, noise, 8)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read_clip(path)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((0, 8, 8, 3), dtype=np.uint8),
        np.zeros((8, 8, 3), dtype=np.uint8),
        np.zeros((2, 8, 8, 4), dtype=np.uint8),
        np.zeros((2, 8, 8, 3), dtype=np.float32),
    ],
)
def test_bad_frames_are_refused_and_nothing_is_written(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="`frames` must be uint8"):
        write_clip(tmp_path / "clip.mp4", frames, 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fps", [0, -8, float("nan"), float("inf")])
def test_a_rate_must_be_above_zero(fps: float) -> None:
    with pytest.raises(ValueError, match="`fps`"):
        Clip(make_frames(1), fps)


def test_bad_output_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "0007.png").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    for name, message in [
        ("clip.wmv", "end in .mp4 or .gif"),
        ("folder.mp4", "must be a file"),
        ("full", "new or empty folder"),
        ("file", "new or empty folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_output_path(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            write_clip(tmp_path / name, make_frames(1), 8)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.mp4", "full"]


def test_an_existing_file_is_replaced_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "clip.MP4"
    write_clip(path, make_frames(8), 8)
    write_clip(path, make_frames(3), 12)
    assert len(read_clip(path).frames) == 3
    assert [file.name for file in path.parent.iterdir()] == ["clip.MP4"]
    (tmp_path / "empty").mkdir()
    write_clip(tmp_path / "empty", make_frames(3), 8)
    assert len(read_clip(tmp_path / "empty").frames) == 3


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_a_failing_encoder_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    outputs = tmp_path / "outputs"
    write_clip(outputs / name, make_frames(3), 8)
    before = (outputs / name).read_bytes()
    encoder = tmp_path / "encoder"
    encoder.write_text('#!/bin/sh\nfor last; do :; done\necho half > "$last"\necho "No space left" >&2\nexit 1\n')
    encoder.chmod(0o755)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: str(encoder))
    with pytest.raises(OSError, match="No space left"):
        write_clip(outputs / name, make_frames(8), 8)
    assert [file.name for file in outputs.iterdir()] == [name]
    assert (outputs / name).read_bytes() == before


def test_frames_that_fail_midway_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save

    def failing_save(image: Image.Image, path: Path) -> None:
        if path.name == "0002.png":
            raise OSError("No space left")
        save(image, path)

    monkeypatch.setattr(Image.Image, "save", failing_save)
    with pytest.raises(OSError, match="No space left"):
        write_clip(tmp_path / "frames", make_frames(), 8)
    assert list(tmp_path.iterdir()) == []


def test_side_by_side_puts_every_pixel_in_its_place() -> None:
    first, second = make_frames(3, 10, 14), 255 - make_frames(3, 10, 14)
    picture = side_by_side([first, second], scale=2)
    assert picture.shape == (3, 20, 2 * 28 + SEPARATOR_WIDTH, 3)
    for row, column in [(0, 0), (1, 0), (0, 1), (1, 1)]:
        np.testing.assert_array_equal(picture[:, row::2, column:28:2], first)
        np.testing.assert_array_equal(picture[:, row::2, 28 + SEPARATOR_WIDTH + column :: 2], second)
    assert (picture[:, :, 28 : 28 + SEPARATOR_WIDTH] == 255).all()


def test_labels_stand_above_their_own_clip() -> None:
    clips = [np.zeros((2, 20, 60, 3), dtype=np.uint8)] * 2
    picture = side_by_side(clips, labels=["", "a label that is far too long for its clip"])
    assert picture.shape == (2, 20 + LABEL_HEIGHT, 120 + SEPARATOR_WIDTH, 3)
    header = picture[:, :LABEL_HEIGHT]
    assert (header[:, :, : 60 + SEPARATOR_WIDTH] == 0).all()
    assert (header[:, :, 60 + SEPARATOR_WIDTH :] > 128).any()
    np.testing.assert_array_equal(picture[:, LABEL_HEIGHT:], side_by_side(clips))
    swapped = side_by_side(clips, labels=["a label that is far too long for its clip", ""])
    assert (swapped[:, :LABEL_HEIGHT, 60:] == 0).all()


def test_side_by_side_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="at least one clip"):
        side_by_side([])
    with pytest.raises(ValueError, match="one shape"):
        side_by_side([make_frames(3), make_frames(4)])
    with pytest.raises(ValueError, match="got 1 for 2 clips"):
        side_by_side([make_frames(3)] * 2, labels=["source"])


def test_boxes_are_drawn_where_they_are_and_only_there() -> None:
    frames = np.zeros((2, 40, 80, 3), dtype=np.uint8)
    boxes = np.array([[[0.25, 0.5, 0.5, 1.0], [0, 0, 1, 1]], [[np.nan] * 4, [0.5, 0.25, 0.75, 0.5]]])
    drawn = draw_boxes(frames, boxes)
    assert (frames == 0).all()
    painted = drawn[1].any(axis=-1)
    rows, columns = np.nonzero(painted)
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (40, 10, 59, 19)
    assert not painted[11:19, 41:59].any()
    first, second = drawn[0, 30, 20], drawn[0, 0, 0]
    assert first.any() and second.any() and (first != second).any()
    assert (drawn[1, 10, 40] == second).all()
    labelled = draw_boxes(frames, boxes, labels=["cat", "dog"])
    assert labelled[0].any(axis=-1).sum() > drawn[0].any(axis=-1).sum()


def test_draw_boxes_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\(2, N, 4\)"):
        draw_boxes(make_frames(2), np.zeros((3, 1, 4)))
    with pytest.raises(ValueError, match="got 2 for 1 objects"):
        draw_boxes(make_frames(2), np.zeros((2, 1, 4)), labels=["a", "b"])


def test_real_clips_are_read(clips_dir: Path, tmp_path: Path) -> None:
    paths = [*sorted((clips_dir / "clips").glob("*.mp4")), *sorted((clips_dir / "cases").glob("*/frames"))]
    assert paths
    for path in paths:
        clip = read_clip(path)
        assert clip.frames.std() > 10
        write_clip(tmp_path / f"{path.parent.name}-{path.stem}.mp4", clip.frames, clip.fps)
        copy = read_clip(tmp_path / f"{path.parent.name}-{path.stem}.mp4")
        assert copy.frames.shape == clip.frames.shape
        assert copy.fps == pytest.approx(clip.fps, abs=0.01)
        assert mean_error(copy.frames, clip.frames) < 4
