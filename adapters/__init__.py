"""Known networks and their weights."""

from __future__ import annotations

from tlsc.adapters.descriptor import Descriptor, Padding
from tlsc.adapters.hinet import HINet
from tlsc.adapters.mprnet import MPRNet
from tlsc.adapters.unet import DEMO_NETWORKS, DemoNetwork, UNet, load_demo_network

__all__ = [
    "DEMO_NETWORKS",
    "DemoNetwork",
    "Descriptor",
    "HINet",
    "MPRNet",
    "Padding",
    "UNet",
    "load_demo_network",
]
