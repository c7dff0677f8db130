"""One process of distributed training must get over a batch without instances."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from d2prune.modeling.fcos.losses import mean_over_gpus
from tests.each import each
from tests.modeling.small_models import backward, build, training_batch


@pytest.fixture
def one_process_group(tmp_path):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo backend")
    if dist.is_initialized():
        pytest.skip("a process group is already there")
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def two_ranks(rank, path):
    """Both ranks divide by the mean and end with the same gradients, one of them empty."""
    store = dist.FileStore(path, 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    assert mean_over_gpus(torch.tensor([3.0, 1.0][rank])) == 2
    model = DistributedDataParallel(build("MODEL.FCOS.NORM", "SyncBN"))
    backward(model, training_batch((0, 1) if rank else ()))
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    both = [torch.empty_like(grads) for _ in range(2)]
    dist.all_gather(both, grads)
    assert torch.equal(*both) and grads.isfinite().all()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_share_one_step(tmp_path):
    torch.multiprocessing.spawn(two_ranks, (str(tmp_path / "store"),), nprocs=2)


@pytest.mark.parametrize("arch", ["BlendMask", "OneStageDetector"])
def test_empty_batches_keep_ddp_going(one_process_group, arch):
    model = DistributedDataParallel(build("MODEL.FCOS.USE_SCALE", True, arch=arch))
    for empty in ((), (0, 1), (0,), ()):
        losses = backward(model, training_batch(empty))
        assert all(torch.isfinite(v) for v in each(losses.values()))
