"""The arm, as MJCF: five hinges, a parallel gripper, a camera at the wrist.

The base stands at the origin of the table top, x points over the table, z up. Joint by joint: the
base turns about z, shoulder, elbow and wrist bend in one vertical plane, the hand rolls about its
own axis. Five joints reach every position with the gripper pointing down at any yaw, which is what
work on a table needs. Links are compensated for gravity, as servos with feed-forward are.
"""

JOINTS = ("base", "shoulder", "elbow", "wrist", "roll")
LOWER = (-1.9, -1.3, 0.1, -0.6, -2.6)
"""Lower limits of the joints [rad]."""
UPPER = (1.9, 1.6, 2.8, 2.4, 2.6)
"""Upper limits of the joints [rad]."""
SPEED = 3.0
"""Fastest that a joint is told to turn [rad/s]."""
OPENING = 0.08
"""Gap between the open fingers [m]."""
HOME = (0.20, 0.0, 0.24)
"""Where the gripper begins [m]: beside the work, so that the camera sees all of it."""
HOME_JOINTS = (0.0, -0.28849, 2.17308, 1.25700, 0.0)
"""The joints there, with the gripper pointing down [rad]."""

_PARTS = 'contype="2" conaffinity="1"'
_STIFFNESS = (1200, 1200, 800, 300, 80)
_DAMPING = (60, 60, 36, 10, 2.5)
_TORQUE = (120, 120, 80, 40, 10)


def _joint(i: int, axis: str) -> str:
    return (
        f'<joint name="{JOINTS[i]}" axis="{axis}" range="{LOWER[i]} {UPPER[i]}" '
        f'damping="1" armature="0.05"/>'
    )


def _finger(side: str, sign: int) -> str:
    return f"""
<body name="{side}" pos="0 0 0.10" gravcomp="1">
  <joint name="{side}" type="slide" axis="0 {sign} 0" range="0 {OPENING / 2}" damping="4"
         armature="0.05"/>
  <geom name="{side}_finger" type="box" size="0.011 0.006 0.032" pos="0 {sign * 0.006} 0.002"
        mass="0.04" rgba="0.16 0.16 0.18 1" friction="1.5 0.02 0.0005" condim="4"
        solref="0.01 1" {_PARTS}/>
</body>"""


ARM = f"""
<geom type="cylinder" size="0.07 0.05" pos="0 0 0.05" rgba="0.25 0.26 0.3 1" {_PARTS}/>
<body name="turret" pos="0 0 0.10" gravcomp="1">
  {_joint(0, "0 0 1")}
  <geom type="cylinder" size="0.055 0.06" pos="0 0 0.06" mass="1.5" rgba="0.93 0.93 0.95 1"
        {_PARTS}/>
  <body name="upper" pos="0 0 0.12" gravcomp="1">
    {_joint(1, "0 1 0")}
    <geom type="capsule" size="0.034" fromto="0 0 0 0 0 0.30" mass="0.9" rgba="0.93 0.55 0.13 1"
          {_PARTS}/>
    <body name="fore" pos="0 0 0.30" gravcomp="1">
      {_joint(2, "0 1 0")}
      <geom type="capsule" size="0.028" fromto="0 0 0 0 0 0.30" mass="0.6"
            rgba="0.93 0.93 0.95 1" {_PARTS}/>
      <body name="cuff" pos="0 0 0.30" gravcomp="1">
        {_joint(3, "0 1 0")}
        <geom type="capsule" size="0.022" fromto="0 0 0 0 0 0.04" mass="0.2"
              rgba="0.93 0.55 0.13 1" {_PARTS}/>
        <body name="hand" pos="0 0 0.05" gravcomp="1">
          {_joint(4, "0 0 1")}
          <geom name="palm" type="box" size="0.018 0.05 0.015" pos="0 0 0.05" mass="0.15"
                rgba="0.25 0.26 0.3 1" {_PARTS}/>
          <geom type="cylinder" size="0.018 0.02" pos="0 0 0.02" mass="0.05"
                rgba="0.25 0.26 0.3 1" {_PARTS}/>
          <camera name="wrist" pos="-0.06 0 0.02" xyaxes="0 1 0 0.937 0 -0.35" fovy="80"/>
          <site name="tcp" pos="0 0 0.125" size="0.004" rgba="0 0 0 0"/>
          {_finger("left", 1)}
          {_finger("right", -1)}
        </body>
      </body>
    </body>
  </body>
</body>"""
"""Bodies of the arm; the site `tcp` lies between the finger tips, 9 mm above their ends."""

# A servo whose command is a velocity moves its set point evenly through a control step.
ACTUATORS = "".join(
    f'<intvelocity name="{name}" joint="{name}" kp="{kp}" kv="{kv}" actrange="{low} {high}" '
    f'forcerange="-{torque} {torque}"/>'
    for name, kp, kv, low, high, torque in zip(
        JOINTS, _STIFFNESS, _DAMPING, LOWER, UPPER, _TORQUE, strict=True
    )
) + "".join(
    f'<position name="{side}" joint="{side}" kp="400" kv="20" forcerange="-12 12" '
    f'ctrlrange="0 {OPENING / 2}"/>'
    for side in ("left", "right")
)
GRIPPER_GEOMS = ("palm", "left_finger", "right_finger")
