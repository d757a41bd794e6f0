"""The command line. Modules are imported when their command runs: `matriarch version` must not wait for grpc."""
