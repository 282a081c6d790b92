"""Bytes to another host: frames, messages, channels, SSH, compression."""
