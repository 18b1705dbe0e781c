"""What carries the bytes. ``base`` is the interface; each other module is one backend."""
