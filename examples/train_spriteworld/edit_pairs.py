"""The training data of the UNet and the ControlNet: frames before and after a perfect edit, as latents.

The condition of an inpainting UNet, `z0 * mask`, comes from the picture *before* the edit, because that is what it is
given in use: latents beside an opened box have seen what was in the box. The noised latents come from the picture
after the edit. Where nothing changes the two are the same picture, as in the inversion of a clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from train_clip import tokenize
from training import FRESH_SEED, frames_to_tensor
from transformers import CLIPTextModel, CLIPTokenizer

from diffusers_groundavideo.spriteworld import (
    BACKGROUND_NAMES,
    SPRITE_NAMES,
    Scene,
    background_phrase,
    caption_for,
    phrase_for,
    random_scene,
    render,
)
from diffusers_groundavideo.spriteworld.captions import (
    BACKGROUND_PHRASE_TEMPLATES,
    CAPTION_TEMPLATES,
    PAIR_TEMPLATES,
    PHRASE_TEMPLATES,
)


MAX_OBJECTS = 3
# Padding of the position net's input, as in the pipeline.
MAX_TOKENS = 30
LATENT_SIZE = 16
NOTHING = -1

SAME_SHARE = 0.40
BACKGROUND_CHANGE_SHARE = 0.15
# Of the changed objects: an empty place before the edit, an empty place after it.
ADDED_SHARE = REMOVED_SHARE = 0.06


def edit_scenes(seed: int) -> tuple[Scene, Scene]:
    """One frame of a random clip before and after a random edit, drawn as the shares above say."""
    rng = np.random.default_rng((seed, 4))
    scene = random_scene(seed)
    scene = scene.frame(int(rng.integers(scene.num_frames)))
    names = [item.name for item in scene.objects]
    kind = rng.random()
    if kind < SAME_SHARE:
        return scene, scene
    background = None
    changed = rng.random(len(names)) < 0.6
    if kind < SAME_SHARE + BACKGROUND_CHANGE_SHARE:
        others = [name for name in BACKGROUND_NAMES if name != scene.background]
        background = others[rng.integers(len(others))]
        changed &= rng.random(len(names)) < 0.5
    elif not changed.any():
        changed[rng.integers(len(names))] = True
    unused = [name for name in rng.permutation(SPRITE_NAMES).tolist() if name not in names]
    before: list[str | None] = list(names)
    after: list[str | None] = list(names)
    for index in np.flatnonzero(changed):
        after[index] = None if rng.random() < REMOVED_SHARE else unused.pop()
        if after[index] is not None and rng.random() < ADDED_SHARE:
            before[index] = None
    return scene.with_targets(before), scene.with_targets(after, background)


@dataclass
class EditPairs:
    """S pairs of frames.

    Attributes:
        seeds: (S,) int64, the seeds of `edit_scenes`.
        source, target: (S, 4, 16, 16) float16 latents before and after the edit.
        boxes: (S, 3, 4) float32 xyxy in [0, 1], NaN where there is no object or it is out of the frame.
        names: (S, 3) int64, what a box holds after the edit: index into `SPRITE_NAMES`, or `NOTHING`.
        changed: (S, 3) bool, whether the edit changes the object.
        seen: (S, 3, 16, 16) bool, the latent cells in which some of the object is seen before the edit.
        backgrounds: (S, 2) int64, index into `BACKGROUND_NAMES` before and after the edit.
    """

    seeds: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    boxes: torch.Tensor
    names: torch.Tensor
    changed: torch.Tensor
    seen: torch.Tensor
    backgrounds: torch.Tensor

    def __len__(self) -> int:
        return len(self.seeds)

    def select(self, indices: torch.Tensor) -> "EditPairs":
        return EditPairs(**{key: value[indices] for key, value in vars(self).items()})


@torch.no_grad()
def encode_pairs(vae: AutoencoderKL, seeds: Sequence[int]) -> EditPairs:
    """Render and encode the pairs of some seeds."""
    count = len(seeds)
    boxes = np.full((count, MAX_OBJECTS, 4), np.nan, dtype=np.float32)
    names = np.full((count, MAX_OBJECTS), NOTHING, dtype=np.int64)
    changed = np.zeros((count, MAX_OBJECTS), dtype=bool)
    seen = np.zeros((count, MAX_OBJECTS, LATENT_SIZE, LATENT_SIZE), dtype=bool)
    backgrounds = np.zeros((count, 2), dtype=np.int64)
    frames: list[np.ndarray] = []
    before_index, after_index = [], []
    for row, seed in enumerate(seeds):
        before, after = edit_scenes(seed)
        rendered = render(before)
        before_index.append(len(frames))
        frames.append(rendered.frames)
        if after is not before:
            frames.append(render(after).frames)
        after_index.append(len(frames) - 1)
        backgrounds[row] = [BACKGROUND_NAMES.index(scene.background) for scene in (before, after)]
        for column, (old, new) in enumerate(zip(before.objects, after.objects)):
            boxes[row, column] = rendered.boxes[0, column]
            names[row, column] = NOTHING if new.name is None else SPRITE_NAMES.index(new.name)
            changed[row, column] = old.name != new.name
            mask = rendered.visible_masks[0, column]
            cell = mask.shape[0] // LATENT_SIZE
            seen[row, column] = mask.reshape(LATENT_SIZE, cell, LATENT_SIZE, cell).any(axis=(1, 3))
    latents = vae.encode(frames_to_tensor(np.concatenate(frames))).latent_dist.mean * vae.config.scaling_factor
    return EditPairs(
        seeds=torch.tensor(list(seeds)),
        source=latents[before_index].half(),
        target=latents[after_index].half(),
        boxes=torch.from_numpy(boxes),
        names=torch.from_numpy(names),
        changed=torch.from_numpy(changed),
        seen=torch.from_numpy(seen),
        backgrounds=torch.from_numpy(backgrounds),
    )


def load_pairs(folder: Path, vae: AutoencoderKL, seed: int, count: int) -> EditPairs:
    """The pairs of the seeds from `seed * 10**9` on, from files in `folder`; what is missing is made and written."""
    folder.mkdir(parents=True, exist_ok=True)
    chunk = min(count, 1000)
    parts = []
    for first in range(seed * 10**9, seed * 10**9 + count, chunk):
        path = folder / f"{first}_{chunk}.pt"
        if not path.exists():
            print(f"encoding the scenes {first} to {first + chunk - 1}", flush=True)
            batches = [
                vars(encode_pairs(vae, range(start, min(start + 50, first + chunk))))
                for start in range(first, first + chunk, 50)
            ]
            torch.save({key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}, path)
        parts.append(torch.load(path, weights_only=True))
    return EditPairs(**{key: torch.cat([part[key] for part in parts]) for key in parts[0]})


def fresh_pairs(vae: AutoencoderKL, count: int) -> EditPairs:
    """Pairs no training has seen."""
    batches = [
        vars(encode_pairs(vae, range(first, min(first + 50, FRESH_SEED + count))))
        for first in range(FRESH_SEED, FRESH_SEED + count, 50)
    ]
    return EditPairs(**{key: torch.cat([batch[key] for batch in batches]) for key in batches[0]})


def box_cells(boxes: torch.Tensor) -> torch.Tensor:
    """The latent cells a box touches (rounded outward): boxes (..., 4) xyxy in [0, 1] -> (..., 16, 16) bool.

    A NaN box touches none.
    """
    cell = torch.arange(LATENT_SIZE)
    low, high = boxes[..., :2] * LATENT_SIZE, boxes[..., 2:] * LATENT_SIZE
    inside_x = (cell + 1 > low[..., 0:1]) & (cell < high[..., 0:1])
    inside_y = (cell + 1 > low[..., 1:2]) & (cell < high[..., 1:2])
    return inside_y[..., :, None] & inside_x[..., None, :]


def random_masks(pairs: EditPairs, generator: torch.Generator, whole_share: float) -> torch.Tensor:
    """What the UNet may repaint, drawn at random.

    Changed objects are open, of the others a random part (all of them in an inversion, none in many an edit). A
    changed background opens everything but, in half of the cases, the objects that stay. `whole_share` of the masks
    open the whole frame, which is generation from nothing.

    Returns:
        (B, 1, 16, 16) float32, 1 keeps the source, 0 is open.
    """
    count = len(pairs)
    same = ~(pairs.changed.any(1) | (pairs.backgrounds[:, 0] != pairs.backgrounds[:, 1]))
    chance = torch.where(same, 0.65, 0.3)[:, None]
    opened = pairs.changed | (torch.rand(count, MAX_OBJECTS, generator=generator) < chance)
    # With everything kept there is nothing to learn but to copy.
    opened |= (same & ~opened.any(1))[:, None]
    cells = (box_cells(pairs.boxes) & opened[..., None, None]).any(1)
    kept = (pairs.seen & ~pairs.changed[..., None, None]).any(1)
    keep_objects = torch.rand(count, generator=generator) < 0.5
    new_background = pairs.backgrounds[:, 0] != pairs.backgrounds[:, 1]
    cells = torch.where(new_background[:, None, None], ~(kept & keep_objects[:, None, None]), cells)
    cells |= (torch.rand(count, generator=generator) < whole_share)[:, None, None]
    return (~cells)[:, None].float()


class TextConditions:
    """Captions and grounding tokens from the frozen text encoder."""

    def __init__(self, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.text_encoder, self.tokenizer = text_encoder.eval().float(), tokenizer
        sprites = [phrase_for(name, index) for name in SPRITE_NAMES for index in range(len(PHRASE_TEMPLATES))]
        places = [
            background_phrase(name, index)
            for name in BACKGROUND_NAMES
            for index in range(len(BACKGROUND_PHRASE_TEMPLATES))
        ]
        self.sprite_phrases = self._pooled(sprites).view(len(SPRITE_NAMES), len(PHRASE_TEMPLATES), -1)
        self.place_phrases = self._pooled(places).view(len(BACKGROUND_NAMES), len(BACKGROUND_PHRASE_TEMPLATES), -1)

    @torch.no_grad()
    def _pooled(self, texts: Sequence[str]) -> torch.Tensor:
        return self.text_encoder(tokenize(self.tokenizer, texts)).pooler_output

    @torch.no_grad()
    def captions(self, pairs: EditPairs, rng: np.random.Generator, drop: torch.Tensor) -> torch.Tensor:
        """Captions of the pictures after the edit in random templates and order; (B, 32, D). `drop` (B,) bool."""
        texts = []
        for names, background, dropped in zip(pairs.names.tolist(), pairs.backgrounds[:, 1].tolist(), drop.tolist()):
            present = [SPRITE_NAMES[index] for index in names if index != NOTHING]
            shuffled = [present[index] for index in rng.permutation(len(present))]
            count = len(CAPTION_TEMPLATES) + (len(PAIR_TEMPLATES) if len(present) == 2 else 0)
            caption = caption_for(shuffled, BACKGROUND_NAMES[background], int(rng.integers(count)))
            texts.append("" if dropped else caption)
        return self.text_encoder(tokenize(self.tokenizer, texts)).last_hidden_state

    def groundings(
        self, pairs: EditPairs, rng: np.random.Generator, drop: torch.Tensor, place: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The input of the position net, padded to 30 objects.

        Args:
            pairs: B pairs; what their boxes hold after the edit is grounded.
            rng: draws the wording.
            drop: (B,) bool, no grounding at all.
            place: (B,) bool, ground the background in the whole frame as well.
        """
        count, size = len(pairs), self.sprite_phrases.shape[-1]
        boxes, masks = torch.zeros(count, MAX_TOKENS, 4), torch.zeros(count, MAX_TOKENS)
        embeddings = torch.zeros(count, MAX_TOKENS, size)
        present = (pairs.names != NOTHING) & ~pairs.boxes.isnan().any(-1) & ~drop[:, None]
        wording = torch.from_numpy(rng.integers(len(PHRASE_TEMPLATES), size=pairs.names.shape))
        # Tokens fill up from the front, as they do in the pipeline.
        rows, columns = present.nonzero(as_tuple=True)
        slots = present.long().cumsum(1)[rows, columns] - 1
        boxes[rows, slots] = pairs.boxes[rows, columns]
        embeddings[rows, slots] = self.sprite_phrases[pairs.names[rows, columns], wording[rows, columns]]
        masks[rows, slots] = 1
        rows = (place & ~drop).nonzero()[:, 0]
        slots = present.sum(1)[rows]
        place_wording = torch.from_numpy(rng.integers(len(BACKGROUND_PHRASE_TEMPLATES), size=len(rows)))
        boxes[rows, slots] = torch.tensor([0.0, 0.0, 1.0, 1.0])
        embeddings[rows, slots] = self.place_phrases[pairs.backgrounds[rows, 1], place_wording]
        masks[rows, slots] = 1
        return {"boxes": boxes, "masks": masks, "positive_embeddings": embeddings}


def condition_channels(source: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The inpainting UNet's additional channels: latents (B, 4, h, w) and masks (B, 1, h, w) -> (B, 5, h, w)."""
    return torch.cat([source * masks, masks], dim=1)
