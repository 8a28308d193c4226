"""SwiftFormer and its original."""
