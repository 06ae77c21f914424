"""One file a family of formats: what a file's head says, and how its samples are decoded."""
