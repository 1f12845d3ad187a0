"""Which objects are meant, and what is said of those that are not found."""

import pytest

from diffusers_groundavideo.annotators import Detection, ObjectQuery, PhraseNotFoundError, find_objects


LEFT, RIGHT = (0.1, 0.4, 0.3, 0.6), (0.7, 0.4, 0.9, 0.6)
# In each of 8 frames two dogs, the right one seen more clearly, and a table that is hardly seen; no cat at all, a
# bird once.
DETECTIONS = [
    {
        "dog": [Detection(RIGHT, 0.8), Detection(LEFT, 0.5)],
        "table": [Detection((0.0, 0.7, 1.0, 1.0), 0.183)],
        "cat": [],
        "bird": [Detection(LEFT, 0.41)] if frame == 3 else [],
    }
    for frame in range(8)
]


def find(*texts: str, threshold: float = 0.3) -> list[list[tuple[float, ...] | None]]:
    """The first box of each track of each query."""
    queries = [ObjectQuery.parse(text) for text in texts]
    return [[track.boxes[0] for track in tracks] for tracks in find_objects(DETECTIONS, queries, threshold)]


def approximately(*boxes: tuple[float, ...]) -> list[object]:
    return [pytest.approx(box) for box in boxes]


def test_without_a_place_all_are_meant() -> None:
    assert find("dog") == [approximately(RIGHT, LEFT)]


@pytest.mark.parametrize(
    ("text", "box"), [("dog@left", LEFT), ("dog @ right", RIGHT), ("dog@1", RIGHT), ("dog@2", LEFT)]
)
def test_one_of_several(text: str, box: tuple[float, ...]) -> None:
    assert find(text) == [approximately(box)]


def test_several_queries() -> None:
    assert find("dog@left", "table", "dog@right", threshold=0.1) == [
        approximately(LEFT),
        approximately((0.0, 0.7, 1.0, 1.0)),
        approximately(RIGHT),
    ]


def test_what_is_not_found_is_said_with_what_was_and_a_threshold_that_finds_it() -> None:
    with pytest.raises(PhraseNotFoundError) as error:
        find("dog", "table", "cat")
    said = str(error.value)
    assert "'table' was not found" in said and "0.18" in said
    assert "A threshold of 0.18 would find it" in said
    assert "'cat' was not found" in said and "No threshold would find it" in said
    assert "dog 0.80 (8 of 8 frames); dog 0.50 (8 of 8 frames)" in said
    assert find("table", threshold=0.18)


def test_a_box_in_one_frame_only_is_said_to_be_that() -> None:
    with pytest.raises(PhraseNotFoundError, match="'bird' was found in 1 of 8 frames, too few"):
        find("bird")


def test_nothing_found_at_all() -> None:
    with pytest.raises(PhraseNotFoundError, match="Found above 0.9: nothing"):
        find("dog", threshold=0.9)


def test_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="no dog@3 among the 2"):
        find("dog@3")


def test_the_same_object_by_two_names_is_refused() -> None:
    with pytest.raises(ValueError, match="dog@1 and dog@right"):
        find("dog@1", "dog@right")
    with pytest.raises(ValueError, match="dog and dog@left"):
        find("dog", "dog@left")


@pytest.mark.parametrize("text", ["", "  ", "@left", "dog@", "dog@behind", "dog@0", "dog@-1", "dog@1.5"])
def test_queries_that_say_nothing_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        ObjectQuery.parse(text)


@pytest.mark.parametrize("text", ["dog", "dog@left", "dog@2", "red top hat@smallest"])
def test_a_query_is_written_as_it_is_read(text: str) -> None:
    assert str(ObjectQuery.parse(text)) == text
