"""Messages of the bridge: packed, unpacked, summed, and reduced to what has changed."""
