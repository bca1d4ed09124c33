"""The objectives, pinned by enumeration of tiny vocabularies and by a naive twin."""
