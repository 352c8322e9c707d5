"""The peers that make the same pictures: one file each."""
