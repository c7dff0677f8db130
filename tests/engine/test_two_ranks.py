"""With several ranks the first plans; all end with the same model, or with the same error."""

from __future__ import annotations

import json

import pytest
import torch
from detectron2.utils import comm

from d2prune.errors import PruneError
from tests.each import each
from tests.engine.tiny_runs import run_cfg
from tests.tiny_blendmask import tiny_model, training_batch

pytestmark = pytest.mark.slow
RANKS = 2
BROKEN = 0.25  # for this amount the planning rank fails in an unforeseen way


def build(cfg):
    """Each rank draws other weights: only the checkpoint makes them equal."""
    return tiny_model(seed=1 + comm.get_rank())


def prune_on(rank, folder, baseline, amounts):
    """One rank's part: prunes once per amount, and writes down what it ended with."""
    from d2prune.engine import pruning_run

    prune_model = pruning_run.prune_model

    def maybe_broken(model, request, *rest, **options):
        if request.amount == BROKEN:
            raise RuntimeError("out of memory")
        return prune_model(model, request, *rest, **options)

    pruning_run.prune_model = maybe_broken
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    comm.create_local_process_group(RANKS)
    ends = []
    for index, amount in enumerate(amounts):
        models = []
        cfg = run_cfg(
            f"{folder}/{index}", "MODEL.PRUNE", True, "MODEL.WEIGHTS", baseline,
            "MODEL.PRUNING.AMOUNT", amount,
        )  # fmt: skip
        try:
            pruning_run.run_prune(
                cfg,
                build,
                lambda _: [training_batch()] * 3,
                lambda _, model, models=models: models.append(model) or {},
            )
            ends.append({"models": [m.state_dict() for m in models], "spec": models[1].prune_spec.to_dict()})
        except (PruneError, RuntimeError) as error:
            ends.append({"error": str(error)})
    torch.save(ends, f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ends(baseline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    args = (str(folder), str(baseline), (0.5, 1.3, 0.99, BROKEN))
    torch.multiprocessing.spawn(prune_on, args, nprocs=RANKS)
    return folder, [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]


def test_all_ranks_end_with_the_same_models(ends):
    _, (first, second) = ends
    assert first[0]["spec"] == second[0]["spec"] and len(first[0]["models"]) == 2
    for one, other in each(zip(first[0]["models"], second[0]["models"], strict=True)):
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in each(one))


def test_errors_reach_all_ranks(ends):
    folder, (first, second) = ends
    assert first[1:3] == second[1:3]
    assert "MODEL.PRUNING.AMOUNT is 1.3" in first[1]["error"] and "can't be reached" in first[2]["error"]
    assert not list((folder / "1").iterdir()) and not list((folder / "2").iterdir())


def test_an_unforeseen_error_reaches_all_ranks(ends):
    _, (first, second) = ends
    assert "out of memory" in first[3]["error"] and "pruning failed: RuntimeError" in second[3]["error"]


def test_the_files_are_written_once(ends):
    folder, _ = ends
    report = json.loads((folder / "0" / "pruning_report.json").read_text())
    assert report["proof"]["exact"] and len(report["stages"]) == 2
    assert (folder / "0" / "last_checkpoint").read_text() == "model_pruned.pth"
