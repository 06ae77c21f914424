"""What a user gets to see: tables, plots, pages."""
