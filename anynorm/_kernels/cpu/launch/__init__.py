"""A call becomes a task for a kernel."""
