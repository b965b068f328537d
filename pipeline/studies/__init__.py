"""Grids of trainings, their folders, tables and figures."""
