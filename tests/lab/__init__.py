"""A lab: hosts with their own network, names, disks and ssh, made of namespaces on one machine."""

from tests.lab.client import Client
from tests.lab.host import Host, Place, Process
from tests.lab.lab import Lab
from tests.lab.registry import LabError, sweep

__all__ = ["Client", "Host", "Lab", "LabError", "Place", "Process", "sweep"]
