"""Keys and values in slots, and the attention over them."""
