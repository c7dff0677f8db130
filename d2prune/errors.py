"""The one error that users of the package are meant to catch, and those that it catches for them."""

MISFITS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a model's code raises when a width does not fit."""


class PruneError(ValueError):
    """A mistake in what was asked: names what was got, what is allowed, and the key, file or layer."""
