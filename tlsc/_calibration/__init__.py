"""Corrections of statistics, found from unlabelled images."""
