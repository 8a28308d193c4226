"""ICAFusion and its original."""
