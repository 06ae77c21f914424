"""Modules under their names of 0.1: ``tlsc.eval.metrics`` is found here, and is :mod:`tlsc.eval.judge.metrics`.

The folder lies on ``tlsc.eval``'s own path; nothing else refers to it.
"""
