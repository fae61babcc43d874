"""What a sweep searches: `key=value` arguments with lists and intervals, in Hydra's grammar."""

from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from engram.kernels.errors import InvalidValueError, one_line
from engram.launch.config import GROUPS, UsageError, choices


class Choices(NamedTuple):
    """Values that are listed: `a,b`, `choice(a,b)`, `range(1,5)`, `glob(*)` of a group."""

    values: list[str]


class Interval(NamedTuple):
    """Numbers between two: `interval(0,1)`.

    `tag(log,interval(1e-4,1e-2))` draws by their logarithm, `int(interval(1,64))` whole ones, the
    upper end excluded.
    """

    low: float
    high: float
    logarithmic: bool
    whole: bool


Space = dict[str, Choices | Interval]


def search_space(arguments: list[str]) -> tuple[list[str], Space]:
    """Take what is to be searched out of the arguments.

    Returns:
        The arguments that have one value, and by its key what each of the others may be.

    Raises:
        UsageError: If an argument cannot be read, or nothing is to be searched.
        InvalidValueError: If an interval is empty, or has no logarithm.
    """
    try:
        overrides = OverridesParser.create().parse_overrides(overrides=arguments)
    except HydraException as error:
        raise UsageError(one_line(error)) from error
    fixed, space = [], Space()
    for argument, override in zip(arguments, overrides, strict=True):
        if override.is_sweep_override():
            space[override.get_key_element()] = _one(override)
        else:
            fixed.append(argument)
    if not space:
        raise UsageError(
            "nothing is searched; allowed: lists (memory=gru,hcam), ranges "
            "(agent.epochs=range(1,5)), intervals (agent.clip=interval(0.1,0.3), "
            "agent.learning_rate=tag(log,interval(1e-4,1e-2)))"
        )
    return fixed, space


def _one(override: Override) -> Choices | Interval:
    value = override.value()
    key = override.get_key_element()
    if isinstance(value, Glob):
        names = value.filter(choices(key)) if key in GROUPS else []
        if not names:
            raise InvalidValueError(key, f"glob({value.include})", choices(key) or "no pattern")
        return Choices(names)
    if not isinstance(value, IntervalSweep):
        return Choices([str(choice) for choice in override.sweep_string_iterator()])
    low, high = value.start, value.end
    assert low is not None and high is not None
    logarithmic = "log" in value.tags
    if not low < high or (logarithmic and low <= 0):
        allowed = "a low end above 0, and a high end above that" if logarithmic else "low < high"
        raise InvalidValueError(key, f"({low:g}, {high:g})", allowed)
    return Interval(low, high, logarithmic, isinstance(low, int) and isinstance(high, int))


def as_tune(space: Space, *, grid: bool) -> dict[str, Any]:
    """Return the space as Ray Tune takes it; listed values make a grid, or are drawn."""
    from ray import tune

    found: dict[str, Any] = {}
    for key, values in space.items():
        if isinstance(values, Choices):
            found[key] = tune.grid_search(values.values) if grid else tune.choice(values.values)
        elif values.whole:
            draw = tune.lograndint if values.logarithmic else tune.randint
            found[key] = draw(int(values.low), int(values.high))
        else:
            draw = tune.loguniform if values.logarithmic else tune.uniform
            found[key] = draw(values.low, values.high)
    return found
