"""What stands behind a reactor: checked arguments, the reader thread, one life after another."""
