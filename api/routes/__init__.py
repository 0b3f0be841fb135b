"""One module for each resource; `openai/` holds the doors that only OpenAI's clients need."""
