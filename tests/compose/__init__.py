"""compose.yaml, really run: a Docker daemon of its own, images built here, and the cluster that a user would get."""
