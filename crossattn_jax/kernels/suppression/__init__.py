"""Non-maximum suppression of a batch that is split over devices."""
