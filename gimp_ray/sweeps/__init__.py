"""Searches of runs on Ray Tune."""
