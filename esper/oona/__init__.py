"""Oona, the message bus: streams on a Redis or Valkey server."""
