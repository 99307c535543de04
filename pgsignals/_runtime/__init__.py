"""What the process does around us: forks, finalizers amid our own code, log handlers that raise."""
