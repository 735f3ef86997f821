"""What the commands of `anynorm` do."""
