"""Casemate: compartment VMs in the Qubes OS model on any Linux host with libvirt."""

__version__ = "0.1.0"
