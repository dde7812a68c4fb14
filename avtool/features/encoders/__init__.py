"""Encoders: one module per family; `catalog` gives each behind one record."""
