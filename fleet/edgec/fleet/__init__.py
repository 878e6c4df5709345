"""The fleet server: which devices there are, what runs on them, and what is rolled out to them."""
