"""What can happen to a run, done to one of seconds; the short part is tests/test_faults.py."""
