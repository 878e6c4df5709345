"""What Acme adds to edgec; nothing heavy here, because listing targets imports this."""
