"""OpenAI's fine-tuning jobs over ours: what is asked (`request`), and what is shown of a job (`view`), of its events
(`event_view`) and of its checkpoints (`checkpoint_view`)."""
