"""Headwater: one definition per feature, equal in training and in serving."""

__version__ = "0.1.0"
