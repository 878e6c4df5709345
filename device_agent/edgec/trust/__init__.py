"""Which artifact may run on which device: metadata signed by publishers, checked by devices."""
