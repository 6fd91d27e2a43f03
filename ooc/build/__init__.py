"""Building: from a store to a published index, stage by stage.

Empty on purpose: ``ooc`` binds the function ``build`` over this package\x27s name after importing it."""
