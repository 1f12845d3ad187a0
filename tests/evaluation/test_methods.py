from fractions import Fraction

import numpy as np
import pytest
import torch

from diffusers_groundavideo import GroundAVideoPipeline, Inflation
from diffusers_groundavideo.evaluation.methods import (
    METHOD_SETS,
    METHODS,
    ClipEditor,
    Edit,
    Inversion,
    Method,
    select_methods,
)
from diffusers_groundavideo.evaluation.psnr import masked_psnr
from diffusers_groundavideo.evaluation.suite import KINDS, BenchmarkClip, benchmark_clip
from diffusers_groundavideo.smoothing import relative_motion_mask, smooth_latents
from diffusers_groundavideo.spriteworld import mini_checkpoint


STEPS, GUIDANCE, CELL = 2, 2.0, 4


def edit(editor: ClipEditor, method: Method) -> Edit:
    edited = editor.edit(method)
    assert edited is not None
    return edited


@pytest.fixture(scope="module", autouse=True)
def _on_one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pipe():
    pipe = GroundAVideoPipeline.from_pretrained(mini_checkpoint())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def clip():
    return benchmark_clip(5, KINDS.index("kept-object"), num_frames=3)


@pytest.fixture(scope="module")
def editor(pipe, clip):
    return ClipEditor(pipe, clip, STEPS, GUIDANCE)


@pytest.fixture(scope="module")
def ours(editor):
    return edit(editor, METHODS["ours"])


def plain_call(pipe: GroundAVideoPipeline, clip: BenchmarkClip, **arguments) -> np.ndarray:
    """(F, H, W, 3) uint8, with the generator that `ClipEditor` draws for the clip."""
    seed = int(np.random.default_rng([clip.seed, clip.index, len(clip.source.frames)]).integers(2**31))
    (frames,), _ = pipe(
        **{**clip.arguments, "guidance_scale": GUIDANCE, **arguments},
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        return_dict=False,
    )
    return (frames * 255).round().astype(np.uint8)


def test_ours_is_a_plain_call_of_the_pipeline(pipe, clip, ours):
    np.testing.assert_array_equal(ours.frames, plain_call(pipe, clip, num_inference_steps=STEPS))


def test_published_is_20_steps_of_inversion_to_50_of_denoising_with_all_it_says(pipe, clip, editor):
    inverted = pipe.invert(
        video=clip.source.frames, grounding=clip.grounding, num_inference_steps=STEPS, inversion_method="ddim"
    )
    moving = relative_motion_mask(torch.from_numpy(clip.source.forward_flow), *inverted.noise_latents.shape[-2:])
    expected = plain_call(
        pipe,
        clip,
        num_inference_steps=5 * STEPS // 2,
        latents=smooth_latents(inverted.noise_latents, moving)[None],
        flow=None,
        backward_flow=None,
        open_all_boxes=True,
        inflation=Inflation.published(),
        paste_back=False,
    )
    np.testing.assert_array_equal(edit(editor, METHODS["published"]).frames, expected)


def test_methods_that_invert_alike_share_the_inversion(editor, ours):
    assert edit(editor, METHODS["no-paste-back"]).seconds["inversion"] == ours.seconds["inversion"]
    assert edit(editor, METHODS["inversion-ddim"]).seconds["inversion"] != ours.seconds["inversion"]


def test_seconds_are_given_for_each_stage(ours):
    assert set(ours.seconds) == {"inversion", "denoising", "decoding"}
    assert all(seconds > 0 for seconds in ours.seconds.values())


def test_an_inversion_passed_on_as_latents_edits_as_one_passed_on_whole(pipe):
    # Here everything is open already, so to open everything in the inversion changes nothing but the way it takes.
    editor = ClipEditor(pipe, benchmark_clip(5, KINDS.index("background-swap"), num_frames=3), STEPS, GUIDANCE)
    whole, as_latents = (edit(editor, METHODS[name]).frames for name in ("ours", "inversion-all-open"))
    np.testing.assert_allclose(whole.astype(int), as_latents.astype(int), atol=1)


