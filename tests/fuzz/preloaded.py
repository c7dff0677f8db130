"""What the server of forks imports once for all runs."""

from tests.engine.tiny_runs import train_net

train_net()
