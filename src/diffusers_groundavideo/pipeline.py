"""Ground-A-Video (Jeong & Ye, ICLR 2024, arXiv 2310.01107): several edits of one clip at once, without training."""

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    MultiControlNetModel,
    UNet2DConditionModel,
)
from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from .attention import Inflation, inflated, modulated_text
from .grounding import VideoGrounding, position_net_inputs
from .inputs import check_finite_tensor, check_number, check_texts, clips_to_tensor, flow_to_tensors
from .inversion import (
    DDIMGrid,
    InvertedClip,
    StepCheckpoint,
    check_key,
    ddim_inversion,
    differentiable_in_inputs_only,
    model_fingerprint,
    null_text_optimization,
    tensor_hash,
)
from .smoothing import absolute_motion_mask, relative_motion_mask, smooth_latents


logger = logging.get_logger(__name__)

InversionMethod = Literal["negative-prompt", "null-text", "ddim"]
OutputType = Literal["pil", "np", "pt", "latent"]

# One clip, or several of one length and size: see `GroundAVideoPipeline.preprocess_video`.
VideoInput = (
    list[PIL.Image.Image]
    | list[list[PIL.Image.Image]]
    | np.ndarray
    | list[np.ndarray]
    | torch.Tensor
    | list[torch.Tensor]
)


@dataclass
class GroundAVideoPipelineOutput(BaseOutput):
    """What [`GroundAVideoPipeline`] returns.

    Args:
        frames (`list[list[PIL.Image.Image]]`, `np.ndarray` or `torch.Tensor`): The edited clips: lists of PIL images,
            an array (clips, F, H, W, 3) or a tensor (clips, F, 3, H, W) in [0, 1], or latents (clips, F, C, h, w).
        opened_share (`list[float]`): Of each clip, the share in [0, 1] of the latent cells that was open to the edit.
    """

    frames: list[list[PIL.Image.Image]] | np.ndarray | torch.Tensor
    opened_share: list[float]


@dataclass(frozen=True)
class _InversionSettings:
    """How clips are inverted: what `__call__` and `invert` both take, by the same names."""

    source_prompt: Any
    num_inference_steps: int
    inversion_method: InversionMethod
    num_null_text_steps: int
    gradient_checkpointing: bool
    frame_batch_size: int | None


