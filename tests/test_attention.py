import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_groundavideo import Inflation, inflated
from diffusers_groundavideo.attention import (
    CrossFrameAttnProcessor,
    FirstFrameAttnProcessor,
    ModulatedCrossAttnProcessor,
    OwnGroundingAttnProcessor,
    PerFrameAttnProcessor,
    SparseCausalAttnProcessor,
    modulated_text,
)


NUM_CLIPS, NUM_FRAMES, TOKENS, CHANNELS, HEADS = 2, 4, 5, 24, 3
# All that an edit can install.
EVERYTHING = Inflation(group_norm=True)

# Which frames the queries of frame i look at.
SEEN = {
    CrossFrameAttnProcessor: lambda i: [0, 1, 2, 3],
    FirstFrameAttnProcessor: lambda i: [0],
    SparseCausalAttnProcessor: lambda i: [0, i - 1] if i > 1 else [0],
    PerFrameAttnProcessor: lambda i: [i],
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def attn() -> Attention:
    """Self-attention as in a transformer block, without a part that is 1 or 0 by default."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Attention(query_dim=CHANNELS, heads=HEADS, dim_head=8, rescale_output_factor=1.5).eval()


@pytest.fixture
def cross_attn() -> Attention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Attention(query_dim=CHANNELS, cross_attention_dim=16, heads=HEADS, dim_head=8).eval()


def plain_attention(
    attn: Attention, queries: torch.Tensor, keys: torch.Tensor, sharpness: float = 1.0
) -> torch.Tensor:
    """Softmax attention written out: (queries, channels) over (keys, channels)."""
    heads = []
    for head in range(attn.heads):
        part = slice(head * 8, (head + 1) * 8)
        q, k, v = (layer(x)[:, part] for layer, x in ((attn.to_q, queries), (attn.to_k, keys), (attn.to_v, keys)))
        heads.append((sharpness * q @ k.T / 8**0.5).softmax(dim=-1) @ v)
    return attn.to_out[0](torch.cat(heads, dim=-1)) / attn.rescale_output_factor


@pytest.mark.parametrize("entropy_scaling", [False, True])
@pytest.mark.parametrize("processor_class", SEEN, ids=lambda c: c.__name__)
def test_self_attention_is_that_over_the_frames_in_a_row(
    attn: Attention, processor_class: type[CrossFrameAttnProcessor], entropy_scaling: bool
) -> None:
    hidden_states = random(NUM_CLIPS * NUM_FRAMES, TOKENS, CHANNELS)
    attn.set_processor(processor_class(NUM_FRAMES, entropy_scaling))
    result = attn(hidden_states)
    for clip, clip_result in zip(hidden_states.split(NUM_FRAMES), result.split(NUM_FRAMES)):
        for i in range(NUM_FRAMES):
            keys = torch.cat([clip[j] for j in SEEN[processor_class](i)])
            sharpness = (math.log(len(keys)) / math.log(TOKENS)) ** 0.5 if entropy_scaling else 1.0
            expected = plain_attention(attn, clip[i], keys, sharpness)
            torch.testing.assert_close(clip_result[i], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("entropy_scaling", [False, True])
def test_own_grounding_is_all_latents_and_the_frames_own_tokens_for_those_of_all(
    attn: Attention, entropy_scaling: bool
) -> None:
    clip = random(NUM_FRAMES, TOKENS + 3, CHANNELS)
    attn.set_processor(OwnGroundingAttnProcessor(NUM_FRAMES, entropy_scaling, num_grounding_tokens=3))
    result = attn(clip)
    latents = clip[:, :TOKENS].flatten(0, 1)
    for i in range(NUM_FRAMES):
        keys = torch.cat([latents, *[clip[i, TOKENS:]] * NUM_FRAMES])
        sharpness = (math.log(len(keys)) / math.log(TOKENS + 3)) ** 0.5 if entropy_scaling else 1.0
        torch.testing.assert_close(result[i], plain_attention(attn, clip[i], keys, sharpness), atol=1e-6, rtol=1e-5)


def test_scaling_keeps_the_share_of_the_entropy_that_attention_has() -> None:
    # For normally distributed logits, for which it is exact in the limit of many keys.
    queries, tokens = 64, 1024
    logits = 1.5 * random(queries, NUM_FRAMES * tokens)
    shares = []
    for frames, scaling in ((1, False), (NUM_FRAMES, False), (NUM_FRAMES, True)):
        processor = CrossFrameAttnProcessor(NUM_FRAMES, scaling)
        sharpness = processor.sharpness(random(tokens, 1), random(frames * tokens, 1))
        weights = (sharpness * logits[:, : frames * tokens]).softmax(1)
        shares.append(-(weights * weights.log()).sum(1).mean() / math.log(frames * tokens))
    one, plain, scaled = shares
    assert plain > one + 0.02
    torch.testing.assert_close(scaled, one, atol=4e-3, rtol=0)


def test_frames_of_a_single_token_are_not_divided_by_its_logarithm(attn: Attention) -> None:
    attn.set_processor(CrossFrameAttnProcessor(NUM_FRAMES, entropy_scaling=True))
    assert attn(random(NUM_FRAMES, 1, CHANNELS)).isfinite().all()


def test_own_grounding_is_cross_frame_where_all_frames_have_the_same_tokens(attn: Attention) -> None:
    latents, tokens = random(NUM_FRAMES, TOKENS, CHANNELS), random(1, 30, CHANNELS, seed=1)
    still = torch.cat([latents, tokens.expand(NUM_FRAMES, -1, -1)], dim=1)
    results = []
    for processor_class in (OwnGroundingAttnProcessor, CrossFrameAttnProcessor):
        attn.set_processor(processor_class(NUM_FRAMES))
        results.append(attn(still))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


def test_per_frame_attention_is_that_of_the_image_model(attn: Attention) -> None:
    hidden_states = random(NUM_CLIPS * NUM_FRAMES, TOKENS, CHANNELS)
    attn.set_processor(AttnProcessor2_0())
    expected = attn(hidden_states)
    attn.set_processor(PerFrameAttnProcessor(NUM_FRAMES))
    torch.testing.assert_close(attn(hidden_states), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("processor_class", SEEN, ids=lambda c: c.__name__)
def test_a_clip_of_one_frame_is_an_image(attn: Attention, processor_class: type[CrossFrameAttnProcessor]) -> None:
    hidden_states = random(3, TOKENS, CHANNELS)
    attn.set_processor(AttnProcessor2_0())
    expected = attn(hidden_states)
    attn.set_processor(processor_class(1))
    torch.testing.assert_close(attn(hidden_states), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("processor_class", SEEN, ids=lambda c: c.__name__)
def test_self_attention_never_crosses_clips(attn: Attention, processor_class: type[CrossFrameAttnProcessor]) -> None:
    hidden_states = random(NUM_CLIPS * NUM_FRAMES, TOKENS, CHANNELS)
    attn.set_processor(processor_class(NUM_FRAMES))
    before = attn(hidden_states)
    hidden_states[NUM_FRAMES:] *= -3
    after = attn(hidden_states)
    assert torch.equal(before[:NUM_FRAMES], after[:NUM_FRAMES])
    assert not torch.allclose(before[NUM_FRAMES:], after[NUM_FRAMES:])


def test_one_text_a_clip_is_ordinary_cross_attention(cross_attn: Attention) -> None:
    hidden_states, text = random(NUM_CLIPS * NUM_FRAMES, TOKENS, CHANNELS), random(NUM_CLIPS, 7, 16, seed=1)
    cross_attn.set_processor(AttnProcessor2_0())
    expected = cross_attn(hidden_states, text.repeat_interleave(NUM_FRAMES, dim=0))
    cross_attn.set_processor(ModulatedCrossAttnProcessor())
    torch.testing.assert_close(cross_attn(hidden_states, text), expected, atol=1e-6, rtol=1e-5)


def test_one_text_a_frame_is_ordinary_cross_attention(cross_attn: Attention) -> None:
    hidden_states = random(NUM_CLIPS * NUM_FRAMES, TOKENS, CHANNELS)
    text = random(NUM_CLIPS * NUM_FRAMES, 7, 16, seed=1)
    cross_attn.set_processor(AttnProcessor2_0())
    expected = cross_attn(hidden_states, text)
    cross_attn.set_processor(ModulatedCrossAttnProcessor())
    torch.testing.assert_close(cross_attn(hidden_states, text), expected, atol=1e-6, rtol=1e-5)


def test_modulated_cross_attention_is_that_over_the_null_embeddings_of_all_frames(cross_attn: Attention) -> None:
    hidden_states = random(NUM_CLIPS * NUM_FRAMES, TOKENS, CHANNELS)
    null_embeddings = random(NUM_CLIPS, NUM_FRAMES, 7, 16, seed=1)
    cross_attn.set_processor(ModulatedCrossAttnProcessor())
    result = cross_attn(hidden_states, modulated_text(null_embeddings)).unflatten(0, (NUM_CLIPS, NUM_FRAMES))
    for clip in range(NUM_CLIPS):
        keys = torch.cat(list(null_embeddings[clip]))
        for frame in range(NUM_FRAMES):
            queries = hidden_states.unflatten(0, (NUM_CLIPS, NUM_FRAMES))[clip, frame]
            expected = plain_attention(cross_attn, queries, keys)
            torch.testing.assert_close(result[clip, frame], expected, atol=1e-6, rtol=1e-5)


def test_equal_null_embeddings_give_ordinary_cross_attention(cross_attn: Attention) -> None:
    hidden_states, null_embedding = random(NUM_CLIPS * NUM_FRAMES, TOKENS, CHANNELS), random(1, 1, 7, 16, seed=1)
    cross_attn.set_processor(AttnProcessor2_0())
    expected = cross_attn(hidden_states, null_embedding[0].expand(len(hidden_states), -1, -1))
    cross_attn.set_processor(ModulatedCrossAttnProcessor())
    text = modulated_text(null_embedding.expand(NUM_CLIPS, NUM_FRAMES, -1, -1))
    torch.testing.assert_close(cross_attn(hidden_states, text), expected, atol=1e-6, rtol=1e-5)


def test_modulated_cross_attention_never_crosses_clips(cross_attn: Attention) -> None:
    hidden_states = random(NUM_CLIPS * NUM_FRAMES, TOKENS, CHANNELS)
    null_embeddings = random(NUM_CLIPS, NUM_FRAMES, 7, 16, seed=1)
    cross_attn.set_processor(ModulatedCrossAttnProcessor())
    before = cross_attn(hidden_states, modulated_text(null_embeddings))
    hidden_states[NUM_FRAMES:] *= -3
    null_embeddings[1] *= -3
    after = cross_attn(hidden_states, modulated_text(null_embeddings))
    assert torch.equal(before[:NUM_FRAMES], after[:NUM_FRAMES])
    assert not torch.allclose(before[NUM_FRAMES:], after[NUM_FRAMES:])


class LargestTensor(TorchDispatchMode):
    """Records the most elements that the result of any operation holds in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("processor_class", [CrossFrameAttnProcessor, FirstFrameAttnProcessor, PerFrameAttnProcessor])
def test_self_attention_repeats_no_tensor(attn: Attention, processor_class: type[CrossFrameAttnProcessor]) -> None:
    num_frames = 16
    hidden_states = random(num_frames, TOKENS, CHANNELS)
    attn.set_processor(processor_class(num_frames))
    with LargestTensor() as largest:
        attn(hidden_states)
    # Every operation is over the clip once; K and V repeated for each frame would be 16 times that.
    assert largest.elements == hidden_states.numel()


@contextmanager
def recorded_inputs(model: nn.Module, layers: str) -> Iterator[dict[str, list[tuple[int, ...]]]]:
    """The shapes that the layers called `layers` (the end of their name) get, by the name of the layer."""
    shapes: dict[str, list[tuple[int, ...]]] = {}

    def record(name: str) -> Any:
        return lambda module, args: shapes.setdefault(name, []).append(tuple(args[0].shape))

    hooks = [
        module.register_forward_pre_hook(record(name))
        for name, module in model.named_modules()
        if name.endswith(layers)
    ]
    yield shapes
    for hook in hooks:
        hook.remove()


def gligen_inputs(batch: int, seed: int = 3) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor([[[0.1, 0.2, 0.5, 0.6], [0.5, 0.5, 1.0, 1.0]]]).repeat(batch, 1, 1),
        "masks": torch.ones(batch, 2),
        "positive_embeddings": random(batch, 2, 32, seed=seed),
    }


