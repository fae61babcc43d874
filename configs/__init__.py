"""Configuration files: Hydra YAML, no code."""
