"""BiFormer and its original."""
