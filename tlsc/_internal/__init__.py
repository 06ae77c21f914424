"""What ``tlsc.adapters`` and ``tlsc.eval`` use of the inside: names that stay when the rooms behind them change."""
