"""What every package may use: errors, text, files, processes, ports. Imports nothing of the launcher."""
