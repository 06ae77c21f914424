"""One file a kind of site."""
