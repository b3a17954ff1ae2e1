"""What can go wrong, by who can mend it.

HeadwaterError
├── ConfigError          a setting or flag is wrong: change the setting
├── DefinitionError      a feature definition cannot be compiled: change the definition
├── DataError            input data is malformed or missing a column: mend the data
├── NotAnswerableError   the online store is asked about the past: ask the offline store
├── ModelError           a bundle is refused (schema, hash, version): retrain or choose another
├── UnavailableError     a part does not answer: start it or wait
└── ResourceError        the machine lacks something: a port, disk, memory, network, Java

A message names the subject and value, the reason, and the next step.
"""


class HeadwaterError(Exception):
    """Base of all errors that are told to a person in one sentence."""


class ConfigError(HeadwaterError):
    """A setting or flag is wrong."""


class DefinitionError(HeadwaterError):
    """A feature definition cannot be compiled exactly."""


class DataError(HeadwaterError):
    """Input data is malformed."""


class NotAnswerableError(HeadwaterError):
    """The online store holds now, and only now."""


class ModelError(HeadwaterError):
    """A model bundle is refused."""


class UnavailableError(HeadwaterError):
    """A part of the platform does not answer."""


class ResourceError(HeadwaterError):
    """The machine lacks a port, disk, memory, network or Java."""
