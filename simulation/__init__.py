"""A simulated world whose shoppers ask the real server, and in which the expected value of every list is known."""
