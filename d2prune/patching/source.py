"""Python files as text that encodes to the same bytes again."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from dataclasses import dataclass, replace

from d2prune.errors import PruneError

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")  # str.splitlines would cut at form feeds, too


@dataclass(frozen=True)
class Source:
    """A file's text; line endings, encoding and byte order mark are kept.

    Attributes:
        file: its name, for messages.
        text: the text, with the line endings of the file.
        encoding: encoding of the bytes, as the file declares it.
    """

    file: str
    text: str
    encoding: str

    @classmethod
    def decode(cls, file: str, data: bytes) -> Source:
        """Decode a file; raise PruneError if it isn't text in the encoding that it declares."""
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            source = cls(file, data.decode(encoding), encoding)
        except (SyntaxError, UnicodeDecodeError) as error:
            raise PruneError(f"{file} is no Python text: {error}") from error
        if source.encode() != data:
            raise PruneError(f"{file} would not come back as it is from its encoding {encoding}")
        return source

    def encode(self) -> bytes:
        """Return the file's bytes."""
        return self.text.encode(self.encoding)

    @property
    def lines(self) -> list[str]:
        """The lines with their endings, split as Python's parser splits them."""
        return _LINE.findall(self.text)

    def with_lines(self, lines: list[str]) -> Source:
        """Return the same file with other lines."""
        return replace(self, text="".join(lines))

    def newline(self, line: int) -> str:
        """Return the ending of line ``line`` (from 0), or the file's first one where it has none."""
        lines = self.lines
        for candidate in (*lines[line : line + 1], *lines[:1]):
            ending = candidate[len(candidate.rstrip("\r\n")) :]
            if ending:
                return ending
        return "\n"

    def parse(self) -> ast.Module:
        """Return the syntax tree.

        Raises:
            PruneError: if it isn't valid Python.
        """
        try:
            with warnings.catch_warnings():  # of their strings, which are none of our business
                warnings.simplefilter("ignore")
                compile(self.text, self.file, "exec", dont_inherit=True)
                return ast.parse(self.text, self.file)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise PruneError(f"{self.file} is not valid Python: {error}") from error
