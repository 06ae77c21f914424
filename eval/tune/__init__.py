"""Which sites of a network to convert, and with which windows, decided on photographs."""
