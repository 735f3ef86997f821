"""The norms in files of trained models: found by name, told apart, read without the rest of the file."""
