"""YAML as plain data: nothing that a file's tags name is imported or called.

Detectron2 reads its configs by ``yaml.unsafe_load``, which runs what a tag like ``!!python/object/apply``
names.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml
from detectron2.utils.file_io import PathManager

from d2prune.errors import PruneError

TAGS = "tag:yaml.org,2002:"
"""What ``!!`` stands for."""
# Three anchors an octave (Lin et al., "Focal Loss for Dense Object Detection", 2017, sec. 4), spelled as in
# Detectron2's Base-RetinaNet.yaml, which RetinaNet configs build on; compared without spaces.
_OCTAVES = re.compile(r"\[\[x,x\*2\*\*\(1\.0/3\),x\*2\*\*\(2\.0/3\)\]forxin\[(\d{1,6}(?:,\d{1,6})*)\]\]")
_MOST_VALUES, _DEEPEST = 20_000, 50  # far above what any config has, and read in half a second
_WRONG_VALUES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)  # of `!!int x`, say


class PlainLoader(yaml.SafeLoader):
    """PyYAML's SafeLoader, with tuples and RetinaNet's anchors; any other tag is refused with its line."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self.name = file  # marks take it
        self._open: list[str | None] = []
        self._sizes: dict[yaml.Node, tuple[int, int]] = {}  # values and levels

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse an alias inside of what it stands for, and more values than a config can hold."""
        event = self.peek_event()
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent) and anchor in self._open:
            raise PruneError(f"{_place(event)}: *{anchor} is a part of itself; expected plain values")
        self._open.append(anchor)
        node = super().compose_node(parent, index)
        self._open.pop()
        if node is not None and node not in self._sizes:
            self._check_size(node)
        return node

    def _check_size(self, node: yaml.Node) -> None:
        """Count what is reached as often as it is: each line of aliases of aliases doubles it."""
        rows = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for row in rows for part in (row if isinstance(row, tuple) else (row,))]
        sizes = [self._sizes[part] for part in parts]
        count, depth = 1 + sum(n for n, _ in sizes), 1 + max((d for _, d in sizes), default=0)
        self._sizes[node] = count, depth
        if max(count, len(self._sizes)) > _MOST_VALUES:
            raise PruneError(f"{_place(node)} holds more than {_MOST_VALUES} values, aliases counted whole")
        if depth > _DEEPEST:
            raise PruneError(f"'{self.name}' is nested too deeply; expected keys and values")

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Name the line of a value that is not of its tag's kind (a date of month 13)."""
        try:
            return super().construct_object(node, deep)
        except PruneError:
            raise
        except _WRONG_VALUES as error:
            raise PruneError(f"{_place(node)}: expected a value of tag '{_spelled(node.tag)}'") from error

    def refuse(self, node: yaml.Node, expected: str = "plain values") -> NoReturn:
        """Refuse a node for its tag.

        Args:
            node: what has the tag.
            expected: what may stand there.

        Raises:
            PruneError: always.
        """
        raise PruneError(
            f"{_place(node)} holds the tag '{_spelled(node.tag)}', which is not executed; expected {expected}"
        )


def _place(found: Any) -> str:
    return f"'{found.start_mark.name}' line {found.start_mark.line + 1}"


def _spelled(tag: str) -> str:
    """``!!python/object/apply`` of ``tag:yaml.org,2002:python/object/apply:os.mkdir``."""
    return "!!" + tag.removeprefix(TAGS).partition(":")[0] if tag.startswith(TAGS) else tag


def _tuple(loader: PlainLoader, node: yaml.Node) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        loader.refuse(node)
    return tuple(loader.construct_sequence(node, deep=True))


def _evaluated(loader: PlainLoader, node: yaml.Node) -> list[list[float]]:
    """RetinaNet's anchor sizes, worked out here; any other expression is refused."""
    words = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    text = words[0].replace(" ", "") if len(words) == 1 and isinstance(words[0], str) else ""
    found = _OCTAVES.fullmatch(text)
    if found is None:
        loader.refuse(node)
    return [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in map(int, found[1].split(","))]


PlainLoader.add_constructor(None, PlainLoader.refuse)  # any tag without a constructor of its own
PlainLoader.add_constructor(f"{TAGS}python/tuple", _tuple)
PlainLoader.add_constructor(f"{TAGS}python/object/apply:eval", _evaluated)


def read_yaml(file: str, loader: type[PlainLoader] = PlainLoader) -> Any:
    """Read a YAML file's values.

    Args:
        file: path, or an address that Detectron2's PathManager knows.
        loader: what knows the tags that are data.

    Raises:
        PruneError: if the file can't be read, is no UTF-8 text or no YAML, or holds a tag of anything but
            plain values; the line is named, and nothing is executed.
    """
    text = _text_of(file)
    try:
        return loader(text, file).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise PruneError(f"'{file}' line {mark.line + 1 if mark else 1}: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise PruneError(
            f"'{file}' line {line}: the character {text[error.position]!r} is no text"
        ) from error
    except RecursionError as error:
        raise PruneError(f"'{file}' is nested too deeply; expected keys and values") from error


def read_mapping(file: str, loader: type[PlainLoader] = PlainLoader) -> dict[Any, Any]:
    """Read a YAML file that holds keys and values.

    Args:
        file: as in :func:`read_yaml`.
        loader: likewise.

    Raises:
        PruneError: as :func:`read_yaml`, and if the file is empty or holds a list or a single value.
    """
    content = read_yaml(file, loader)
    if not isinstance(content, dict):
        what = "nothing" if content is None else f"a {type(content).__name__}"
        raise PruneError(f"'{file}' holds {what}; expected keys and values")
    return content


def _text_of(file: str) -> str:
    try:
        with PathManager.open(file, "rb") as stream:
            return stream.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PruneError(f"'{file}' is not UTF-8 text") from error
    except OSError as error:
        raise PruneError(f"'{file}' can't be read: {error.strerror or error}") from error
