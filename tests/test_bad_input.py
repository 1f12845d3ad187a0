"""What cannot work is refused before any model runs, by an error that names the argument and what came."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from diffusers_groundavideo import GroundAVideoPipeline, GroundedObject, InvertedClip, VideoGrounding
from small_checkpoint import build_components


NUM_FRAMES, HEIGHT, WIDTH, STEPS = 3, 32, 48, 2
VIDEO = np.random.default_rng(0).integers(0, 256, (NUM_FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
FLOW = torch.zeros(NUM_FRAMES - 1, 2, 16, 24)
BOX = (0.1, 0.2, 0.7, 0.8)
GROUNDING = VideoGrounding([GroundedObject("rabbit", "squirrel", box=BOX)])
PROMPTS = torch.zeros(1, 77, 32)

GOOD: dict[str, Any] = {
    "video": VIDEO,
    "grounding": GROUNDING,
    "prompt": "a squirrel",
    "source_prompt": "a rabbit",
    "conditioning_frames": VIDEO,
    "flow": FLOW,
    "num_inference_steps": STEPS,
}


def with_value(array: Any, value: float) -> Any:
    """A floating-point copy of `array`, in [0, 1] but for one value."""
    changed = torch.as_tensor(array).float() / 255
    changed[1, 2, 2, 2] = value
    return changed.numpy() if isinstance(array, np.ndarray) else changed


def grounded(**place: Any) -> VideoGrounding:
    return VideoGrounding([GroundedObject("rabbit", "squirrel", **place)])


@functools.cache
def inverted(method: Literal["negative-prompt", "ddim"]) -> InvertedClip:
    pipe = GroundAVideoPipeline(**build_components())
    pipe.set_progress_bar_config(disable=True)
    result = pipe.invert(VIDEO, GROUNDING, "a rabbit", num_inference_steps=STEPS, inversion_method=method)
    assert isinstance(result, InvertedClip)
    return result


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda components: components | dict.fromkeys(names)


def with_unet(**config: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(components: dict[str, Any]) -> dict[str, Any]:
        return components | {"unet": UNet2DConditionModel.from_config(components["unet"].config, **config)}

    return change


def with_two_controlnets(components: dict[str, Any]) -> dict[str, Any]:
    return components | {"controlnet": [components["controlnet"], build_components(seed=1)["controlnet"]]}


def with_scheduler(**config: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(components: dict[str, Any]) -> dict[str, Any]:
        return components | {"scheduler": DDIMScheduler.from_config(components["scheduler"].config, **config)}

    return change


NO_TEXT: dict[str, Any] = {"prompt": None, "source_prompt": None, "prompt_embeds": PROMPTS}
LATENTS = torch.zeros(1, NUM_FRAMES, 4, 4, 6)
TWO_CLIPS: dict[str, Any] = {
    "video": np.stack([VIDEO, VIDEO]),
    "grounding": [GROUNDING] * 2,
    "prompt": ["a squirrel"] * 2,
    "source_prompt": ["a rabbit"] * 2,
    "conditioning_frames": np.stack([VIDEO, VIDEO]),
    "flow": [FLOW] * 2,
}

# What is changed in the arguments of a good call, what the error says, and how the pipeline is made.
Case = tuple[dict[str, Any], str] | tuple[dict[str, Any], str, Callable[[dict[str, Any]], dict[str, Any]]]

CASES: dict[str, Case] = {
    # The clip
    "no clip": ({"video": None}, "`video` has to be frames or clips, at least one, but is NoneType"),
    "a path": ({"video": "clip.mp4"}, "`video` has to be frames or clips, at least one, but is str"),
    "an image": ({"video": PIL.Image.fromarray(VIDEO[0])}, "`video` has to be frames or clips.* but is Image"),
    "an empty list": ({"video": []}, "`video` has to be frames or clips, at least one, but is an empty list"),
    "an empty clip in a list": ({"video": [[]]}, "`video` has to be frames or clips.* but is an empty list"),
    "an empty array": ({"video": VIDEO[:0]}, r"`video` is empty: 0 frames of .* \(32, 48\)"),
    "frames without pixels": ({"video": VIDEO[:, :0]}, r"`video` is empty: 3 frames of .* \(0, 48\)"),
    "no clips": ({"video": VIDEO[None][:0]}, "`video` has to hold frames of one size.*"),
    "frames of several sizes": (
        {"video": [PIL.Image.new("RGB", size) for size in ((48, 32), (32, 48), (48, 32))]},
        r"`video` has to hold frames of one size.* \(height, width\) \[\(32, 48\), \(48, 32\)\]",
    ),
    "arrays of several sizes": ({"video": [VIDEO[0], VIDEO[0, :16]]}, r"`video` .* one size.*\(16, 48, 3\)"),
    "clips of several sizes": (TWO_CLIPS | {"video": [VIDEO, VIDEO[:, :16]]}, r"`video` .*\(16, 48\), \(32, 48\)"),
    "clips of several lengths": (TWO_CLIPS | {"video": [VIDEO, VIDEO[:2]]}, r"`video` .* clips of \[2, 3\] frames"),
    "grey frames": ({"video": VIDEO[..., 0]}, r"`video` has to have 4 or 5 dimensions, but is of shape \(3, 32, 48\)"),
    "grey frames with a channel": ({"video": VIDEO[..., :1]}, r"`video` .* 3 channels.* shape \(3, 32, 48, 1\)"),
    "a list of grey frames": ({"video": list(VIDEO[..., 0])}, r"`video` has items of shape \[\(32, 48\)"),
    "frames with alpha": ({"video": VIDEO[..., [0, 1, 2, 0]]}, r"`video` .* 3 channels.* shape \(3, 32, 48, 4\)"),
    "channels last in a tensor": ({"video": torch.from_numpy(VIDEO)}, r"`video` .* 3 channels.* \(3, 32, 48, 3\)"),
    "six dimensions": ({"video": VIDEO[None, None]}, "`video` has to have 4 or 5 dimensions"),
    "frames of several kinds": (
        {"video": [PIL.Image.fromarray(VIDEO[0]), VIDEO[1]]},
        r"`video\[1\]` is ndarray, but `video\[0\]` is of Image",
    ),
    "a list of numbers": ({"video": [1, 2]}, "`video` has to hold PIL images, arrays or tensors, but holds int"),
    "floats up to 255": ({"video": VIDEO.astype(np.float32)}, r"`video` has to be uint8 or in \[0, 1\].* to 25\d"),
    "integers that are not uint8": (
        {"video": VIDEO.astype(np.int64)},
        "`video` has to be uint8 or of floating .* int64",
    ),
    "an array in [-1, 1]": ({"video": VIDEO / 127.5 - 1}, r"`video` has to be uint8 or in \[0, 1\].* from -1.0"),
    "NaN in an array": ({"video": with_value(VIDEO, math.nan)}, r"`video` has to be uint8 or in \[0, 1\].* nan"),
    "NaN in a tensor": (
        {"video": with_value(torch.from_numpy(VIDEO).permute(0, 3, 1, 2), math.nan)},
        r"`video` has to be uint8 or in \[-1, 1\].* nan",
    ),
    "infinity": ({"video": with_value(VIDEO, math.inf)}, r"`video` has to be uint8 or in \[0, 1\].* inf"),
    "truth values": ({"video": VIDEO > 128}, r"`video` .* bool"),
    "an array of objects": ({"video": VIDEO.astype(object)}, r"`video` .* object"),
    # The groundings
    "a dict": ({"grounding": {"objects": []}}, r"`grounding`: `objects` has to hold 1 to 30 objects, but holds 0"),
    "no grounding": ({"grounding": None}, r"`grounding` has to be one VideoGrounding.* but is \['NoneType'\]"),
    "two groundings for one clip": (
        {"grounding": [GROUNDING] * 2},
        r"`grounding` has to be one VideoGrounding for each of 1 clip\(s\).* \['VideoGrounding', 'VideoGrounding'\]",
    ),
    "one grounding for two clips": (TWO_CLIPS | {"grounding": GROUNDING}, r"`grounding` .* each of 2 clip\(s\)"),
    "boxes for another clip": (
        {"grounding": grounded(boxes=[BOX] * 4)},
        "`grounding`: 'rabbit' has 4 boxes, but the clip has 3 frames",
    ),
    "missing boxes": ({"grounding": grounded(boxes=[])}, "`grounding`: 'rabbit' has 0 boxes.* 3 frames"),
    "masks for another clip": (
        {"grounding": grounded(masks=np.ones((2, 8, 8), bool))},
        "`grounding`: 'rabbit' has 2 masks, but the clip has 3 frames",
    ),
    "a keyframe after the end": (
        {"grounding": grounded(keyframes={3: BOX})},
        "`grounding`: 'rabbit' has a keyframe at frame 3, but the clip has 3 frames",
    ),
    # Texts
    "no prompt": ({"prompt": None}, "one of `prompt` and `prompt_embeds` has to be given"),
    "prompt twice": ({"prompt_embeds": PROMPTS}, "one of `prompt` and `prompt_embeds` has to be given"),
    "prompts for another batch": ({"prompt": ["a", "b"]}, r"`prompt` has to be one string .* 1 clip.* \['a', 'b'\]"),
    "one prompt for two clips": (TWO_CLIPS | {"prompt": "a"}, "`prompt` has to be one string .* 2 clip.* 'a'"),
    "a prompt that is no text": ({"prompt": 3}, "`prompt` has to be one string .* but is 3"),
    "no source prompt": ({"source_prompt": None}, "`source_prompt` is needed to invert with 'negative-prompt'"),
    "no source prompt for null-text": (
        {"source_prompt": None, "inversion_method": "null-text"},
        "`source_prompt` is needed to invert with 'null-text', but is None",
    ),
    "source prompts for another batch": ({"source_prompt": []}, r"`source_prompt` has to be one string.* \[\]"),
    "a negative prompt": (
        {"negative_prompt": "dull"},
        "`negative_prompt` and `negative_prompt_embeds` have no place with 'negative-prompt' inversion",
    ),
    "a negative prompt with null-text": (
        {"negative_prompt": "dull", "inversion_method": "null-text"},
        "`negative_prompt` .* no place with 'null-text' inversion",
    ),
    "embeddings of a negative prompt": (
        {"negative_prompt_embeds": PROMPTS},
        "`negative_prompt_embeds` have no place with 'negative-prompt' inversion",
    ),
    "a negative prompt with an inverted clip": (
        {"negative_prompt": "dull", "inverted": "negative-prompt"},
        "`negative_prompt` .* no place with 'negative-prompt' inversion",
    ),
    "a negative prompt twice": (
        {"negative_prompt": "dull", "negative_prompt_embeds": PROMPTS, "inversion_method": "ddim"},
        "`negative_prompt` and `negative_prompt_embeds` were both given",
    ),
    "negative prompts for another batch": (
        {"negative_prompt": ["a", "b"], "inversion_method": "ddim"},
        r"`negative_prompt` has to be one string .* \['a', 'b'\]",
    ),
    "embeddings of another width": (
        {"prompt": None, "prompt_embeds": torch.zeros(1, 77, 16)},
        r"`prompt_embeds` has to be a tensor of shape \(1, None, 32\).* but is \(1, 77, 16\)",
    ),
    "embeddings that are not finite": (
        {"prompt": None, "prompt_embeds": PROMPTS * math.nan},
        "`prompt_embeds` has to be finite",
    ),
    "embeddings that are no tensor": ({"prompt": None, "prompt_embeds": [1.0]}, "`prompt_embeds` .* but is list"),
    "negative embeddings for another batch": (
        {"negative_prompt_embeds": torch.zeros(2, 77, 32), "inversion_method": "ddim"},
        r"`negative_prompt_embeds` .* \(1, None, 32\).* but is \(2, 77, 32\)",
    ),
    "phrases for other objects": (
        {"phrase_embeds": torch.zeros(2, 32)},
        r"`phrase_embeds` has to be a tensor of shape \(1, 32\).* but is \(2, 32\)",
    ),
    "phrases of another width": (
        {"phrase_embeds": torch.zeros(1, 16)},
        r"`phrase_embeds` has to be a tensor of shape \(1, 32\).* but is \(1, 16\)",
    ),
    "phrases for another batch": (
        {"phrase_embeds": [torch.zeros(1, 32)] * 2},
        r"`phrase_embeds` has to hold one tensor a clip \(1\), but holds 2",
    ),
    "no text encoder": ({}, "text.?encoder.* .?tokenizer", without("text_encoder", "tokenizer")),
    "no text encoder for a negative prompt": (
        NO_TEXT | {"negative_prompt": "dull", "phrase_embeds": torch.zeros(1, 32), "latents": LATENTS},
        "Without a text encoder",
        without("text_encoder", "tokenizer"),
    ),
    "no text encoder for the empty prompt": (
        NO_TEXT | {"phrase_embeds": torch.zeros(1, 32), "latents": LATENTS},
        "Without a text encoder.*`negative_prompt_embeds`",
        without("text_encoder", "tokenizer"),
    ),
    "no tokenizer": ({}, "text.?encoder.* .?tokenizer", without("tokenizer")),
    # The models
    "an ungated UNet": ({}, "`unet` has to be a GLIGEN UNet.* but has 'default'", with_unet(attention_type="default")),
    "a UNet of 8 channels": ({}, "`unet` has to have 4 input channels.* but has 8", with_unet(in_channels=8)),
    "no UNet": ({}, "needs its `unet`, `vae` and `scheduler`", without("unet")),
    "a scheduler that predicts velocities": (
        {},
        "`scheduler` has to be a DDIMScheduler with prediction_type='epsilon'",
        with_scheduler(prediction_type="v_prediction"),
    ),
    "conditions without a ControlNet": (
        {},
        "`conditioning_frames` were given, but the pipeline has no ControlNet",
        without("controlnet"),
    ),
    # Depth and flow
    "depth of another length": (
        {"conditioning_frames": VIDEO[:2]},
        r"`conditioning_frames` has to hold 1 clip\(s\) of 3 frames.* but holds 1 of 2",
    ),
    "depth of another batch": (
        {"conditioning_frames": np.stack([VIDEO, VIDEO])},
        r"`conditioning_frames` has to hold 1 clip\(s\) of 3 frames.* but holds 2 of 3",
    ),
    "depth of one channel": ({"conditioning_frames": VIDEO[..., :1]}, r"`conditioning_frames` .* \(3, 32, 48, 1\)"),
    "depth in [-1, 1]": (
        {"conditioning_frames": torch.from_numpy(VIDEO).permute(0, 3, 1, 2) / 127.5 - 1},
        r"`conditioning_frames` has to be uint8 or in \[0, 1\], but has values from -1.0",
    ),
    "NaN in depth": ({"conditioning_frames": with_value(VIDEO, math.nan)}, "`conditioning_frames` .* nan"),
    "empty depth": ({"conditioning_frames": []}, "`conditioning_frames` .* but is an empty list"),
    "one condition for two ControlNets": (
        {},
        "`conditioning_frames` has to be a list of one clip .* each of 2 ControlNets, but is ndarray",
        with_two_controlnets,
    ),
    "three conditions for two ControlNets": (
        {"conditioning_frames": [VIDEO] * 3},
        "`conditioning_frames` has to be a list .* each of 2 ControlNets, but is list of length 3",
        with_two_controlnets,
    ),
    "a number for two ControlNets": (
        {"conditioning_frames": 3},
        "`conditioning_frames` has to be a list .* each of 2 ControlNets, but is int",
        with_two_controlnets,
    ),
    "flow of another length": (
        {"flow": torch.zeros(3, 2, 16, 24)},
        r"`flow` .* \(2, 2, height, width\).*\(3, 2, 16, 24\)",
    ),
    "flow of three channels": ({"flow": torch.zeros(2, 3, 16, 24)}, r"`flow` .*\[\(2, 3, 16, 24\)\]"),
    "flow with channels last": ({"flow": np.zeros((2, 16, 24, 2))}, r"`flow` .*\[\(2, 16, 24, 2\)\]"),
    "flow of one pair": ({"flow": torch.zeros(2, 16, 24)}, r"`flow` .* but is \[\(2, 16, 24\)\]"),
    "flow without pixels": ({"flow": torch.zeros(2, 2, 0, 24)}, r"`flow` .*\(2, 2, 0, 24\)"),
    "flow for another batch": ({"flow": [FLOW] * 2}, r"`flow` .* each of 1 clip.*\(2, 2, 16, 24\), \(2, 2, 16, 24\)"),
    "a flow for two clips": (TWO_CLIPS | {"flow": FLOW}, r"`flow` .* each of 2 clip"),
    "NaN in flow": ({"flow": FLOW * math.nan}, "`flow` has to be finite"),
    "infinite flow": ({"flow": FLOW + math.inf}, "`flow` has to be finite"),
    "a number as flow": ({"flow": 3.0}, "`flow` has to be a tensor .* but is float"),
    "a scalar as flow": ({"flow": torch.tensor(3.0)}, r"`flow` .* but is \[\(\)\]"),
    "backward flow of another length": (
        {"backward_flow": torch.zeros(1, 2, 16, 24)},
        r"`backward_flow` .*\(1, 2, 16, 24\)",
    ),
    "backward flow of another size": (
        {"backward_flow": torch.zeros(2, 2, 8, 12)},
        r"`backward_flow` .*\(8, 12\).*\(16, 24\)",
    ),
    "backward flow alone": ({"flow": None, "backward_flow": FLOW}, "`backward_flow` needs `flow`"),
    "backward flow with the relative threshold": (
        {"backward_flow": FLOW, "relative_flow_threshold": True},
        "`backward_flow` needs `flow` beside it, and an absolute threshold",
    ),
    "a negative flow threshold": (
        {"flow_threshold": -1},
        "`flow_threshold` has to be a finite number at least 0.* -1",
    ),
    "a relative flow threshold above 1": (
        {"flow_threshold": 1.5, "relative_flow_threshold": True},
        "`flow_threshold` has to be a finite number at least 0 and at most 1, but is 1.5",
    ),
    # Sizes and numbers
    "a height that is not divisible": ({"height": 30}, "`height` has to be divisible by 8, but is 30"),
    "no height": ({"height": 0}, "`height` has to be an integer at least 8, but is 0"),
    "a width in floating point": ({"width": 48.0}, "`width` has to be an integer at least 8, but is 48.0"),
    "no steps": ({"num_inference_steps": 0}, "`num_inference_steps` has to be an integer at least 1.* but is 0"),
    "half a step": ({"num_inference_steps": 1.5}, "`num_inference_steps` has to be an integer.* but is 1.5"),
    "as many steps as timesteps, with an offset": ({"num_inference_steps": 1000}, "`num_inference_steps` .* 1000"),
    "too many steps": ({"num_inference_steps": 1001}, "`num_inference_steps` .* but is 1001"),
    "steps as text": ({"num_inference_steps": "50"}, "`num_inference_steps` .* but is '50'"),
    "negative guidance": (
        {"guidance_scale": -1.0},
        "`guidance_scale` has to be a finite number at least 0, but is -1.0",
    ),
    "guidance that is NaN": ({"guidance_scale": math.nan}, "`guidance_scale` .* but is nan"),
    "infinite guidance": ({"guidance_scale": math.inf}, "`guidance_scale` .* but is inf"),
    "guidance by truth": ({"guidance_scale": True}, "`guidance_scale` has to be a finite number.* but is True"),
    "null-text without guidance": (
        {"inversion_method": "null-text", "guidance_scale": 1.0},
        "`guidance_scale` has to be above 1 with 'null-text' inversion, but is 1.0",
    ),
    "an unknown method": ({"inversion_method": "null"}, "`inversion_method` has to be one of .* but is 'null'"),
    "no null-text steps": ({"num_null_text_steps": 0}, "`num_null_text_steps` has to be an integer at least 1.* 0"),
    "eta above 1": ({"eta": 1.1}, "`eta` has to be a finite number at least 0 and at most 1, but is 1.1"),
    "beta below 0": ({"gligen_scheduled_sampling_beta": -0.1}, "`gligen_scheduled_sampling_beta` .* but is -0.1"),
    "no videos per prompt": ({"num_videos_per_prompt": 0}, "`num_videos_per_prompt` has to be an integer.* but is 0"),
    "no frame a forward": ({"frame_batch_size": 0}, "`frame_batch_size` has to be an integer at least 1, but is 0"),
    "a negative clip skip": ({"clip_skip": -1}, "`clip_skip` has to be an integer at least 0.* but is -1"),
    "a clip skip past the first layer": ({"clip_skip": 3}, "`clip_skip` .* at most 2, but is 3"),
    "a list of generators of another length": (
        {"generator": [torch.Generator()] * 2},
        r"`generator` has to hold one a resulting clip \(1\), but holds 2",
    ),
    "a generator a clip for two edits of each": (
        TWO_CLIPS | {"generator": [torch.Generator()] * 2, "num_videos_per_prompt": 2},
        r"`generator` has to hold one a resulting clip \(4\), but holds 2",
    ),
    "a seed": ({"generator": 42}, "`generator` has to be a torch.Generator.* but is int"),
    "latents of another shape": (
        {"latents": torch.zeros(1, 4, NUM_FRAMES, 4, 6)},
        r"`latents` has to be a tensor of shape \(1, 3, 4, 4, 6\).* but is \(1, 4, 3, 4, 6\)",
    ),
    "latents that are not finite": ({"latents": LATENTS + math.inf}, "`latents` has to be finite"),
    "latents and flow": (
        {"latents": LATENTS, "flow": torch.zeros(NUM_FRAMES - 1, 2, 16, 24)},
        "`flow` smooths inverted latents",
    ),
    "latents and an inverted clip": ({"latents": LATENTS, "inverted": "ddim"}, "`inverted` and `latents` both"),
    # ControlNet settings
    "a scale for each of two ControlNets": (
        {"controlnet_conditioning_scale": [1.0, 1.0]},
        r"`controlnet_conditioning_scale` has to hold one number a ControlNet \(1\), but holds 2",
    ),
    "a scale that is NaN": ({"controlnet_conditioning_scale": math.nan}, "`controlnet_conditioning_scale` .* nan"),
    "an infinite scale": ({"controlnet_conditioning_scale": -math.inf}, "`controlnet_conditioning_scale` .* -inf"),
    "a start after the end": (
        {"control_guidance_start": 0.6, "control_guidance_end": 0.5},
        r"`control_guidance_start` \(0.6\) has to be below `control_guidance_end` \(0.5\)",
    ),
    "a start for each of three ControlNets": (
        {"conditioning_frames": [VIDEO] * 2, "control_guidance_start": [0.0] * 3},
        r"`control_guidance_start` has to hold one number a ControlNet \(2\), but holds 3",
        with_two_controlnets,
    ),
    "an end past the end": ({"control_guidance_end": 1.5}, "`control_guidance_end` .* at most 1, but is 1.5"),
    # Others
    "unknown attention arguments": (
        {"cross_attention_kwargs": {"gligen": {}, "scale": 1.0}},
        r"`cross_attention_kwargs` may hold 'scale' .* but holds \['gligen'\]",
    ),
    "a LoRA scale that is no number": ({"cross_attention_kwargs": {"scale": "1"}}, "`cross_attention_kwargs.* '1'"),
    "attention arguments as a list": ({"cross_attention_kwargs": ["scale"]}, "`cross_attention_kwargs` .*list"),
    "an unknown output": ({"output_type": "gif"}, "`output_type` has to be one of .* but is 'gif'"),
    "unknown callback tensors": (
        {"callback_on_step_end_tensor_inputs": ["latents", "noise"]},
        r"`callback_on_step_end_tensor_inputs` has to be in .* but has \['noise'\]",
    ),
    "another kind of inflation": ({"inflation": "cross-frame"}, "`inflation` has to be an Inflation.* but is str"),
    "no inverted clip": ({"inverted": {"trajectory": LATENTS}}, "`inverted` has to be one InvertedClip"),
    "an inverted clip too many": ({"inverted": ["ddim", "ddim"]}, r"`inverted` has to be one InvertedClip .* 1 clip"),
    "inverted clips of two methods": (
        TWO_CLIPS | {"inverted": ["ddim", "negative-prompt"]},
        r"`inverted` has to hold clips of one inversion method, but holds \['ddim', 'negative-prompt'\]",
    ),
    "an inversion of another clip": (
        {"inverted": "negative-prompt", "video": 255 - VIDEO},
        "`inverted` was made for another inversion. video: made for .*, called with",
    ),
    "an inversion with other boxes": (
        {"inverted": "negative-prompt", "grounding": grounded(box=(0.0, 0.0, 1.0, 1.0))},
        "`inverted` was made for another inversion. boxes: made for",
    ),
    "an inversion on another grid": (
        {"inverted": "negative-prompt", "num_inference_steps": 3},
        r"`inverted` was made for another inversion. timesteps: made for \[501, 1\], called with \[667, 334, 1\]",
    ),
}


def refuse_to_run(pipe: GroundAVideoPipeline) -> None:
    """Makes every forward of every part of the models fail, also when one is called past the model itself."""

    def fail(module: torch.nn.Module, args: Any) -> None:
        raise AssertionError(f"{type(module).__name__} was called")

    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            for module in component.modules():
                module.register_forward_pre_hook(fail)


def inverted_as_named(value: Any) -> Any:
    """Inverts only for the cases that need it: names of methods stand for inverted clips."""
    if isinstance(value, list):
        return [inverted_as_named(one) for one in value]
    return inverted(value) if value in ("negative-prompt", "ddim") else value


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_before_any_model_runs(components: dict[str, Any], name: str) -> None:
    changes, message, *prepare = CASES[name]
    pipe = GroundAVideoPipeline(**(prepare[0](components) if prepare else components))
    refuse_to_run(pipe)
    arguments = GOOD | changes
    if "inverted" in changes:
        arguments["inverted"] = inverted_as_named(changes["inverted"])
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


INVERT_ARGUMENTS = ("video", "grounding", "source_prompt", "num_inference_steps")
INVERT_CASES = [
    "an empty list",
    "frames of several sizes",
    "NaN in an array",
    "a dict",
    "boxes for another clip",
    "no source prompt",
    "source prompts for another batch",
    "an ungated UNet",
    "a UNet of 8 channels",
    "no text encoder",
    "no tokenizer",
    "no UNet",
    "a height that is not divisible",
    "too many steps",
    "as many steps as timesteps, with an offset",
    "infinite guidance",
    "null-text without guidance",
    "an unknown method",
    "no null-text steps",
    "no frame a forward",
    "a clip skip past the first layer",
    "unknown attention arguments",
    "a LoRA scale that is no number",
]


@pytest.mark.parametrize("name", INVERT_CASES)
def test_bad_input_of_an_inversion_is_refused_before_any_model_runs(
    components: dict[str, Any], tmp_path: Any, name: str
) -> None:
    changes, message, *prepare = CASES[name]
    pipe = GroundAVideoPipeline(**(prepare[0](components) if prepare else components))
    refuse_to_run(pipe)
    good = {argument: GOOD[argument] for argument in INVERT_ARGUMENTS}
    with pytest.raises(ValueError, match=message):
        pipe.invert(**(good | changes), checkpoint_dir=tmp_path / "steps")
    assert not (tmp_path / "steps").exists()


def test_the_good_call_is_good(components: dict[str, Any]) -> None:
    pipe = GroundAVideoPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(**GOOD, output_type="latent").frames.isfinite().all()  # type: ignore[union-attr]
    refuse_to_run(pipe)
    with pytest.raises(AssertionError, match="was called"):
        pipe(**GOOD)
