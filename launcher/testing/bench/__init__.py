"""Measurements that users can repeat on their own machines: ``python -m launcher.testing.bench``"""
