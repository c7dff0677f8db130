"""A user's package, outside of d2prune: what CONTRIBUTING says to write, as it says to."""
