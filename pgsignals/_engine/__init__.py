"""One life of a reactor: its threads, from start to stop."""
