"""Channels taken out: surgery, proof, spec, coverage."""
