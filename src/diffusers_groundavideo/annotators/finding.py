"""From what the user calls the objects to their tracks; and what to say if one is not found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from .objects import Detection, FrameDetections
from .tracking import POSITIONS, Position, Track, select_track, track_detections


# Below this a score says nothing. Detecting from here on lets the threshold be chosen without detecting again.
LOWEST_SCORE = 0.05


@dataclass(frozen=True)
class ObjectQuery:
    """What to look for in a clip.

    Args:
        phrase (`str`): What it is.
        which (*optional*): Which of several, as [`select_track`] takes it: a position, or an index from 0 among the
            tracks of the phrase, the surest first. `None`: all of them.
    """

    phrase: str
    which: Position | int | None = None

    @classmethod
    def parse(cls, text: str) -> "ObjectQuery":
        """Reads `"dog"` (all dogs), `"dog@left"` or `"dog@2"` (the second, counted from 1).

        Raises:
            `ValueError`: If the phrase is empty, or what follows the `@` is neither a position nor a number above 0.
        """
        phrase, at, which = (part.strip() for part in text.partition("@"))
        if not phrase:
            raise ValueError(f"An object needs a phrase, but {text!r} has none.")
        if not at:
            return cls(phrase)
        if which in POSITIONS:
            return cls(phrase, cast(Position, which))
        if not which.isdecimal() or int(which) == 0:
            raise ValueError(f"After the @ comes a number from 1 or one of {', '.join(POSITIONS)}, but not {text!r}.")
        return cls(phrase, int(which) - 1)

    def __str__(self) -> str:
        if self.which is None:
            return self.phrase
        return f"{self.phrase}@{self.which + 1 if isinstance(self.which, int) else self.which}"


class PhraseNotFoundError(ValueError):
    """A phrase fits nothing in the clip well enough. The message says what was found, and which threshold finds it."""


def above(detections: Sequence[FrameDetections], threshold: float) -> list[dict[str, list[Detection]]]:
    """The detections with at least a score, of each phrase in each frame."""
    return [
        {phrase: [one for one in found if one.score >= threshold] for phrase, found in frame.items()}
        for frame in detections
    ]


def find_objects(
    detections: Sequence[FrameDetections], queries: Sequence[ObjectQuery], threshold: float, **tracking: Any
) -> list[list[Track]]:
    """The tracks of each query.

    Args:
        detections: For each frame the detections of each phrase, those below the threshold too (from
            [`LOWEST_SCORE`] on): the proposed threshold is read off them.
        queries: What to look for; their phrases are among those that were detected.
        threshold: The lowest score of a detection that counts.
        tracking: For [`track_detections`].

    Returns:
        For each query its tracks, at least one; exactly one if it says which.

    Raises:
        [`PhraseNotFoundError`]: If one or several phrases have no track; a `ValueError`.
        `ValueError`: If a query asks for one that there is not, such as the third of two, or two queries come to the
            same one.
    """
    tracks = track_detections(above(detections, threshold), **tracking)
    of_phrase: dict[str, list[Track]] = {phrase: [] for phrase in detections[0]}
    for track in tracks:
        of_phrase[track.phrase].append(track)
    missing = [phrase for phrase in dict.fromkeys(query.phrase for query in queries) if not of_phrase[phrase]]
    if missing:
        found = "; ".join(describe_track(track) for track in tracks)
        reasons = " ".join(_not_found(phrase, detections, threshold, tracking) for phrase in missing)
        raise PhraseNotFoundError(f"{reasons} Found above {threshold:g}: {found or 'nothing'}.")
    found_by_query = [_selected(query, of_phrase[query.phrase]) for query in queries]
    owner: dict[Track, ObjectQuery] = {}
    for query, chosen in zip(queries, found_by_query):
        for track in chosen:
            if track in owner:
                raise ValueError(f"{owner[track]} and {query} are the same object: {describe_track(track)}.")
            owner[track] = query
    return found_by_query


def _selected(query: ObjectQuery, tracks: list[Track]) -> list[Track]:
    if query.which is None:
        return tracks
    if isinstance(query.which, int) and query.which >= len(tracks):
        found = "; ".join(describe_track(track) for track in tracks)
        raise ValueError(f"There is no {query} among the {len(tracks)} that were found: {found}.")
    return [select_track(tracks, query.which)]


def describe_track(track: Track) -> str:
    """Such as "rabbit 0.83 (8 of 8 frames)": the mean score, and the frames in which it has a box."""
    num_present = sum(box is not None for box in track.boxes)
    return f"{track.phrase} {track.score:.2f} ({num_present} of {len(track.boxes)} frames)"


def _not_found(phrase: str, detections: Sequence[FrameDetections], threshold: float, tracking: dict[str, Any]) -> str:
    """Why there is no track of the phrase, and what to do."""
    alone = [{phrase: frame[phrase]} for frame in detections]
    best = [max((one.score for one in frame[phrase]), default=0.0) for frame in alone]
    seen = sum(score >= threshold for score in best)
    reason = (
        f"{phrase!r} was not found in the clip: its highest score is {max(best):.2f}, the threshold {threshold:g}."
    )
    if seen:
        reason = f"{phrase!r} was found in {seen} of {len(best)} frames, too few or too far apart to follow it."
    for hundredths in range(int(threshold * 100), int(LOWEST_SCORE * 100) - 1, -1):
        if track_detections(above(alone, hundredths / 100), **tracking):
            return f"{reason} A threshold of {hundredths / 100:g} would find it."
    return f"{reason} No threshold would find it: try other words."
