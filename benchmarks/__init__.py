"""Measurements that compare this project with its peers."""
