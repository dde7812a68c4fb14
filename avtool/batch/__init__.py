"""Whole folders: plan, run, record, close."""
