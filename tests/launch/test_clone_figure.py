"""The figure of a study of cloning."""

import numpy as np

from engram.launch.clone_figure import draw, plot
from engram.launch.clone_results import Learning, of_seeds

GAPS = (5, 30, 120)
CURVE = Learning(np.array([1.0, 2.0]), np.array([[0.1, 0.5], [0.2, 0.9]]))


def facts(*successes: float) -> list[dict[str, object]]:
    """What `evaluation.json` says of runs with these successes, one more wrong at every gap."""
    numbers = {"chance": 0.25, "parameters": 9, "memory_parameters": 3, "updates": 4}
    one = {"episodes": 10, "memory_bytes": 8}
    return [
        {
            **numbers,
            "seconds": 1.0,
            "gaps": {
                str(gap): {**one, "success": s - i / 10, "first_choice": s - i / 20}
                for i, gap in enumerate(GAPS)
            },
        }
        for s in successes
    ]


def test_every_seed_is_drawn_at_its_gap():
    seeds = {"gru": (0.9, 0.7), "bank": (0.6, 0.5), "none": (0.3, 0.2)}
    found = [f for m, s in seeds.items() for f in of_seeds("task", m, [0, 1], facts(*s))]
    curves = {("task", memory): CURVE for memory in seeds}
    figure = plot(found, curves, {"task": [5, 60]})
    choice, success, _ = figure.axes
    for axis, step in ((choice, 20), (success, 10)):
        assert [label.get_text() for label in axis.get_xticklabels()] == ["5", "30", "120"]
        dots = [np.asarray(part.get_offsets()) for part in axis.collections]
        assert len(dots) == 3
        for (one, other), drawn in zip(seeds.values(), dots, strict=True):
            wanted = [s - i / step for i in range(3) for s in (one, other)]
            np.testing.assert_allclose(drawn[:, 1], wanted)
            np.testing.assert_array_equal(np.round(drawn[:, 0]), [0, 0, 1, 1, 2, 2])
        lines = {line.get_label(): line.get_ydata() for line in axis.get_lines()}
        np.testing.assert_allclose(lines["bank"], [0.55 - i / step for i in range(3)])
        (shade,) = axis.patches  # 120 was not trained
        assert (shade.get_x(), shade.get_width()) == (-0.5, 2)
    assert len({x for drawn in dots for x in drawn[:, 0]}) == 9  # nothing hides another
    assert draw(found, curves, {"task": 7}).startswith(b"\x89PNG")


def test_gaps_that_were_not_trained_are_not_shaded():
    found = of_seeds("task", "gru", [0], facts(0.5))
    figure = plot(found, {("task", "gru"): CURVE}, {"task": 7})
    assert not figure.axes[0].patches
    assert not plot(found, {("task", "gru"): CURVE}, {}).axes[0].patches
