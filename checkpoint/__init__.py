"""Processes to images and back: CRIU, checkpoints, archives."""
