"""The things on the table: each writes its own MJCF body."""

import dataclasses

KINDS = ("box", "cylinder", "sphere", "button", "cup", "mark")
"""What a policy is told a thing is, when it is given objects instead of images."""
SOLID = 'contype="1" conaffinity="3"'
GHOST = 'contype="0" conaffinity="0"'

RGB = tuple[float, float, float]
COLORS: dict[str, RGB] = {
    "red": (0.86, 0.10, 0.10),
    "green": (0.10, 0.62, 0.16),
    "blue": (0.10, 0.22, 0.90),
    "yellow": (0.96, 0.86, 0.10),
    "magenta": (0.85, 0.15, 0.80),
    "cyan": (0.10, 0.80, 0.86),
    "orange": (0.98, 0.50, 0.05),
    "white": (0.97, 0.97, 0.97),
    "black": (0.05, 0.05, 0.06),
}
"""Colours that stay apart in a picture of 64 pixels."""
GREY: RGB = (0.45, 0.45, 0.48)


@dataclasses.dataclass(frozen=True)
class Prop:
    """A thing that stands where its task puts it, as if held by an unseen hand."""

    name: str
    kind: str = "box"
    """One of KINDS."""
    rgb: RGB = GREY
    size: tuple[float, ...] = (0.02, 0.02, 0.02)
    """Half sizes as MJCF has them [m]: 3 of a box, 2 of a cylinder, 1 of a sphere."""
    solid: bool = True
    """Whether it stops the gripper; a mark on the table or in the air does not."""

    @property
    def shape(self) -> str:
        """MuJoCo's type of its geometry, which the number of half sizes tells."""
        return ("sphere", "cylinder", "box")[len(self.size) - 1]

    def geom(self, extra: str = "") -> str:
        """The geometry that is seen and touched."""
        size = " ".join(map(str, self.size))
        rgba = " ".join(map(str, self.rgb))
        touch = SOLID if self.solid else GHOST
        return (
            f'<geom name="{self.name}" type="{self.shape}" size="{size}" rgba="{rgba} 1" '
            f"{touch} {extra}/>"
        )

    def mjcf(self) -> str:
        """Its body."""
        return f'<body name="{self.name}" mocap="true" pos="0 0 -2">{self.geom()}</body>'


@dataclasses.dataclass(frozen=True)
class Block(Prop):
    """A thing that lies free: it is pushed, grasped and carried."""

    mass: float = 0.06
    """[kg]"""
    friction: float = 0.8
    priority: int = 0
    """With 1, its friction counts whatever it touches; with 0, the rougher surface's does."""

    def mjcf(self) -> str:
        """Its body, with a free joint."""
        surface = (
            f'mass="{self.mass}" friction="{self.friction} 0.01 0.0003" condim="4" '
            f'solref="0.01 1" priority="{self.priority}"'
        )
        return (
            f'<body name="{self.name}"><freejoint name="{self.name}"/>{self.geom(surface)}</body>'
        )


@dataclasses.dataclass(frozen=True)
class Cover(Prop):
    """A closed cover with a knob: it stands where its task puts it and can be lifted straight up.

    Its position is that of its bottom.
    """

    kind: str = "cup"
    size: tuple[float, ...] = (0.034, 0.034)
    mass: float = 0.06
    """[kg]"""
    rise: float = 0.15
    """How far it can be lifted [m]."""

    @property
    def height(self) -> float:
        """Height without the knob [m]."""
        return 2 * self.size[-1]

    @property
    def knob(self) -> float:
        """Height of the middle of the knob [m]."""
        return self.height + 0.015

    def mjcf(self) -> str:
        """Its body: an unseen foot, and the cover on a vertical rail."""
        shell = self.geom(f'pos="0 0 {self.height / 2}" mass="{self.mass}"')
        return f"""
<body name="{self.name}" mocap="true" pos="0 0 -2"><body>
  <joint name="{self.name}" type="slide" axis="0 0 1" range="0 {self.rise}" damping="1"
         armature="0.02"/>
  {shell}
  <geom type="box" size="0.014 0.011 0.016" pos="0 0 {self.knob}" mass="0.005"
        rgba="0.12 0.12 0.13 1" friction="1.2 0.02 0.0005" condim="4" solref="0.01 1"
        {SOLID}/>
</body></body>"""


@dataclasses.dataclass(frozen=True)
class Button(Prop):
    """A button that springs back. Its position is that of the table below it."""

    kind: str = "button"
    size: tuple[float, ...] = (0.022, 0.012)
    travel: float = 0.012
    """How far it can be pressed [m]."""
    top: float = 0.034
    """Height of the cap [m]."""

    def mjcf(self) -> str:
        """Its body: a collar on the table, and the cap on a spring of 250 N/m."""
        cap = self.geom(f'pos="0 0 {self.top - self.size[1]}" mass="0.02"')
        return f"""
<body name="{self.name}" mocap="true" pos="0 0 -2">
  <geom type="cylinder" size="0.032 0.007" pos="0 0 0.007" rgba="0.2 0.2 0.22 1" {SOLID}/>
  <body>
    <joint name="{self.name}" type="slide" axis="0 0 1" range="{-self.travel} 0" stiffness="250"
           damping="4" armature="0.05"/>
    {cap}
  </body>
</body>"""
