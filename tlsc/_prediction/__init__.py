"""What converting would gain, without targets."""
