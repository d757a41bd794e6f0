"""Other people's tools, run against a cluster of ours."""
