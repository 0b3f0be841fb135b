"""How each sequence's next token is chosen."""
