"""Synthetic chests, and the cohorts made of them."""
