"""Audio classification: the events in a clip."""
