"""Plain English for a scene: captions, phrases, and the grounding of an edit."""

from typing import Any

import numpy as np

from .backgrounds import BACKGROUND_NAMES
from .scenes import Scene, clipped_boxes
from .sprites import SPRITE_NAMES


BACKGROUND_PHRASES: dict[str, str] = {
    "grass": "on the grass",
    "sand": "on the sand",
    "snow": "on the snow",
    "lake": "on the lake",
    "road": "on the road",
    "night": "in the night",
}

# {things}: "a rabbit, a car and an orange"; {place}: "on the grass".
CAPTION_TEMPLATES: tuple[str, ...] = (
    "{things} {place}",
    "there is {things} {place}",
    "a picture of {things} {place}",
    "{place} there is {things}",
)
# For exactly two things, {first} and {second}.
PAIR_TEMPLATES: tuple[str, ...] = (
    "{first} next to {second} {place}",
    "{first} is eating {second} {place}",
    "{first} is looking at {second} {place}",
)
PHRASE_TEMPLATES: tuple[str, ...] = ("{name}", "{article} {name}", "the {name}")
BACKGROUND_PHRASE_TEMPLATES: tuple[str, ...] = ("{name}", "the {name}")


def article(name: str) -> str:
    """The indefinite article of a name: "a" or "an"."""
    return "an" if name[0] in "aeiou" else "a"


def phrase_for(name: str, template: int = 0) -> str:
    """A phrase for one object; `template` indexes `PHRASE_TEMPLATES`."""
    return PHRASE_TEMPLATES[template].format(name=name, article=article(name))


def background_phrase(background: str, template: int = 0) -> str:
    """A phrase for the background, as something grounded in the whole frame; indexes `BACKGROUND_PHRASE_TEMPLATES`."""
    return BACKGROUND_PHRASE_TEMPLATES[template].format(name=background)


def caption_for(names: list[str], background: str, template: int = 0) -> str:
    """A sentence about the things and the place.

    Args:
        names: what is in the scene, in the order in which it shall be mentioned.
        background: one of `BACKGROUND_NAMES`.
        template: indexes `CAPTION_TEMPLATES`, with two things `CAPTION_TEMPLATES + PAIR_TEMPLATES`.
    """
    place = BACKGROUND_PHRASES[background]
    things = [f"{article(name)} {name}" for name in names]
    if not things:
        return f"nothing {place}"
    if template >= len(CAPTION_TEMPLATES):
        first, second = things
        return PAIR_TEMPLATES[template - len(CAPTION_TEMPLATES)].format(first=first, second=second, place=place)
    listed = things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"
    return CAPTION_TEMPLATES[template].format(things=listed, place=place)


def scene_caption(scene: Scene, template: int = 0) -> str:
    """`caption_for` the objects of the scene, empty places left out."""
    return caption_for([item.name for item in scene.objects if item.name is not None], scene.background, template)


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """`scene_caption` with a template drawn at random and the things in random order."""
    names = [item.name for item in scene.objects if item.name is not None]
    count = len(CAPTION_TEMPLATES) + (len(PAIR_TEMPLATES) if len(names) == 2 else 0)
    shuffled = [names[index] for index in rng.permutation(len(names))]
    return caption_for(shuffled, scene.background, int(rng.integers(count)))


def all_captions() -> list[str]:
    """Every caption of one or two things: enough text to build a vocabulary from."""
    captions = []
    for background in BACKGROUND_NAMES:
        captions.append(caption_for([], background))
        for template in range(len(CAPTION_TEMPLATES)):
            captions += [caption_for([name], background, template) for name in SPRITE_NAMES]
        for template in range(len(CAPTION_TEMPLATES) + len(PAIR_TEMPLATES)):
            captions += [
                caption_for([first, second], background, template)
                for first in SPRITE_NAMES
                for second in SPRITE_NAMES
                if first != second
            ]
    return captions


def grounding_dict(scene: Scene, target: Scene) -> dict[str, Any]:
    """The edit from `scene` to `target` (made by `scene.with_targets`) in the JSON form of a grounding.

    Returns:
        `source_prompt`, `target_prompt`, `num_frames`, `size` and `objects`, each with `source_phrase` and
        `target_phrase` (None where there is nothing) and `boxes`, one a frame: xyxy in [0, 1] or None where it is
        out of the frame. A changed background is one more object, its box the whole frame.
    """
    objects: list[dict[str, Any]] = []
    for before, after in zip(scene.objects, target.objects, strict=True):
        boxes = clipped_boxes(before.slots)
        objects.append(
            {
                "source_phrase": None if before.name is None else phrase_for(before.name),
                "target_phrase": None if after.name is None else phrase_for(after.name),
                "boxes": [None if np.isnan(box[0]) else [round(float(value), 5) for value in box] for box in boxes],
            }
        )
    if scene.background != target.background:
        objects.append(
            {
                "source_phrase": background_phrase(scene.background),
                "target_phrase": background_phrase(target.background),
                "boxes": [[0.0, 0.0, 1.0, 1.0]] * scene.num_frames,
            }
        )
    return {
        "source_prompt": scene_caption(scene),
        "target_prompt": scene_caption(target),
        "num_frames": scene.num_frames,
        "size": [scene.size, scene.size],
        "objects": objects,
    }
