"""The one error that users of the package are meant to catch."""


class PruneError(ValueError):
    """A mistake in what was asked: names what was got, what is allowed, and the key, file or layer."""
