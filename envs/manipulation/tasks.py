"""The tasks by name."""

from engram.envs.manipulation.remember_color import RememberColor
from engram.envs.manipulation.task import Task

TASKS: dict[str, type[Task]] = {
    "remember_color": RememberColor,
}
