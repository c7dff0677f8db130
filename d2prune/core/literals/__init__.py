"""Size literals: numbers of channels that a model's code contains."""
