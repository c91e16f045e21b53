"""Real servers and clients for the tests: each is started by a test and gone after it."""
