"""Train, prune, fine-tune or evaluate a model of a LazyConfig: Detectron2's own arguments, and prune.*."""

from d2prune.engine.command_line import run_command
from d2prune.lazy.run import main

if __name__ == "__main__":
    run_command(main)
