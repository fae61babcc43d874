"""Memory tasks for an arm at a table, in MuJoCo; needs engram[manipulation] to run."""

from engram.envs.manipulation.batched import Manipulation
from engram.envs.manipulation.control import Control, EndEffectorControl, JointControl
from engram.envs.manipulation.environment import ManipulationEnv, make_task
from engram.envs.manipulation.oracle import Oracle
from engram.envs.manipulation.task import Goal, Task
from engram.envs.manipulation.tasks import TASKS

__all__ = [
    "TASKS",
    "Control",
    "EndEffectorControl",
    "Goal",
    "JointControl",
    "Manipulation",
    "ManipulationEnv",
    "Oracle",
    "Task",
    "make_task",
]
