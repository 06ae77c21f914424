"""A converted network on an image of any size, in pieces that together are the whole."""
