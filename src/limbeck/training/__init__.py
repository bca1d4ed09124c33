"""The loop and what it is made of: collect, evaluate, record, save."""
