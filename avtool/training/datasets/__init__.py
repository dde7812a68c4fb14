"""Readers of the field's data sets: labels, splits and precomputed features, checked when they are opened."""
