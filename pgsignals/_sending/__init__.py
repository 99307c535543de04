"""The sending side: what leaves in a transaction of the caller's own."""
