"""Which pictures people prefer for a text, as learned from their choices."""

import numpy as np

from .clip_embedding import ClipEmbedder


class PickScorer(ClipEmbedder):
    """PickScore of a clip.

    Made by [`~PickScorer.from_pretrained`], with "yuvalkirstain/PickScore_v1" or any other CLIP of that kind.

    >>> import numpy as np
    >>> pick_scorer = PickScorer.from_pretrained("yuvalkirstain/PickScore_v1")  # doctest: +SKIP
    >>> frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    >>> isinstance(pick_scorer.score(frames, "a squirrel on the grass"), float)
    True
    """

    def score(self, frames: np.ndarray, prompt: str) -> float:
        """`mean over t of exp(logit_scale) * cos(image(V[t]), text(prompt))`.

        Args:
            frames: (F, H, W, 3) uint8.
            prompt: what the clip should show.

        Returns:
            More is better; of two pictures, one that scores d more is preferred with probability `1 / (1 + exp(-d))`.

        Raises:
            ValueError: frames of another form.

        Source: Kirstain et al., "Pick-a-Pic", NeurIPS 2023, arXiv:2305.01569; averaged over frames.
        """
        cosines = self.embed_frames(frames) @ self.embed_texts([prompt])[0]
        return (self.model.logit_scale.exp() * cosines).mean().item()
