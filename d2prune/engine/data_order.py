"""What a training sees, and draws at random, follows from a seed and the iteration alone.

A run that was interrupted then goes on with the very images, augmentations and random numbers that it would
have had. Detectron2's own loaders begin their order anew.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

import numpy as np
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data.common import AspectRatioGroupedDataset, MapDataset, ToIterableDataset
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

logger = logging.getLogger(__name__)
At = tuple[int, int]
"""A place in a sampler's order, and the index of the image that stands there."""
STEP, IMAGE = 0, 1
Batch = list[dict[str, Any]]


def keep_order(trainer: Any, checkpointer: DetectionCheckpointer, seed: int) -> OrderedLoader:
    """Make the order of a trainer's images part of its checkpoints.

    Args:
        trainer: a SimpleTrainer or AMPTrainer that has not run yet; its ``data_loader`` is replaced.
        checkpointer: the trainer's.
        seed: as of :class:`OrderedLoader`.
    """
    trainer.data_loader = ordered = OrderedLoader(trainer.data_loader, seed)
    checkpointer.add_checkpointable("data_order", ordered)
    return ordered


class OrderedLoader:
    """Batches of a loader of ``build_detection_train_loader``, from any iteration on.

    Another loader's batches come as they come; only what is drawn after them is seeded.

    Args:
        loader: the training's loader, not yet begun; changed in place.
        seed: of all that is drawn; negative: a random one, the same on all ranks.
    """

    def __init__(self, loader: Iterable[Batch], seed: int) -> None:
        self._loader = loader
        self._seed = seed if seed >= 0 else comm.shared_random_seed()
        self._first, self._restored = 0, False
        self._order = _Order.of(loader)
        if self._order is not None:
            self._order.stream.dataset = _Seeded(self._order.stream.dataset, self._seed)

    def state_dict(self) -> dict[str, Any]:
        """Return what the order follows from, for a checkpoint; the iteration is not part of it."""
        return {"seed": self._seed, "order": {} if self._order is None else self._order.key()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the seeds of the run that wrote ``state``."""
        self._seed, self._restored = int(state["seed"]), True
        order = self._order
        if order is not None and state["order"]:
            order.stream.dataset.seed = self._seed
            order.sampler.given._seed = int(state["order"]["sampler"])
            self._restored = order.key() == dict(state["order"])

    def start_at(self, iteration: int) -> None:
        """Make ``iteration`` (0, 1, ...) the first; those before it count as seen."""
        self._first = iteration
        if self._order is not None and self._restored:
            self._order.skip(iteration)
        elif iteration:
            logger.warning(
                "the order of the images begins anew: the checkpoint does not say it, it was made with "
                "another number of workers, images or processes, or the loader is not Detectron2's"
            )

    def __iter__(self) -> Iterator[Batch]:
        for iteration, batch in enumerate(self._loader, start=self._first):
            _draw_by(self._seed, STEP, iteration)
            yield batch


class _Order:
    """The order in which the workers of one of Detectron2's loaders read images, and where they stand."""

    def __init__(self, stream: Any, workers: int, batch: int, grouped: Any) -> None:
        self.stream, self.workers, self.batch, self.grouped = stream, max(1, workers), batch, grouped
        self.sampler = _Numbered(
            stream.sampler, getattr(stream, "shard_chunk_size", 1), 1 if grouped else batch
        )
        stream.sampler, stream.shard_sampler = self.sampler, False

    @classmethod
    def of(cls, loader: Any) -> _Order | None:
        """Return the order of a loader; None if it is none of those that are known."""
        grouped = loader if isinstance(loader, AspectRatioGroupedDataset) else None
        inner = loader if grouped is None else grouped.dataset
        stream = getattr(inner, "dataset", None)
        if not isinstance(inner, DataLoader) or not isinstance(stream, ToIterableDataset):
            return None
        if not isinstance(stream.dataset, MapDataset) or not stream.shard_sampler:
            return None
        if not hasattr(stream.sampler, "_seed"):
            return None
        if grouped is not None and not {"width", "height"} <= set(stream.dataset._dataset[0]):
            return None
        return cls(stream, inner.num_workers, loader.batch_size, grouped)

    def key(self) -> dict[str, int]:
        """Return what the order follows from."""
        counts = {"workers": self.workers, "batch": self.batch, "ranks": comm.get_world_size()}
        return {"sampler": int(self.sampler.given._seed), **counts}

    def skip(self, batches: int) -> None:
        """Stand where ``batches`` batches have been read, without reading their images."""
        if self.grouped is None:
            self.sampler.read = batches
            return
        found = AspectRatioGroupedDataset(self._shapes(), self.batch)
        self.sampler.read = 0
        for _ in islice(found, batches):
            pass
        for bucket, waiting in zip(self.grouped._buckets, found._buckets, strict=True):
            bucket[:] = [self.stream.dataset[shape["at"]] for shape in waiting]

    def _shapes(self) -> Iterator[dict[str, Any]]:
        """Yield the size of each image, and where it stands, in the order in which they arrive."""
        shares = [self.sampler.share(worker, self.workers) for worker in range(self.workers)]
        images, known = self.stream.dataset.given._dataset, {}
        for turn in count():
            at = next(shares[turn % self.workers])
            if at[1] not in known:
                known[at[1]] = {key: images[at[1]][key] for key in ("width", "height")}
            self.sampler.read += 1
            yield {**known[at[1]], "at": at}


class _Numbered(Sampler[At]):
    """A sampler's indices with their numbers, of which each worker takes its share.

    Attributes:
        given: the sampler.
        read: how often any worker has been asked: for an image, or for a batch where workers make batches.
    """

    def __init__(self, given: Any, chunk: int, images: int) -> None:
        self.given, self.read, self._chunk, self._images = given, 0, chunk, images

    def __iter__(self) -> Iterator[At]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        return self.share((worker + self.read) % workers, workers)  # the first is the one whose turn it is

    def share(self, worker: int, workers: int) -> Iterator[At]:
        """Yield what ``worker`` has not read yet; chunks go to the workers in turn, as in Detectron2."""
        own = (at for at in enumerate(self.given) if at[0] // self._chunk % workers == worker)
        asked = (self.read - worker + workers - 1) // workers
        return islice(own, asked * self._images, None)


class _Seeded(Dataset[Any]):
    """A data set whose augmentations follow from where in the order an image stands."""

    def __init__(self, given: Any, seed: int) -> None:
        self.given, self.seed = given, seed

    def __getitem__(self, at: At) -> Any:
        number, index = at
        _draw_by(self.seed, IMAGE, number)
        return self.given[index]

    def __len__(self) -> int:
        return len(self.given)


def _draw_by(seed: int, kind: int, number: int) -> None:
    """Seed Python's, numpy's and torch's random numbers for a step or an image of this rank."""
    mixed = np.random.SeedSequence((seed, comm.get_rank(), kind, number))
    seed_all_rng(int(mixed.generate_state(1)[0]))
