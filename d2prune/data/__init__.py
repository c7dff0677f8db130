"""The embedded data set and the dataset mapper; importing registers the set's names."""

from .catalog import DATASET_NAMES, default_root, register_digits
from .mapper import DatasetMapperWithBasis

register_digits()

__all__ = ["DATASET_NAMES", "DatasetMapperWithBasis", "default_root", "register_digits"]
