"""Every order of messages and failures, to a depth, of the change of the sync set and of an election."""
