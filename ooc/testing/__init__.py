"""What tests of ``ooc``, and of stores written elsewhere, can use. Needs pytest."""
