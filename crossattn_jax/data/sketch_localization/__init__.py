"""Photos with objects, and drawings of their classes, which say what is searched for."""
