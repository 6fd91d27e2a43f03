"""The command line: one module a verb, over the Python API. The only code that knows rich."""
