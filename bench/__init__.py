"""Benchmarks: pymigrate beside podman, runc and raw CRIU, in one run on one machine."""