def run(unet: UNet2DConditionModel, sample: torch.Tensor, text: torch.Tensor, **arguments: Any) -> torch.Tensor:
    gligen = gligen_inputs(len(sample))
    return unet(sample, 500, text, cross_attention_kwargs={"gligen": gligen}, **arguments).sample


def run_controlnet(controlnet: ControlNetModel, sample: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
    depth = random(len(sample), 3, 64, 64, seed=5)
    down, mid = controlnet(sample, 500, text, controlnet_cond=depth, return_dict=False)
    return [*down, mid]


@pytest.mark.parametrize("projection", ["attn2.to_k", "attn2.to_v"])
def test_keys_and_values_of_a_text_are_computed_once_a_clip(components: dict[str, Any], projection: str) -> None:
    unet, controlnet = components["unet"], components["controlnet"]
    sample, text = random(NUM_CLIPS * NUM_FRAMES, 9, 8, 8), random(NUM_CLIPS, 77, 32, seed=1)
    for model, call in (
        (unet, lambda: run(unet, sample, text)),
        (controlnet, lambda: run_controlnet(controlnet, sample[:, :4], text)),
    ):
        with inflated(unet, [controlnet], NUM_FRAMES, EVERYTHING), recorded_inputs(model, projection) as shapes:
            call()
        assert shapes and all(calls == [(NUM_CLIPS, 77, 32)] for calls in shapes.values())


@pytest.mark.parametrize("projection", ["attn1.to_k", "attn1.to_v", "fuser.attn.to_k", "fuser.attn.to_v"])
def test_keys_and_values_of_the_frames_are_computed_once(components: dict[str, Any], projection: str) -> None:
    unet = components["unet"]
    sample, text = random(NUM_CLIPS * NUM_FRAMES, 9, 8, 8), random(NUM_CLIPS, 77, 32, seed=1)
    # Latents of 4 x 4 in 64 channels, and beside them the two grounding tokens.
    tokens = 16 + 2 * projection.startswith("fuser")
    with inflated(unet, [], NUM_FRAMES, EVERYTHING), recorded_inputs(unet, projection) as shapes:
        run(unet, sample, text)
    assert shapes and all(calls == [(NUM_CLIPS, NUM_FRAMES, tokens, 64)] for calls in shapes.values())


@pytest.mark.parametrize("name", ["mid_block.resnets.0.norm1", "up_blocks.1.resnets.1.norm2", "conv_norm_out"])
def test_group_norm_takes_its_statistics_over_all_frames_of_a_clip(components: dict[str, Any], name: str) -> None:
    unet = components["unet"]
    norm = unet.get_submodule(name)
    norm.weight.copy_(random(norm.num_channels, seed=1))
    norm.bias.copy_(random(norm.num_channels, seed=2))
    frames = random(NUM_CLIPS * NUM_FRAMES, norm.num_channels, 4, 6) * torch.arange(1.0, 9.0)[:, None, None, None]
    with inflated(unet, [], NUM_FRAMES, EVERYTHING):
        result = norm(frames)
    clips = frames.unflatten(0, (NUM_CLIPS, NUM_FRAMES)).transpose(1, 2)
    expected = F.group_norm(clips, norm.num_groups, norm.weight, norm.bias, norm.eps).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=1e-6)
    assert (result - norm(frames)).abs().max() > 0.5


