"""The methods that the benchmark compares: each is data, what it changes in a call of the one pipeline.

So all of them share checkpoint, clip, prompts, noise and code, and differ in nothing but what is named.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from ..attention import Inflation
from ..grounding import GroundedObject, VideoGrounding
from ..inversion import InvertedClip
from ..pipeline import GroundAVideoPipeline, InversionMethod
from ..video import to_uint8
from .suite import BenchmarkClip
from .wrong_groundings import DISTURBANCES, confidences


WHOLE_FRAME = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Inversion:
    """How a method inverts the clip. Methods that invert alike share the work.

    Args:
        method: As `inversion_method` of the pipeline.
        steps: As a multiple of the benchmark's steps.
        num_null_text_steps: Inner steps a timestep, with `"null-text"`.
        grounded: Whether the model sees the groundings; if not, the whole frame is open and nothing is in it.
        opens_everything: Whether the whole frame is open, although the groundings are seen.
    """

    method: InversionMethod = "negative-prompt"
    steps: Fraction = Fraction(1)
    num_null_text_steps: int = 10
    grounded: bool = True
    opens_everything: bool = False


@dataclass(frozen=True, eq=False)
class Method:
    """A way to edit a clip.

    Args:
        name: In files, tables and on the command line.
        description: What differs from `ours`, in a few words.
        inversion: `None`: denoising starts from the noised source (SDEdit).
        steps: Of denoising, as a multiple of the benchmark's steps.
        call: Arguments of the pipeline in place of its defaults and of what the clip offers.
        opens_everything: Whether the edit may change the whole frame: nothing is blended with the source or pasted
            back, and the inpainting channels are empty.
        grounded: Whether the model sees the groundings in the edit; without them the whole frame is open.
        strength: Of SDEdit, in (0, 1]: the share of the steps that is denoised.
        disturbance: Of `DISTURBANCES`, what is wrong with the groundings.
        weighted_gating: Whether each grounding token of the edit is mixed with the empty one by how wrong its box is.
    """

    name: str
    description: str
    inversion: Inversion | None = Inversion()
    steps: Fraction = Fraction(1)
    call: Mapping[str, Any] = field(default_factory=dict)
    opens_everything: bool = False
    grounded: bool = True
    strength: float = 1.0
    disturbance: str | None = None
    weighted_gating: bool = False


@dataclass(frozen=True, eq=False)
class Edit:
    """What a method made of a clip.

    Attributes:
        frames: (F, H, W, 3) uint8.
        seconds: Of each stage: "inversion" (shared by methods that invert alike, and counted for each of them),
            "denoising" (with smoothing and text encoding) and "decoding".
    """

    frames: np.ndarray
    seconds: dict[str, float]


# 20 steps of inversion and 50 of denoising, when the benchmark takes 20.
_PUBLISHED_STEPS = Fraction(5, 2)
_PUBLISHED = {
    "inflation": Inflation.published(),
    "open_all_boxes": True,
    "paste_back": False,
    "relative_flow_threshold": True,
    "backward_flow": None,
}
_NO_FLOW = {"flow": None, "backward_flow": None}
_PER_FRAME = Inflation(self_attention="per-frame", gated_attention="per-frame")

_ALL: tuple[Method, ...] = (
    Method("ours", "the defaults of the pipeline"),
    Method(
        "published",
        "Ground-A-Video as published: empty-prompt inversion, 5 denoising steps for 2 of inversion, relative flow "
        "threshold, all boxes open, `Inflation.published()`, no paste-back",
        inversion=Inversion("ddim"),
        steps=_PUBLISHED_STEPS,
        call=_PUBLISHED,
    ),
    Method(
        "published-null-text",
        "the same with null-text optimisation of 1 inner step, all on the grid of denoising",
        inversion=Inversion("null-text", steps=_PUBLISHED_STEPS, num_null_text_steps=1),
        steps=_PUBLISHED_STEPS,
        call=_PUBLISHED,
    ),
    # Peers. Those that are attention schemes differ in nothing else. Tune-A-Video and ControlVideo inflate their group
    # norms too; Text2Video-Zero runs the image model.
    Method("per-frame-gligen", "GLIGEN frame by frame: nothing is shared", call={"inflation": _PER_FRAME}),
    Method(
        "first-frame",
        "Text2Video-Zero: self-attention to the first frame",
        call={"inflation": Inflation("first-frame", "per-frame")},
    ),
    Method(
        "sparse-causal",
        "Tune-A-Video: self-attention to the first and the previous frame, inflated group norms",
        call={"inflation": Inflation("sparse-causal", "per-frame", group_norm=True, entropy_scaling=False)},
    ),
    Method(
        "fully-cross-frame",
        "ControlVideo: self-attention to all frames, gated attention within each, inflated group norms",
        call={"inflation": Inflation(gated_attention="per-frame", group_norm=True, entropy_scaling=False)},
    ),
    Method(
        "sdedit",
        "SDEdit at strength 0.8: no inversion, no groundings, whole frame open",
        inversion=None,
        grounded=False,
        strength=0.8,
        call=_NO_FLOW,
    ),
    Method(
        "ddim-inversion",
        "empty-prompt DDIM inversion, no groundings, whole frame open, no smoothing",
        inversion=Inversion("ddim", grounded=False),
        grounded=False,
        call=_NO_FLOW,
    ),
    # One part of ours off, or another one in its place.
    Method(
        "published-gating",
        "gated attention to the grounding tokens of all frames, as published",
        call={"inflation": Inflation(gated_attention="cross-frame")},
    ),
    Method(
        "no-cross-frame-gating",
        "gated attention within each frame",
        call={"inflation": Inflation(gated_attention="per-frame")},
    ),
    Method("inflated-norm", "group norms over all frames", call={"inflation": Inflation(group_norm=True)}),
    Method(
        "no-entropy-scaling",
        "attention to all frames no sharper than to one",
        call={"inflation": Inflation(entropy_scaling=False)},
    ),
    Method("published-inflation", "`Inflation.published()`", call={"inflation": Inflation.published()}),
    Method("per-frame-self-attention", "self-attention within each frame", call={"inflation": Inflation("per-frame")}),
    Method("no-smoothing", "inverted latents as they are", call=_NO_FLOW),
    Method("smoothing-0.1", "flow threshold of 0.1 latent cells", call={"flow_threshold": 0.1}),
    Method("smoothing-0.5", "flow threshold of 0.5 latent cells", call={"flow_threshold": 0.5}),
    Method(
        "smoothing-relative",
        "the published relative flow threshold",
        call={"relative_flow_threshold": True, "backward_flow": None},
    ),
    Method("inversion-ddim", "empty-prompt DDIM inversion, empty negative prompt", inversion=Inversion("ddim")),
    Method("inversion-null-text", "null-text optimisation, 10 inner steps", inversion=Inversion("null-text")),
    Method(
        "null-text-unmodulated",
        "the same, cross-attention of the unconditional branch not modulated",
        inversion=Inversion("null-text"),
        call={"inflation": Inflation(modulated_cross_attention=False)},
    ),
    Method("inversion-all-open", "no inpainting mask in the inversion", inversion=Inversion(opens_everything=True)),
    Method("no-inpainting", "no inpainting mask, blending and paste-back in the edit", opens_everything=True),
    Method("no-paste-back", "decoded pixels everywhere", call={"paste_back": False}),
    Method("all-boxes-open", "kept objects open too", call={"open_all_boxes": True}),
    Method("no-controlnet", "no ControlNet", call={"conditioning_frames": None}),
    Method("gate-0.3", "GLIGEN in the first 30 % of the steps", call={"gligen_scheduled_sampling_beta": 0.3}),
    Method("gate-0.5", "GLIGEN in the first half of the steps", call={"gligen_scheduled_sampling_beta": 0.5}),
    Method(
        "all-off",
        "image model, empty-prompt inversion, no smoothing, ControlNet, inpainting and paste-back",
        inversion=Inversion("ddim"),
        opens_everything=True,
        call={"inflation": _PER_FRAME, "conditioning_frames": None, **_NO_FLOW},
    ),
    *(Method(f"grounding-{name}", f"wrong groundings: {name}", disturbance=name) for name in DISTURBANCES),
    *(
        Method(
            f"grounding-{name}-weighted",
            f"wrong groundings: {name}; every token weighted by the IoU of its box with the exact one",
            disturbance=name,
            weighted_gating=True,
        )
        for name in ("shifted-0.15", "jittered")
    ),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}

# What `--methods` takes beside the names.
METHOD_SETS: Mapping[str, tuple[str, ...]] = {
    # So many that six clips take minutes.
    "default": (
        *("ours", "published", "per-frame-gligen", "sparse-causal", "fully-cross-frame", "sdedit"),
        "ddim-inversion",
    ),
    "peers": (
        *("ours", "published", "per-frame-gligen", "first-frame", "sparse-causal", "fully-cross-frame", "sdedit"),
        "ddim-inversion",
    ),
    "attention": (
        *("ours", "published-inflation", "published-gating", "no-cross-frame-gating", "inflated-norm"),
        "no-entropy-scaling",
    ),
    "ablations": (
        *("ours", "per-frame-self-attention", "no-smoothing", "smoothing-0.1", "smoothing-0.5", "smoothing-relative"),
        *("inversion-ddim", "inversion-all-open", "no-inpainting", "no-paste-back", "all-boxes-open"),
        *("no-controlnet", "gate-0.3", "gate-0.5", "all-off"),
    ),
    # Minutes a clip.
    "null-text": (
        *("ours", "inversion-ddim", "inversion-null-text", "null-text-unmodulated", "published"),
        "published-null-text",
    ),
    "groundings": ("ours", *(method.name for method in _ALL if method.disturbance is not None)),
    "all": tuple(METHODS),
}


def select_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names, or of the sets of these names, each once, in the order in which they are asked for.

    Raises:
        `ValueError`: If there is no such method or set.
    """
    unknown = [name for name in names if name not in METHODS and name not in METHOD_SETS]
    if unknown or not names:
        raise ValueError(
            f"There is no method called {', '.join(unknown) or 'nothing'}; the methods are {', '.join(METHODS)}, and "
            f"the sets of them {', '.join(METHOD_SETS)}."
        )
    chosen = [one for name in names for one in METHOD_SETS.get(name, (name,))]
    return [METHODS[name] for name in dict.fromkeys(chosen)]


