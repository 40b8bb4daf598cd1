"""The bridge's data plane: ways for messages to go, one contract (:mod:`launcher.bridge.transport.base`)."""
