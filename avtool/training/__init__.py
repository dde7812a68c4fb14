"""Losses, data sets and loops that make the weights; never needed to run a model."""
