"""MMCA and its original."""