class GroundAVideoPipeline(
    DiffusionPipeline, StableDiffusionMixin, TextualInversionLoaderMixin, StableDiffusionLoraLoaderMixin
):
    r"""Edits several objects of a clip at once with a grounded text-to-image model (Ground-A-Video, ICLR 2024).

    Args:
        vae ([`AutoencoderKL`]): Between frames and latents.
        text_encoder ([`~transformers.CLIPTextModel`]): Encodes prompts, and (pooled) the phrases of the groundings.
        tokenizer ([`~transformers.CLIPTokenizer`]): Its tokenizer.
        unet ([`UNet2DConditionModel`]): A GLIGEN UNet (`attention_type="gated"`), with 9 input channels (inpainting:
            latents, masked source latents, mask) or as many as the latents have (generation).
        scheduler ([`DDIMScheduler`]): Another scheduler is converted, with a warning.
        controlnet ([`ControlNetModel`], a list of them, or [`MultiControlNetModel`], *optional*): On depth, or on
            whatever `conditioning_frames` hold.

    Example:
    ```py
    >>> import torch
    >>> from diffusers import ControlNetModel
    >>> from diffusers_groundavideo import GroundAVideoPipeline, VideoGrounding

    >>> controlnet = ControlNetModel.from_pretrained("lllyasviel/control_v11f1p_sd15_depth", dtype=torch.float16)
    >>> pipe = GroundAVideoPipeline.from_pretrained(
    ...     "masterful/gligen-1-4-inpainting-text-box", controlnet=controlnet, variant="fp16", dtype=torch.float16
    ... ).to("cuda")
    >>> frames = pipe(
    ...     video=video,
    ...     source_prompt="a rabbit is eating a watermelon on the table",
    ...     prompt="a squirrel is eating an orange on the grass, under the aurora",
    ...     grounding=VideoGrounding.from_json("edit.json"),
    ...     conditioning_frames=depth,
    ...     flow=flow,
    ...     generator=torch.Generator().manual_seed(0),
    ... ).frames[0]
    ```
    """

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["controlnet"]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]

    # No component has a default, or `from_pretrained(..., custom_pipeline=..., controlnet=mine)` would ignore `mine`.
    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: CLIPTextModel | None,
        tokenizer: CLIPTokenizer | None,
        unet: UNet2DConditionModel | None,
        scheduler: DDIMScheduler | None,
        controlnet: ControlNetModel | list[ControlNetModel] | MultiControlNetModel | None,
    ) -> None:
        super().__init__()
        if scheduler is not None and not isinstance(scheduler, DDIMScheduler):
            logger.warning(
                f"Inversion needs DDIM: the {type(scheduler).__name__} is converted to a DDIMScheduler. Pass "
                "`scheduler=DDIMScheduler.from_config(...)` to choose its settings."
            )
            # Schedulers without these settings would fall back on defaults that clamp the predicted clean latents.
            scheduler = DDIMScheduler.from_config(
                scheduler.config, clip_sample=False, set_alpha_to_one=False, timestep_spacing="leading"
            )
        if isinstance(controlnet, (list, tuple)):
            controlnet = MultiControlNetModel(controlnet)
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            controlnet=controlnet,
        )
        self.vae_scale_factor = 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)
        self.video_processor = VideoProcessor(do_resize=False, do_convert_rgb=True)
        self.control_video_processor = VideoProcessor(do_resize=False, do_convert_rgb=True, do_normalize=False)
        self._said: set[str] = set()
        self._guidance_scale = 1.0
        self._clip_skip: int | None = None
        self._cross_attention_kwargs: dict[str, Any] | None = None
        self._interrupt = False
        self._num_timesteps = 0

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs: Any) -> dict[str, Any]:
        # A repo that carries its own pipeline names its file too, and diffusers would run that in place of this class.
        # Older releases pass more than the file.
        config = super()._dict_from_json_file(json_file, **kwargs)
        if isinstance(config["_class_name"], list):
            config["_class_name"] = config["_class_name"][1]
        return config

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def clip_skip(self) -> int | None:
        return self._clip_skip

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        video: VideoInput,
        grounding: VideoGrounding | dict[str, Any] | list[VideoGrounding | dict[str, Any]],
        prompt: str | list[str] | None = None,
        source_prompt: str | list[str] | None = None,
        conditioning_frames: VideoInput | list[VideoInput] | None = None,
        flow: torch.Tensor | np.ndarray | list | None = None,
        backward_flow: torch.Tensor | np.ndarray | list | None = None,
        inverted: InvertedClip | list[InvertedClip] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 12.5,
        negative_prompt: str | list[str] | None = None,
        num_videos_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        phrase_embeds: torch.Tensor | list[torch.Tensor] | None = None,
        inversion_method: InversionMethod = "negative-prompt",
        num_null_text_steps: int = 10,
        gradient_checkpointing: bool = False,
        frame_batch_size: int | None = None,
        flow_threshold: float | None = None,
        relative_flow_threshold: bool = False,
        open_all_boxes: bool = False,
        paste_back: bool = True,
        restore_size: bool | None = None,
        controlnet_conditioning_scale: float | list[float] = 1.0,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        gligen_scheduled_sampling_beta: float = 1.0,
        inflation: Inflation | None = None,
        clip_skip: int | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> GroundAVideoPipelineOutput | tuple:
        r"""Edits one clip, or a batch of clips of one length and size.

        Args:
            video: The clip or clips: all that [`~VideoProcessor.preprocess_video`] takes, (clips,) F frames of H x W,
                pixels in [0, 1] or uint8.
            grounding ([`VideoGrounding`], a dict for [`VideoGrounding.from_dict`], or a list of one a clip): The
                objects, their places, and what they become.
            prompt (`str` or `list[str]`): What each clip shall show after the edit.
            source_prompt (`str` or `list[str]`, *optional*): What each clip shows now. Needed to invert with
                `"negative-prompt"` and `"null-text"`.
            conditioning_frames (*optional*): What the ControlNet sees, of the clips' length, in any form that `video`
                takes, in [0, 1]; for several ControlNets a list of such. `None`: no ControlNet is used.
            flow (`torch.Tensor` of shape (F - 1, 2, H', W') or a list of one a clip, *optional*): Optical flow from
                frame i to i + 1 in pixels of its own H' x W' grid, x before y. `None`: latents are not smoothed.
            backward_flow (like `flow`, *optional*): Flow from frame i + 1 to i, to leave what gets covered or
                uncovered unsmoothed.
            inverted ([`InvertedClip`] or a list of one a clip, *optional*): From [`~GroundAVideoPipeline.invert`], in
                place of inverting here. It says how it was made, so `inversion_method` and `num_null_text_steps` are
                not looked at.
            height, width (`int`, *optional*): Size in pixels at which the clip is edited, divisible by the VAE's scale
                factor (8 for Stable Diffusion). By default that of the clip, or the nearest divisible one.
            num_inference_steps (`int`): Steps of inversion and denoising alike.
            guidance_scale (`float`): Of classifier-free guidance; at most 1 turns it off.
            negative_prompt (`str` or `list[str]`, *optional*): For inversion with `"ddim"` only: the others decide the
                unconditional branch themselves.
            num_videos_per_prompt (`int`): Edits of every clip.
            eta (`float`): Of DDIM, in [0, 1].
            generator (`torch.Generator` or a list of one a resulting clip, *optional*): For deterministic results.
            latents (`torch.Tensor` of shape (resulting clips, F, C, h, w), *optional*): Where denoising starts, in
                place of inverting and smoothing.
            prompt_embeds (`torch.Tensor` of shape (clips, tokens, channels), *optional*): In place of `prompt`.
            negative_prompt_embeds (`torch.Tensor` of shape (clips, tokens, channels), *optional*): In place of
                `negative_prompt`.
            phrase_embeds (`torch.Tensor` of shape (N, channels) or a list of one a clip, *optional*): Pooled text
                embeddings of the N target phrases, in place of encoding them. Rows of removed objects are not used.
            inversion_method (`str`): `"negative-prompt"` inverts with the source prompt and takes it for the
                unconditional branch; `"null-text"` inverts with the empty prompt and optimises the unconditional
                embeddings; `"ddim"` inverts with the empty prompt.
            num_null_text_steps (`int`): Adam steps a timestep of null-text optimisation, at most.
            gradient_checkpointing (`bool`): Whether null-text optimisation computes activations again instead of
                keeping them.
            frame_batch_size (`int`, *optional*): Frames a forward wherever frames are independent (VAE, inversion,
                null-text optimisation). `None`: all at once.
            flow_threshold (`float`, *optional*): Motion between two frames above which latents are left unsmoothed:
                in latent cells (by default 0.25), or with `relative_flow_threshold` as a share of the pair's largest
                motion (by default 0.2).
            relative_flow_threshold (`bool`): Whether the threshold is the published, relative one.
            open_all_boxes (`bool`): Whether all boxes are open to the edit, kept objects too, as published. By default
                only objects that change are, without the masks of kept ones.
            paste_back (`bool`): Whether pixels that were not opened are the source's own in the result. The opened
                region is the latent mask, upsampled nearest.
            restore_size (`bool`, *optional*): Whether the result is brought back to the size of `video`. By default
                only if neither `height` nor `width` is given. With `paste_back`, what was not opened then is the
                source at its full resolution.
            controlnet_conditioning_scale (`float` or one a ControlNet): Factor on the ControlNet's residuals.
            control_guidance_start, control_guidance_end (`float` or one a ControlNet): Shares of the steps, in
                [0, 1], between which the ControlNet acts.
            gligen_scheduled_sampling_beta (`float`): Share of the steps, in [0, 1], in which GLIGEN's layers are on.
            inflation ([`Inflation`], *optional*): Other attention schemes, for comparison.
            clip_skip (`int`, *optional*): Layers of the text encoder to skip.
            cross_attention_kwargs (`dict`, *optional*): `{"scale": s}`, the scale of LoRA layers.
            output_type (`str`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`): Whether to return a [`GroundAVideoPipelineOutput`] or a tuple.
            callback_on_step_end (`Callable`, *optional*): Called after every denoising step as
                `callback(pipe, step, timestep, callback_kwargs)`; what it returns takes the place of these tensors.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*): Of `latents` (by default), `prompt_embeds`
                and `negative_prompt_embeds` (with null-text of shape (S, clips, F, tokens, channels)).

        Returns:
            [`GroundAVideoPipelineOutput`], or the tuple of its fields.

        Raises:
            `ValueError`: For every argument of a wrong shape, count, range or combination, before any model runs.
        """
        callback_on_step_end_tensor_inputs = callback_on_step_end_tensor_inputs or ["latents"]
        groundings = _as_groundings(grounding)

        # 1. Check everything before any model runs.
        pixels = self.preprocess_video(video)
        size = self._working_size(pixels, height, width)
        conditions = self._preprocess_conditions(conditioning_frames, pixels, size)
        flows = self._preprocess_flow(flow, "flow", pixels)
        backward_flows = self._preprocess_flow(backward_flow, "backward_flow", pixels, flows)
        self.check_inputs(
            pixels=pixels,
            groundings=groundings,
            size=size,
            prompt=prompt,
            source_prompt=source_prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            phrase_embeds=phrase_embeds,
            latents=latents,
            inverted=inverted,
            inversion_method=inversion_method,
            num_inference_steps=num_inference_steps,
            num_null_text_steps=num_null_text_steps,
            guidance_scale=guidance_scale,
            num_videos_per_prompt=num_videos_per_prompt,
            eta=eta,
            generator=generator,
            frame_batch_size=frame_batch_size,
            flow_threshold=flow_threshold,
            relative_flow_threshold=relative_flow_threshold,
            has_flow=flows is not None,
            has_backward_flow=backward_flows is not None,
            controlnet_conditioning_scale=controlnet_conditioning_scale,
            control_guidance_start=control_guidance_start,
            control_guidance_end=control_guidance_end,
            gligen_scheduled_sampling_beta=gligen_scheduled_sampling_beta,
            cross_attention_kwargs=cross_attention_kwargs,
            output_type=output_type,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            inflation=inflation,
            clip_skip=clip_skip,
        )
        self._guidance_scale = guidance_scale
        self._clip_skip = clip_skip
        self._cross_attention_kwargs = cross_attention_kwargs
        self._interrupt = False
        num_frames, device = pixels.shape[1], self._execution_device
        clips = inverted if isinstance(inverted, list) or inverted is None else [inverted]
        if clips is not None:
            self._check_inverted(clips, pixels, size, groundings, source_prompt, num_inference_steps)
        if conditions is None:
            self._say_once("`conditioning_frames` is None: no ControlNet holds the structure of the clip.")
        if flows is None and num_frames > 1 and latents is None:
            self._say_once("`flow` is None: the inverted latents are not smoothed.")

        # 2. Invert each clip, unless somebody did before.
        inversion = _InversionSettings(
            source_prompt,
            num_inference_steps,
            inversion_method,
            num_null_text_steps,
            gradient_checkpointing,
            frame_batch_size,
        )
        if clips is None and latents is None:
            clips = self._invert_clips(pixels, size, groundings, inversion)
        if clips is not None:
            source_latents = torch.stack([clip.trajectory[0] for clip in clips]).to(device)
        else:
            source_latents = self.encode_video(_resize(pixels, *size), frame_batch_size)

        # 3. Smooth the inverted latents where the clip stands still.
        if clips is not None:
            latents = self.prepare_latents(clips, flows, backward_flows, flow_threshold, relative_flow_threshold)
            latents = latents.repeat_interleave(num_videos_per_prompt, dim=0)
        assert latents is not None
        latents = latents.to(device, torch.float32)

        # 4. Encode prompts and groundings, and find what is open to the edit.
        lora_scale = (cross_attention_kwargs or {}).get("scale")
        # What inversion found for the unconditional branch goes before a negative prompt.
        has_null_embeddings = clips is not None and clips[0].inversion_method != "ddim"
        prompt_embeds, negative_prompt_embeds = self.encode_prompt(
            prompt,
            device,
            num_videos_per_prompt,
            self.do_classifier_free_guidance and not has_null_embeddings,
            negative_prompt,
            prompt_embeds,
            negative_prompt_embeds,
            lora_scale,
            clip_skip,
        )
        if clips is not None and has_null_embeddings:
            negative_prompt_embeds = self._null_embeddings(clips, num_videos_per_prompt)
        embeds: Sequence = phrase_embeds if isinstance(phrase_embeds, list) else [phrase_embeds] * len(groundings)
        gligens = [
            self.encode_grounding(one, num_frames, "target", each, lora_scale)
            for one, each in zip(groundings, embeds, strict=True)
        ]
        latent_size = source_latents.shape[-2], source_latents.shape[-1]
        masks = torch.stack([one.edit_mask(num_frames, *latent_size, open_all_boxes) for one in groundings])
        opened_share = [1 - float(mask.mean()) for mask in masks]
        logger.info(f"Open to the edit: {', '.join(f'{share:.1%}' for share in opened_share)} of the clip.")

        # 5. Denoise, all frames of a clip together.
        repeats = num_videos_per_prompt
        latents = self.denoise(
            latents,
            source_latents.repeat_interleave(repeats, dim=0),
            masks.to(device).repeat_interleave(repeats, dim=0),
            prompt_embeds,
            negative_prompt_embeds,
            {name: torch.stack([one[name] for one in gligens]).repeat_interleave(repeats, 0) for name in gligens[0]},
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            eta=eta,
            generator=generator,
            conditioning_frames=None if conditions is None else [c.repeat_interleave(repeats, 0) for c in conditions],
            controlnet_conditioning_scale=controlnet_conditioning_scale,
            control_guidance_start=control_guidance_start,
            control_guidance_end=control_guidance_end,
            gligen_scheduled_sampling_beta=gligen_scheduled_sampling_beta,
            inflation=inflation,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )

        # 6. Decode, and give back what was not opened.
        if output_type == "latent":
            frames: Any = latents
        else:
            edited = self.decode_latents(latents, frame_batch_size)
            if (height is None and width is None) if restore_size is None else restore_size:
                edited = _resize(edited, *pixels.shape[-2:])
            if paste_back:
                source = _resize(pixels, *edited.shape[-2:])
                edited = self.paste_back(edited, *(x.repeat_interleave(repeats, dim=0) for x in (source, masks)))
            frames = self.video_processor.postprocess_video(edited.transpose(1, 2), output_type)
        self.maybe_free_model_hooks()

        opened_share = [share for share in opened_share for _ in range(repeats)]
        if not return_dict:
            return frames, opened_share
        return GroundAVideoPipelineOutput(frames=frames, opened_share=opened_share)

    @torch.no_grad()
    def invert(
        self,
        video: VideoInput,
        grounding: VideoGrounding | dict[str, Any] | list[VideoGrounding | dict[str, Any]],
        source_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        inversion_method: InversionMethod = "negative-prompt",
        guidance_scale: float = 12.5,
        num_null_text_steps: int = 10,
        gradient_checkpointing: bool = False,
        frame_batch_size: int | None = None,
        clip_skip: int | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        checkpoint_dir: str | None = None,
    ) -> InvertedClip | list[InvertedClip]:
        r"""Inverts a clip once for any number of edits of the grounded objects (Ground-A-Video, section 3.4).

        What the objects become is of no matter here, nor is the prompt of the edit: source phrases and boxes are used,
        and all boxes are open.

        Args:
            checkpoint_dir (`str`, *optional*): Where finished timesteps are kept. A run that was killed goes on from
                its last finished timestep when it is called again with the same arguments, with the same result to
                the bit. For a batch of clips each has a folder of its own in it.
            guidance_scale, num_null_text_steps: Matter with `"null-text"` only.
            others: As in [`~GroundAVideoPipeline.__call__`].

        Returns:
            [`InvertedClip`], or a list of them for a batch of clips.

        Raises:
            `ValueError`: For bad arguments, before any model runs; and if `checkpoint_dir` holds another inversion.
        """
        groundings = _as_groundings(grounding)
        pixels = self.preprocess_video(video)
        size = self._working_size(pixels, height, width)
        inversion = _InversionSettings(
            source_prompt,
            num_inference_steps,
            inversion_method,
            num_null_text_steps,
            gradient_checkpointing,
            frame_batch_size,
        )
        self._check_inversion_inputs(pixels, groundings, inversion, guidance_scale, clip_skip, cross_attention_kwargs)
        if not self._can_encode_text:
            raise ValueError(
                "The pipeline needs its `text_encoder` and `tokenizer` to invert, but one of them is None."
            )
        self._guidance_scale = guidance_scale
        self._clip_skip = clip_skip
        self._cross_attention_kwargs = cross_attention_kwargs
        inverted = self._invert_clips(pixels, size, groundings, inversion, checkpoint_dir)
        self.maybe_free_model_hooks()
        return inverted if isinstance(grounding, list) else inverted[0]

    def preprocess_video(self, video: VideoInput) -> torch.Tensor:
        """The clip or clips at their own size: (clips, F, 3, H, W) in [-1, 1], float32, on the CPU."""
        return clips_to_tensor(video, "video", self.video_processor)

    def _working_size(self, pixels: torch.Tensor, height: int | None, width: int | None) -> tuple[int, int]:
        """The (height, width) in pixels at which the clip is edited."""
        size = []
        for name, given, own in (("height", height, pixels.shape[-2]), ("width", width, pixels.shape[-1])):
            if given is not None:
                check_number(given, name, self.vae_scale_factor, integer=True)
                if given % self.vae_scale_factor:
                    raise ValueError(f"`{name}` has to be divisible by {self.vae_scale_factor}, but is {given}.")
            size.append(given or max(1, round(own / self.vae_scale_factor)) * self.vae_scale_factor)
        return size[0], size[1]

    @property
    def _controlnets(self) -> list[ControlNetModel]:
        if self.controlnet is None:
            return []
        return list(getattr(self.controlnet, "nets", [self.controlnet]))

    def _preprocess_conditions(
        self, conditioning_frames: Any, pixels: torch.Tensor, size: tuple[int, int]
    ) -> list[torch.Tensor] | None:
        """What each ControlNet sees: (clips, F, 3, height, width) in [0, 1]."""
        if conditioning_frames is None:
            return None
        if self.controlnet is None:
            raise ValueError("`conditioning_frames` were given, but the pipeline has no ControlNet to see them.")
        several = isinstance(self.controlnet, MultiControlNetModel)
        given = conditioning_frames if several else [conditioning_frames]
        if not isinstance(given, list) or len(given) != len(self._controlnets):
            raise ValueError(
                f"`conditioning_frames` has to be a list of one clip (or batch) for each of {len(self._controlnets)} "
                f"ControlNets, but is {type(given).__name__}"
                f"{f' of length {len(given)}' if isinstance(given, list) else ''}."
            )
        conditions = [clips_to_tensor(one, "conditioning_frames", self.control_video_processor) for one in given]
        for condition in conditions:
            if condition.shape[:2] != pixels.shape[:2]:
                raise ValueError(
                    f"`conditioning_frames` has to hold {pixels.shape[0]} clip(s) of {pixels.shape[1]} frames, as "
                    f"`video` does, but holds {condition.shape[0]} of {condition.shape[1]}."
                )
        return [_resize(condition, *size).clamp(0, 1) for condition in conditions]

    def _preprocess_flow(
        self, flow: Any, argument: str, pixels: torch.Tensor, opposite: list[torch.Tensor] | None = None
    ) -> list[torch.Tensor] | None:
        if flow is None:
            return None
        flows = flow_to_tensors(flow, argument, *pixels.shape[:2])
        for one, other in zip(flows, opposite or flows, strict=True):
            if one.shape != other.shape:
                raise ValueError(
                    f"`{argument}` has to be on the grid of `flow`, but is on {tuple(one.shape[-2:])} pixels and "
                    f"`flow` on {tuple(other.shape[-2:])}."
                )
        return flows

    def check_inputs(
        self,
        pixels: torch.Tensor,
        groundings: Sequence[Any],
        size: tuple[int, int],
        *,
        prompt: Any = None,
        source_prompt: Any = None,
        negative_prompt: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        phrase_embeds: Any = None,
        latents: Any = None,
        inverted: Any = None,
        inversion_method: Any = "negative-prompt",
        num_inference_steps: Any = 50,
        num_null_text_steps: Any = 10,
        guidance_scale: Any = 12.5,
        num_videos_per_prompt: Any = 1,
        eta: Any = 0.0,
        generator: Any = None,
        frame_batch_size: Any = None,
        flow_threshold: Any = None,
        relative_flow_threshold: bool = False,
        has_flow: bool = False,
        has_backward_flow: bool = False,
        controlnet_conditioning_scale: Any = 1.0,
        control_guidance_start: Any = 0.0,
        control_guidance_end: Any = 1.0,
        gligen_scheduled_sampling_beta: Any = 1.0,
        cross_attention_kwargs: Any = None,
        output_type: Any = "pil",
        callback_on_step_end_tensor_inputs: Any = ("latents",),
        inflation: Any = None,
        clip_skip: Any = None,
    ) -> None:
        """Raises a `ValueError` for what `__call__` cannot work with. Runs no model.

        Args:
            pixels (`torch.Tensor` of shape (clips, F, 3, H, W)): From [`~GroundAVideoPipeline.preprocess_video`].
            groundings (`list` of [`VideoGrounding`]): One a clip.
            size (`tuple[int, int]`): Height and width at which the clips are edited.
            has_flow, has_backward_flow (`bool`): Whether `flow` and `backward_flow` are given.
            others: As in [`~GroundAVideoPipeline.__call__`].
        """
        num_clips, num_frames = pixels.shape[:2]
        inverts = inverted is None and latents is None
        if inverted is not None and latents is not None:
            raise ValueError("`inverted` and `latents` both say where denoising starts: pass only one of them.")
        inversion = _InversionSettings(
            source_prompt,
            num_inference_steps,
            inversion_method if inverts else "ddim",
            num_null_text_steps,
            False,
            frame_batch_size,
        )
        self._check_inversion_inputs(pixels, groundings, inversion, guidance_scale, clip_skip, cross_attention_kwargs)
        if inverted is not None:
            clips = inverted if isinstance(inverted, list) else [inverted]
            if len(clips) != num_clips or not all(isinstance(clip, InvertedClip) for clip in clips):
                raise ValueError(f"`inverted` has to be one InvertedClip for each of {num_clips} clip(s).")
            methods = sorted({clip.inversion_method for clip in clips})
            if len(methods) != 1:
                raise ValueError(f"`inverted` has to hold clips of one inversion method, but holds {methods}.")
            method = methods[0]
        else:
            method = inversion_method if inverts else "ddim"

        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("Exactly one of `prompt` and `prompt_embeds` has to be given.")
        if prompt is not None:
            check_texts(prompt, "prompt", num_clips)
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("`negative_prompt` and `negative_prompt_embeds` were both given: pass only one of them.")
        if method != "ddim" and not (negative_prompt is None and negative_prompt_embeds is None):
            raise ValueError(
                f"`negative_prompt` and `negative_prompt_embeds` have no place with {method!r} inversion, which "
                "decides the unconditional branch itself: leave them out, or invert with 'ddim'."
            )
        if negative_prompt is not None:
            check_texts(negative_prompt, "negative_prompt", num_clips)
        channels = self.unet.config.cross_attention_dim
        if prompt_embeds is not None:
            check_finite_tensor(prompt_embeds, "prompt_embeds", (num_clips, None, channels))
        if negative_prompt_embeds is not None:
            check_finite_tensor(negative_prompt_embeds, "negative_prompt_embeds", (num_clips, None, channels))
        if phrase_embeds is not None:
            each = phrase_embeds if isinstance(phrase_embeds, list) else [phrase_embeds]
            if len(each) != num_clips:
                raise ValueError(
                    f"`phrase_embeds` has to hold one tensor a clip ({num_clips}), but holds {len(each)}."
                )
            for one, grounding in zip(each, groundings, strict=True):
                check_finite_tensor(one, "phrase_embeds", (len(grounding.objects), channels))
        if not self._can_encode_text and (prompt is not None or phrase_embeds is None or inverts):
            raise ValueError(
                "Without a text encoder and its tokenizer `prompt_embeds`, `phrase_embeds` and `inverted` or "
                "`latents` have to be given."
            )
        if not self._can_encode_text and method == "ddim" and guidance_scale > 1 and negative_prompt_embeds is None:
            raise ValueError(
                "Without a text encoder and its tokenizer `negative_prompt_embeds` has to be given for guidance."
            )

        check_number(num_videos_per_prompt, "num_videos_per_prompt", 1, integer=True)
        check_number(eta, "eta", 0, 1)
        check_number(gligen_scheduled_sampling_beta, "gligen_scheduled_sampling_beta", 0, 1)
        num_results = num_clips * num_videos_per_prompt
        if isinstance(generator, list) and len(generator) != num_results:
            raise ValueError(
                f"`generator` has to hold one a resulting clip ({num_results}), but holds {len(generator)}."
            )
        for one in generator if isinstance(generator, list) else [generator]:
            if generator is not None and not isinstance(one, torch.Generator):
                raise ValueError(
                    f"`generator` has to be a torch.Generator or a list of them, but is {type(one).__name__}."
                )
        if latents is not None:
            h, w = size[0] // self.vae_scale_factor, size[1] // self.vae_scale_factor
            shape = (num_results, num_frames, self.vae.config.latent_channels, h, w)
            check_finite_tensor(latents, "latents", shape)
        if has_flow and latents is not None:
            raise ValueError("`flow` smooths inverted latents, but `latents` are taken as they are: pass one of them.")
        if flow_threshold is not None:
            check_number(flow_threshold, "flow_threshold", 0, 1 if relative_flow_threshold else float("inf"))
        if has_backward_flow and (relative_flow_threshold or not has_flow):
            raise ValueError("`backward_flow` needs `flow` beside it, and an absolute threshold.")

        nets = len(self._controlnets)
        for name, value, low, high in (
            ("controlnet_conditioning_scale", controlnet_conditioning_scale, -math.inf, math.inf),
            ("control_guidance_start", control_guidance_start, 0, 1),
            ("control_guidance_end", control_guidance_end, 0, 1),
        ):
            if isinstance(value, list) and len(value) != nets:
                raise ValueError(f"`{name}` has to hold one number a ControlNet ({nets}), but holds {len(value)}.")
            for number in value if isinstance(value, list) else [value]:
                check_number(number, name, low, high)
        for start, end in zip(
            _one_a_net(control_guidance_start, nets), _one_a_net(control_guidance_end, nets), strict=True
        ):
            if start >= end:
                raise ValueError(f"`control_guidance_start` ({start}) has to be below `control_guidance_end` ({end}).")

        if inflation is not None and not isinstance(inflation, Inflation):
            raise ValueError(f"`inflation` has to be an Inflation, but is {type(inflation).__name__}.")
        if output_type not in get_args(OutputType):
            raise ValueError(f"`output_type` has to be one of {get_args(OutputType)}, but is {output_type!r}.")
        unknown = [name for name in callback_on_step_end_tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has to be in {self._callback_tensor_inputs}, but has {unknown}."
            )

    def _check_inversion_inputs(
        self,
        pixels: torch.Tensor,
        groundings: Sequence[Any],
        inversion: _InversionSettings,
        guidance_scale: Any,
        clip_skip: Any,
        cross_attention_kwargs: Any,
    ) -> None:
        """What `__call__` and `invert` both ask for."""
        num_clips, num_frames = pixels.shape[:2]
        method, steps = inversion.inversion_method, inversion.num_inference_steps
        if self.unet is None or self.scheduler is None or self.vae is None:
            raise ValueError("The pipeline needs its `unet`, `vae` and `scheduler`, but one of them is None.")
        if self.unet.config.attention_type != "gated":
            raise ValueError(
                "`unet` has to be a GLIGEN UNet with attention_type='gated', but has "
                f"{self.unet.config.attention_type!r}."
            )
        channels = self.vae.config.latent_channels
        if self.unet.config.in_channels not in (channels, 2 * channels + 1):
            raise ValueError(
                f"`unet` has to have {channels} input channels (GLIGEN generation) or {2 * channels + 1} (GLIGEN "
                f"inpainting), but has {self.unet.config.in_channels}."
            )
        if not isinstance(self.scheduler, DDIMScheduler) or self.scheduler.config.prediction_type != "epsilon":
            raise ValueError("`scheduler` has to be a DDIMScheduler with prediction_type='epsilon'.")
        if len(groundings) != num_clips or not all(isinstance(one, VideoGrounding) for one in groundings):
            raise ValueError(
                f"`grounding` has to be one VideoGrounding for each of {num_clips} clip(s) (VideoGrounding.from_dict "
                f"makes one of a dict), but is {[type(one).__name__ for one in groundings]}."
            )
        for one in groundings:
            one.frame_boxes(num_frames)
        if method not in get_args(InversionMethod):
            raise ValueError(f"`inversion_method` has to be one of {get_args(InversionMethod)}, but is {method!r}.")
        if inversion.source_prompt is not None:
            check_texts(inversion.source_prompt, "source_prompt", num_clips)
        elif method != "ddim":
            raise ValueError(f"`source_prompt` is needed to invert with {method!r}, but is None.")
        check_number(
            steps,
            "num_inference_steps",
            1,
            self.scheduler.config.num_train_timesteps,
            integer=True,
        )
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(steps)
        if (first := int(scheduler.timesteps[0])) >= self.scheduler.config.num_train_timesteps:
            raise ValueError(
                f"`num_inference_steps` is {steps}, with which the scheduler begins at timestep "
                f"{first}, but has only {self.scheduler.config.num_train_timesteps} of them."
            )
        check_number(inversion.num_null_text_steps, "num_null_text_steps", 1, integer=True)
        check_number(guidance_scale, "guidance_scale", 0)
        if method == "null-text" and guidance_scale <= 1:
            raise ValueError(
                f"`guidance_scale` has to be above 1 with 'null-text' inversion, but is {guidance_scale}."
            )
        if inversion.frame_batch_size is not None:
            check_number(inversion.frame_batch_size, "frame_batch_size", 1, integer=True)
        if clip_skip is not None and self.text_encoder is not None:
            check_number(clip_skip, "clip_skip", 0, self.text_encoder.config.num_hidden_layers, integer=True)
        if cross_attention_kwargs is not None and not isinstance(cross_attention_kwargs, dict):
            raise ValueError(
                f"`cross_attention_kwargs` has to be a dict, but is {type(cross_attention_kwargs).__name__}."
            )
        unknown = sorted(set(cross_attention_kwargs or {}) - {"scale"})
        if unknown:
            raise ValueError(f"`cross_attention_kwargs` may hold 'scale' (of LoRA layers) only, but holds {unknown}.")
        if cross_attention_kwargs:
            check_number(cross_attention_kwargs["scale"], "cross_attention_kwargs['scale']", -math.inf)

    @property
    def _can_encode_text(self) -> bool:
        return self.text_encoder is not None and self.tokenizer is not None

    def _check_inverted(
        self,
        inverted: list[InvertedClip],
        pixels: torch.Tensor,
        size: tuple[int, int],
        groundings: list[VideoGrounding],
        source_prompt: str | list[str] | None,
        num_inference_steps: int,
    ) -> None:
        """Raises a `ValueError` if a saved inversion is not the one that this call would make."""
        clips = _resize(pixels, *size)
        for index, (clip, grounding) in enumerate(zip(inverted, groundings, strict=True)):
            asked_for = self._inversion_key(
                clips[index],
                grounding,
                _nth(source_prompt, index),
                num_inference_steps,
                clip.inversion_method,
            )
            if clip.inversion_method == "null-text":
                asked_for["guidance_scale"] = self._guidance_scale
            check_key(clip.key, asked_for, "`inverted`")

    def _say_once(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            logger.warning(message)

    def _stage(self, name: str, total: int) -> Any:
        """A progress bar that names the stage."""
        bar = self.progress_bar(total=total)
        bar.set_description(name)
        return bar

    def encode_video(self, frames: torch.Tensor, frame_batch_size: int | None = None) -> torch.Tensor:
        """The clean latents of clips: the mean of the VAE's posterior, scaled.

        Args:
            frames (`torch.Tensor` of shape (clips, F, 3, H, W)): In [-1, 1], H and W divisible by the VAE's factor.
            frame_batch_size (`int`, *optional*): Frames a forward.

        Returns:
            `torch.Tensor` of shape (clips, F, C, h, w), float32.
        """
        flat = frames.flatten(0, 1)
        device = self._execution_device
        latents = [
            self.vae.encode(batch.to(device, self.vae.dtype)).latent_dist.mean.float()
            for batch in flat.split(frame_batch_size or len(flat))
        ]
        return (torch.cat(latents) * self.vae.config.scaling_factor).unflatten(0, frames.shape[:2])

    def decode_latents(self, latents: torch.Tensor, frame_batch_size: int | None = None) -> torch.Tensor:
        """Frames (clips, F, 3, H, W) in [-1, 1], float32, of latents (clips, F, C, h, w)."""
        flat = latents.flatten(0, 1) / self.vae.config.scaling_factor
        frames = [
            self.vae.decode(batch.to(self.vae.dtype)).sample.float()
            for batch in flat.split(frame_batch_size or len(flat))
        ]
        return torch.cat(frames).clamp(-1, 1).unflatten(0, latents.shape[:2])

    @staticmethod
    def paste_back(edited: torch.Tensor, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Takes every pixel that was not opened from the source.

        Args:
            edited, source (`torch.Tensor` of shape (clips, F, 3, H, W)): In the same range.
            mask (`torch.Tensor` of shape (clips, F, 1, h, w)): At latent size, 0 where open; upsampled nearest.

        Returns:
            `torch.Tensor` of shape (clips, F, 3, H, W).
        """
        kept = F.interpolate(mask.flatten(0, 1), edited.shape[-2:], mode="nearest-exact").bool().to(edited.device)
        return torch.where(kept.unflatten(0, mask.shape[:2]), source.to(edited.device), edited)

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        device: torch.device,
        num_videos_per_prompt: int,
        do_classifier_free_guidance: bool,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        r"""Encodes the prompt into text encoder hidden states.

        Args:
            prompt (`str` or `list[str]`, *optional*): One a clip.
            device (`torch.device`): Where the embeddings go.
            num_videos_per_prompt (`int`): How often each is repeated.
            do_classifier_free_guidance (`bool`): Whether to encode the negative prompt.
            negative_prompt (`str` or `list[str]`, *optional*): One a clip; the empty prompt by default.
            prompt_embeds, negative_prompt_embeds (`torch.Tensor` of shape (clips, tokens, channels), *optional*): In
                place of encoding.
            lora_scale (`float`, *optional*): Scale of the text encoder's LoRA layers.
            clip_skip (`int`, *optional*): Layers of the text encoder to skip; 1 takes the output of the one before the
                last.

        Returns:
            Two `torch.Tensor` of shape (clips * num_videos_per_prompt, tokens, channels): of the prompt, and of the
            negative prompt (`None` without guidance).
        """
        if prompt_embeds is None:
            assert prompt is not None
            prompt_embeds = self._encode_text(prompt, lora_scale, clip_skip)[0]
        if do_classifier_free_guidance and negative_prompt_embeds is None:
            if negative_prompt is None:
                negative_prompt = [""] * len(prompt_embeds)
            negative_prompt_embeds = self._encode_text(negative_prompt, lora_scale, clip_skip)[0]
        prompt_embeds = prompt_embeds.to(device).repeat_interleave(num_videos_per_prompt, dim=0)
        if not do_classifier_free_guidance or negative_prompt_embeds is None:
            return prompt_embeds, None
        return prompt_embeds, negative_prompt_embeds.to(device).repeat_interleave(num_videos_per_prompt, dim=0)

    def _encode_text(
        self, texts: str | list[str], lora_scale: float | None = None, clip_skip: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (texts, tokens, channels) and pooled output (texts, channels) of the text encoder."""
        texts = [texts] if isinstance(texts, str) else texts
        texts = self.maybe_convert_prompt(texts, self.tokenizer)
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        untruncated = self.tokenizer(texts).input_ids
        for text, ids in zip(texts, untruncated, strict=True):
            if len(ids) > self.tokenizer.model_max_length:
                removed = self.tokenizer.decode(ids[self.tokenizer.model_max_length - 1 : -1])
                logger.warning(f"CLIP sees {self.tokenizer.model_max_length} tokens; cut off {text!r}: {removed!r}.")
        with _lora_scaled(self.text_encoder, lora_scale):
            uses_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
            encoded = self.text_encoder(
                tokens.input_ids.to(self._execution_device),
                attention_mask=tokens.attention_mask.to(self._execution_device) if uses_mask else None,
                output_hidden_states=clip_skip is not None,
            )
        if clip_skip is None:
            return encoded.last_hidden_state, encoded.pooler_output
        skipped = encoded.hidden_states[-(clip_skip + 1)]
        return self.text_encoder.final_layer_norm(skipped), encoded.pooler_output

    def encode_grounding(
        self,
        grounding: VideoGrounding,
        num_frames: int,
        side: Literal["source", "target"] = "target",
        phrase_embeds: torch.Tensor | None = None,
        lora_scale: float | None = None,
    ) -> dict[str, torch.Tensor]:
        r"""The inputs of GLIGEN's position net for one clip (GLIGEN, section 3.1).

        A phrase is the pooled output of the text encoder. An object without a phrase on this side, or out of the
        frame, has no grounding token.

        Args:
            grounding ([`VideoGrounding`]): The objects.
            num_frames (`int`): Frames of the clip.
            side (`str`): `"source"` for the phrases before the edit, `"target"` for those after it.
            phrase_embeds (`torch.Tensor` of shape (N, channels), *optional*): In place of encoding the phrases.
            lora_scale (`float`, *optional*): Scale of the text encoder's LoRA layers.

        Returns:
            `dict` with `boxes` (F, 30, 4), normalised xyxy, `masks` (F, 30) and `positive_embeddings` (F, 30,
            channels).
        """
        boxes, present = grounding.frame_boxes(num_frames)
        phrases = grounding.phrases(side)
        if phrase_embeds is None:
            phrase_embeds = self._encode_text([phrase or "" for phrase in phrases], lora_scale)[1]
        present = present & torch.tensor([phrase is not None for phrase in phrases])
        return position_net_inputs(boxes, present, phrase_embeds.to(self._execution_device))

    def prepare_latents(
        self,
        inverted: list[InvertedClip],
        flow: list[torch.Tensor] | None = None,
        backward_flow: list[torch.Tensor] | None = None,
        flow_threshold: float | None = None,
        relative_flow_threshold: bool = False,
    ) -> torch.Tensor:
        """The inverted latents, smoothed where the clip stands still: (clips, F, C, h, w), float32.

        Args:
            inverted (`list[InvertedClip]`): The clips.
            flow, backward_flow (`list` of `torch.Tensor` of shape (F - 1, 2, H', W'), *optional*): In pixels of their
                own grid; without `flow` nothing is smoothed.
            flow_threshold (`float`, *optional*): In latent cells (by default 0.25), or relative (by default 0.2).
            relative_flow_threshold (`bool`): Which of the two.
        """
        latents = [clip.noise_latents for clip in inverted]
        if flow is None:
            return torch.stack(latents)
        smoothed = []
        for index, clip in enumerate(latents):
            height, width = clip.shape[-2:]
            if relative_flow_threshold:
                threshold = 0.2 if flow_threshold is None else flow_threshold
                moving = relative_motion_mask(flow[index], height, width, threshold)
            else:
                threshold = 0.25 if flow_threshold is None else flow_threshold
                opposite = None if backward_flow is None else backward_flow[index]
                moving = absolute_motion_mask(flow[index], height, width, threshold, opposite)
            smoothed.append(smooth_latents(clip, moving.to(clip.device)))
        return torch.stack(smoothed)

    def predict_noise(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor | int,
        text: torch.Tensor,
        gligen: dict[str, torch.Tensor] | None = None,
        inpainting: torch.Tensor | None = None,
        conditioning_frames: list[torch.Tensor] | None = None,
        conditioning_scale: list[float] | None = None,
    ) -> torch.Tensor:
        """The noise that UNet and ControlNets predict in one branch. What is not passed does not act.

        Args:
            latents (`torch.Tensor` of shape (n, C, h, w)): Noisy latents, frame-major.
            timestep (`int`): Their timestep.
            text (`torch.Tensor` of shape (texts, tokens, channels)): Of this branch: one a frame with the plain UNet,
                also one a clip while [`inflated`].
            gligen (`dict`, *optional*): Inputs of the position net, (n, ...) each. `None`: the gate is off.
            inpainting (`torch.Tensor` of shape (n, C + 1, h, w), *optional*): Masked source latents and mask, for a
                9-channel UNet.
            conditioning_frames (`list` of `torch.Tensor` of shape (n, 3, H, W), *optional*): One a ControlNet.
            conditioning_scale (`list[float]`, *optional*): One a ControlNet.

        Returns:
            `torch.Tensor` of shape (n, C, h, w), float32.
        """
        residuals = {}
        if conditioning_frames is not None and conditioning_scale is not None:
            several = isinstance(self.controlnet, MultiControlNetModel)
            down, mid = self.controlnet(
                latents.to(self.controlnet.dtype),
                timestep,
                encoder_hidden_states=text.to(self.controlnet.dtype),
                controlnet_cond=conditioning_frames if several else conditioning_frames[0],
                conditioning_scale=conditioning_scale if several else conditioning_scale[0],
                return_dict=False,
            )
            residuals["down_block_additional_residuals"] = [sample.to(self.unet.dtype) for sample in down]
            residuals["mid_block_additional_residual"] = mid.to(self.unet.dtype)
        sample = latents if inpainting is None else torch.cat([latents, inpainting], dim=1)
        attention_kwargs = {}
        if gligen is not None:
            attention_kwargs["gligen"] = {name: value.to(self.unet.dtype) for name, value in gligen.items()}
        return self.unet(
            sample.to(self.unet.dtype),
            timestep,
            encoder_hidden_states=text.to(self.unet.dtype),
            cross_attention_kwargs=attention_kwargs,
            **residuals,
        ).sample.float()

    def denoise(
        self,
        latents: torch.Tensor,
        source_latents: torch.Tensor,
        mask: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None,
        gligen: dict[str, torch.Tensor],
        num_inference_steps: int = 50,
        guidance_scale: float = 12.5,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        blend_noise: torch.Tensor | None = None,
        conditioning_frames: list[torch.Tensor] | None = None,
        controlnet_conditioning_scale: float | list[float] = 1.0,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        gligen_scheduled_sampling_beta: float = 1.0,
        inflation: Inflation | None = None,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        r"""Denoises clips, all frames of a clip together (Ground-A-Video, sections 3.2, 3.3 and 3.5).

        Args:
            latents (`torch.Tensor` of shape (clips, F, C, h, w)): Where denoising starts.
            source_latents (`torch.Tensor` of shape (clips, F, C, h, w)): Clean latents of the source.
            mask (`torch.Tensor` of shape (clips, F, 1, h, w)): 1 keeps the source, 0 is open.
            prompt_embeds (`torch.Tensor` of shape (clips, tokens, channels)): Of the edit prompt.
            negative_prompt_embeds (`torch.Tensor`, *optional*): For the unconditional branch: (clips, tokens,
                channels), or the null embeddings of every step and frame, (S, clips, F, tokens, channels).
            gligen (`dict`): Inputs of the position net, (clips, F, ...) each, as of [`encode_grounding`].
            blend_noise (`torch.Tensor` of shape (S, clips, F, C, h, w), *optional*): The noise on the source at every
                step, in place of drawing it with `generator`.
            conditioning_frames (`list` of `torch.Tensor` of shape (clips, F, 3, H, W), *optional*): In [0, 1], one a
                ControlNet.
            others: As in [`~GroundAVideoPipeline.__call__`].

        Returns:
            `torch.Tensor` of shape (clips, F, C, h, w), float32: the edited latents.
        """
        self._guidance_scale = guidance_scale
        inflation = Inflation() if inflation is None else inflation
        # A copy, since setting the timesteps would leave its mark on the shared scheduler.
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_inference_steps)
        self._num_timesteps = len(scheduler.timesteps)
        num_frames, device, nets = latents.shape[1], latents.device, len(self._controlnets)
        scales = _one_a_net(controlnet_conditioning_scale, nets)
        starts, ends = _one_a_net(control_guidance_start, nets), _one_a_net(control_guidance_end, nets)
        num_grounded_steps = int(gligen_scheduled_sampling_beta * self._num_timesteps)

        inpainting = None
        if self.unet.config.in_channels != latents.shape[2]:
            inpainting = torch.cat([source_latents * mask, mask], dim=2).flatten(0, 1)
        grounding_tokens = {name: value.flatten(0, 1) for name, value in gligen.items()}
        null_grounding_tokens = {name: torch.zeros_like(value) for name, value in grounding_tokens.items()}
        if conditioning_frames is not None:
            conditioning_frames = [c.flatten(0, 1).to(device, self.controlnet.dtype) for c in conditioning_frames]

        with (
            _lora_scaled(self.unet, (self.cross_attention_kwargs or {}).get("scale")),
            inflated(self.unet, self._controlnets, num_frames, inflation),
            self._stage("Denoising", self._num_timesteps) as progress_bar,
        ):
            for i, t in enumerate(scheduler.timesteps):
                if self.interrupt:
                    continue

                # Outside the mask, the source at this noise level.
                noise = self._draw_noise(latents, generator) if blend_noise is None else blend_noise[i]
                noisy_source = scheduler.add_noise(source_latents, noise, t)
                latents = mask * noisy_source + (1 - mask) * latents

                share = i / self._num_timesteps, (i + 1) / self._num_timesteps
                conditioning_scale = [
                    scale if share[0] >= start and share[1] <= end else 0.0
                    for scale, start, end in zip(scales, starts, ends, strict=True)
                ]
                branch: dict[str, Any] = {
                    "inpainting": inpainting,
                    "conditioning_frames": conditioning_frames if any(conditioning_scale) else None,
                    "conditioning_scale": conditioning_scale,
                }
                grounded = i < num_grounded_steps
                flat = latents.flatten(0, 1)
                noise_pred = self.predict_noise(
                    flat, t, prompt_embeds, grounding_tokens if grounded else None, **branch
                )
                if self.do_classifier_free_guidance:
                    noise_pred_uncond = self.predict_noise(
                        flat,
                        t,
                        _unconditional_text(negative_prompt_embeds, i, inflation),
                        null_grounding_tokens if grounded else None,
                        **branch,
                    )
                    noise_pred = noise_pred_uncond + self.guidance_scale * (noise_pred - noise_pred_uncond)
                variance_noise = self._draw_noise(latents, generator).flatten(0, 1) if eta > 0 else None
                stepped = scheduler.step(noise_pred, t, flat, eta=eta, variance_noise=variance_noise).prev_sample
                latents = stepped.unflatten(0, latents.shape[:2])

                if callback_on_step_end is not None:
                    tensors: dict[str, Any] = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    }
                    callback_kwargs = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors |= callback_on_step_end(self, i, t, callback_kwargs)
                    latents, prompt_embeds = tensors["latents"], tensors["prompt_embeds"]
                    negative_prompt_embeds = tensors["negative_prompt_embeds"]
                progress_bar.update()
        return latents

    @staticmethod
    def _draw_noise(latents: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None) -> torch.Tensor:
        return randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=latents.dtype)

    def _null_embeddings(self, inverted: list[InvertedClip], num_videos_per_prompt: int) -> torch.Tensor:
        """What inversion left for the unconditional branch, in the form that `denoise` takes."""
        per_clip = [clip.null_embeddings for clip in inverted if clip.null_embeddings is not None]
        embeddings = torch.stack(per_clip, dim=1).to(self._execution_device)
        embeddings = embeddings.repeat_interleave(num_videos_per_prompt, dim=1)
        return embeddings[0, :, 0] if inverted[0].inversion_method == "negative-prompt" else embeddings

    def _invert_clips(
        self,
        pixels: torch.Tensor,
        size: tuple[int, int],
        groundings: list[VideoGrounding],
        inversion: _InversionSettings,
        checkpoint_dir: str | None = None,
    ) -> list[InvertedClip]:
        """Clip by clip, so that a clip's inversion never depends on what else is in the batch."""
        inverted = []
        for index, (frames, grounding) in enumerate(zip(_resize(pixels, *size), groundings, strict=True)):
            own = replace(inversion, source_prompt=_nth(inversion.source_prompt, index))
            key = self._inversion_key(
                frames, grounding, own.source_prompt, own.num_inference_steps, own.inversion_method
            )
            if own.inversion_method == "null-text":
                key |= {"guidance_scale": self._guidance_scale, "num_null_text_steps": own.num_null_text_steps}
            folder = checkpoint_dir
            if checkpoint_dir is not None and len(pixels) > 1:
                folder = f"{checkpoint_dir}/clip-{index:03d}"
            inverted.append(self._invert_clip(frames, grounding, own, key, StepCheckpoint(folder, key)))
        return inverted

    def _invert_clip(
        self,
        frames: torch.Tensor,
        grounding: VideoGrounding,
        inversion: _InversionSettings,
        key: dict[str, Any],
        checkpoint: StepCheckpoint,
    ) -> InvertedClip:
        """Inverts one clip, (F, 3, height, width) in [-1, 1], with the plain UNet."""
        lora_scale = (self.cross_attention_kwargs or {}).get("scale")
        num_inference_steps, frame_batch_size = inversion.num_inference_steps, inversion.frame_batch_size
        grid = DDIMGrid.from_scheduler(copy.deepcopy(self.scheduler), num_inference_steps)
        latents = self.encode_video(frames[None], frame_batch_size)[0]
        mask = grounding.inversion_mask(len(frames), *latents.shape[-2:]).to(latents.device)
        gligen = self.encode_grounding(grounding, len(frames), "source", lora_scale=lora_scale)
        inpainting = None
        if self.unet.config.in_channels != latents.shape[1]:
            inpainting = torch.cat([latents * mask, mask], dim=1)

        def predict_noise(z: torch.Tensor, t: int, text: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
            which = which.to(z.device)
            tokens = {name: value[which] for name, value in gligen.items()}
            return self.predict_noise(z, t, text, tokens, None if inpainting is None else inpainting[which])

        texts = [inversion.source_prompt or "", ""]
        source_text, empty_text = self._encode_text(texts, lora_scale, self.clip_skip)[0]
        text = source_text if inversion.inversion_method == "negative-prompt" else empty_text
        with _lora_scaled(self.unet, lora_scale), self._stage("DDIM inversion", num_inference_steps) as bar:
            trajectory = ddim_inversion(predict_noise, latents, text, grid, frame_batch_size, checkpoint, bar.update)
        null_embeddings = None
        if inversion.inversion_method == "negative-prompt":
            null_embeddings = source_text.float()[None, None]
        elif inversion.inversion_method == "null-text":
            with (
                # Around the whole, for a backward pass may compute activations again.
                _lora_scaled(self.unet, lora_scale),
                differentiable_in_inputs_only(self.unet, inversion.gradient_checkpointing),
                self._stage("Null-text optimization", num_inference_steps) as bar,
            ):
                null_embeddings = null_text_optimization(
                    predict_noise,
                    trajectory,
                    source_text,
                    empty_text,
                    grid,
                    self._guidance_scale,
                    inversion.num_null_text_steps,
                    batch_size=frame_batch_size,
                    checkpoint=checkpoint,
                    on_step=bar.update,
                )
        return InvertedClip(trajectory, null_embeddings, key)

    def _inversion_key(
        self,
        frames: torch.Tensor,
        grounding: VideoGrounding,
        source_prompt: str | None,
        num_inference_steps: int,
        inversion_method: str,
    ) -> dict[str, Any]:
        """What the inversion of a clip, (F, 3, height, width) in [-1, 1], depends on: never the target of an edit."""
        num_frames, _, height, width = frames.shape
        boxes, present = grounding.frame_boxes(num_frames)
        grid = DDIMGrid.from_scheduler(copy.deepcopy(self.scheduler), num_inference_steps)
        models = {"vae": self.vae, "text_encoder": self.text_encoder, "unet": self.unet}
        key = {
            "video": tensor_hash(frames),
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "inversion_method": inversion_method,
            "source_phrases": grounding.phrases("source"),
            "boxes": [[box.tolist() if there else None for box, there in zip(*f)] for f in zip(boxes, present)],
            "timesteps": grid.timesteps,
            "alphas": tensor_hash(torch.cat([grid.alphas, grid.previous_alphas])),
            "lora_scale": (self.cross_attention_kwargs or {}).get("scale"),
            "clip_skip": self.clip_skip,
        }
        # A pipeline that was given embeddings instead of a text encoder cannot say whose they are.
        key |= {name: model_fingerprint(model) for name, model in models.items() if model is not None}
        if source_prompt is not None and inversion_method != "ddim":
            key["source_prompt"] = source_prompt
        return key


@contextmanager
def _lora_scaled(model: torch.nn.Module, scale: float | None) -> Iterator[None]:
    """The LoRA layers of `model` at `scale`, and afterwards exactly as they were.

    diffusers would divide the scale out again, which leaves rounding errors, and the weight of an adapter lost if the
    scale is 0: the model would be another one than its clips were inverted with.
    """
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "scale_layer") and hasattr(m, "scaling")]
    found = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers if scale is not None else []:
            layer.scale_layer(scale)
        yield
    finally:
        for layer, scaling in zip(layers, found):
            layer.scaling.update(scaling)


