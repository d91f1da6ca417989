"""The reader of examples: checked batches of one size, whatever they come from."""
