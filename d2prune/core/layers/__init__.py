"""The table of layer kinds, and operations on single layers that follow from it."""