def test_ours_leaves_what_is_not_open_and_opening_everything_does_not(clip, editor, ours):
    closed = ~clip.opened_region(CELL)
    everywhere = edit(editor, METHODS["no-inpainting"])
    np.testing.assert_array_equal(ours.frames[closed], clip.source.frames[closed])
    assert masked_psnr(everywhere.frames, clip.source.frames, closed) < 40


def test_sdedit_of_less_strength_is_nearer_to_the_source(pipe, clip):
    editor = ClipEditor(pipe, clip, 4, GUIDANCE)
    weak, strong = (
        edit(
            editor,
            Method(
                "sdedit",
                "",
                inversion=None,
                grounded=False,
                strength=strength,
                call={"flow": None, "backward_flow": None},
            ),
        )
        for strength in (0.25, 1.0)
    )
    assert "inversion" not in weak.seconds
    near, far = (masked_psnr(one.frames, clip.source.frames) for one in (weak, strong))
    assert near > far + 3


def test_without_groundings_what_the_boxes_say_makes_no_difference(pipe, clip):
    method = METHODS["ddim-inversion"]
    disturbed = Method("", "", method.inversion, call=method.call, grounded=False, disturbance="shifted-0.15")
    editor = ClipEditor(pipe, clip, 1, GUIDANCE)
    np.testing.assert_array_equal(edit(editor, method).frames, edit(editor, disturbed).frames)


def test_wrong_groundings_open_other_places(clip, editor, ours):
    wrong = edit(editor, METHODS["grounding-shifted-0.15"]).frames
    closed = ~clip.opened_region(CELL)
    assert (wrong[closed] != clip.source.frames[closed]).any()


def test_a_method_that_the_clip_offers_nothing_for_makes_no_edit(pipe):
    editor = ClipEditor(pipe, benchmark_clip(5, KINDS.index("one-edit"), num_frames=2), 1, GUIDANCE)
    assert editor.edit(METHODS["grounding-swapped"]) is None


def test_null_text_optimises_as_many_inner_steps_as_it_says(pipe, clip):
    editor = ClipEditor(pipe, clip, 1, 7.5)
    once, often = (
        edit(editor, Method("", "", Inversion("null-text", Fraction(1), num_null_text_steps=steps))).seconds[
            "inversion"
        ]
        for steps in (1, 10)
    )
    assert often > 2 * once


def test_the_ceiling_is_near_the_perfect_edit(clip, editor):
    assert masked_psnr(editor.ceiling(), clip.perfect.frames) > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_edits_every_kind_of_clip(pipe, name):
    for index in range(len(KINDS)):
        edited = ClipEditor(pipe, benchmark_clip(5, index, num_frames=2), 1, GUIDANCE).edit(METHODS[name])
        assert edited is None or edited.frames.shape == (2, 64, 64, 3)


def test_sets_name_methods_that_there_are_and_begin_with_ours():
    for members in METHOD_SETS.values():
        assert set(members) <= set(METHODS)
        assert members[0] == "ours"
    assert set().union(*METHOD_SETS.values()) == set(METHODS)


def test_methods_are_selected_by_name_and_by_set_each_once():
    assert [method.name for method in select_methods(["sdedit", "default", "sdedit"])] == [
        "sdedit",
        *(name for name in METHOD_SETS["default"] if name != "sdedit"),
    ]


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="called magic; the methods are ours, published, .* sets of them default"):
        select_methods(["ours", "magic"])


def test_weighted_gating_of_exact_boxes_changes_nothing(clip, editor, ours):
    method = Method("", "", weighted_gating=True)
    np.testing.assert_array_equal(edit(editor, method).frames, ours.frames)


def test_weighted_gating_asks_less_for_what_is_less_certain(editor):
    plain, weighted = (edit(editor, METHODS[f"grounding-shifted-0.15{name}"]).frames for name in ("", "-weighted"))
    assert (plain != weighted).any()
    # The model is left as it was found.
    np.testing.assert_array_equal(plain, edit(editor, METHODS["grounding-shifted-0.15"]).frames)
