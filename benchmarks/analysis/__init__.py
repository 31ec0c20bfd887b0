"""What the records of a study say, and how two studies differ."""
