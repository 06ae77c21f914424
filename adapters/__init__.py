"""Known networks and their weights."""

from __future__ import annotations

from tlsc.adapters.unet import DEMO_NETWORKS, DemoNetwork, UNet, load_demo_network

__all__ = ["DEMO_NETWORKS", "DemoNetwork", "UNet", "load_demo_network"]
