"""Steps per second of Ballet under random actions: `python tests/benchmarks/ballet_steps.py`."""

import argparse
import time

import torch
from measure import Limit, Row

from engram.envs.ballet import Ballet

WARM_UP = 400
"""Steps before the clock starts, after which the worlds restart at different times."""


def rate(env: Ballet, *, seconds: float) -> float:
    """Environment steps per second, autoreset included; the median of five runs."""
    actions = torch.randint(8, (64, env.num_envs), device=env.device)
    env.reset()
    for step in range(WARM_UP):
        env.step(actions[step % 64])
    rates = []
    for _ in range(5):
        steps, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds / 5:
            env.step(actions[steps % 64])
            steps += 1
        if env.device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(steps * env.num_envs / (time.perf_counter() - begin))
    return sorted(rates)[2]


def rows(rounds: int) -> list[Row]:
    """Measure the symbolic environment; the median of five runs a round, the best round."""
    limit = Limit("≥", 1_000_000)
    value = max(rate(Ballet(512, dances=2), seconds=1.0) for _ in range(rounds))
    quantity = "Ballet, symbols, 512 worlds [environment steps/s]"
    return [Row(quantity, f"{value:,.0f}", "", None, None, str(limit), limit.holds(value))]


def main() -> None:
    """Print one row for each number of threads and of dancers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    print("threads  dances  symbols N=512 [steps/s]  pixels N=64 [steps/s]  ratio")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for dances in (2, 8):
            symbols, pixels = (
                rate(
                    Ballet(worlds, dances=dances, pixels=images, device=arguments.device),
                    seconds=arguments.seconds,
                )
                for worlds, images in ((512, False), (64, True))
            )
            row = f"{threads:7d}  {dances:6d}  {symbols:23,.0f}  {pixels:21,.0f}"
            print(f"{row}  {symbols / pixels:5.1f}")


if __name__ == "__main__":
    main()
