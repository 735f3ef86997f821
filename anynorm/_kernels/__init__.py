"""What runs: one module for each kernel."""
