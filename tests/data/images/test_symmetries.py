"""Symmetries of images: as many as `count` says, all different, and nothing lost."""

import numpy as np
import pytest

from fsdit.data.images.symmetries import count, sampled, transformed

CASES = [(1, 8), (3, 48)]  # channels, symmetries


@pytest.mark.parametrize("channels, expected", CASES)
def test_all_symmetries_differ_and_only_move_values(channels, expected):
    images = np.arange(2 * 5 * 5 * channels, dtype=np.uint8).reshape(2, 5, 5, channels)
    forms = [transformed(images, number) for number in range(count(channels))]
    assert count(channels) == expected == len({form.tobytes() for form in forms})
    np.testing.assert_array_equal(forms[0], images)
    for form in forms:
        assert (form.shape, form.dtype) == (images.shape, images.dtype)
        for before, after in zip(images, form, strict=True):
            assert sorted(before.ravel()) == sorted(after.ravel())


def test_the_order_of_channels_is_a_permutation_of_whole_channels():
    image = np.zeros((2, 2, 3), np.uint8) + np.array([1, 2, 3], np.uint8)
    orders = {tuple(transformed(image, number)[0, 0]) for number in range(count(3))}
    assert len(orders) == 6
    assert {tuple(sorted(order)) for order in orders} == {(1, 2, 3)}


@pytest.mark.parametrize("channels, expected", CASES)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_numbers_is_not_0_and_these_are_equally_frequent(channels, expected, share):
    random = np.random.default_rng(0)
    numbers = [sampled(random, share, channels) for _ in range(9_400)]
    counts = np.bincount(numbers, minlength=expected)
    assert len(counts) == expected
    assert counts[0] == pytest.approx((1 - share) * 9_400, abs=250)
    others = share * 9_400 / (expected - 1)
    assert np.abs(counts[1:] - others).max() < 5 * np.sqrt(others) + 1
