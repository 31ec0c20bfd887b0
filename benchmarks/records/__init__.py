"""What is measured and what is kept of it: cases, records, the folder they lie in, and where they were measured."""
