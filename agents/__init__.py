"""Learning: rollouts, returns, PPO, training runs and their checkpoints."""
