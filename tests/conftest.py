"""What every test shares: threads, the shared folder, and the skipping of what needs a GPU."""

import os
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from d2prune.modeling import HAS_ADELAIDET
from tests.engine.tiny_runs import write_coco

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared"
# What d2prune's own FCOS and BlendMask do, and AdelaiDet's don't; modeling/test_adelaidet.py is for those.
_MODELING = ("backbone", "blendmask", "ddp", "fcos", "parity", "state_dicts")
OF_OWN_CLASSES = {
    *(f"modeling/test_{name}.py" for name in _MODELING),
    "adapters/test_fcos_adapters.py",
    "export/test_onnx.py",
}


def _threads() -> int:
    """Two at the most: small models gain nothing from more. Fewer where xdist shares the cores."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1, min(2, (os.cpu_count() or 1) // workers))


def pytest_configure() -> None:
    threads = int(os.environ.setdefault("OMP_NUM_THREADS", str(_threads())))  # processes inherit it
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Latencies measured by tests are not for the user's prunes."""
    os.environ["D2PRUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_gpu = not torch.cuda.is_available()
    for item in items:
        if no_gpu and item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and there is none"))
        if HAS_ADELAIDET and item.path.relative_to(TESTS).as_posix() in OF_OWN_CLASSES:
            item.add_marker(pytest.mark.skip(reason="of d2prune's classes; AdelaiDet's are in use"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A list of cases that turned out empty is an error, where pytest skips the test."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        cases = mark.args[1] if len(mark.args) > 1 else mark.kwargs["argvalues"]
        if hasattr(cases, "__len__") and not len(cases):
            raise pytest.UsageError(f"{metafunc.definition.nodeid} has no cases")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of fixtures beside the checkout, which not every machine has."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED.name} beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Registers tiny_train and tiny_val."""
    root = tmp_path_factory.mktemp("data")
    for name, count, seed in (("tiny_train", 4, 0), ("tiny_val", 2, 1)):
        register_coco_instances(name, {}, *write_coco(root / name, count, seed))
    yield root
    for name in ("tiny_train", "tiny_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