def _unconditional_text(negative_prompt_embeds: torch.Tensor | None, step: int, inflation: Inflation) -> torch.Tensor:
    """The text of the unconditional branch: (clips, tokens, channels), or (clips * F, ...) for one a frame."""
    assert negative_prompt_embeds is not None
    if negative_prompt_embeds.ndim == 3:
        return negative_prompt_embeds
    null_embeddings = negative_prompt_embeds[step]
    return modulated_text(null_embeddings) if inflation.modulated_cross_attention else null_embeddings.flatten(0, 1)


def _resize(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Frames (clips, F, 3, H, W) at another size, bicubic with antialiasing; as they are if they have it already."""
    if frames.shape[-2:] == (height, width):
        return frames
    resized = F.interpolate(frames.flatten(0, 1), (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(-1, 1).unflatten(0, frames.shape[:2])


def _as_groundings(grounding: Any) -> list[VideoGrounding]:
    each = grounding if isinstance(grounding, list) else [grounding]
    try:
        return [VideoGrounding.from_dict(one) if isinstance(one, dict) else one for one in each]
    except ValueError as error:
        raise ValueError(f"`grounding`: {error}") from error


def _one_a_net(value: float | list[float], nets: int) -> list[float]:
    return value if isinstance(value, list) else [value] * nets


def _nth(texts: str | list[str] | None, index: int) -> str | None:
    return texts[index] if isinstance(texts, list) else texts
