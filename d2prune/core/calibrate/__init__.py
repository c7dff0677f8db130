"""Calibration: what a few batches of data tell about each layer's input, and how much its output matters."""
