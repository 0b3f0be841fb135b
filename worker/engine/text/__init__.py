"""How tokens become text."""
