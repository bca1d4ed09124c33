"""Every table of a recipe, as strict, frozen classes."""
