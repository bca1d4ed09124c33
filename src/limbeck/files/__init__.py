"""Files that Limbeck writes and reads back: their names, their digests, and what a disk answers."""