def test_the_norm_at_the_entrance_of_a_transformer_stays_per_frame(components: dict[str, Any]) -> None:
    norm = components["unet"].mid_block.attentions[0].norm
    frames = random(NUM_FRAMES, norm.num_channels, 4, 4) * torch.arange(1.0, 5.0)[:, None, None, None]
    expected = norm(frames)
    with inflated(components["unet"], [], NUM_FRAMES, EVERYTHING):
        assert torch.equal(norm(frames), expected)


def test_no_clip_of_a_batch_sees_another(components: dict[str, Any]) -> None:
    unet, controlnet = components["unet"], components["controlnet"]
    sample, text = random(NUM_CLIPS * NUM_FRAMES, 9, 8, 8), random(NUM_CLIPS, 77, 32, seed=1)
    changed_sample, changed_text = sample.clone(), text.clone()
    changed_sample[NUM_FRAMES:] *= -3
    changed_text[1] *= -3
    with inflated(unet, [controlnet], NUM_FRAMES, EVERYTHING):
        before = [run(unet, sample, text), *run_controlnet(controlnet, sample[:, :4], text)]
        after = [run(unet, changed_sample, changed_text)]
        after += run_controlnet(controlnet, changed_sample[:, :4], changed_text)
    for one, other in zip(before, after):
        torch.testing.assert_close(one[:NUM_FRAMES], other[:NUM_FRAMES], atol=1e-6, rtol=0)
        assert not torch.allclose(one[NUM_FRAMES:], other[NUM_FRAMES:])


