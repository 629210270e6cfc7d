"""The phasing benchmark: every method on the same crystals with the same time. See ../README.md."""
