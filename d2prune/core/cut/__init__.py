"""The removal of channels: surgery, proof, spec, coverage."""