def test_every_frame_of_a_clip_sees_the_others(components: dict[str, Any]) -> None:
    unet, controlnet = components["unet"], components["controlnet"]
    sample, text = random(NUM_FRAMES, 9, 8, 8), random(1, 77, 32, seed=1)
    changed = sample.clone()
    changed[2] *= -1
    for inflation in (Inflation(), Inflation("per-frame", "per-frame", group_norm=True)):
        with inflated(unet, [controlnet], NUM_FRAMES, inflation):
            differences = [run(unet, changed, text) - run(unet, sample, text)]
            differences.append(
                run_controlnet(controlnet, changed[:, :4], text)[-1]
                - run_controlnet(controlnet, sample[:, :4], text)[-1]
            )
        for difference in differences:
            assert (difference.abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_without_inflation_it_is_the_image_model(components: dict[str, Any]) -> None:
    unet, controlnet = components["unet"], components["controlnet"]
    sample, text = random(NUM_CLIPS * NUM_FRAMES, 9, 8, 8), random(NUM_CLIPS, 77, 32, seed=1)
    repeated = text.repeat_interleave(NUM_FRAMES, dim=0)
    expected = [run(unet, sample, repeated), *run_controlnet(controlnet, sample[:, :4], repeated)]
    inflation = Inflation("per-frame", "per-frame", modulated_cross_attention=False)
    with inflated(unet, [controlnet], NUM_FRAMES, inflation):
        result = [run(unet, sample, text), *run_controlnet(controlnet, sample[:, :4], text)]
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("field", "scheme"),
    [
        *(("self_attention", scheme) for scheme in ("first-frame", "sparse-causal", "per-frame")),
        *(("gated_attention", scheme) for scheme in ("cross-frame", "first-frame", "sparse-causal", "per-frame")),
    ],
)
def test_each_scheme_is_its_own(components: dict[str, Any], field: str, scheme: str) -> None:
    unet = components["unet"]
    sample, text = random(NUM_FRAMES, 9, 8, 8), random(1, 77, 32, seed=1)
    fields: dict[str, Any] = {field: scheme}
    results = []
    for inflation in (Inflation(), Inflation(**fields)):
        with inflated(unet, [], NUM_FRAMES, inflation):
            results.append(run(unet, sample, text))
    assert (results[0] - results[1]).abs().max() > 1e-3


