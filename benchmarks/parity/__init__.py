"""Random definitions over random streams: every engine against the naive fold, bit for bit."""
