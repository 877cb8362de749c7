"""The folders of the older hooks, read while those hooks still write into them, and never changed."""