def test_the_published_inflation_shares_all_there_is() -> None:
    expected = Inflation("cross-frame", "cross-frame", True, group_norm=True, entropy_scaling=False)
    assert Inflation.published() == expected


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="`self_attention` has to be one of .*'cross-frame'.* but is 'all'"):
        Inflation(self_attention="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`gated_attention` has to be one of .* but is None"):
        Inflation(gated_attention=None)  # type: ignore[arg-type]


def all_processors(*models: nn.Module) -> list[object]:
    return [module.processor for model in models for module in model.modules() if isinstance(module, Attention)]


def all_hooks(*models: nn.Module) -> list[tuple[list[Any], list[Any]]]:
    return [
        (list(module._forward_pre_hooks.values()), list(module._forward_hooks.values()))
        for model in models
        for module in model.modules()
    ]


@pytest.fixture(params=["default", "sliced", "own", "hooked"])
def models(request: pytest.FixtureRequest, components: dict[str, Any]) -> list[nn.Module]:
    """A UNet and a ControlNet as somebody may hand them over."""
    models = [components["unet"], components["controlnet"]]
    for model in models:
        if request.param == "sliced":
            model.set_attention_slice("max")
        if request.param == "own":
            for attn in (module for module in model.modules() if isinstance(module, Attention)):
                attn.set_processor(AttnProcessor())
        if request.param == "hooked":
            for norm in (module for module in model.modules() if isinstance(module, nn.GroupNorm)):
                norm.register_forward_hook(lambda module, args, output: output * 1.25)
                norm.register_forward_pre_hook(lambda module, args: (args[0] + 0.5,))
    if request.param == "sliced":
        assert any(isinstance(processor, SlicedAttnProcessor) for processor in all_processors(*models))
    return models


