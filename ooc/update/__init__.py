"""An index after it was built: rows appended, replaced, deleted; segments compacted; generations removed."""
