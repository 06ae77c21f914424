"""Other people's models: looked at and run without being touched."""
