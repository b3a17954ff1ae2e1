"""Retrieval, ranking, calibration, evaluation, bundles: everything learned from events."""
