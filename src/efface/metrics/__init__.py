"""Metrics: functions from pictures (and prompts) to numbers; rates, statistics, distances, detectors."""
