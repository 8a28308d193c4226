"""Weighted sums of bilinear samples of several maps: what deformable attention looks at."""
