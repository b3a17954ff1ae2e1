"""What ``headwater bench`` measures: each subject beside a named baseline, in one run on the same data."""
