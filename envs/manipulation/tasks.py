"""The tasks by name."""

from engram.envs.manipulation.buttons_in_order import ButtonsInOrder
from engram.envs.manipulation.count_presses import CountPresses
from engram.envs.manipulation.friction_probe import FrictionProbe
from engram.envs.manipulation.match_after_delay import MatchAfterDelay
from engram.envs.manipulation.put_back import PutBack
from engram.envs.manipulation.remember_color import RememberColor
from engram.envs.manipulation.search_boxes import SearchBoxes
from engram.envs.manipulation.shell_game import ShellGame
from engram.envs.manipulation.task import Task

TASKS: dict[str, type[Task]] = {
    "remember_color": RememberColor,
    "shell_game": ShellGame,
    "put_back": PutBack,
    "match_after_delay": MatchAfterDelay,
    "buttons_in_order": ButtonsInOrder,
    "count_presses": CountPresses,
    "search_boxes": SearchBoxes,
    "friction_probe": FrictionProbe,
}
