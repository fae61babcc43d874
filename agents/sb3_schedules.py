"""Schedules as SB3 and its zoo write them: a number, `"lin_3e-4"`, or a callable."""

from typing import Any

from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from engram.kernels.errors import InvalidValueError

ALLOWED = 'a number, "lin_NUMBER" (falls to 0 over the budget), or a callable of what remains of 1'


def parse(name: str, value: Any) -> FloatSchedule:
    """Return the schedule that a setting stands for.

    Args:
        name: Of the setting, for the error.
        value: A number or a string that holds one; `"lin_NUMBER"`; a callable of the share of the
            budget that remains, from 1 to 0; or what `describe` returned.

    Raises:
        InvalidValueError: If it is none of these.
    """
    if isinstance(value, FloatSchedule):
        return value
    if isinstance(value, dict) and value.keys() == {"start", "end", "end_fraction"}:
        return FloatSchedule(LinearSchedule(**value))
    if callable(value):
        return FloatSchedule(value)  # type: ignore[arg-type]
    if isinstance(value, str) and value.startswith("lin_"):
        return FloatSchedule(LinearSchedule(_number(name, value, value[4:]), 0.0, 1.0))
    return FloatSchedule(_number(name, value, value))


def describe(value: Any) -> Any:
    """Return the schedule in JSON's types, or None where it is code."""
    schedule: Any = parse("schedule", value).value_schedule
    if type(schedule) is ConstantSchedule:
        return schedule.val
    if type(schedule) is LinearSchedule:
        parts = {"start": schedule.start, "end": schedule.end}
        return {**parts, "end_fraction": schedule.end_fraction}
    return None


def now(schedule: Schedule, remaining: float) -> float:
    """Return the value with `remaining` of the budget left.

    SB3's last rollout may overrun the budget and leave less than nothing; a schedule never sees
    less than 0 here.
    """
    return float(schedule(max(remaining, 0.0)))


def _number(name: str, value: Any, digits: Any) -> float:
    try:
        return float(digits)
    except (TypeError, ValueError):
        raise InvalidValueError(name, value, ALLOWED) from None
