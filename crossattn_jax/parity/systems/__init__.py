"""One folder per system: its adapters and the correspondence of its parameters."""
