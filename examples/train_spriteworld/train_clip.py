"""Train a tiny CLIP, contrastively; its tokenizer and text model become the pipeline's.

Whole frames are matched with captions ("a rabbit and an apple on the grass"), and what stands in a box with phrases
("the rabbit"), so that the pooled output of a phrase, which is what a grounding token carries, tells names apart.

Run: `python examples/train_spriteworld/train_clip.py --run-dir runs`
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from training import (
    FRESH_SEED,
    TrainingRun,
    batch_seeds,
    learning_rate_at,
    render_batch,
    start,
    training_parser,
)
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from diffusers_groundavideo.spriteworld import (
    BACKGROUND_NAMES,
    SPRITE_NAMES,
    all_captions,
    background_phrase,
    phrase_for,
    random_caption,
)
from diffusers_groundavideo.spriteworld.captions import BACKGROUND_PHRASE_TEMPLATES, PHRASE_TEMPLATES
from diffusers_groundavideo.spriteworld.judge import crop_boxes


HIDDEN_SIZE = 96
MAX_TOKENS = 32
# Words beyond the scenes' own that users write, the published prompt suffixes among them; in the vocabulary they
# cost few tokens, and the prompt is not cut off before its end.
EXTRA_TEXT = (
    "best quality, extremely detailed, longbody, lowres, bad anatomy, bad hands, missing fingers, extra digit, "
    "fewer digits, cropped, worst quality, low quality, under the aurora, with, of, at, in, beside, to, his, her"
)


def build_tokenizer() -> CLIPTokenizer:
    """A byte-level BPE tokenizer as CLIP's, with merges learned from the captions: any text has tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(all_captions() + [EXTRA_TEXT], trainer)
    # CLIPTokenizer is annotated to take strings; what its backend takes is pairs.
    merges: Any = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    tokens = alphabet + [f"{character}</w>" for character in alphabet]
    tokens += ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN_SIZE,
        intermediate_size=4 * HIDDEN_SIZE,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=64,
        # The pooled output is read at the end-of-text token, whose id the defaults do not guess.
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=64,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))


def tokenize(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> torch.Tensor:
    """Token ids (B, 32), padded and cut as the pipeline does it."""
    encoded = tokenizer(list(texts), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
    return encoded.input_ids


def pairs(seeds: list[int]) -> tuple[torch.Tensor, list[str], list[str], torch.Tensor, list[str], list[str]]:
    """Frames with captions and crops with phrases.

    Returns:
        frames (B, 3, 64, 64) in [-1, 1], their captions, and what each is about (equal where a caption fits several
        frames); crops (M, 3, 64, 64), their phrases, and their names. Some whole frames are among the crops, with a
        phrase for their background, which an edit may ground as well.
    """
    scenes, rendered, frames = render_batch(seeds)
    captions, subjects, phrases, names, boxes, owners = [], [], [], [], [], []
    for owner, (seed, scene, item) in enumerate(zip(seeds, scenes, rendered)):
        rng = np.random.default_rng((seed, 3))
        captions.append(random_caption(scene, rng))
        subjects.append(" ".join(sorted(thing.name or "" for thing in scene.objects)) + scene.background)
        for index, thing in enumerate(scene.objects):
            if thing.name is not None and not np.isnan(item.boxes[0, index, 0]):
                phrases.append(phrase_for(thing.name, int(rng.integers(len(PHRASE_TEMPLATES)))))
                names.append(thing.name)
                boxes.append(item.boxes[0, index])
                owners.append(owner)
        if rng.random() < 0.3:
            phrases.append(background_phrase(scene.background, int(rng.integers(len(BACKGROUND_PHRASE_TEMPLATES)))))
            names.append(scene.background)
            boxes.append(np.array([0, 0, 1, 1], dtype=np.float32))
            owners.append(owner)
    crops = crop_boxes(frames[owners], torch.from_numpy(np.stack(boxes)), crop_size=64)
    return frames, captions, subjects, crops, phrases, names


def contrastive_loss(
    clip: CLIPModel, tokenizer: CLIPTokenizer, pictures: torch.Tensor, texts: list[str], keys: list[str]
) -> torch.Tensor:
    """CLIP's symmetric loss, pictures and texts of equal keys being equally right answers."""
    logits = clip(input_ids=tokenize(tokenizer, texts), pixel_values=pictures).logits_per_image
    same = torch.tensor([[float(a == b) for b in keys] for a in keys])
    wanted = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2


@torch.no_grad()
def evaluate(clip: CLIPModel, tokenizer: CLIPTokenizer, seeds: list[int]) -> dict[str, float]:
    """Zero-shot accuracy: the name of a crop among all names, and the caption of a frame among those of the batch."""
    frames, captions, subjects, crops, _, names = pairs(seeds)
    choices = SPRITE_NAMES + BACKGROUND_NAMES
    prompts = tokenize(tokenizer, choices)
    found = clip(input_ids=prompts, pixel_values=crops).logits_per_image.argmax(1).tolist()
    matched = clip(input_ids=tokenize(tokenizer, captions), pixel_values=frames).logits_per_image.argmax(1).tolist()
    pooled = clip.text_model(prompts).pooler_output
    similarity = F.cosine_similarity(pooled[:, None], pooled[None], dim=-1) - 2 * torch.eye(len(pooled))
    return {
        "fresh_crop_accuracy": float(np.mean([choices[index] == name for index, name in zip(found, names)])),
        "fresh_caption_accuracy": float(
            np.mean([subjects[index] == subject for index, subject in zip(matched, subjects)])
        ),
        "worst_phrase_similarity": similarity.max().item(),
    }


def main() -> None:
    parser = training_parser(__doc__, steps=500, batch_size=48, learning_rate=1e-3)
    args = parser.parse_args()
    start(args)
    run = TrainingRun(args.run_dir / "clip_training", args.save_minutes)
    tokenizer = build_tokenizer()
    clip = build_clip(tokenizer)
    optimizer = torch.optim.AdamW(clip.parameters(), lr=args.learning_rate, weight_decay=1e-2)
    first_step = 0
    if (state := run.resume()) is not None:
        clip.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]

    for step in range(first_step, args.steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, args.steps, args.learning_rate)
        frames, captions, subjects, crops, phrases, names = pairs(batch_seeds(args.seed, step, args.batch_size))
        frame_loss = contrastive_loss(clip, tokenizer, frames, captions, subjects)
        crop_loss = contrastive_loss(clip, tokenizer, crops, phrases, names)
        optimizer.zero_grad()
        (frame_loss + crop_loss).backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        # As CLIP does: the temperature stays below 100.
        clip.logit_scale.data.clamp_(max=float(np.log(100)))
        if step % 25 == 0 or step == args.steps - 1:
            run.log(step, loss=(frame_loss + crop_loss).item(), crop_loss=crop_loss.item())
        if run.due():
            run.save(step + 1, model=clip.state_dict(), optimizer=optimizer.state_dict())
    run.save(args.steps, model=clip.state_dict(), optimizer=optimizer.state_dict())

    clip.eval()
    fresh = 8 if args.smoke else 64
    figures = [
        evaluate(clip, tokenizer, list(range(first, first + fresh)))
        for first in range(FRESH_SEED, FRESH_SEED + (1 if args.smoke else 8) * fresh, fresh)
    ]
    run.log(args.steps, **{key: float(np.mean([item[key] for item in figures])) for key in figures[0]})
    tokenizer.save_pretrained(args.run_dir / "tokenizer")
    clip.half().save_pretrained(args.run_dir / "clip")
    clip.text_model.save_pretrained(args.run_dir / "text_encoder")


if __name__ == "__main__":
    main()
