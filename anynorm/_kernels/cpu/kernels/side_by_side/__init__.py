"""Rows side by side, where neighbours in memory belong to different rows."""
