import math

import pytest

from diffusers_groundavideo.evaluation import q_edit


def test_it_is_alignment_over_warp_error_in_the_scales_of_the_papers() -> None:
    assert q_edit(0.3, 0.002) == pytest.approx(30 / 2)
    assert q_edit(0.3, 0.001) == pytest.approx(2 * q_edit(0.3, 0.002))
    assert q_edit(-0.1, 0.002) == pytest.approx(-5)


def test_without_warp_error_it_is_infinite_and_without_one_of_its_parts_undefined() -> None:
    assert q_edit(0.3, 0) == math.inf
    assert math.isnan(q_edit(0.3, math.nan))
    assert math.isnan(q_edit(math.nan, 0.001))


def test_a_negative_warp_error_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0"):
        q_edit(0.3, -0.1)