@torch.no_grad()
def decoded(pipe: GroundAVideoPipeline, latents: torch.Tensor) -> np.ndarray:
    """(F, H, W, 3) uint8 of the latents of one clip, (1, F, C, h, w)."""
    pixels = pipe.decode_latents(latents).transpose(1, 2)
    return to_uint8(pipe.video_processor.postprocess_video(pixels, "np")[0])


@torch.no_grad()
def autoencoded(pipe: GroundAVideoPipeline, frames: np.ndarray) -> np.ndarray:
    """What the autoencoder makes of a clip, (F, H, W, 3) uint8 both."""
    return decoded(pipe, pipe.encode_video(pipe.preprocess_video(frames)))


class ClipEditor:
    """Edits one clip with any number of methods; what several of them need is done once.

    Args:
        pipe: The pipeline, of any checkpoint that knows sprites.
        clip: The clip.
        steps: Of inversion and denoising.
        guidance_scale: Of classifier-free guidance.
    """

    def __init__(self, pipe: GroundAVideoPipeline, clip: BenchmarkClip, steps: int, guidance_scale: float) -> None:
        self.pipe = pipe
        self.clip = clip
        self.steps = steps
        self.guidance_scale = guidance_scale
        self._inversions: dict[tuple[Inversion, str | None], tuple[InvertedClip, float]] = {}

    def edit(self, method: Method) -> Edit | None:
        """What `method` makes of the clip; `None` if it needs something that the clip does not have."""
        grounding = self._grounding(method.disturbance)
        if grounding is None:
            return None
        num_steps = _steps(self.steps, method.steps)
        arguments: dict[str, Any] = {
            **self.clip.arguments,
            "grounding": self._edit_grounding(method, grounding),
            "num_inference_steps": num_steps,
            "guidance_scale": self.guidance_scale,
            # Of the clip alone, so that all methods start from the same noise.
            "generator": torch.Generator().manual_seed(int(np.random.default_rng(self._seed).integers(2**31))),
            "output_type": "np",
            **method.call,
        }
        seconds: dict[str, float] = {}
        on_step: Callable[[int], dict[str, torch.Tensor]] | None = None
        if not method.grounded:
            arguments["gligen_scheduled_sampling_beta"] = 0.0
        if method.inversion is None:
            arguments["latents"], on_step = self._noised_source(num_steps, method.strength, arguments["generator"])
        else:
            inverted, seconds["inversion"] = self._inverted(method.inversion, method.disturbance, grounding)
            if self._fits(method):
                arguments["inverted"] = inverted
            else:
                arguments["latents"] = self._smoothed(inverted, arguments)
                # What the pipeline does by itself with an inversion that fits.
                if method.inversion.method == "negative-prompt":
                    arguments["negative_prompt"] = self.clip.source_prompt

        denoised = 0.0

        def after_step(pipe: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
            nonlocal denoised
            denoised = time.perf_counter()
            return {} if on_step is None else on_step(step)

        weights = confidences(self.clip, grounding) if method.weighted_gating else None
        start = time.perf_counter()
        with _weighted_gating(self.pipe.unet.position_net, weights):
            (frames, *_), _ = self.pipe(**arguments, callback_on_step_end=after_step, return_dict=False)
        seconds |= {"denoising": denoised - start, "decoding": time.perf_counter() - denoised}
        return Edit(to_uint8(frames), seconds)

    def ceiling(self) -> np.ndarray:
        """The perfect edit through the autoencoder, (F, H, W, 3) uint8: what a method is at best where it edits."""
        return autoencoded(self.pipe, self.clip.perfect.frames)

    @property
    def _seed(self) -> list[int]:
        return [self.clip.seed, self.clip.index, self.clip.scene.num_frames]

    def _grounding(self, disturbance: str | None) -> VideoGrounding | None:
        if disturbance is None:
            return self.clip.grounding
        return DISTURBANCES[disturbance](self.clip, np.random.default_rng(self._seed))

    def _edit_grounding(self, method: Method, grounding: VideoGrounding) -> VideoGrounding:
        if not method.grounded:
            return _whole_frame(self.clip.prompt)
        if not method.opens_everything:
            return grounding
        # Something to be removed opens its box, and nothing is asked for in it.
        everything = GroundedObject("everything", None, box=WHOLE_FRAME)
        return VideoGrounding([*(_without_masks(one) for one in grounding.objects), everything])

    def _inverted(
        self, inversion: Inversion, disturbance: str | None, grounding: VideoGrounding
    ) -> tuple[InvertedClip, float]:
        key = inversion, disturbance
        if key not in self._inversions:
            if not inversion.grounded:
                grounding = _whole_frame(self.clip.prompt)
            elif inversion.opens_everything:
                # Something new opens its box, and there is nothing in it.
                grounding = VideoGrounding([*grounding.objects, *_whole_frame(self.clip.prompt).objects])
            start = time.perf_counter()
            inverted = self.pipe.invert(
                video=self.clip.source.frames,
                grounding=grounding,
                source_prompt=self.clip.source_prompt,
                num_inference_steps=_steps(self.steps, inversion.steps),
                inversion_method=inversion.method,
                guidance_scale=self.guidance_scale,
                num_null_text_steps=inversion.num_null_text_steps,
            )
            assert isinstance(inverted, InvertedClip)
            self._inversions[key] = inverted, time.perf_counter() - start
        return self._inversions[key]

    def _fits(self, method: Method) -> bool:
        """Whether the pipeline takes the inversion of the method as one of the edit: same groundings and timesteps."""
        inversion = method.inversion
        return (
            inversion is not None
            and inversion.steps == method.steps
            and not inversion.opens_everything
            and not method.opens_everything
        )

    def _smoothed(self, inverted: InvertedClip, arguments: dict[str, Any]) -> torch.Tensor:
        """The inverted latents as the pipeline would smooth them, and `arguments` without what that takes."""
        flow, backward_flow = arguments.pop("flow"), arguments.pop("backward_flow")
        return self.pipe.prepare_latents(
            [inverted],
            None if flow is None else [torch.from_numpy(flow)],
            None if backward_flow is None else [torch.from_numpy(backward_flow)],
            arguments.pop("flow_threshold", None),
            arguments.pop("relative_flow_threshold", False),
        )

    def _noised_source(
        self, num_steps: int, strength: float, generator: torch.Generator
    ) -> tuple[torch.Tensor, Callable[[int], dict[str, torch.Tensor]]]:
        """Where SDEdit starts, and what keeps the source there until the share `strength` of the steps is left.

        The pipeline denoises from the first timestep on, so the first steps are taken and thrown away.
        """
        scheduler = copy.deepcopy(self.pipe.scheduler)
        scheduler.set_timesteps(num_steps)
        with torch.no_grad():
            source = self.pipe.encode_video(self.pipe.preprocess_video(self.clip.source.frames))
        noise = randn_tensor(source.shape, generator=generator)
        skipped = num_steps - round(strength * num_steps)

        def noised(step: int) -> torch.Tensor:
            return scheduler.add_noise(source, noise, scheduler.timesteps[step])

        return noised(0), lambda step: {"latents": noised(step + 1)} if step < skipped else {}


@contextmanager
def _weighted_gating(position_net: torch.nn.Module, weights: np.ndarray | None) -> Iterator[None]:
    """Mixes the grounding tokens with the empty one: `weights`, (F, N) in [0, 1], is the share of each token."""
    if weights is None:
        yield
        return

    def weigh(
        module: torch.nn.Module, args: tuple[()], kwargs: dict[str, torch.Tensor]
    ) -> tuple[tuple[()], dict[str, torch.Tensor]]:
        masks = kwargs["masks"].clone()
        masks[:, : weights.shape[1]] *= torch.from_numpy(weights).to(masks)
        return args, {**kwargs, "masks": masks}

    hook = position_net.register_forward_pre_hook(weigh, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _steps(steps: int, multiple: Fraction) -> int:
    return max(1, round(steps * multiple))


def _whole_frame(phrase: str) -> VideoGrounding:
    """Opens the whole frame; in an inversion the model sees no grounding of it."""
    return VideoGrounding([GroundedObject(None, phrase, box=WHOLE_FRAME)])


def _without_masks(grounded: GroundedObject) -> GroundedObject:
    """The object by its boxes alone: masks of kept objects would cut them out of what is open."""
    if grounded.masks is None:
        return grounded
    return GroundedObject(grounded.source_phrase, grounded.target_phrase, boxes=grounded.boxes)
