"""One model, and all of its forward passes."""
