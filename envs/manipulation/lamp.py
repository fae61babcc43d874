"""The lamp at the edge of the table: red means wait, green means act."""

from engram.envs.manipulation.props import COLORS, Prop
from engram.envs.manipulation.world import World

LAMP = Prop("lamp", kind="mark", size=(0.028, 0.004), solid=False)
_PLACE = (0.19, 0.22, 0.004)


def signal(world: World, go: bool) -> None:
    """Show the lamp, green or red."""
    world.show("lamp", _PLACE, COLORS["green" if go else "red"])
