"""Lengths of time, as a person says them."""

import pytest

from components.steps.progress import duration


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (8, "8 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min")],
)
def test_a_length_of_time_is_said_in_the_units_that_fit(seconds: float, said: str) -> None:
    assert duration(seconds) == said
