"""Where notifications come from: each source feeds the backlog and receives the outcomes."""
