"""Answers from a server for what a device cannot answer itself, by the Open Inference Protocol."""
