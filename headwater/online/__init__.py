"""The online store: packed values on Redis or Valkey, written idempotently, read as a matrix."""
