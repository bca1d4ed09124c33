"""`limbeck audit`: what somebody else's trainer really did, from what it recorded. See `audit.run`."""
