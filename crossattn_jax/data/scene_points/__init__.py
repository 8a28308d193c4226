"""Coloured point clouds of rooms with photographs of them: two tasks learn from their batches."""
