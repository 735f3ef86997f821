"""The fast path of small calls: a compiled program in place of check, choose and run."""