@pytest.mark.parametrize("leaves_by", ["end", "exception", "exception of the model", "two in a row"])
def test_everything_is_as_found_afterwards(models: list[Any], leaves_by: str) -> None:
    unet, controlnet = models
    sample, text = random(NUM_FRAMES, 9, 8, 8), random(NUM_FRAMES, 77, 32, seed=1)
    processors, hooks = all_processors(*models), all_hooks(*models)
    weights = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    results = [run(unet, sample, text), *run_controlnet(controlnet, sample[:, :4], text)]

    if leaves_by == "exception":
        with pytest.raises(KeyError), inflated(unet, [controlnet], NUM_FRAMES, EVERYTHING):
            run(unet, sample, text[:1])
            raise KeyError
    elif leaves_by == "exception of the model":
        with pytest.raises(RuntimeError), inflated(unet, [controlnet], NUM_FRAMES, EVERYTHING):
            run(unet, sample[:, :4], text[:1])
    else:
        for num_frames in (NUM_FRAMES, 2)[: 1 + (leaves_by == "two in a row")]:
            with inflated(unet, [controlnet], num_frames, EVERYTHING):
                run(unet, sample, text[: NUM_FRAMES // num_frames])

    found = all_processors(*models)
    assert len(found) == len(processors) and all(a is b for a, b in zip(found, processors))
    assert all_hooks(*models) == hooks
    for model, values in zip(models, weights):
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    after = [run(unet, sample, text), *run_controlnet(controlnet, sample[:, :4], text)]
    assert all(torch.equal(a, b) for a, b in zip(after, results, strict=True))


def test_every_attention_and_both_models_are_inflated(components: dict[str, Any]) -> None:
    unet, controlnet = components["unet"], components["controlnet"]
    expected = {
        "attn1": CrossFrameAttnProcessor,
        "attn2": ModulatedCrossAttnProcessor,
        "attn": OwnGroundingAttnProcessor,
    }
    with inflated(unet, [controlnet], NUM_FRAMES, EVERYTHING):
        for model, kinds in ((unet, {"attn1", "attn2", "attn"}), (controlnet, {"attn1", "attn2"})):
            found = {
                name.rpartition(".")[2]: type(module.processor)
                for name, module in model.named_modules()
                if isinstance(module, Attention)
            }
            assert found == {kind: expected[kind] for kind in kinds}


def test_a_controlnet_that_serves_twice_is_restored(components: dict[str, Any]) -> None:
    unet, controlnet = components["unet"], components["controlnet"]
    processors, hooks = all_processors(controlnet), all_hooks(controlnet)
    sample, text = random(NUM_CLIPS * NUM_FRAMES, 4, 8, 8), random(NUM_CLIPS, 77, 32, seed=1)
    results = []
    for controlnets in ([controlnet], [controlnet, controlnet]):
        with inflated(unet, controlnets, NUM_FRAMES, EVERYTHING):
            results.append(run_controlnet(controlnet, sample, text))
        assert all(a is b for a, b in zip(all_processors(controlnet), processors, strict=True))
        assert all_hooks(controlnet) == hooks
    assert all(torch.equal(once, twice) for once, twice in zip(*results))


def test_what_fails_while_it_is_installed_is_undone(components: dict[str, Any]) -> None:
    unet = components["unet"]
    processors, hooks = all_processors(unet), all_hooks(unet)
    with pytest.raises(AttributeError), inflated(unet, [None], NUM_FRAMES, EVERYTHING):
        pass
    assert all(a is b for a, b in zip(all_processors(unet), processors, strict=True))
    assert all_hooks(unet) == hooks
