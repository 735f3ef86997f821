"""The short way for small calls like one before."""
