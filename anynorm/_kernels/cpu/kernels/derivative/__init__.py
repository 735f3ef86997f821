"""The derivative: of row after row, and of rows side by side."""
