"""A container on this host: namespaces, mounts, cgroups, images, supervisors, system calls."""
