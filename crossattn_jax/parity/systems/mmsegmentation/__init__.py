"""What several systems take from mmsegmentation: heads, losses, evaluation."""
