"""Threads that share a call."""
