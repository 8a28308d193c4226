"""Which classes a scene holds, learnt from tags; and from that, where they are."""
