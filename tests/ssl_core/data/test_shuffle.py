"""An epoch's order and a sample's random numbers are functions, and look random."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from ssl_core.data.shuffle import Cursor, draw, permutation


@pytest.mark.parametrize("n", [*range(1, 70), 100, 1_000, 4_096, 4_097, 99_999])
def test_every_element_comes_once(n: int) -> None:
    assert np.array_equal(np.sort(permutation(n, "key")[np.arange(n)]), np.arange(n))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 10**15), key=st.text(), data=st.data())
def test_positions_may_be_asked_in_any_order_of_a_set_of_any_size(n: int, key: str, data: st.DataObject) -> None:
    asked = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    order = permutation(n, key)
    found = order[asked]
    assert ((found >= 0) & (found < n)).all()
    assert len(set(found.tolist())) == len(set(asked.tolist()))
    assert [int(order[one]) for one in asked] == found.tolist()


def test_a_position_outside_is_an_index_error() -> None:
    for position in (-1, 5):
        with pytest.raises(IndexError):
            permutation(5, "key")[np.array([position])]


def test_all_orders_of_a_small_set_are_equally_likely() -> None:
    orders = dict.fromkeys(itertools.permutations(range(4)), 0)
    for key in range(4_800):
        orders[tuple(permutation(4, f"{key}")[np.arange(4)].tolist())] += 1
    assert chisquare(list(orders.values())).pvalue > 1e-3


def test_the_first_elements_of_a_large_set_are_spread_evenly() -> None:
    first = np.concatenate([permutation(10_000, f"{key}")[np.arange(20)] for key in range(2_000)])
    assert chisquare(np.bincount(first // 500, minlength=20)).pvalue > 1e-3


def test_neighbours_and_epochs_are_uncorrelated() -> None:
    n = 50_000
    order, other = (permutation(n, key)[np.arange(n)] for key in ("0", "1"))
    for one, two in ((order[:-1], order[1:]), (order[:-2], order[2:]), (order, other), (order, np.arange(n))):
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.02
    assert (order == np.arange(n)).sum() < 10  # a random permutation has one fixed point on average


def test_draws_are_uniform_and_depend_on_key_and_id_alone() -> None:
    ids = np.arange(40_000)
    limits = np.full(len(ids), 13)
    drawn = draw(ids, "key", limits)
    assert chisquare(np.bincount(drawn, minlength=13)).pvalue > 1e-3
    assert np.array_equal(draw(ids[::-7], "key", limits[::-7]), drawn[::-7])
    assert abs(np.corrcoef(drawn, draw(ids, "other", limits))[0, 1]) < 0.02


def test_cursors_compare_by_progress_and_refuse_negative_places() -> None:
    assert Cursor(0, 9) < Cursor(1, 0) < Cursor(1, 1)
    with pytest.raises(ValueError, match="counts from 0"):
        Cursor(0, -1)
