"""How good an index is: exact neighbours out of core, recall over a grid of settings, a page to show it."""
