"""Known networks and their weights."""

from __future__ import annotations

from tlsc.adapters.nlm import NonLocalMeans, nonlocal_means
from tlsc.adapters.nlm_net import NLMNet
from tlsc.adapters.unet import DEMO_NETWORKS, DemoNetwork, UNet, load_demo_network

__all__ = [
    "DEMO_NETWORKS",
    "DemoNetwork",
    "NLMNet",
    "NonLocalMeans",
    "UNet",
    "load_demo_network",
    "nonlocal_means",
]
