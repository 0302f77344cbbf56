"""From a TransformerSpec to a file: one module for each format."""
