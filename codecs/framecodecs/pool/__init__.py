"""The pool of pixel processes: its queue, its processes and their confinement."""
