"""Numbers of channels that a model's code names."""
