"""What a step of a cloned policy costs, and what its memory adds, for one robot on one core.

`python tests/benchmarks/policy_step.py --steps 100000` lets the policy with the bank act for so
long and prints its bytes at the beginning, in between and at the end.
"""

import argparse
from collections.abc import Callable

import torch
from measure import Limit, Row, alternate, compared, markdown, resident

from engram.launch.clone_build import build_vla
from engram.launch.clone_config import compose_clone
from engram.memory import state as states
from engram.policies.perception import Sight, SightSize
from engram.policies.vla import VLA

SIZES = SightSize(
    cameras=("top",), image=64, proprioception=12, words=16, length=16, objects=(0, 0), oracle=0
)
MEMORIES = "none", "gru", "hcam", "bank"
STEPS = 40
"""Steps in one measurement."""


def policy(memory: str, *, execute: int = 1) -> VLA:
    """Build a policy of three million parameters with the bank; ten steps of a draw."""
    keys = [f"memory={memory}", "size=small", f"policy.execute={execute}"]
    (tree,) = compose_clone(keys).trees.values()
    scale = -torch.ones(4), torch.ones(4)
    built = build_vla(tree, SIZES, scale, 0).eval()
    assert len(built.denoising.times) == 10, len(built.denoising.times)
    return built


def seen() -> Sight:
    """Draw what one robot sees."""
    return Sight(
        {"top": torch.randint(256, (1, 64, 64, 3), dtype=torch.uint8)},
        torch.randn(1, SIZES.proprioception),
        torch.randint(SIZES.words, (1, SIZES.length)),
        torch.zeros(1, 0, 0),
        torch.zeros(1, 0),
    )


def acting(built: VLA) -> Callable[[], None]:
    """Return STEPS steps, each of which draws a chunk."""
    held, sight, start = [built.initial_state(1)], seen(), torch.zeros(1, dtype=torch.bool)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(STEPS):
            _, held[0] = built.act(sight, held[0], start)

    run()
    return run


def rows(rounds: int) -> list[Row]:
    """Compare policies with and without a memory; every step draws, which is the worst case."""
    built = {name: policy(name) for name in MEMORIES}
    runs = {name: acting(each) for name, each in built.items()}
    costs = dict(zip(runs, alternate(*runs.values(), rounds=max(rounds, 9)), strict=True))
    base = costs["none"]
    found = []
    for name, cost in costs.items():
        ms, size = 1e3 * cost.cpu / STEPS, sum(p.numel() for p in built[name].parameters())
        limit = Limit("≤", 10)
        label = f"policy step, {size / 1e6:.1f} M parameters, memory {name}"
        wall = f"{1e3 * cost.wall / STEPS:.2f}"
        found.append(
            Row(f"{label} [ms]", wall, f"CPU {ms:.2f}", None, None, str(limit), limit.holds(ms))
        )
        if name != "none":
            ratios = cost.wall / base.wall, cost.cpu / base.cpu
            found.append(
                compared(f"{label}, against none", wall, "", ratios, Limit("≤", 1.1), by_cpu=True)
            )
    return found


@torch.inference_mode()
def soak(steps: int) -> None:
    """Act for long, and print the bytes of the state and of the process on the way."""
    built = policy("bank", execute=8)
    state, start = built.initial_state(1), torch.ones(1, dtype=torch.bool)
    for step in range(steps):
        _, state = built.act(seen(), state, start)
        start = torch.zeros(1, dtype=torch.bool)
        if step + 1 in (100, 1000) or (step + 1) % max(steps // 5, 1) == 0:
            held = states.nbytes(state)
            print(f"{step + 1:>9,} steps: state {held:,} bytes, process {resident():.0f} MB")


def main() -> None:
    """Print the table, or soak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=0, help="soak for so many steps instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.steps:
        soak(arguments.steps)
    else:
        print(markdown(rows(9)))


if __name__ == "__main__":
    main()
