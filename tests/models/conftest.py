"""A loaded machine is no failing example."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
