"""`limbeck serve`: a scoring server that is exact at any temperature."""
