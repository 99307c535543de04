"""From the backlog to the handlers, and the outcome back to the source."""
