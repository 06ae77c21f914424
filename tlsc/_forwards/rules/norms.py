"""Instance and group norm as functions, or over flat positions."""

from __future__ import annotations


def normed(tracer: Tracing, node: fx.Node, name: str, base: fx.Node) -> Any:
    """Instance or group norm of a map (N, C, H, W), or (N, C, P), written as a function or over P."""
    kind: Map = facts(base).kind
    if node.op == "call_module":
        module = tracer.root.get_submodule(str(node.target))
        if kind.labels == "NCHW" or getattr(module, "track_running_stats", False):
            return kind  # a site of its own, or not global
    elif name == "instance_norm" and not argument(node, 5, "use_input_stats", True):
        return kind
    if kind.labels not in ("NCHW", "NCP"):
        return Opaque()
    facts(node).norm = True
    tracer.norms.append(node)
    return kind
