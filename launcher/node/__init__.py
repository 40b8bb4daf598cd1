"""The per-node entrypoint: reads its place in the layout, starts its role's processes, watches them, ends them."""
