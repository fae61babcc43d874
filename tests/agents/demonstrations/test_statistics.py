"""Statistics, worked out by hand."""

import numpy as np
import pytest

from engram.agents.demonstrations.feature import Feature
from engram.agents.demonstrations.statistics import aggregate, of_column


def test_statistics_of_numbers():
    column = np.array([[1.0, 10.0], [3.0, 10.0], [2.0, 10.0], [6.0, 10.0]], np.float32)
    found = of_column(column, Feature("float32", (2,)))
    assert found["min"].tolist() == [1, 10] and found["max"].tolist() == [6, 10]
    assert found["mean"].tolist() == [3, 10] and found["count"].tolist() == [4]
    np.testing.assert_allclose(found["std"], [np.sqrt(3.5), 0])
    np.testing.assert_allclose(found["q50"], [2.5, 10])
    np.testing.assert_allclose(found["q90"], [3 + 0.7 * 3, 10])  # at 2.7 of 0 … 3


def test_extremes_of_integers_are_integers():
    found = of_column(np.array([[3], [5]]), Feature("int64", (1,)))
    assert found["min"].dtype == found["max"].dtype == np.int64
    assert found["mean"].tolist() == [4.0]


def test_images_have_statistics_by_channel_of_values_to_1():
    images = np.zeros((2, 1, 2, 3), np.uint8)
    images[0, 0, 0, 0] = 255  # one red pixel of four
    images[..., 2] = 51
    found = of_column(images, Feature("video", (1, 2, 3)))
    assert found["mean"].shape == (3, 1, 1) and found["count"].tolist() == [2]
    np.testing.assert_allclose(found["mean"].ravel(), [0.25, 0, 0.2])
    np.testing.assert_allclose(found["std"].ravel(), [np.sqrt(3) / 4, 0, 0])
    np.testing.assert_allclose(found["max"].ravel(), [1, 0, 0.2])
    np.testing.assert_allclose(found["q50"].ravel(), [0, 0, 0.2])
    np.testing.assert_allclose(found["q99"].ravel(), [1, 0, 0.2])


def test_joined_episodes_are_as_one_but_for_quantiles():
    rng = np.random.default_rng(0)
    feature = Feature("float64", (3,))
    parts = [rng.normal(size=(length, 3)) for length in (2, 7, 4)]
    joined = aggregate([{"a": of_column(part, feature)} for part in parts])["a"]
    whole = of_column(np.concatenate(parts), feature)
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(joined[name], whole[name])
    medians = [np.median(part, axis=0) * len(part) / 13 for part in parts]
    np.testing.assert_allclose(joined["q50"], sum(medians))


@pytest.mark.parametrize("lengths", [(1, 1), (5,)])
def test_joining_in_steps_equals_joining_at_once(lengths):
    rng = np.random.default_rng(1)
    feature = Feature("float32", (2,))
    parts = [{"a": of_column(rng.normal(size=(n, 2)), feature)} for n in (3, *lengths)]
    once = aggregate(parts)["a"]
    stepwise = aggregate([aggregate(parts[:-1]), parts[-1]])["a"]
    for name, value in once.items():
        np.testing.assert_allclose(stepwise[name], value, err_msg=name)
