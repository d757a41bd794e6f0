"""What Matriarch shows: the REST API and the command line. They read snapshots and the log, and hold no logic."""
