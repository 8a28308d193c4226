"""RoIAlign: a map resampled within boxes."""
