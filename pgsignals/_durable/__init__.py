"""Durable channels on the server: the schema that keeps them."""
