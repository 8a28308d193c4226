"""The sketch localizer: finds in a photo what a sketch shows.

Source: Locformer, Tripathi et al. 2024 (arXiv 2303.08784), on ViDT, Song et al. 2022 (arXiv
2110.03921).
"""
