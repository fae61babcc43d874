"""REINFORCE with a memory and nothing but torch: a bit is shown, and asked for 20 steps later."""

import torch
from torch import nn

from engram.memory.sequence import HCAM

torch.manual_seed(0)
memory = HCAM(32, chunk=4, capacity=8, top_k=2, heads=2)
encode, policy = nn.Linear(2, 32), nn.Linear(memory.d_out, 2)
parameters = [p for module in (memory, encode, policy) for p in module.parameters()]
optimizer = torch.optim.Adam(parameters, lr=3e-3)


def episodes(batch: int, steps: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return observations `[T, B, 2]`, where episodes start `[T, B]`, and the bits `[B]`."""
    bit = torch.randint(2, (batch,))
    observation = torch.zeros(steps, batch, 2)
    observation[0, torch.arange(batch), bit] = 1.0
    return observation, (torch.arange(steps) == 0)[:, None].expand(steps, batch), bit


for _ in range(150):
    observation, start, bit = episodes(64)
    features, _ = memory(encode(observation), memory.initial_state(64), start)  # all steps at once
    choice = torch.distributions.Categorical(logits=policy(features[-1]))
    answer = choice.sample()
    reward = (answer == bit).float()
    loss = -(choice.log_prob(answer) * (reward - reward.mean())).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with torch.no_grad():  # acting: step by step, with the state in your hands
    observation, start, bit = episodes(256)
    state = memory.initial_state(256)
    for now, begins in zip(observation, start, strict=True):
        features, state = memory.step(encode(now), state, begins)
    right = (policy(features).argmax(-1) == bit).float().mean()
print(f"right: {right:.2f}")
