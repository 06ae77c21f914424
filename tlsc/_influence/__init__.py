"""How far input pixels reach."""
