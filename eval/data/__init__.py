"""Test images: folders, pairs, degradations."""
