"""The per-node entrypoint: starts the processes of its slot in the layout, monitors them, ends them."""
