from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from diffusers_groundavideo.evaluation import ClipScorer, PickScorer
from evaluation.clips import noise_clip


def test_it_is_the_mean_of_the_published_computation(random_clip: Path) -> None:
    frames, prompt = noise_clip(0, 3, 40, 40), "a squirrel on the grass"
    model, processor = AutoModel.from_pretrained(random_clip).eval(), AutoProcessor.from_pretrained(random_clip)
    images = processor(images=[Image.fromarray(frame) for frame in frames], return_tensors="pt")
    text = processor(text=prompt, padding=True, truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        image_embeds = model.get_image_features(**images).pooler_output
        text_embeds = model.get_text_features(**text).pooler_output
        image_embeds = image_embeds / torch.norm(image_embeds, dim=-1, keepdim=True)
        text_embeds = text_embeds / torch.norm(text_embeds, dim=-1, keepdim=True)
        scores = model.logit_scale.exp() * (text_embeds @ image_embeds.T)[0]
    scorer = PickScorer.from_pretrained(random_clip)
    assert scorer.score(frames, prompt) == pytest.approx(scores.mean().item(), abs=1e-5)


def test_it_is_clip_alignment_in_units_of_the_temperature(random_clip: Path) -> None:
    frames = noise_clip()
    alignment = ClipScorer.from_pretrained(random_clip).text_alignment(frames, "a bus")
    scorer = PickScorer.from_pretrained(random_clip)
    assert scorer.score(frames, "a bus") == pytest.approx(alignment * scorer.model.logit_scale.exp().item(), abs=1e-5)
