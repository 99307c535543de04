"""What can be reasoned about alone: no socket, no thread and no clock in any of these modules."""
