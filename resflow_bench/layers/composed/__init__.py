"""Layers made of linear maps and an activation, with a constant of their own."""
