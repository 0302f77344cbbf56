"""One module for each runtime, imported on demand: see `edgelm_runtimes.registry`."""
