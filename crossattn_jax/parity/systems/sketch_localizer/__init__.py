"""The sketch localizer (LocFormer) and its original."""
