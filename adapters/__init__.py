"""Known networks and their weights."""

from __future__ import annotations

from tlsc.adapters.checkpoints import CheckpointError
from tlsc.adapters.descriptor import Descriptor, Padding
from tlsc.adapters.ffdnet import FFDNet, load_demo_ffdnet
from tlsc.adapters.hinet import HINet
from tlsc.adapters.loading import load
from tlsc.adapters.mprnet import MPRNet
from tlsc.adapters.nlm import NonLocalMeans, nonlocal_means
from tlsc.adapters.nlm_net import NLMNet
from tlsc.adapters.pieces.running import Pieces, Report
from tlsc.adapters.running import run
from tlsc.adapters.unet import DEMO_NETWORKS, DemoNetwork, UNet, load_demo_network

__all__ = [
    "DEMO_NETWORKS",
    "CheckpointError",
    "DemoNetwork",
    "Descriptor",
    "FFDNet",
    "HINet",
    "MPRNet",
    "NLMNet",
    "NonLocalMeans",
    "Padding",
    "Pieces",
    "Report",
    "UNet",
    "load",
    "load_demo_ffdnet",
    "load_demo_network",
    "nonlocal_means",
    "run",
]
